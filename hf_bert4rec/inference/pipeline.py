"""Next-item recommendation: histories of raw item ids in; ids, titles and scores out, best first."""

import logging
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from numbers import Integral
from os import PathLike
from typing import Any, TypedDict

import numpy as np
import torch
import transformers
from tqdm.auto import tqdm
from transformers import AutoModelForMaskedLM, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from ..data.data_collator import pad_rows
from ..data.tokenization import ItemTokenizer
from ..evaluation.ranking import stable_top_k
from ..hub.checkpoint import check_sizes, fetch_checkpoint
from ..models.configuration_bert4rec import SPECIAL_TOKENS
from ..training.resources import keep_freed_memory

logger = logging.getLogger(__name__)

TASK = "next-item-recommendation"
DEFAULT_BATCH_SIZE = 64
BATCHES_WITHOUT_PROGRESS_BAR = 8
MOST_SCORES = 2**26  # at a time, users × catalogue: a quarter of a gigabyte
VECTOR = 16
FEWEST_ROWS = 4


class Recommendation(TypedDict):
    """One recommended item. `score` is the model's probability that it is next, over the whole catalogue.

    A model trained with `gbce` or `bce` overstates it for likely items; the order is not affected.
    """

    item: str
    title: str | None
    score: float


class NextItemRecommendationPipeline(Pipeline):
    """Recommend the next item for histories of raw item ids.

        recommender = hf_bert4rec.pipeline("org/bert4rec-ml1m")
        recommender([["1", "6", "2571"]], top_k=10)

    What happens to a history that is not plain: ids that the model does not know are skipped, and reported in one
    warning; an empty history (or one of unknown ids) is answered by the model's own prior, its prediction for a lone
    [MASK]; of a history longer than the model takes the newest items are read, while all of it is excluded; and items
    with exactly equal scores come in the order of the item table, so that the answer never flips.

    Args:
        model: A `Bert4RecForMaskedLM`.
        tokenizer: The `ItemTokenizer` of the same checkpoint.
        batch_size: Histories scored at a time, 64 if not given, and fewer where the catalogue is large. The answer
            depends neither on it nor on the order of the histories: items in the same order, scores equal to 1e-5 (bit
            for bit on the processors tried).
        **kwargs: As for `transformers.pipeline`, and defaults for the arguments of a call.

    Raises:
        ValueError: Model and tokenizer are of different catalogues.
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.tokenizer, ItemTokenizer):
            raise ValueError(
                f"Expected an ItemTokenizer, found {type(self.tokenizer).__name__}: load it with AutoTokenizer after "
                "`import hf_bert4rec`, from a folder that was saved with one."
            )
        check_sizes(self.model, self.tokenizer)
        self.model.eval()
        if self.device.type == "cpu":
            keep_freed_memory()

    def __call__(self, histories: Sequence[Iterable[str]], **kwargs: Any) -> list[list[Recommendation]]:
        """Recommend for a batch of histories, any number of them.

        Args:
            histories: One list of raw item ids a user, oldest first; also for a single user: `[["1", "6"]]`.
            **kwargs: `top_k` (10), items for each user; `exclude_history` (True), whether items of the history are left
                out; `allow`, the ids to choose among, all if not given; `deny`, ids to leave out; `batch_size`.

        Returns:
            For each history, in the same order, its items, best first: fewer than `top_k` where fewer are left.

        Raises:
            ValueError: A flat list of ids instead of a list of histories, or `top_k` below 1.
        """
        batch_size = kwargs.pop("batch_size", None) or self._batch_size or DEFAULT_BATCH_SIZE
        if batch_size < 1:
            raise ValueError(f"Expected batch_size of at least 1, found {batch_size}.")
        batch_size = max(1, min(batch_size, MOST_SCORES // len(self.tokenizer)))
        _, _, options = self._sanitize_parameters(**kwargs)
        options = {**self._postprocess_params, **options}
        options["candidates"] = self._candidates(options.pop("allow", None), options.pop("deny", None))
        rows = self._encode(histories)

        # Like lengths together, so that little is padding; each answer goes back to where its history stood.
        order = np.argsort([-len(history) for history in rows], kind="stable")
        answers: list[list[Recommendation]] = [[] for _ in rows]
        starts = range(0, len(rows), batch_size)
        quiet = len(starts) < BATCHES_WITHOUT_PROGRESS_BAR
        for start in tqdm(starts, desc="Recommending", unit="batch", disable=quiet, leave=False):
            chosen = order[start : start + batch_size]
            outputs = self.forward(self.preprocess([rows[i] for i in chosen]))
            for i, answer in zip(chosen, self.postprocess(outputs, **options), strict=True):
                answers[i] = answer
        return answers

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        exclude_history: bool | None = None,
        allow: Iterable[str] | None = None,
        deny: Iterable[str] | None = None,
        **unknown: Any,
    ) -> tuple[dict, dict, dict]:
        if unknown:
            raise ValueError(
                f"Nobody reads {min(unknown)!r}: there are top_k, exclude_history, allow, deny and batch_size."
            )
        if top_k is not None and (not isinstance(top_k, Integral) or top_k < 1):
            raise ValueError(f"Expected top_k to be a whole number of at least 1, found {top_k}.")
        for name, ids in (("allow", allow), ("deny", deny)):
            if isinstance(ids, str):
                raise ValueError(f"Expected a list of ids for `{name}`, found {ids!r}.")
        allow, deny = (None if ids is None else list(ids) for ids in (allow, deny))
        options = {"top_k": top_k, "exclude_history": exclude_history, "allow": allow, "deny": deny}
        return {}, {}, {name: value for name, value in options.items() if value is not None}

    def _encode(self, histories: Sequence[Iterable[str]]) -> list[np.ndarray]:
        """Raw histories → known rows of the item table, one array a user."""
        histories = [histories] if isinstance(histories, str) else list(histories)
        if any(isinstance(history, str) or not isinstance(history, Iterable) for history in histories):
            raise ValueError(
                f"Expected a list of histories, found a flat list of ids. Put it in brackets: [{histories!r}]"[:300]
            )
        listed = [list(history) for history in histories]
        ids = list(map(str, chain.from_iterable(listed)))
        rows = self._known(ids, "of the histories")
        known = rows != self.tokenizer.unk_token_id
        ends = np.append(0, np.cumsum(known))[np.cumsum(list(map(len, listed)), dtype=np.int64)]
        return np.split(rows[known], ends[:-1]) if listed else []

    def _known(self, ids: list[str], where: str) -> np.ndarray:
        """Rows for ids, [UNK] for those that the model does not know, which are reported."""
        rows = self.tokenizer.encode_items(ids)
        unknown = np.flatnonzero(rows == self.tokenizer.unk_token_id)
        if len(unknown):
            shown = ", ".join(repr(ids[i]) for i in unknown[:3])
            logger.warning("%d of %d ids %s are unknown and skipped, such as %s.", len(unknown), len(ids), where, shown)
        return rows

    def preprocess(self, histories: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """Histories of rows → a batch whose queries are [MASK], after the newest items that fit.

        A history must get the same scores in any company, or near ties would be decided by the batch size. Matrix
        products and sums over whole vectors of the processor are the same to the bit, so the length is filled up to
        `VECTOR` positions, and the batch to `FEWEST_ROWS` rows.
        """
        limit = self.tokenizer.model_max_length
        kept = [history[max(0, len(history) - limit + 1) :] for history in histories]
        longest = min(limit, -(-(1 + max(map(len, kept))) // VECTOR) * VECTOR)
        missing = [np.empty(0, np.int64)] * (FEWEST_ROWS - len(histories))
        input_ids, real = pad_rows([*kept, *missing], self.tokenizer.pad_token_id, longest)
        queries = np.arange(len(real)), real.sum(axis=1)
        input_ids[queries], real[queries] = self.tokenizer.mask_token_id, True
        excluded, _ = pad_rows(histories, self.tokenizer.pad_token_id)
        batch = {"input_ids": input_ids, "attention_mask": real.astype(np.int64), "history": excluded}
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        query = inputs["attention_mask"].sum(dim=1, keepdim=True) - 1
        # Two queries, for a lone one takes another way through torch's attention, which is split over threads.
        states = self.model.model(
            inputs["input_ids"], inputs["attention_mask"], kept_positions=query.expand(-1, 2)
        ).last_hidden_state[:, 0]
        logits = self.model.score_items(states)[: len(inputs["history"])].float()
        return {"logits": logits, "history": inputs["history"]}

    def postprocess(
        self,
        outputs: dict[str, torch.Tensor],
        candidates: torch.Tensor | None,
        top_k: int = 10,
        exclude_history: bool | None = None,
    ) -> list[list[Recommendation]]:
        """Logits (users, rows) → the best items of each user that may be recommended."""
        scores = outputs.pop("logits")  # written over below
        normalizer = scores.logsumexp(dim=1, keepdim=True)
        if not normalizer.isfinite().all():
            raise ValueError("The model scores NaN or infinity: its weights are broken, or its training diverged.")
        if self.model.config.exclude_history if exclude_history is None else exclude_history:
            scores.scatter_(1, outputs["history"], -torch.inf)
        scores[:, : len(SPECIAL_TOKENS)] = -torch.inf
        if candidates is not None:
            scores.masked_fill_(~candidates, -torch.inf)
        values, rows = stable_top_k(scores, min(top_k, scores.shape[1]))
        left = values.isfinite().sum(dim=1).tolist()
        probabilities = (values - normalizer).exp().tolist()
        places = (rows - len(SPECIAL_TOKENS)).clamp(min=0).numpy()
        titles = self.tokenizer.titles
        items = iter(self.tokenizer.items.take(places.ravel()).to_pylist())
        names = (titles[place] if titles else None for place in places.ravel())
        answers = []
        for count, user_scores in zip(left, probabilities, strict=True):
            named = zip(islice(items, len(user_scores)), islice(names, len(user_scores)), user_scores, strict=True)
            answer = [Recommendation(item=item, title=title, score=score) for item, title, score in named]
            answers.append(answer[:count])
        return answers

    def _candidates(self, allow: Iterable[str] | None, deny: Iterable[str] | None) -> torch.Tensor | None:
        """Which rows may be recommended, (rows,) bool; None for all items."""
        if allow is None and deny is None:
            return None
        candidates = torch.full((len(self.tokenizer),), allow is None)
        for ids, value, name in ((allow, True, "of `allow`"), (deny, False, "of `deny`")):
            if ids is not None:
                candidates[self._known([str(item) for item in ids], name)] = value
        return candidates


PIPELINE_REGISTRY.register_pipeline(TASK, NextItemRecommendationPipeline, pt_model=AutoModelForMaskedLM)
# Else pipeline.save_pretrained writes the class into the configuration, and everybody who loads it is asked for
# trust_remote_code, although the class is installed.
del NextItemRecommendationPipeline._registered_impl


def pipeline(
    model: str | PathLike, *, revision: str | None = None, token: str | bool | None = None, **kwargs: Any
) -> NextItemRecommendationPipeline:
    """Load a recommender from a checkpoint folder or a Hub id.

    Args:
        model: Folder or Hub id. What was downloaded once is there offline too.
        revision: Branch, tag or commit of a Hub id; `main` if not given.
        token: For a private repository; that of `hf auth login` or HF_TOKEN if not given.
        **kwargs: As for `transformers.pipeline` (`device`, `dtype`, `batch_size` …), and defaults for the arguments of
            a call (`top_k`, `exclude_history`, `allow`, `deny`).

    Raises:
        OSError: It is not there, cannot be reached, or lacks a file of a checkpoint; weights that are a pickle count
            for nothing.
        ValueError: Weights, config, tokenizer and titles do not belong together.
    """
    return transformers.pipeline(TASK, model=str(fetch_checkpoint(model, revision, token)), **kwargs)
