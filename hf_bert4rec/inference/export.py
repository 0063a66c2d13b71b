"""Checkpoints as ONNX graphs, which other runtimes execute, and the recommender that executes them here.

A graph contains the model, the exclusion of items and the selection of the best ones; see `RecommendationGraph`.
"""

import json
import logging
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel

from ..data.data_collator import pad_rows
from ..hub.checkpoint import (
    check_output,
    check_sizes,
    fetch_checkpoint,
    open_folder,
    replaced_folder,
    stored_exclude_history,
)
from ..hub.errors import read_json
from ..models.configuration_bert4rec import SPECIAL_TOKENS
from .answers import ItemCatalog, Recommendations, check_scores, closed_rows, item_vectors, unit_vectors
from .arguments import ITEM_LISTS, check_options, read_histories

GRAPH_FILE, FACTS_FILE, ITEMS_FILE, VECTORS_FILE = "model.onnx", "export.json", "catalog.parquet", "vectors.npy"
OPTIONS = ("top_k", "exclude_history", "allow", "deny")
PAD_ROW, MASK_ROW = SPECIAL_TOKENS.index("[PAD]"), SPECIAL_TOKENS.index("[MASK]")
MAX_BATCH = 2**16
BATCH_SIZE = 8  # histories that are scored together by default; 32 are slower in onnxruntime (docs/experiments.md)
ALL_ROWS, NO_ROWS = [slice(None)], [np.empty(0, np.int64)]  # if `allow` or `deny` was not given


