"""Convert raw IDs to rows of the item table, and rows to recommendations, for every kind of recommender."""

import logging
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data.tokenization import ItemTokenizer, as_item_ids
from ..evaluation.ranking import stable_top_k
from ..models.configuration_bert4rec import SPECIAL_TOKENS
from .arguments import check_option, read_histories, read_item_lists, read_list

logger = logging.getLogger(__name__)

DEFAULT_BATCH_SIZE = 64
BATCHES_WITHOUT_PROGRESS_BAR = 8
MAX_SCORES = 2**26  # per batch, users × catalog: a quarter of a gigabyte
MAX_REPORTED = 100_000
ITEM_LISTS = {"allow", "deny"}
NUMBERS = {"top_k", "candidates"}
SCORES_ARE_DAMAGED = "The model's scores are NaN or infinite: its weights are damaged or its training diverged."


class Recommendation(TypedDict):
    """One recommended item. `score` is the model's probability that it is next, over the whole catalog.

    A model trained with `gbce` or `bce` overstates it for likely items; the order is not affected. With an `index`,
    `score` is the logit, and for similar items the cosine.
    """

    item: str
    title: str | None
    score: float


class Recommendations(list[Recommendation]):
    """The items for one history, best first.

    Attributes:
        reason: Why there are fewer than `top_k`. None if there are `top_k`, and for similar items and ONNX graphs.
    """

    reason: str | None = None


class ItemCatalog:
    """The items of a tokenizer, as requests and answers need them.

    Attributes:
        removed: Rows of removed items.
        closed: (rows,) bool tensor: the rows that are never recommended, those of removed items and special tokens.
        unknown: Number of unknown IDs that have been skipped so far.
        report: Whether unknown IDs are logged; False on a server, which must not log histories.
    """

    def __init__(self, tokenizer: ItemTokenizer) -> None:
        self.tokenizer = tokenizer
        self.removed = tokenizer.encode_items(tokenizer.removed).astype(np.int64)
        self.closed = torch.arange(len(tokenizer)) < len(SPECIAL_TOKENS)
        self.closed[torch.from_numpy(self.removed)] = True
        self.unknown = 0
        self.report = True
        self._reported: set[str] = set()

    def read_rows(self, lists: Sequence[list[Any]], name: str, skip_unknown: bool = True) -> list[np.ndarray]:
        """Return the rows of the item table for each list of raw IDs.

        Unknown IDs are reported, and skipped or, with `skip_unknown=False`, returned as [UNK].
        """
        ids = as_item_ids(chain.from_iterable(lists), name)
        rows = self.tokenizer.encode_items(ids).astype(np.int64)
        known = rows != self.tokenizer.unk_token_id
        if not known.all():
            unknown = ids.filter(pa.array(~known)).to_pylist()
            self.unknown += len(unknown)
            if self.report and not self._reported.issuperset(unknown):
                examples = ", ".join(map(repr, unknown[:3]))
                number = f"{len(unknown)} of {len(ids)}"
                logger.warning("%s: %s IDs are unknown and skipped, such as %s.", name, number, examples)
                self._reported.update(unknown if len(self._reported) < MAX_REPORTED else ())
        if not skip_unknown:
            known[:] = True
        ends = np.append(0, np.cumsum(known))[np.cumsum(list(map(len, lists)), dtype=np.int64)]
        return np.split(rows[known], ends[:-1]) if lists else []

    def known_rows(self, items: Sequence[Any], name: str) -> np.ndarray:
        """Return the rows of the item table for raw IDs; ValueError for an unknown one."""
        ids = as_item_ids(items, name)
        rows = self.tokenizer.encode_items(ids).astype(np.int64)
        if (unknown := rows == self.tokenizer.unk_token_id).any():
            raise ValueError(f"{name}: the model has no item {ids[int(unknown.argmax())].as_py()!r}. Remove it.")
        return rows

    def describe(self, rows: np.ndarray, scores: np.ndarray, counts: Sequence[int]) -> list[Recommendations]:
        """Return the first `counts` items of each user for rows and scores (users, items)."""
        places, titles = np.maximum(rows - len(SPECIAL_TOKENS), 0).ravel(), self.tokenizer.titles
        items = self.tokenizer.items.take(pa.array(places)).to_pylist()
        names = [titles[place] for place in places.tolist()] if titles else [None] * len(items)
        fields = zip(items, names, scores.ravel().tolist(), strict=True)
        answers = [Recommendation(item=item, title=title, score=score) for item, title, score in fields]
        starts = range(0, len(answers), rows.shape[1]) if rows.shape[1] else [0] * len(rows)
        return [Recommendations(answers[start : start + count]) for start, count in zip(starts, counts, strict=True)]


