"""Convert raw IDs to token IDs, and token IDs to recommendations, for every kind of recommender."""

import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, pairwise
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import torch
from torch.nn.functional import normalize
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data.arguments import check_count
from ..data.tokenization import ItemTokenizer, as_item_ids
from ..evaluation.ranking import NOT_FINITE, stable_top_k
from ..models.configuration_bert4rec import SPECIAL_TOKENS
from .arguments import read_item_lists

logger = logging.getLogger(__name__)

DEFAULT_BATCH_SIZE = 64
ANSWERS_WITHOUT_PROGRESS_BAR = 512
MAX_SCORES = 2**26  # per batch, users × catalog: a quarter of a gigabyte
MAX_WARNED = 100_000  # unknown IDs that are remembered, to log each of them once


class Recommendation(TypedDict):
    """One recommended item: its raw ID `item`, its `title` (None if it has none) and its `score`.

    `score` is the probability of the item at the predicted position (the next item, or a gap), over the whole catalog.
    A model trained with `gbce` or `bce` overstates the probability of likely items, but the order is right. With an
    `index`, `score` is the logit. For similar items it is the cosine.
    """

    item: str
    title: str | None
    score: float


class Recommendations(list[Recommendation]):
    """The items for one history, best first.

    Attributes:
        reason: Why there are fewer than `top_k` items, otherwise None. Always None for similar items and ONNX graphs.
    """

    reason: str | None = None


