"""Next-item recommendation: histories of raw item IDs in; IDs, titles and scores out, best first."""

import logging
from collections.abc import Iterable, Sequence
from itertools import chain
from os import PathLike
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import torch
import transformers
from tqdm.auto import tqdm
from transformers import AutoModelForMaskedLM, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from ..data.data_collator import pad_rows
from ..data.tokenization import as_item_ids
from ..evaluation.ranking import stable_top_k
from ..hub.checkpoint import check_sizes, fetch_checkpoint, stored_exclude_history
from ..models.configuration_bert4rec import SPECIAL_TOKENS
from ..training.resources import warn_about_spinning_threads
from .arguments import check_option, read_histories, read_item_lists, read_list

logger = logging.getLogger(__name__)

TASK = "next-item-recommendation"
DEFAULT_BATCH_SIZE = 64
BATCHES_WITHOUT_PROGRESS_BAR = 8
MAX_SCORES = 2**26  # per batch, users × catalog: a quarter of a gigabyte
LENGTH_MULTIPLE = 16
MIN_ROWS = 4
MAX_REPORTED = 100_000
ITEM_LISTS = {"allow", "deny"}
OPTIONS = ("top_k", "exclude_history", "allow", "deny")


class Recommendation(TypedDict):
    """One recommended item. `score` is the model's probability that it is next, over the whole catalog.

    A model trained with `gbce` or `bce` overstates it for likely items; the order is not affected.
    """

    item: str
    title: str | None
    score: float


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
        self._reported: set[str] = set()
        removed = self.tokenizer.removed  # usually none: encoding looks at the whole catalog
        self._removed = torch.tensor(self.tokenizer.encode_items(removed) if removed else [], dtype=torch.long)

    def __call__(self, histories: Iterable[Iterable[str | float]], **kwargs: Any) -> list[list[Recommendation]]:
        """Recommend items for any number of histories.

        Args:
            histories: One list of raw item IDs per user, oldest first; also for a single user: `[["1", "6"]]`. Numbers
                are converted as `load_interactions` does: 1 and 1.0 are "1".
            **kwargs: `top_k` (10): number of items per user. `exclude_history`: whether to exclude the items of the
                history, as in the model's evaluation (`model.config.exclude_history`) if not given. `allow`: IDs of
                the only items to recommend. `deny`: IDs of items not to recommend. Both are one list for all
                histories, or one list per history. `batch_size`: see the class.

        Returns:
            The items for each history, in the same order, best first; fewer than `top_k` if fewer are left.

        Raises:
            ValueError: An argument has another form, or the model's scores are not finite.
        """
        if (batch_size := kwargs.pop("batch_size", None)) is None:
            batch_size = self._batch_size or DEFAULT_BATCH_SIZE
        check_option("batch_size", batch_size)
        batch_size = max(1, min(batch_size, MAX_SCORES // len(self.tokenizer)))
        options = {**self._postprocess_params, **self._sanitize_parameters(**kwargs)[2]}
        rows = self._encode(read_histories(histories), "histories")
        lists = {
            name: self._encode(read_item_lists(options.pop(name), name, len(rows)), name)
            for name in ITEM_LISTS & options.keys()
        }

        # Histories of similar length form a batch, so that there is little padding.
        order = np.argsort([-len(history) for history in rows], kind="stable")
        answers: list[list[Recommendation]] = [[] for _ in rows]
        starts = range(0, len(rows), batch_size)
        quiet = len(starts) < BATCHES_WITHOUT_PROGRESS_BAR
        for start in tqdm(starts, desc="Recommending", unit="batch", disable=quiet, leave=False):
            chosen = order[start : start + batch_size]
            outputs = self.forward(self.preprocess([rows[i] for i in chosen]))
            for name, items in lists.items():
                items = items if len(items) == 1 else [items[i] for i in chosen]
                outputs[name] = torch.from_numpy(pad_rows(items, self.tokenizer.pad_token_id)[0])
            for i, answer in zip(chosen, self.postprocess(outputs, **options), strict=True):
                answers[i] = answer
        return answers

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        if unknown := sorted(options.keys() - OPTIONS):
            raise ValueError(f"Unknown option {unknown[0]!r}. The options are {', '.join(OPTIONS)} and batch_size.")
        given = {name: value for name, value in options.items() if value is not None}
        for name, value in given.items():
            if name in ITEM_LISTS:
                given[name] = read_list(value, name)
            else:
                check_option(name, value)
        return {}, {}, given

    def _encode(self, lists: Sequence[list[Any]], name: str) -> list[np.ndarray]:
        """Return the rows of the item table for each list of raw IDs, without unknown IDs, which are reported."""
        ids = as_item_ids(chain.from_iterable(lists), name)
        rows = self.tokenizer.encode_items(ids)
        known = rows != self.tokenizer.unk_token_id
        unknown = ids.filter(pa.array(~known)).to_pylist()
        if not self._reported.issuperset(unknown):
            examples = ", ".join(map(repr, unknown[:3]))
            number = f"{len(unknown)} of {len(ids)}"
            logger.warning("%s: %s IDs are unknown and skipped, such as %s.", name, number, examples)
            self._reported.update(unknown if len(self._reported) < MAX_REPORTED else ())
        ends = np.append(0, np.cumsum(known))[np.cumsum(list(map(len, lists)), dtype=np.int64)]
        return np.split(rows[known], ends[:-1]) if lists else []

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

    def _forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        query = inputs["attention_mask"].sum(dim=1, keepdim=True) - 1
        # Two queries, because torch computes attention for a single query differently, split over threads.
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        states = self.model.model(ids, mask, kept_positions=query.expand(-1, 2)).last_hidden_state[:, 0]
        logits = self.model.score_items(states)[: len(inputs["history"])].float()
        return {"logits": logits, "history": inputs["history"]}

    def postprocess(
        self, outputs: dict[str, torch.Tensor], top_k: int = 10, exclude_history: bool | None = None
    ) -> list[list[Recommendation]]:
        """Return the `top_k` best items for each user; raise ValueError if scores are not finite.

        `outputs` are `logits` (users, rows), which are overwritten; `history` (users, longest) rows; and optionally
        `allow` and `deny` (users or 1, longest) rows, padded with [PAD].
        """
        scores = outputs["logits"]
        normalizer = scores.logsumexp(dim=1, keepdim=True)
        if not normalizer.isfinite().all():
            raise ValueError(
                "The model's scores are NaN or infinite: its weights are damaged or its training diverged."
            )
        if self.model.config.exclude_history if exclude_history is None else exclude_history:
            scores.scatter_(1, outputs["history"], -torch.inf)
        scores[:, : len(SPECIAL_TOKENS)] = -torch.inf
        scores[:, self._removed] = -torch.inf
        for name in ITEM_LISTS & outputs.keys():
            listed = torch.zeros(len(outputs[name]), scores.shape[1], dtype=torch.bool).scatter_(1, outputs[name], True)
            scores.masked_fill_(~listed if name == "allow" else listed, -torch.inf)
        values, rows = stable_top_k(scores, min(top_k, scores.shape[1]))
        places = (rows - len(SPECIAL_TOKENS)).clamp(min=0).flatten().tolist()
        items, titles = self.tokenizer.items.take(places).to_pylist(), self.tokenizer.titles
        names = [titles[place] for place in places] if titles else [None] * len(items)
        fields = zip(items, names, (values - normalizer).exp().flatten().tolist(), strict=True)
        answers = [Recommendation(item=item, title=title, score=score) for item, title, score in fields]
        starts, left = range(0, len(answers), values.shape[1]), values.isfinite().sum(dim=1).tolist()
        return [answers[start : start + count] for start, count in zip(starts, left, strict=True)]


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