def answer_in_batches(
    catalog: ItemCatalog,
    histories: Any,
    lists: dict[str, Any],
    batch_size: int | None,
    answer: Callable[[list[np.ndarray], dict[str, list[np.ndarray]]], list[Any]],
) -> list[Any]:
    """Return the answer for each history of raw IDs, in the same order.

    Args:
        catalog: Its items.
        histories: Histories of raw IDs.
        lists: `allow` and `deny`, if they were given.
        batch_size: Histories per batch, fewer with a large catalog; by default 64.
        answer: Function of the rows of a batch, and of the rows of each list (one for all histories, or one for each),
            which returns one answer per history.
    """
    rows = catalog.read_rows(read_histories(histories), "histories")
    listed = {name: catalog.read_rows(read_item_lists(value, name, len(rows)), name) for name, value in lists.items()}

    def of_batch(chosen: list[int]) -> list[Any]:
        return answer([rows[i] for i in chosen], choose(listed, chosen))

    return in_batches(catalog, list(map(len, rows)), batch_size, of_batch)


def choose(listed: dict[str, list[np.ndarray]], chosen: list[int]) -> dict[str, list[np.ndarray]]:
    """Return the rows of lists for some histories; a single list is for all of them."""
    return {name: of if len(of) == 1 else [of[i] for i in chosen] for name, of in listed.items()}


def in_batches(
    catalog: ItemCatalog, lengths: Sequence[int], batch_size: int | None, answer: Callable[[list[int]], list[Any]]
) -> list[Any]:
    """Return the answer for each history, in the same order, from batches of histories of similar length.

    `answer` gets the places of some histories and returns one answer per history.
    """
    batch_size = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
    check_option("batch_size", batch_size)
    batch_size = max(1, min(batch_size, MAX_SCORES // len(catalog.tokenizer)))
    order = np.argsort([-length for length in lengths], kind="stable")
    answers: list[Any] = [None] * len(lengths)
    starts = range(0, len(lengths), batch_size)
    quiet = len(starts) < BATCHES_WITHOUT_PROGRESS_BAR
    for start in tqdm(starts, desc="Scoring", unit="batch", disable=quiet, leave=False):
        chosen = order[start : start + batch_size].tolist()
        for i, found in zip(chosen, answer(chosen), strict=True):
            answers[i] = found
    return answers


def check_scores(scores: torch.Tensor) -> None:
    """Raise ValueError unless all scores are finite."""
    if not scores.isfinite().all():
        raise ValueError(SCORES_ARE_DAMAGED)


def check_options(options: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the options that are not None, with `allow` and `deny` as lists; ValueError for invalid ones."""
    if unknown := sorted(options.keys() - names):
        raise ValueError(f"Unknown option {unknown[0]!r}. The options are {', '.join(names)} and batch_size.")
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if name in ITEM_LISTS:
            given[name] = read_list(value, name)
        elif name in NUMBERS or name == "exclude_history":
            check_option(name, value)
    return given


@torch.no_grad()
def item_vectors(model: PreTrainedModel) -> np.ndarray:
    """Return the vectors of all items with the bias as the last number, (items, hidden + 1) float32."""
    weight, bias = model._item_weights()
    return torch.cat([weight, bias[:, None]], dim=1)[len(SPECIAL_TOKENS) :].float().cpu().numpy()


def similar_items(catalog: ItemCatalog, vectors: np.ndarray, items: Any, top_k: int) -> list[Recommendations]:
    """Return the items with the most similar vectors for each raw ID; see `NextItemRecommendationPipeline.similar`.

    `vectors` (items, width) are those of the catalog, of length 1.
    """
    check_option("top_k", top_k)
    places = catalog.known_rows(read_list(items, "items"), "items") - len(SPECIAL_TOKENS)
    answers: list[Recommendations] = []
    for place in places:  # one at a time, because each has a number for every item
        cosines = torch.from_numpy(vectors @ vectors[place])[None]
        cosines[:, torch.from_numpy(np.append(catalog.removed - len(SPECIAL_TOKENS), place))] = -torch.inf
        found, best = (part.numpy() for part in stable_top_k(cosines, min(top_k, len(vectors))))
        answers += catalog.describe(best + len(SPECIAL_TOKENS), found, np.isfinite(found).sum(axis=1).tolist())
    return answers
