"""Next-item recommendation: from histories of raw item IDs to IDs, titles and scores, best first."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from transformers import AutoModelForMaskedLM
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import logging

from ..data.arguments import check_count, is_collection, read_list
from ..data.data_collator import pad_rows
from ..data.ids import as_item_ids
from ..evaluation.ranking import target_ranks
from ..hub.checkpoint import check_sizes, fetch_checkpoint, stored_exclude_history, stored_recipe
from ..training.resources import warn_about_spinning_threads
from .answers import ItemCatalog, Recommendations, check_scores, item_vectors, unit_vectors
from .arguments import ITEM_LISTS, check_options, read_histories
from .attributes import ItemAttributes, read_attributes
from .scoring import ScoringPipeline
from .selection import Selection

logger = logging.get_logger(__name__)

TASK = "next-item-recommendation"
FILTERS = ("top_k", "exclude_history", "allow", "deny", "where", "where_not", "attributes", "rerank", "candidates")
OPTIONS = (*FILTERS, "index")
SIMILAR_OPTIONS = ("top_k", "allow", "deny", "where", "where_not", "attributes")


class NextItemRecommendationPipeline(ScoringPipeline):
    """Pipeline that recommends the next item for histories of raw item IDs.

        recommender = hf_bert4rec.pipeline("org/bert4rec-ml1m")
        recommender([["1", "6", "2571"]], top_k=10)

    - IDs that the tokenizer lacks are skipped. A warning reports their number, unless all of them were reported before.
    - For an empty history, or one of unknown IDs only, BERT4Rec scores items by their biases, which roughly have the
      order of their popularity. SASRec and GRU4Rec recommend what they have learned for the start of a history.
    - The model reads the newest `tokenizer.model_max_length` - 1 items of a history; `exclude_history` excludes all.
    - Items with the same score are in the order of `tokenizer.items`.
    - Items in `tokenizer.removed` may be in histories, but are never recommended, even if `allow` lists them. A
      change of this list applies from the next call on. After adding items to the tokenizer, build a new recommender.
    - The model is always in evaluation mode while it scores. A model in training mode returns to that mode.
    - Several threads may call the same pipeline at once, unless the model is in training mode.
    - Arguments of a wrong form raise ValueError. So do scores that are NaN or infinite.

    Args:
        model: `Bert4RecForMaskedLM` or another model of the package.
        tokenizer: The `ItemTokenizer` of the same checkpoint.
        batch_size: Histories per batch, by default 64, and fewer with a large catalog. Batch size and order of the
            histories do not affect the items and their order (CPU, float32). Scores agree within a relative tolerance
            of 1e-5.
        **kwargs: As for the class `transformers.Pipeline`, such as `device`, and defaults for the options of a call.
            `dtype` has no effect: load the model with this type, or use `hf_bert4rec.pipeline`.

    Raises:
        ValueError: Model and tokenizer do not belong together, or an option is invalid.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_sizes(self.model, self.tokenizer)
        if self.device.type == "cpu":
            warn_about_spinning_threads()
        self.model.eval()
        self.catalog = ItemCatalog(self.tokenizer)
        if self._batch_size is not None:
            check_count("batch_size", self._batch_size)
            self.catalog.batch_size = self._batch_size
        self.gap_warning_due = False  # until `fill` or `surprise` has warned
        self._select({}, OPTIONS)  # raises ValueError for invalid defaults; rules are not called yet

    def __call__(self, histories: Iterable[Iterable[str | float]], **kwargs: Any) -> list[Recommendations]:
        """Recommend items for any number of histories.

        Args:
            histories: One list of raw item IDs per user, oldest first; also for a single user: `[["1", "6"]]`. Numbers
                are converted as `load_interactions` does: 1 and 1.0 are "1".
            **kwargs: Options:

                - `top_k` (10): number of items per user.
                - `exclude_history`: whether to exclude the items of the history. Default: that of `model.config`.
                - `allow`: only these IDs can be recommended. `deny`: these IDs are never recommended. Pass one list
                  for all histories, or one list per history.
                - `where`: dict from attribute to condition, such as `{"in_stock": True}`. An item must fulfill all
                  conditions of `where`, and none of `where_not`. See `ItemAttributes.matching`.
                - `attributes`: a table with one row per item, or an `ItemAttributes`. Default: features of the model.
                - `rerank`: a rule that reorders or drops items, such as `at_most(2, "category")`, or a list of rules.
                - `candidates` (100): number of the best items that the first rule gets, or `top_k` if that is more.
                - `index`: an index of `index_vectors()` (usearch, FAISS, or a `Dataset` after `add_faiss_index`), from
                  which candidates are taken. The model ranks them, and `score` is the logit. Followers
                  (`num_followers`) are also candidates. With `allow`, all allowed items are ranked, without the index.
                  For a history without items, BERT4Rec takes the items with the largest biases instead. All other
                  options apply.
                - `batch_size`: see the class.

                None stands for the default of an option. Options of a call replace the defaults of the pipeline, but
                its `allow` and `deny` hold in addition to those of the call, except lists per history.

        Returns:
            One list of `Recommendation` per history, best first. Its `reason` says why it has fewer than `top_k` items.
        """
        return self._recommend(self.catalog.read_rows(read_histories(histories), "histories"), kwargs, OPTIONS)

    def fill(self, histories: Iterable[Iterable[str | float | None]], **kwargs: Any) -> list[list[Recommendations]]:
        """Return the best items for each gap of histories, given the items on both sides.

            recommender.fill([["260", None, "1210"]], top_k=5)[0][0]  # the first gap of the first history

        The [MASK] of the cloze task (BERT4Rec paper, section 3.6) is put into every gap. Each gap is filled as if the
        other gaps stayed empty, so two gaps may get the same item. A history may consist of gaps only. SASRec and
        GRU4Rec read the left side only. A warning is logged once if the run facts of the checkpoint say that the model
        was trained on last items only (`last_item_probability=1`), so that it has not learned to fill gaps.

        Args:
            histories: As for a call, with None, NaN or `pandas.NA` for each gap. Of a history with more than
                `tokenizer.model_max_length` positions, the model reads the part around the gap.
            **kwargs: The options of a call, except `index`. `exclude_history` excludes the items on both sides.

        Returns:
            For each history, one list of `Recommendation` per gap, in the order of the gaps.
        """
        self._warn_about_gaps()
        given, mask = read_histories(histories), self.tokenizer.mask_token_id
        gaps = [[pd.isna(item) is True for item in history] for history in given]
        items = [[item for item, gap in zip(*pair, strict=True) if not gap] for pair in zip(given, gaps, strict=True)]
        rows = []
        for of, known in zip(gaps, self.catalog.read_rows(items, "histories", keep_unknown=True), strict=True):
            history = np.full(len(of), mask)
            history[~np.array(of, bool)] = known
            rows.append(history[history != self.tokenizer.unk_token_id])
        places = [np.flatnonzero(history == mask).tolist() for history in rows]
        answers = iter(self._recommend(rows, kwargs, FILTERS, places))
        return [[next(answers) for _ in of] for of in places]

    def surprise(
        self, histories: Iterable[Iterable[str | float]], batch_size: int | None = None
    ) -> list[list[dict[str, Any]]]:
        """Return how likely each item of a history is, given the other items of the history.

        One item at a time is replaced by [MASK] and scored, as for `fill`; SASRec and GRU4Rec read only earlier items.
        Rare items are unlikely everywhere. `histories` and `batch_size` are as for a call.

        Returns:
            For each history one dict per item, with `item`, `title`, `log_probability` (natural logarithm, over the
            whole catalog) and `rank`, from 1. A rank does not count other items that are removed or, if the default of
            `exclude_history` is True, in the history. Each other item with the same score adds half a rank; the sum is
            rounded up. `log_probability` and `rank` are None for an unknown ID.
        """
        self._warn_about_gaps()
        given, unknown = read_histories(histories), self.tokenizer.unk_token_id
        rows = self.catalog.read_rows(given, "histories", keep_unknown=True)
        read = [history[history != unknown] for history in rows]
        exclude = self._postprocess_params.get("exclude_history", self.model.config.exclude_history)

        def answer(histories: list[np.ndarray], places: list[int]) -> list[dict[str, Any]]:
            targets = np.array([history[place] for history, place in zip(histories, places, strict=True)])
            logits, found = self._log_probabilities(histories, places, targets)
            excluded = [np.append(self.catalog.removed, history if exclude else history[:0]) for history in histories]
            others = [rows[rows != target] for rows, target in zip(excluded, targets, strict=True)]
            ranks = target_ranks(logits, torch.from_numpy(targets), torch.from_numpy(pad_rows(others, -100)[0]))
            pairs = zip(found, ranks.ceil().int().tolist(), strict=True)
            return [{"log_probability": value, "rank": rank} for value, rank in pairs]

        places = [range(len(history)) for history in read]
        found = iter(self.catalog.answer_in_batches(read, answer, batch_size, places=places))
        nothing = {"log_probability": None, "rank": None}
        numbers = [[nothing if row == unknown else next(found) for row in history] for history in rows]
        return [self._label(*of) for of in zip(given, rows, numbers, strict=True)]

    def explain(
        self, history: Iterable[str | float], item: str | float, batch_size: int | None = None
    ) -> list[dict[str, Any]]:
        """Return the contribution of each item of one history to the score of an item.

        The contribution is the log-probability that the explained item is next, minus this log-probability without the
        item of the history (leave-one-out, or occlusion: Zeiler and Fergus, ECCV 2014). Logarithms are natural.
        Contributions do not add up to the score: if two items carry the same information, each contributes little.

        Args:
            history: One flat list of raw IDs, oldest first.
            item: Raw ID of the item to explain, which may be in the history.
            batch_size: As for a call.

        Returns:
            One dict per item of the history, in its order, with `item`, `title` and `contribution`: above 0 the item
            raises the score, below 0 it lowers the score. Items that the model does not read, because they are too old
            or unknown, have a contribution of 0. ValueError if the model lacks the explained item.
        """
        given = read_list(history, "history", ordered=True)
        (rows,) = self.catalog.read_rows([given], "history", keep_unknown=True)
        (target,) = self.catalog.known_rows([item], "item")
        read = np.flatnonzero(rows != self.tokenizer.unk_token_id)
        read = read[max(0, len(read) - self.tokenizer.model_max_length + 1) :]
        variants = [rows[read], *(rows[np.delete(read, place)] for place in range(len(read)))]

        def answer(histories: list[np.ndarray], places: list[int]) -> list[float]:
            return self._log_probabilities(histories, places, np.repeat(target, len(places)))[1]

        whole, *without = self.catalog.answer_in_batches(variants, answer, batch_size)
        contributions = np.zeros(len(rows))
        contributions[read] = whole - np.array(without)
        return self._label(given, rows, [{"contribution": value} for value in contributions.tolist()])

    def encode(self, histories: Iterable[Iterable[str | float]], batch_size: int | None = None) -> np.ndarray:
        """Return the query vectors of histories, (histories, hidden + 1) float32.

        The arguments are as for a call. The inner product with a row of `item_vectors` is the logit of that item. The
        scores of a call are the softmax of the logits. A model with `repeat_head` has higher logits for items of the
        history, and a model with `num_followers` for items that often followed the last item in the training data.
        The last number of each vector is 1, because the last number of an item vector is the bias of the item.
        """

        def answer(histories: list[np.ndarray], places: list[int]) -> list[np.ndarray]:
            queries = self.forward(self.preprocess(histories, places), scored=False)["queries"]
            check_scores(queries)
            return list(queries.numpy())

        rows = self.catalog.read_rows(read_histories(histories), "histories")
        found = self.catalog.answer_in_batches(rows, answer, batch_size)
        return np.array(found, np.float32).reshape(-1, self.model.config.hidden_size + 1)

    def item_vectors(self) -> np.ndarray:
        """Return the vectors of all items in the order of `tokenizer.items`, (items, hidden + 1) float32.

        The last number of a vector is the bias of the item. Removed items are included.
        """
        return item_vectors(self.model)

    def index_vectors(self) -> np.ndarray:
        """Return `item_vectors` with one more number, (items, hidden + 2) float32, so that all norms are equal.

        With a zero at the end of each query vector, the inner products stay the same (Bachrach et al., RecSys 2014).
        A call with `index` appends this zero. If you search the index with vectors of `encode`, append it yourself.
        An approximate index finds items by their direction: with different norms, it can miss most of the best items.
        """
        vectors = self.item_vectors()
        squares = np.square(vectors, dtype=np.float64).sum(axis=1)
        return np.c_[vectors, np.sqrt(squares.max() - squares)].astype(np.float32)

    def similar(self, items: Iterable[str | float], top_k: int = 10, **kwargs: Any) -> list[Recommendations]:
        """Return a list of the `top_k` items with the most similar vectors for each raw ID, most similar first.

        `score` is the cosine of the vectors without the bias. The item itself and removed items are excluded. `kwargs`
        are the filters `allow`, `deny`, `where`, `where_not` and `attributes` of a call. Those of the pipeline apply
        too, except lists per history. Pass one list as `allow` or `deny`, which holds for all `items`. ValueError for
        an unknown item.
        """
        selection, lists = self._select({"top_k": top_k, **kwargs}, SIMILAR_OPTIONS, read_before=())
        for name, excluding in lists.items():
            if name in kwargs or not any(map(is_collection, excluding)):
                selection.restrict(name, excluding)
        return self.catalog.similar(unit_vectors(self.item_vectors()), items, top_k, selection.closed)

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        return {}, {}, check_options(options, OPTIONS, ("batch_size", "and those of `transformers.pipeline`"))

    def postprocess(self, outputs: dict[str, torch.Tensor], selection: Selection) -> list[Recommendations]:
        """Return the best items for each user; see `Selection.best`."""
        return selection.best(outputs)

    def _recommend(
        self, rows: Sequence[np.ndarray], given: dict[str, Any], names: Sequence[str], places: Any = None
    ) -> list[Recommendations]:
        """Return recommendations for each position in histories of token IDs; `given` are the options of a call."""
        size = given.pop("batch_size", None)
        selection, lists = self._select(given, names)

        def answer(rows: list[np.ndarray], places: list[int], **listed: list[np.ndarray]) -> list[Recommendations]:
            outputs = self.forward(self.preprocess(rows, places), scored=selection.index is None)
            pad = self.tokenizer.pad_token_id
            outputs |= {name: torch.from_numpy(pad_rows(items, pad)[0]) for name, items in listed.items()}
            return self.postprocess(outputs, selection)

        return self.catalog.answer_in_batches(rows, answer, size, places=places, **lists)

    def _select(
        self, given: dict[str, Any], names: Sequence[str], read_before: Sequence[str] = ("batch_size",)
    ) -> tuple[Selection, dict[str, Any]]:
        defaults = {name: value for name, value in self._postprocess_params.items() if name in names}
        given = check_options(given, names, read_before)
        self.catalog.update()
        options = {"exclude_history": self.model.config.exclude_history} | defaults | given
        lists = {name: options.pop(name) for name in ITEM_LISTS & options.keys()}
        table = options.pop("attributes", None)
        if any(options.get(name) for name in ("where", "where_not", "rerank")):
            options["attributes"] = self._features if table is None else read_attributes(table, self.tokenizer.items)
        selection = Selection(self.catalog, self.model, **options)
        for name in ITEM_LISTS & defaults.keys() & given.keys():
            if not any(map(is_collection, defaults[name])):  # lists per history are replaced
                selection.restrict(name, defaults[name])
        return selection, lists

    @cached_property
    def _features(self) -> ItemAttributes | None:
        """The item features of the model, read once. Tables that are passed may change between calls."""
        features = self.tokenizer.features
        return None if features is None else read_attributes(features, self.tokenizer.items)

    def _label(self, items: list[Any], rows: np.ndarray, numbers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return a dict for each item of a history: ID, title, and the given numbers."""
        ids, titles = as_item_ids(items, "histories").to_pylist(), map(self.catalog.title, rows.tolist())
        return [{"item": item, "title": title, **of} for item, title, of in zip(ids, titles, numbers, strict=True)]

    def _warn_about_gaps(self) -> None:
        if self.gap_warning_due:
            self.gap_warning_due = False
            logger.warning(
                "The model was trained on last items only (`last_item_probability=1`), so it has not learned to "
                "predict items inside a history. Train a new model with `prefixes=True`, `last_item_probability=0.9` "
                "and `max_predictions=1` (command line: `--prefixes true --last_item_probability 0.9 "
                "--max_predictions 1`)."
            )


def register_task() -> None:
    """Register the task `next-item-recommendation` with transformers."""
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
        revision: Branch, tag or commit of a repository on the Hub. Default: `main`.
        token: Access token for a private repository. Default: the token of `hf auth login` or HF_TOKEN.
        **kwargs: As for `transformers.pipeline` (`device`, `dtype`, `batch_size` …), and defaults for the options of
            a call.

    Raises:
        OSError: The checkpoint is missing or incomplete, or the Hub cannot be reached. Pickled weights are never read.
        ValueError: A file is damaged, the files do not belong together, or an argument is invalid.
    """
    if not isinstance(model, str | PathLike):
        raise ValueError(
            f"`model` must be a checkpoint folder or a Hub ID, found {type(model).__name__}. For a loaded model "
            "use `NextItemRecommendationPipeline(model=model, tokenizer=tokenizer)`."
        )
    folder = fetch_checkpoint(model, revision, token)
    recommender = transformers.pipeline(TASK, model=str(folder), **kwargs)
    recommender.model.config.exclude_history = stored_exclude_history(folder)
    recommender.gap_warning_due = stored_recipe(folder).get("last_item_probability") == 1
    return recommender
