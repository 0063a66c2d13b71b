"""Questions about any position of a history: what fits a gap, which item is a surprise, and what a score comes from."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypedDict

import numpy as np
import pandas as pd
import torch

from ..data.data_collator import pad_rows
from ..data.ids import as_item_ids
from ..evaluation.ranking import target_ranks
from ..models.configuration_bert4rec import SPECIAL_TOKENS
from .answers import ItemCatalog, Recommendations, check_scores, choose, in_batches
from .arguments import read_histories, read_item_lists, read_list

Score = Callable[..., torch.Tensor]
"""Function of histories of rows, and of the place of [MASK] in each, by default after the newest item, which returns
the logits there, (histories, rows)."""


class Surprise(TypedDict):
    """An item of a history, and how likely it is given all other items of the history.

    `log_probability` is a natural logarithm, over the whole catalog. `rank` counts from 1, without the other items of
    the history where the model excludes them; a tie counts half a place, rounded up. Both are None for an unknown ID.
    """

    item: str
    title: str | None
    log_probability: float | None
    rank: int | None


class Contribution(TypedDict):
    """An item of a history, and how much lower the log-probability of the explained item is without it.

    Above 0 the item speaks for the explained one, below 0 against it. It is 0 for an item that the model does not read.
    """

    item: str
    title: str | None
    contribution: float


def fill_gaps(
    catalog: ItemCatalog,
    histories: Any,
    lists: dict[str, Any],
    batch_size: int | None,
    answer: Callable[[list[np.ndarray], list[int], dict[str, list[np.ndarray]]], list[Recommendations]],
) -> list[list[Recommendations]]:
    """Return the best items for each gap; see `NextItemRecommendationPipeline.fill`.

    `answer` gets histories of rows, the place of the gap in each, and the rows of each list.
    """
    given, mask = read_histories(histories), catalog.tokenizer.mask_token_id
    empty = [np.array([_is_missing(item) for item in history], bool) for history in given]
    items = [[item for item in history if not _is_missing(item)] for history in given]
    known = catalog.read_rows(items, "histories", skip_unknown=False)
    rows = []
    for gaps, found in zip(empty, known, strict=True):
        whole = np.full(len(gaps), mask)
        whole[~gaps] = found
        rows.append(whole[whole != catalog.tokenizer.unk_token_id])
    listed = {name: catalog.read_rows(read_item_lists(value, name, len(rows)), name) for name, value in lists.items()}

    def answer_some(users: list[int], places: list[int]) -> list[Recommendations]:
        return answer([rows[user] for user in users], places, choose(listed, users))

    return _answer_each(catalog, rows, [np.flatnonzero(history == mask) for history in rows], batch_size, answer_some)


def surprise(
    catalog: ItemCatalog, score: Score, histories: Any, batch_size: int | None, exclude_history: bool
) -> list[list[Surprise]]:
    """Return log-probability and rank of each item; see `NextItemRecommendationPipeline.surprise`."""
    given, unknown = read_histories(histories), catalog.tokenizer.unk_token_id
    rows = catalog.read_rows(given, "histories", skip_unknown=False)
    read = [history[history != unknown] for history in rows]

    def answer(users: list[int], masked: list[int]) -> list[tuple[float, int]]:
        targets = torch.tensor([int(read[user][place]) for user, place in zip(users, masked, strict=True)])
        logits = score([read[user] for user in users], masked)
        found = logits.gather(1, targets[:, None])
        log_probabilities = (found - logits.logsumexp(dim=1, keepdim=True))[:, 0]
        check_scores(log_probabilities)
        logits[:, torch.from_numpy(catalog.removed)] = -torch.inf
        logits.scatter_(1, targets[:, None], found)
        others = [read[user][read[user] != target] for user, target in zip(users, targets.tolist(), strict=True)]
        excluded = torch.from_numpy(pad_rows(others, -100)[0]) if exclude_history else None
        ranks = target_ranks(logits, targets, excluded).ceil().int()
        return list(zip(log_probabilities.tolist(), ranks.tolist(), strict=True))

    numbers = _answer_each(catalog, read, [np.arange(len(history)) for history in read], batch_size, answer)
    answers = []
    for (items, titles), history, of in zip(describe_histories(catalog, given, rows), rows, numbers, strict=True):
        known = iter(of)
        found = [(None, None) if row == unknown else next(known) for row in history]
        fields = zip(items, titles, found, strict=True)
        answers.append([Surprise(item=it, title=name, log_probability=p, rank=rank) for it, name, (p, rank) in fields])
    return answers


def explain(
    catalog: ItemCatalog, score: Score, history: Any, item: str | float, batch_size: int | None
) -> list[Contribution]:
    """Return the contribution of each item to a score; see `NextItemRecommendationPipeline.explain`."""
    given, tokenizer = [read_list(history, "history", ordered=True)], catalog.tokenizer
    (rows,) = catalog.read_rows(given, "history", skip_unknown=False)
    (target,) = catalog.known_rows([item], "item")
    read = np.flatnonzero(rows != tokenizer.unk_token_id)
    read = read[max(0, len(read) - tokenizer.model_max_length + 1) :]
    shorter = [rows[np.delete(read, place)] for place in range(len(read))]
    variants = [rows[read], *shorter]

    def answer(chosen: list[int]) -> list[float]:
        logits = score([variants[i] for i in chosen])
        log_probabilities = logits[:, target] - logits.logsumexp(dim=1)
        check_scores(log_probabilities)
        return log_probabilities.tolist()

    whole, *without = in_batches(catalog, list(map(len, variants)), batch_size, answer)
    contributions = np.zeros(len(rows))
    contributions[read] = whole - np.array(without)
    ((items, titles),) = describe_histories(catalog, given, [rows])
    fields = zip(items, titles, contributions.tolist(), strict=True)
    return [Contribution(item=it, title=title, contribution=number) for it, title, number in fields]


def describe_histories(
    catalog: ItemCatalog, histories: Sequence[list[Any]], rows: Iterable[np.ndarray]
) -> list[tuple[list[str], list[str | None]]]:
    """Return the IDs and titles of the items of each history; the title of an unknown ID is None."""
    titles, specials = catalog.tokenizer.titles, len(SPECIAL_TOKENS)
    return [
        (
            as_item_ids(history, "histories").to_pylist(),
            [titles[row - specials] if titles and row >= specials else None for row in found.tolist()],
        )
        for history, found in zip(histories, rows, strict=True)
    ]


def _is_missing(item: Any) -> bool:
    return item is None or item is pd.NA or (isinstance(item, float) and math.isnan(item))


def _answer_each(
    catalog: ItemCatalog,
    rows: Sequence[np.ndarray],
    places: Sequence[np.ndarray],
    batch_size: int | None,
    answer: Callable[[list[int], list[int]], list[Any]],
) -> list[list[Any]]:
    """Return the answers at some places of each history. `answer` gets histories and places of a batch."""
    questions = [(user, int(place)) for user, of in enumerate(places) for place in of]

    def of_batch(chosen: list[int]) -> list[Any]:
        users, masked = zip(*(questions[i] for i in chosen), strict=True)
        return answer(list(users), list(masked))

    answers = iter(in_batches(catalog, [len(rows[user]) for user, _ in questions], batch_size, of_batch))
    return [[next(answers) for _ in of] for of in places]
