"""Next-item recommendation: histories of raw item IDs in; IDs, titles and scores out, best first."""

import logging
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn.functional import normalize
from transformers import AutoModelForMaskedLM, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from ..data.data_collator import pad_rows
from ..hub.checkpoint import check_sizes, fetch_checkpoint, stored_exclude_history, stored_recipe
from ..training.resources import warn_about_spinning_threads
from .answers import (
    ITEM_LISTS,
    ItemCatalog,
    Recommendations,
    answer_in_batches,
    check_options,
    item_vectors,
    similar_items,
)
from .arguments import check_option
from .attributes import CatalogAttributes, ItemAttributes
from .masked_items import Contribution, Surprise, explain, fill_gaps, surprise
from .rules import as_rules, needed
from .selection import Selection

logger = logging.getLogger(__name__)

TASK = "next-item-recommendation"
LENGTH_MULTIPLE = 16
MIN_ROWS = 4
FILTERS = ("top_k", "exclude_history", "allow", "deny", "where", "where_not", "attributes", "rerank", "candidates")
OPTIONS = (*FILTERS, "index")


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
        self.trained_on_last_items = False
        self._attributes: tuple[Any, ItemAttributes] | None = None
        self._read_options({}, OPTIONS)  # errors in defaults come now, not with the first call

    def __call__(self, histories: Iterable[Iterable[str | float]], **kwargs: Any) -> list[Recommendations]:
        """Recommend items for any number of histories.

        Args:
            histories: One list of raw item IDs per user, oldest first; also for a single user: `[["1", "6"]]`. Numbers
                are converted as `load_interactions` does: 1 and 1.0 are "1".
            **kwargs: Options:

                - `top_k` (10): number of items per user.
                - `exclude_history`: whether to exclude the items of the history. Default: as in the evaluation of the
                  model (`model.config.exclude_history`).
                - `allow`: IDs of the only items that may be recommended. `deny`: IDs of items that are not
                  recommended. Both are one list for all histories, or one list per history.
                - `where`: conditions on attributes that an item must fulfill, such as `{"in_stock": True}`.
                  `where_not`: conditions that it must not fulfill. See `CatalogAttributes.matches`.
                - `attributes`: the table of attributes, or an `ItemAttributes`. Default: the item features of the
                  model.
                - `rerank`: a rule that reorders or drops items, such as `at_most(2, "category")`, or a list of rules.
                - `candidates` (100): number of items that a rule gets, at least `top_k`.
                - `index`: an index of `index_vectors()` (usearch, FAISS, or a `Dataset` after `add_faiss_index`), from
                  which candidates are taken. They are ranked by the model, and all other options hold. An item that
                  the index misses is missing.
                - `batch_size`: see the class.

                None stands for the default.

        Returns:
            The items for each history, in the same order, best first. If fewer than `top_k` are left, the attribute
            `reason` of the list says why.

        Raises:
            ValueError: An argument has another form, an attribute is unknown, or the model's scores are not finite.
        """
        options, lists, batch_size = self._read_options(kwargs, OPTIONS)

        def answer(rows: list[np.ndarray], listed: dict[str, list[np.ndarray]]) -> list[Recommendations]:
            outputs = self.forward(self.preprocess(rows), scored="index" not in options)
            return self.postprocess(outputs | self._pad_lists(listed), **options)

        return answer_in_batches(self.catalog, histories, lists, batch_size, answer)

    def fill(self, histories: Iterable[Iterable[str | float | None]], **kwargs: Any) -> list[list[Recommendations]]:
        """Return the best items for each gap of histories, given the items on both sides.

            recommender.fill([["260", None, "1210"]], top_k=5)[0][0]  # the first gap of the first history

        The [MASK] of the cloze task (paper, section 3.6) is put into every gap. Each gap is filled as if the others
        stayed empty, so two of them may get the same item. A history may consist of gaps only. SASRec and GRU4Rec read
        the left side only. A model that was trained on last items only (`last_item_probability=1`) has not learned to
        fill gaps: a warning says so.

        Args:
            histories: As for a call, with None for each gap. Of a longer history than the model reads, it reads the
                part around the gap.
            **kwargs: The options of a call, except `index`. `exclude_history` excludes the items of both sides.

        Returns:
            For each history, the items for each gap, in the order of the gaps.

        Raises:
            ValueError: As for a call.
        """
        options, lists, batch_size = self._read_options(kwargs, FILTERS)
        self._warn_about_gaps()

        def answer(rows: list[np.ndarray], masked: list[int], listed: dict[str, list[np.ndarray]]) -> list[Any]:
            outputs = self.forward(self.preprocess(rows, masked))
            return self.postprocess(outputs | self._pad_lists(listed), **options)

        return fill_gaps(self.catalog, histories, lists, batch_size, answer)

    def surprise(
        self, histories: Iterable[Iterable[str | float]], batch_size: int | None = None
    ) -> list[list[Surprise]]:
        """Return how likely each item of histories is, given all other items.

        One item at a time is replaced by [MASK] and scored, as for `fill`. Rare items are unlikely everywhere.

        Args:
            histories: As for a call.
            batch_size: As for a call.

        Returns:
            For each history one dict per item, with `item`, `title`, `log_probability` and `rank`.

        Raises:
            ValueError: As for a call.
        """
        self._warn_about_gaps()
        exclude = self._excludes_history(self._postprocess_params.get("exclude_history"))
        return surprise(self.catalog, self._score, histories, self._size(batch_size), exclude)

    def explain(
        self, history: Iterable[str | float], item: str | float, batch_size: int | None = None
    ) -> list[Contribution]:
        """Return the contribution of each item of one history to the score of an item.

        The contribution is the log-probability of the item as the next one, minus that without the item of the history
        (leave-one-out, or occlusion: Zeiler and Fergus, ECCV 2014). Contributions do not add up to the score: of two
        items that say the same, each contributes little.

        Args:
            history: Raw IDs, oldest first.
            item: The raw ID to explain, also one of the history.
            batch_size: As for a call.

        Returns:
            One dict per item of the history, in its order, with `item`, `title` and `contribution`. Of a long history,
            the newest items that the model reads are explained; the contribution of older and unknown ones is 0.

        Raises:
            ValueError: The model does not have the item, or an argument has another form.
        """
        return explain(self.catalog, self._score, history, item, self._size(batch_size))

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

    def similar(self, items: Iterable[str | float], top_k: int = 10) -> list[Recommendations]:
        """Return the items with the most similar vectors for each of some raw IDs, best first.

        `score` is the cosine of the vectors without the bias. The item itself and removed items are excluded.

        Raises:
            ValueError: The model does not have an item, or an argument has another form.
        """
        vectors = normalize(torch.from_numpy(self.item_vectors()[:, :-1])).numpy()
        return similar_items(self.catalog, vectors, items, top_k)

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        return {}, {}, check_options(options, OPTIONS)

    def preprocess(self, histories: list[np.ndarray], masked: Sequence[int] | None = None) -> dict[str, torch.Tensor]:
        """Make a batch from histories of rows, with [MASK] at one place of each; the result has it as `query`.

        A history must get the same scores in any batch; otherwise the batch size would decide near ties. Matrix
        products and sums over whole vectors of the processor are bit-equal, so the length is padded to a multiple of
        `LENGTH_MULTIPLE`, and the batch to at least `MIN_ROWS` rows.

        Args:
            histories: Rows of the item table.
            masked: Place of [MASK] in each history. If not given, [MASK] follows the newest item. Of a history that is
                too long, the part around it is kept.
        """
        limit, pad = self.tokenizer.model_max_length, self.tokenizer.pad_token_id
        places = list(map(len, histories)) if masked is None else masked
        lengths = [max(len(history), place + 1) for history, place in zip(histories, places, strict=True)]
        pairs = zip(places, lengths, strict=True)
        starts = [max(0, min(place - limit // 2, length - limit)) for place, length in pairs]
        kept = [history[start : start + limit] for history, start in zip(histories, starts, strict=True)]
        longest = min(limit, -(-max(lengths) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE)
        missing = MIN_ROWS - len(histories)
        input_ids, real = pad_rows([*kept, *[np.empty(0, np.int64)] * missing], pad, longest)
        query = np.zeros(len(real), np.int64)
        query[: len(starts)] = np.array(places) - starts
        queries = np.arange(len(real)), query
        input_ids[queries], real[queries] = self.tokenizer.mask_token_id, True
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(real.astype(np.int64)),
            "query": torch.from_numpy(query),
            "history": torch.from_numpy(pad_rows(histories, pad)[0]),
        }

    def _forward(self, inputs: dict[str, torch.Tensor], scored: bool = True) -> dict[str, torch.Tensor]:
        # Two queries, because torch computes attention for a single query differently, split over threads.
        ids, mask, history = inputs["input_ids"], inputs["attention_mask"], inputs["history"]
        query = inputs["query"][:, None].expand(-1, 2)
        states = self.model.model(ids, mask, kept_positions=query).last_hidden_state[:, 0]
        if scored:
            return {"logits": self.model.score_items(states)[: len(history)].float(), "history": history}
        queries = self.model.prediction_head(states)[: len(history)].float()
        return {"queries": torch.cat([queries, torch.ones_like(queries[:, :1])], dim=1), "history": history}

    def postprocess(
        self,
        outputs: dict[str, torch.Tensor],
        top_k: int = 10,
        exclude_history: bool | None = None,
        index: Any = None,
        closed: torch.Tensor | None = None,
        attributes: CatalogAttributes | None = None,
        rerank: Any = None,
        candidates: int = 100,
    ) -> list[Recommendations]:
        """Return the `top_k` best items for each user; raise ValueError if scores are not finite.

        `outputs` are `logits` (users, rows), which are overwritten, or with an index `queries` (users, hidden + 1);
        `history` (users, longest) rows; and optionally `allow` and `deny` (users or 1, longest) rows. Rows are padded
        with [PAD]. `closed` (rows,) are the rows that are never recommended.
        """
        selection = Selection(
            catalog=self.catalog,
            model=self.model,
            exclude_history=self._excludes_history(exclude_history),
            closed=self.catalog.closed if closed is None else closed,
            index=index,
            attributes=attributes,
            rules=rerank,
            candidates=candidates,
        )
        return selection.best_items(outputs, top_k)

    def _score(self, histories: list[np.ndarray], masked: list[int] | None = None) -> torch.Tensor:
        """Return the logits (histories, rows) at one place of each history."""
        return self.forward(self.preprocess(histories, masked))["logits"]

    def _pad_lists(self, listed: dict[str, list[np.ndarray]]) -> dict[str, torch.Tensor]:
        """Return `allow` and `deny` as `postprocess` needs them."""
        pad = self.tokenizer.pad_token_id
        return {name: torch.from_numpy(pad_rows(items, pad)[0]) for name, items in listed.items()}

    def _excludes_history(self, given: bool | None) -> bool:
        return bool(self.model.config.exclude_history if given is None else given)

    def _read_attributes(self, table: Any) -> ItemAttributes:
        """Read a table; the features of the model are read once, other tables may change between calls."""
        if table is not self.tokenizer.features:
            return ItemAttributes(table)
        if self._attributes is None or self._attributes[0] is not table:
            self._attributes = table, ItemAttributes(table)
        return self._attributes[1]

    def _warn_about_gaps(self) -> None:
        if self.trained_on_last_items:
            self.trained_on_last_items = False  # once
            logger.warning(
                "The model was trained on last items only (last_item_probability=1), so it has not learned to predict "
                "items inside a history. Train it with --prefixes false --last_item_probability 0.1."
            )

    def _read_options(
        self, given: dict[str, Any], names: Sequence[str]
    ) -> tuple[dict[str, Any], dict[str, Any], int | None]:
        """Return the options of `postprocess`, the item lists and the batch size of a call."""
        batch_size = given.pop("batch_size", None)
        defaults = {name: value for name, value in self._postprocess_params.items() if name in names}
        options = {**defaults, **check_options(given, names)}
        lists = {name: options.pop(name) for name in ITEM_LISTS & options.keys()}
        where, where_not = options.pop("where", {}), options.pop("where_not", {})
        table = options.pop("attributes", None)
        if "rerank" in options:
            options["rerank"] = as_rules(options["rerank"])
        if where != {} or where_not != {} or "rerank" in options:
            table = self.tokenizer.features if table is None else table
            if table is not None:
                table = table if isinstance(table, ItemAttributes) else self._read_attributes(table)
                options["attributes"] = table.of(self.tokenizer.items)
        if where != {} or where_not != {}:
            attributes = needed(options.get("attributes"))
            open_rows = attributes.matches(where).all(axis=0) & ~attributes.matches(where_not).any(axis=0)
            options["closed"] = self.catalog.closed | torch.from_numpy(~open_rows)
        return options, lists, self._size(batch_size)

    def _size(self, batch_size: int | None) -> int | None:
        return self._batch_size if batch_size is None else batch_size


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
            call of `NextItemRecommendationPipeline`.

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
    recommender.trained_on_last_items = stored_recipe(folder).get("last_item_probability") == 1
    return recommender
