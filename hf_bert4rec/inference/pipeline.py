"""Next-item recommendation: histories of raw item IDs in; IDs, titles and scores out, best first."""

from collections.abc import Iterable
from os import PathLike
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn.functional import normalize
from transformers import AutoModelForMaskedLM, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from ..data.data_collator import pad_rows
from ..evaluation.ranking import stable_top_k
from ..hub.checkpoint import check_sizes, fetch_checkpoint, stored_exclude_history
from ..models.configuration_bert4rec import SPECIAL_TOKENS
from ..training.resources import warn_about_spinning_threads
from .answers import (
    ITEM_LISTS,
    SCORES_ARE_DAMAGED,
    ItemCatalog,
    Recommendation,
    answer_in_batches,
    check_options,
    item_vectors,
    similar_items,
)
from .arguments import check_option
from .index import search_index

TASK = "next-item-recommendation"
LENGTH_MULTIPLE = 16
MIN_ROWS = 4
OPTIONS = ("top_k", "exclude_history", "allow", "deny", "index")
CANDIDATES = 4  # per recommended item, with an index


class NextItemRecommendationPipeline(Pipeline):
    """Recommend the next item for histories of raw item IDs.

        recommender = hf_bert4rec.pipeline("org/bert4rec-ml1m")
        recommender([["1", "6", "2571"]], top_k=10)

    - Unknown IDs are skipped. A warning reports how many; the same ID is not reported again.
    - An empty history, or one of unknown IDs only, returns the model's unconditional recommendations.
    - Of a history longer than the model's input, the model reads the newest items. All of them are excluded.
    - Items with the same score are in the order of the item table.
    - Removed items of the tokenizer are never recommended, also if `allow` lists them, and are read in histories.
    - Several threads may call the same pipeline at once.

    Args:
        model: A `Bert4RecForMaskedLM`.
        tokenizer: The `ItemTokenizer` of the same checkpoint.
        batch_size: Histories per batch, by default 64, and fewer with a large catalog. The result depends neither on
            it nor on the order of the histories: items are in the same order, and scores are equal to 1e-5.
        **kwargs: As for `transformers.pipeline`, and defaults for the options of a call.

    Raises:
        ValueError: Model and tokenizer have different catalogs.
    """

    _load_tokenizer = True
    _load_processor = _load_image_processor = _load_video_processor = _load_feature_extractor = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_sizes(self.model, self.tokenizer)
        if self._batch_size is not None:
            check_option("batch_size", self._batch_size)
        if self.device.type == "cpu":
            warn_about_spinning_threads()
        self.model.eval()
        self.catalog = ItemCatalog(self.tokenizer)

    def __call__(self, histories: Iterable[Iterable[str | float]], **kwargs: Any) -> list[list[Recommendation]]:
        """Recommend items for any number of histories.

        Args:
            histories: One list of raw item IDs per user, oldest first; also for a single user: `[["1", "6"]]`. Numbers
                are converted as `load_interactions` does: 1 and 1.0 are "1".
            **kwargs: `top_k` (10): number of items per user. `exclude_history`: whether to exclude the items of the
                history, as in the model's evaluation (`model.config.exclude_history`) if not given. `allow`: IDs of
                the only items to recommend. `deny`: IDs of items not to recommend. Both are one list for all
                histories, or one list per history. `index`: takes candidates from an index of `index_vectors()`
                (usearch, FAISS, or a `Dataset` after `add_faiss_index`), and ranks them by the model. Exclusions,
                `allow` and `deny` hold as without it; an item that the index misses is missing. `batch_size`: see
                the class.

        Returns:
            The items for each history, in the same order, best first; fewer than `top_k` if fewer are left.

        Raises:
            ValueError: An argument has another form, or the model's scores are not finite.
        """
        batch_size = kwargs.pop("batch_size", None)
        options = {**self._postprocess_params, **check_options(kwargs, OPTIONS)}
        lists = {name: options.pop(name) for name in ITEM_LISTS & options.keys()}

        def answer(rows: list[np.ndarray], listed: dict[str, list[np.ndarray]]) -> list[list[Recommendation]]:
            outputs = self.forward(self.preprocess(rows), scored="index" not in options)
            pad = self.tokenizer.pad_token_id
            outputs |= {name: torch.from_numpy(pad_rows(items, pad)[0]) for name, items in listed.items()}
            return self.postprocess(outputs, **options)

        return answer_in_batches(self.catalog, histories, lists, self._size(batch_size), answer)

    def encode(self, histories: Iterable[Iterable[str | float]], batch_size: int | None = None) -> np.ndarray:
        """Return the query vectors of histories, (histories, hidden + 1) float32.

        The inner product with a row of `item_vectors` is the logit of the item; scores are their softmax. The last
        number is 1: it meets the bias of the item.

        Raises:
            ValueError: As for a call.
        """

        def answer(rows: list[np.ndarray], _: dict[str, list[np.ndarray]]) -> list[np.ndarray]:
            return list(self.forward(self.preprocess(rows), scored=False)["queries"].numpy())

        found = answer_in_batches(self.catalog, histories, {}, self._size(batch_size), answer)
        return np.array(found, np.float32).reshape(-1, self.model.config.hidden_size + 1)

    def item_vectors(self) -> np.ndarray:
        """Return the vectors of all items in the order of `tokenizer.items`, (items, hidden + 1) float32.

        The last number is the bias. Removed items are included.
        """
        return item_vectors(self.model)

    def index_vectors(self) -> np.ndarray:
        """Return `item_vectors` with one more number, (items, hidden + 2) float32, so that all have the same length.

        The query vectors get a zero there, so the inner products stay the same. An index finds items by their
        direction: with vectors of different lengths it misses most of the best ones (Bachrach et al., RecSys 2014).
        """
        vectors = self.item_vectors()
        squares = np.square(vectors, dtype=np.float64).sum(axis=1)
        return np.c_[vectors, np.sqrt(squares.max() - squares)].astype(np.float32)

    def similar(self, items: Iterable[str | float], top_k: int = 10) -> list[list[Recommendation]]:
        """Return the items with the most similar vectors for each of some raw IDs, best first.

        `score` is the cosine of the vectors without the bias. The item itself and removed items are excluded.

        Raises:
            ValueError: The model does not have an item, or an argument has another form.
        """
        vectors = normalize(torch.from_numpy(self.item_vectors()[:, :-1])).numpy()
        return similar_items(self.catalog, vectors, items, top_k)

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        return {}, {}, check_options(options, OPTIONS)

    def preprocess(self, histories: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """Make a batch from histories of rows: the newest items that fit, then [MASK].

        A history must get the same scores in any batch; otherwise the batch size would decide near ties. Matrix
        products and sums over whole vectors of the processor are bit-equal, so the length is padded to a multiple of
        `LENGTH_MULTIPLE`, and the batch to at least `MIN_ROWS` rows.
        """
        limit, pad = self.tokenizer.model_max_length, self.tokenizer.pad_token_id
        kept = [history[max(0, len(history) - limit + 1) :] for history in histories]
        longest = min(limit, -(-(1 + max(map(len, kept))) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE)
        missing = [np.empty(0, np.int64)] * (MIN_ROWS - len(histories))
        input_ids, real = pad_rows([*kept, *missing], pad, longest)
        queries = np.arange(len(real)), real.sum(axis=1)
        input_ids[queries], real[queries] = self.tokenizer.mask_token_id, True
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(real.astype(np.int64)),
            "history": torch.from_numpy(pad_rows(histories, pad)[0]),
        }

    def _forward(self, inputs: dict[str, torch.Tensor], scored: bool = True) -> dict[str, torch.Tensor]:
        query = inputs["attention_mask"].sum(dim=1, keepdim=True) - 1
        # Two queries, because torch computes attention for a single query differently, split over threads.
        ids, mask, history = inputs["input_ids"], inputs["attention_mask"], inputs["history"]
        states = self.model.model(ids, mask, kept_positions=query.expand(-1, 2)).last_hidden_state[:, 0]
        if scored:
            return {"logits": self.model.score_items(states)[: len(history)].float(), "history": history}
        queries = self.model.prediction_head(states)[: len(history)].float()
        return {"queries": torch.cat([queries, torch.ones_like(queries[:, :1])], dim=1), "history": history}

    def postprocess(
        self, outputs: dict[str, torch.Tensor], top_k: int = 10, exclude_history: bool | None = None, index: Any = None
    ) -> list[list[Recommendation]]:
        """Return the `top_k` best items for each user; raise ValueError if scores are not finite.

        `outputs` are `logits` (users, rows), which are overwritten, or with an index `queries` (users, hidden + 1);
        `history` (users, longest) rows; and optionally `allow` and `deny` (users or 1, longest) rows. Rows are padded
        with [PAD].
        """
        if self.model.config.exclude_history if exclude_history is None else exclude_history:
            outputs["deny"] = torch.cat([outputs["history"], *_expanded(outputs, "deny")], dim=1)
        if index is not None:
            return self._rank_candidates(outputs, top_k, index)
        scores = outputs["logits"]
        normalizer = scores.logsumexp(dim=1, keepdim=True)
        if not normalizer.isfinite().all():
            raise ValueError(SCORES_ARE_DAMAGED)
        if "deny" in outputs:
            scores.scatter_(1, outputs["deny"].expand(len(scores), -1), -torch.inf)
        scores[:, : len(SPECIAL_TOKENS)] = -torch.inf
        scores[:, torch.from_numpy(self.catalog.removed)] = -torch.inf
        if "allow" in outputs:
            listed = torch.zeros(len(outputs["allow"]), scores.shape[1], dtype=torch.bool)
            scores.masked_fill_(~listed.scatter_(1, outputs["allow"], True), -torch.inf)
        values, rows = stable_top_k(scores, min(top_k, scores.shape[1]))
        return self._describe(rows, (values - normalizer).exp(), values)

    @torch.no_grad()
    def _rank_candidates(self, outputs: dict[str, torch.Tensor], top_k: int, index: Any) -> list[list[Recommendation]]:
        """Rank the items that the index finds, or those of `allow`. Search for more if too few are not excluded."""
        queries, items = outputs["queries"], len(self.tokenizer.items)
        if not queries.isfinite().all():
            raise ValueError(SCORES_ARE_DAMAGED)
        removed = torch.from_numpy(self.catalog.removed)[None]
        excluded = torch.cat([*_expanded(outputs, "deny"), removed.expand(len(queries), -1)], dim=1).sort(dim=1).values
        count = CANDIDATES * top_k
        while True:
            if "allow" in outputs:
                rows = torch.cat(_expanded(outputs, "allow")).sort(dim=1).values
            elif count < items:
                found = search_index(index, queries.numpy(), count, items)
                rows = (torch.from_numpy(found) + len(SPECIAL_TOKENS)).sort(dim=1).values
            else:
                rows = torch.arange(len(SPECIAL_TOKENS), len(self.tokenizer)).expand(len(queries), -1)
            left = rows >= len(SPECIAL_TOKENS)
            left[:, 1:] &= rows[:, 1:] != rows[:, :-1]  # an item that `allow` lists twice
            if excluded.shape[1]:
                places = torch.searchsorted(excluded, rows.contiguous()).clamp(max=excluded.shape[1] - 1)
                left &= excluded.gather(1, places) != rows
            if "allow" in outputs or count >= items or left.sum(dim=1).min() >= top_k:
                break
            count *= CANDIDATES
        weight, bias = (part.to("cpu") for part in self.model._item_weights())
        scores = [bias[of] + weight[of].float() @ query[:-1] for of, query in zip(rows, queries, strict=True)]
        values, order = stable_top_k(torch.stack(scores).masked_fill(~left, -torch.inf), min(top_k, rows.shape[1]))
        return self._describe(rows.gather(1, order), values, values)

    def _size(self, batch_size: int | None) -> int | None:
        return self._batch_size if batch_size is None else batch_size

    def _describe(self, rows: torch.Tensor, scores: torch.Tensor, values: torch.Tensor) -> list[list[Recommendation]]:
        return self.catalog.describe(rows.numpy(), scores.numpy(), values.isfinite().sum(dim=1).tolist())


def _expanded(outputs: dict[str, torch.Tensor], name: str) -> list[torch.Tensor]:
    """Return the rows of a list for each user, in a list of one tensor, or of none if it was not given."""
    return [outputs[name].expand(len(outputs["history"]), -1)] if name in outputs else []


def register_task() -> None:
    """Register the task with transformers."""
    PIPELINE_REGISTRY.register_pipeline(TASK, NextItemRecommendationPipeline, pt_model=AutoModelForMaskedLM)
    # Otherwise pipeline.save_pretrained writes the class into the configuration, and loading it requires
    # trust_remote_code, although the class is installed.
    del NextItemRecommendationPipeline._registered_impl


def pipeline(
    model: str | PathLike, *, revision: str | None = None, token: str | bool | None = None, **kwargs: Any
) -> NextItemRecommendationPipeline:
    """Load a recommender from a checkpoint folder or a Hub ID.

    Args:
        model: Folder or Hub ID. A downloaded checkpoint is also available offline.
        revision: Branch, tag or commit of a Hub ID; `main` if not given.
        token: For a private repository; that of `hf auth login` or HF_TOKEN if not given.
        **kwargs: As for `transformers.pipeline` (`device`, `dtype`, `batch_size` …), and defaults for the options of a
            call (`top_k`, `exclude_history`, `allow`, `deny`).

    Raises:
        OSError: The checkpoint is missing, incomplete or cannot be reached. Pickled weights are never read.
        ValueError: Weights, config, tokenizer and titles do not belong together.
    """
    if not isinstance(model, str | PathLike):
        raise ValueError(
            f"`model` must be a checkpoint folder or a Hub ID, found {type(model).__name__}. For objects use "
            "NextItemRecommendationPipeline(model=…, tokenizer=…)."
        )
    folder = fetch_checkpoint(model, revision, token)
    recommender = transformers.pipeline(TASK, model=str(folder), **kwargs)
    recommender.model.config.exclude_history = stored_exclude_history(folder)
    return recommender