class RecommendationGraph(nn.Module):
    """A model that maps histories to the best items, without data-dependent control flow, for `torch.export`.

    Args:
        model: Model with an item head, such as `Bert4RecForMaskedLM`.
        removed: (number,) token IDs of items that are never recommended.
    """

    def __init__(self, model: PreTrainedModel, removed: np.ndarray) -> None:
        super().__init__()
        self.model = model.eval()
        self.closed: Tensor
        self.register_buffer("closed", closed_rows(model.config.vocab_size, removed))

    def forward(self, history: Tensor, excluded: Tensor, allowed: Tensor, top_k: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best items.

        Args:
            history: (batch, length) int64 token IDs of the newest items, oldest first, padded with 0 on the right.
                `length` is from 1 to `max_position_embeddings` - 1. A row of zeros is an empty history.
            excluded: (batch, number) int64 token IDs not to recommend, such as the whole history; padded with 0.
            allowed: (batch, vocab_size) bool, True for the items that may be recommended.
            top_k: int64 scalar, number of items from 1 to `vocab_size`.

        Returns:
            (batch, top_k) int64 token IDs, best first, 0 after the last item if fewer are left; (batch, top_k) float32
            probabilities that an item is next, over the whole catalog; NaN if the weights are damaged. The outputs of
            the ONNX graph are named `items` and `scores`.
        """
        lengths = (history != PAD_ROW).sum(dim=1, keepdim=True)
        places = torch.arange(history.shape[1] + 1, device=history.device)[None]
        input_ids = torch.where(places == lengths, MASK_ROW, nn.functional.pad(history, (0, 1)))
        real = (places <= lengths).long()
        states = self.model.model(input_ids, real, kept_positions=lengths)[0]
        scores = self.model.score_items(states, input_ids, lengths)[:, 0].float().log_softmax(dim=1)
        damaged = scores[:, -1:].isnan()  # a single logit of NaN or +infinity makes all log-probabilities NaN
        scores = scores.masked_fill(self.closed | ~allowed, -torch.inf).scatter(1, excluded, -torch.inf)
        number: Any = top_k.item()
        torch._check(number >= 1)
        torch._check(number <= self.model.config.vocab_size)
        values, rows = scores.topk(number, dim=1)
        rows = torch.where(values == -torch.inf, PAD_ROW, rows)
        return rows, torch.where(damaged, torch.nan, values.exp())


def export_program(model: PreTrainedModel, removed: np.ndarray) -> ExportedProgram:
    """Return a `RecommendationGraph` as a graph of `torch.export`, with any batch size, length and `top_k`."""
    rows, positions = model.config.vocab_size, model.config.max_position_embeddings
    example = (
        torch.full((3, min(5, positions - 1)), rows - 1),
        torch.full((3, 7), rows - 1),
        torch.ones(3, rows, dtype=torch.bool),
        torch.tensor(2),
    )
    batch, length, number = Dim("batch", max=MAX_BATCH), Dim("length", max=positions - 1), Dim("number", max=2**24)
    shapes = {"history": {0: batch, 1: length}, "excluded": {0: batch, 1: number}, "allowed": {0: batch}, "top_k": {}}
    with _loops_for_gru(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about functions that torch.export calls itself
        return torch.export.export(RecommendationGraph(model, removed), example, dynamic_shapes=shapes, strict=False)


def export_checkpoint(checkpoint: str | PathLike, output: str | PathLike, revision: str | None = None) -> Path:
    """Write a checkpoint as an ONNX graph, with the files that convert token IDs to items; return the folder.

    `model.onnx` is the graph, see `RecommendationGraph`. `catalog.parquet` has `item` and `title` for each token ID
    from 3 on, `vectors.npy` the `item_vectors` in the same order, and `export.json` sizes and settings. The tokenizer
    is also written. An older export in `output` is replaced after all files are written.

    Args:
        checkpoint: Folder or Hub ID.
        output: Folder of the result. A folder with other files is not replaced.
        revision: Branch, tag or commit of a Hub ID. Default: `main`.

    Raises:
        ImportError: The extra `export` is missing, or torch is too old for GRU4Rec.
        OSError, ValueError: As for `fetch_checkpoint`; `output` has other files; `max_position_embeddings` is below 3;
            or torch cannot export such a model.
    """
    _require("onnxscript")
    folder, target = fetch_checkpoint(checkpoint, revision), Path(output)
    check_output(output, FACTS_FILE, folder)
    # In float32, because few runtimes compute in bfloat16 on a CPU.
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    check_sizes(model, tokenizer)
    if model.config.max_position_embeddings < 3:
        found = f"{model.config.max_position_embeddings}. Train the model with a `max_length` of at least 3"
        raise ValueError(f"The export needs a model with `max_position_embeddings` of at least 3, found {found}.")
    catalog = ItemCatalog(tokenizer)
    inputs, outputs = ["history", "excluded", "allowed", "top_k"], ["items", "scores"]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of operators of torchvision
    try:
        program = export_program(model, catalog.removed)
        with _loops_for_gru(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch.onnx.export(program, (), input_names=inputs, output_names=outputs, dynamo=True, verbose=False)
    except RuntimeError as error:  # the base class of torch's errors
        reason = f"{model.config.model_type!r} ({type(error).__name__}: {str(error).strip().splitlines()[0]})"
        advice = "Avoid `if` on values of a tensor, and `.item()` (docs/architecture.md, section Add a model)."
        raise ValueError(f"torch cannot export the architecture {reason}. {advice}") from error
    assert graph is not None
    for node in graph.model.graph.all_nodes():
        node.metadata_props.clear()  # lines of code, with the paths of this machine
    facts = {
        "checkpoint": "/".join(Path(checkpoint).resolve().parts[-2:]) if Path(checkpoint).is_dir() else str(checkpoint),
        "revision": checkpoint_revision(folder),
        "exclude_history": stored_exclude_history(folder),
        "max_length": tokenizer.model_max_length,
        "rows": len(tokenizer),
    }
    titles = pa.array(tokenizer.titles or [None] * len(tokenizer.items), pa.string())
    with replaced_folder(target) as new:
        tokenizer.save_pretrained(new)
        graph.save(new / GRAPH_FILE)
        np.save(new / VECTORS_FILE, item_vectors(model), allow_pickle=False)
        pq.write_table(pa.table({"item": tokenizer.items, "title": titles}), new / ITEMS_FILE)
        (new / FACTS_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return target


def is_export(folder: str | PathLike) -> bool:
    """Return whether a folder is an exported checkpoint. A replacement that was killed is undone first."""
    return (open_folder(folder) / FACTS_FILE).exists()


class OnnxRecommender:
    """Recommender for an exported checkpoint: the call and `similar` of `NextItemRecommendationPipeline`.

    It has no other methods of the pipeline, and `reason` of its answers is always None. The graph excludes items that
    had been removed before the export. Export again after you remove or add items.

    Args:
        folder: Folder that `export_checkpoint` wrote.
        threads: Number of threads of a call. Default: `torch.get_num_threads()`, which is the number of cores that the
            process may use, or `OMP_NUM_THREADS`.

    Raises:
        ImportError: The extra `export` is missing.
        OSError, ValueError: A file is missing or damaged, or the files are not from the same export.
    """

    def __init__(self, folder: str | PathLike, threads: int | None = None) -> None:
        onnxruntime, path = _require("onnxruntime"), Path(folder)
        if not is_export(path):
            advice = "Pass a folder that `hf-bert4rec export` or `export_checkpoint` wrote."
            raise FileNotFoundError(f"{folder}: found no {FACTS_FILE}. {advice}")
        self.facts = read_json(path / FACTS_FILE, folder, "Repeat the export.")
        options = onnxruntime.SessionOptions()
        # With 0, onnxruntime starts a thread for each core of the machine, even if the process may use only one.
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other programs need the cores
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path)
            self._session = onnxruntime.InferenceSession(path / GRAPH_FILE, options, ["CPUExecutionProvider"])
            vectors = np.load(path / VECTORS_FILE, allow_pickle=False)
        except Exception as error:  # errors of onnxruntime have no base class
            cause = error.__cause__ or error  # the tokenizer adds advice for checkpoints
            reason = " ".join(str(cause).split()).rstrip(".")
            advice = "Check the permissions of the files, or repeat the export."
            raise ValueError(f"{folder}: the exported files cannot be read ({reason}). {advice}") from error
        needed = {"checkpoint", "revision", "exclude_history", "max_length", "rows"} <= self.facts.keys()
        if not needed or not len(self.tokenizer) == self.facts["rows"] == len(vectors) + len(SPECIAL_TOKENS):
            problem = f"{FACTS_FILE} is incomplete, or not from the same export as {VECTORS_FILE} and the tokenizer"
            raise ValueError(f"{folder}: {problem}. Repeat the export.")
        self.catalog, self._unit_vectors = ItemCatalog(self.tokenizer), unit_vectors(vectors)
        self.catalog.batch_size = BATCH_SIZE

    def __call__(
        self, histories: Iterable[Iterable[str | float]], batch_size: int | None = None, **kwargs: Any
    ) -> list[Recommendations]:
        """Recommend items as the pipeline, with its options `top_k`, `exclude_history`, `allow` and `deny` only.

        The default of `batch_size` is 8 histories, and fewer with a large catalog.
        """
        options = check_options(kwargs, OPTIONS)
        lists = {name: options.pop(name) for name in ITEM_LISTS & options.keys()}
        number = min(options.get("top_k", 10), len(self.tokenizer))
        exclude_history = options.get("exclude_history", self.facts["exclude_history"])
        limit = self.facts["max_length"] - 1

        def answer(rows: list[np.ndarray], _: Any, allow: Any = ALL_ROWS, deny: Any = NO_ROWS) -> list[Recommendations]:
            allow, deny = (of * (len(rows) // len(of)) for of in (allow, deny))  # one list may hold for all
            if exclude_history:
                deny = [np.concatenate(pair) for pair in zip(rows, deny, strict=True)]
            allowed = np.zeros((len(rows), len(self.tokenizer)), bool)
            for user, items in enumerate(allow):
                allowed[user, items] = True
            inputs = {
                "history": _pad_with_zeros([history[max(0, len(history) - limit) :] for history in rows]),
                "excluded": _pad_with_zeros(deny),
                "allowed": allowed,
                "top_k": np.array(number, np.int64),
            }
            found, scores = self._session.run(None, inputs)
            check_scores(scores)
            return self.catalog.describe(found, scores, (found != PAD_ROW).sum(axis=1).tolist())

        rows = self.catalog.read_rows(read_histories(histories), "histories")
        return self.catalog.answer_in_batches(rows, answer, batch_size, **lists)

    def similar(self, items: Iterable[str | float], top_k: int = 10) -> list[Recommendations]:
        """Return the items with the most similar vectors, as `NextItemRecommendationPipeline.similar`."""
        return self.catalog.similar(self._unit_vectors, items, top_k)


def checkpoint_revision(folder: Path) -> str | None:
    """Return the commit of a checkpoint that was downloaded from the Hub; None for other folders."""
    return folder.name if folder.parent.name == "snapshots" else None


def _pad_with_zeros(rows: list[np.ndarray]) -> np.ndarray:
    """Return token IDs (users, longest) padded with 0, with at least one column."""
    return pad_rows(rows, PAD_ROW, max(1, *map(len, rows)))[0]


def _loops_for_gru(model: PreTrainedModel) -> Any:
    """Return a context that keeps the loop of a GRU; otherwise torch repeats its body for each item of the example."""
    if model.config.model_type != "gru4rec":
        return nullcontext()
    try:
        from torch.export._patches import register_gru_while_loop_decomposition
    except ImportError as error:
        found = f"torch {torch.__version__}. Run `pip install 'torch==2.13.*'`."
        raise ImportError(f"The export of GRU4Rec needs torch 2.13, found {found}") from error
    return register_gru_while_loop_decomposition()


def _require(module: str) -> Any:
    """Import an optional module; ImportError names the extra that installs it."""
    try:
        return __import__(module)
    except ImportError as error:
        raise ImportError(f"ONNX exports need {module}. Run `pip install 'hf-bert4rec[export]'`.") from error