class ItemCatalog:
    """The items of a tokenizer, with methods that convert raw IDs to token IDs, and scores to recommendations."""

    def __init__(self, tokenizer: ItemTokenizer) -> None:
        self.tokenizer = tokenizer
        self._read_removed()
        self.batch_size = DEFAULT_BATCH_SIZE  # answers per batch, if a call names no other number
        self.unknown = 0  # number of unknown IDs that have been skipped so far
        self.report = True  # whether unknown IDs are logged; False on a server, which must not log histories
        self._warned: set[str] = set()

    def _read_removed(self) -> None:
        """Read `tokenizer.removed`, as token IDs in `removed` and as a bool for each token ID in `closed`."""
        items = [*self.tokenizer.removed]
        rows = self.tokenizer.encode_items(items).astype(np.int64)
        if unknown := np.array(items, object)[missing := rows == self.tokenizer.unk_token_id].tolist():
            text = "Correct `tokenizer.removed`: %d of its %d IDs are unknown and skipped, such as %s."
            logger.warning(text, len(unknown), len(items), ", ".join(map(repr, unknown[:10])))
        self.removed = rows[~missing]
        self.closed = closed_rows(len(self.tokenizer), self.removed)
        self._removed_items = items

    def update(self) -> None:
        """Apply changes of `tokenizer.removed`; ValueError if the tokenizer has other items than before."""
        if len(self.tokenizer) != len(self.closed):
            found = f"{len(self.closed)} tokens when the recommender was built, and has {len(self.tokenizer)} now"
            raise ValueError(f"The tokenizer had {found}. Build a new recommender after you add items.")
        if self.tokenizer.removed != self._removed_items:
            self._read_removed()

    def read_rows(self, lists: Sequence[list[Any]], name: str, keep_unknown: bool = False) -> list[np.ndarray]:
        """Return the token IDs for each list of raw IDs.

        Unknown IDs are logged once if `report` is true. They are skipped, or become [UNK] if `keep_unknown` is true.
        """
        ids, rows, known = self._rows(chain.from_iterable(lists), name)
        if not known.all():
            self.unknown += int((~known).sum())
            unknown = ids.filter(pa.array(~known)).to_pylist() if self.report else []
            if not self._warned.issuperset(unknown):
                examples = ", ".join(map(repr, [*dict.fromkeys(unknown)][:3]))
                found = f"{len(unknown)} of {len(ids)}"
                logger.warning("%s: %s IDs are unknown and skipped, such as %s.", name, found, examples)
                self._warned.update(unknown if len(self._warned) < MAX_WARNED else ())
        known |= keep_unknown
        ends = np.append(0, np.cumsum(known))[np.cumsum([0, *map(len, lists)], dtype=np.int64)].tolist()
        kept = rows[known]
        return [kept[start:end] for start, end in pairwise(ends)]  # np.split takes five times as long for one history

    def unknown_ids(self, lists: Iterable[Iterable[Any]]) -> list[str]:
        """Return the raw IDs of the lists that are not in the model, each once, in the order of the lists."""
        ids, _, known = self._rows(chain.from_iterable(lists), "item IDs")
        return ids.filter(pa.array(~known)).unique().to_pylist()

    def known_rows(self, items: Iterable[Any], name: str) -> np.ndarray:
        """Return the token IDs for raw IDs; ValueError for an unknown ID."""
        ids, rows, known = self._rows(items, name)
        if not known.all():
            missing = ids[int(known.argmin())].as_py()
            raise ValueError(f"{name}: the model has no item {missing!r}. Pass the ID of an item of the model.")
        return rows

    def _rows(self, items: Iterable[Any], name: str) -> tuple[pa.StringArray, np.ndarray, np.ndarray]:
        self.update()
        ids = as_item_ids(items, name)
        rows = self.tokenizer.encode_items(ids).astype(np.int64)
        return ids, rows, rows != self.tokenizer.unk_token_id

    def title(self, row: int) -> str | None:
        """Return the title of a token ID; None for special tokens, and for items without a title."""
        titles, place = self.tokenizer.titles, row - len(SPECIAL_TOKENS)
        return titles[place] if titles and place >= 0 else None

    def describe(self, rows: np.ndarray, scores: np.ndarray, counts: Sequence[int]) -> list[Recommendations]:
        """Return the first `counts` items of each user, from token IDs and scores (users, items)."""
        # All users at once, because a look-up in Arrow takes longer than the item itself.
        places, titles = np.maximum(rows - len(SPECIAL_TOKENS), 0).ravel(), self.tokenizer.titles
        items = self.tokenizer.items.take(pa.array(places)).to_pylist()
        names = [titles[place] for place in places.tolist()] if titles else [None] * len(items)
        fields = zip(items, names, scores.ravel().tolist(), strict=True)
        answers = [Recommendation(item=item, title=title, score=score) for item, title, score in fields]
        starts = range(0, len(answers), rows.shape[1]) if rows.shape[1] else [0] * len(rows)
        return [Recommendations(answers[start : start + count]) for start, count in zip(starts, counts, strict=True)]

    def similar(
        self, vectors: np.ndarray, items: Any, top_k: int, closed: torch.Tensor | None = None
    ) -> list[Recommendations]:
        """Return the most similar items for each raw ID. `vectors` are the `unit_vectors` of the catalog.

        `closed` (vocab_size,) bool are the token IDs to exclude, by default the removed items.
        """
        check_count("top_k", top_k)
        places = self.known_rows(items, "items") - len(SPECIAL_TOKENS)
        answers: list[Recommendations] = []
        excluded = (self.closed if closed is None else closed)[len(SPECIAL_TOKENS) :]
        for place in places:  # one at a time, because each needs a cosine for every item
            cosines = torch.from_numpy(vectors @ vectors[place])[None]
            check_scores(cosines)
            cosines[:, excluded] = cosines[:, place] = -torch.inf
            found, best = (part.numpy() for part in stable_top_k(cosines, min(top_k, len(vectors))))
            answers += self.describe(best + len(SPECIAL_TOKENS), found, np.isfinite(found).sum(axis=1).tolist())
        return answers

    def answer_in_batches(
        self,
        rows: Sequence[np.ndarray],
        answer: Callable[..., list[Any]],
        batch_size: int | None,
        places: Sequence[Sequence[int]] | None = None,
        **lists: Any,
    ) -> list[Any]:
        """Return the answers for positions in histories, as one list in the order of histories and positions.

        `places` are the positions in each history. By default the only position is the one after the last item. The
        function `answer` gets the token IDs of the histories of a batch, and a position in each. `lists`, such
        as `allow`, are raw item IDs, one list for all histories or one per history; `answer` gets their token IDs.
        """
        batch_size = self.batch_size if batch_size is None else batch_size
        check_count("batch_size", batch_size)
        batch_size = max(1, min(batch_size, MAX_SCORES // len(self.tokenizer)))
        listed = {name: self.read_rows(read_item_lists(value, name, len(rows)), name) for name, value in lists.items()}
        asked = [[len(history)] for history in rows] if places is None else places
        questions = [(user, place) for user, of in enumerate(asked) for place in of]
        # Histories of similar length form a batch, so that there is little padding.
        order = sorted(range(len(questions)), key=lambda i: -len(rows[questions[i][0]]))
        answers: list[Any] = [None] * len(questions)
        starts = range(0, len(questions), batch_size)
        many = len(questions) >= ANSWERS_WITHOUT_PROGRESS_BAR  # for a few, building a bar takes longer than it helps
        # `disable=None`: no bar in a log file.
        for start in tqdm(starts, desc="Scoring", unit="batch", leave=False, disable=None) if many else starts:
            chosen = order[start : start + batch_size]
            users = [questions[i][0] for i in chosen]
            of_batch = {name: of if len(of) == 1 else [of[user] for user in users] for name, of in listed.items()}
            found = answer([rows[user] for user in users], [questions[i][1] for i in chosen], **of_batch)
            for i, value in zip(chosen, found, strict=True):
                answers[i] = value
        return answers


def closed_rows(rows: int, removed: np.ndarray) -> torch.Tensor:
    """Return a bool for each token ID: True for special tokens and removed items."""
    closed = torch.arange(rows) < len(SPECIAL_TOKENS)
    closed[torch.from_numpy(removed)] = True
    return closed


def check_scores(scores: torch.Tensor | np.ndarray) -> None:
    """Raise ValueError unless all scores are finite."""
    finite = np.isfinite(scores) if isinstance(scores, np.ndarray) else scores.isfinite()
    if not finite.all():
        raise ValueError(f"The scores are NaN or infinite. {NOT_FINITE}")


@torch.no_grad()
def item_vectors(model: PreTrainedModel) -> np.ndarray:
    """Return the vectors of all items with the bias as the last number, (items, hidden + 1) float32."""
    weight, bias = model._item_weights()
    return torch.cat([weight, bias[:, None]], dim=1)[len(SPECIAL_TOKENS) :].float().cpu().numpy()


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Return the vectors of `item_vectors` without the bias, with length 1."""
    return normalize(torch.from_numpy(vectors[:, :-1])).numpy()
