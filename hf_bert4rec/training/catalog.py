"""Change the items of a checkpoint without training: add and remove items, and change titles."""

import logging
import shutil
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import nn
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel

from ..data.features import ItemFeatures
from ..data.ids import as_item_ids
from ..data.item_tables import NewItems, load_new_items
from ..data.tokenization import ItemTokenizer, extend_item_tokenizer
from ..hub.checkpoint import check_sizes, fetch_checkpoint, is_folder, replaced_folder, weight_files
from ..models.configuration_bert4rec import SPECIAL_TOKENS
from .item_features import load_projection

logger = logging.getLogger(__name__)


def add_items(
    checkpoint: str | PathLike, source: Any, output: str | PathLike | None = None, **options: Any
) -> dict[str, int]:
    """Add items to a checkpoint. They can be recommended at once, and keep their rows in later training.

    The vector and the bias of a new item come from its features, if the checkpoint was trained with features; otherwise
    they are the means of the items that it is like; otherwise the mean vector and the smallest bias, with which it is
    hardly recommended. An item of the checkpoint gets the title of the table, and returns if it was removed.

    Args:
        checkpoint: Folder or Hub ID.
        source: Table with one row per item: a file, a data frame, or anything else that `load_interactions` reads.
            Columns `item`, and optionally `title`, `like` (IDs of items of the checkpoint; in text separated by `|`)
            and the features of the checkpoint.
        output: Folder of the result. Default: `checkpoint` is replaced, when all files are written.
        **options: As for `load_item_features`.

    Returns:
        How many items started from "features", "like" and "mean", how many "returned", and how many "titles" were read.

    Raises:
        ValueError: The table cannot be read, `like` names an unknown item, or `output` is missing for a Hub ID.
        OSError: As for `fetch_checkpoint`.
    """
    folder, tokenizer = _open(checkpoint, output)
    given = load_new_items(source, tokenizer.features, **options)
    rows = dict(zip(given.items, tokenizer.encode_items(given.items).tolist(), strict=True))
    new = [item for item, row in rows.items() if row == tokenizer.unk_token_id]
    model = AutoModelForMaskedLM.from_pretrained(folder)
    check_sizes(model, tokenizer)
    extended = extend_item_tokenizer(tokenizer, new, titles=given.titles or None)
    extended.removed = [item for item in tokenizer.removed if item not in rows]
    counts = {"features": 0, "like": 0, "mean": 0}
    if new:
        weights, starts = _first_weights(new, given, model, tokenizer, load_projection(folder))
        _append(model, weights)
        counts |= {start: starts.count(start) for start in counts}
        if given.features is not None and tokenizer.features is not None:
            added = given.features.table.filter(pa.array([it in new for it in given.features.items.to_pylist()]))
            table = pa.concat_tables([tokenizer.features.table, added])
            extended.features = ItemFeatures(table, tokenizer.features.columns)
    counts |= {"returned": len(tokenizer.removed) - len(extended.removed), "titles": len(given.titles)}
    _save(folder, output, extended, model if new else None)
    text = "Added %d items: %d start from their features, %d from items that they are like, %d from the mean of all."
    logger.info(text + " %d removed items have returned, %d titles were read.", len(new), *counts.values())
    return counts


def remove_items(
    checkpoint: str | PathLike, items: Iterable[str | float], output: str | PathLike | None = None
) -> None:
    """Remove items from the recommendations of a checkpoint. They keep their rows, and are understood in histories.

    `add_items` lets them return. Evaluation still ranks them, since they may be targets.

    Raises:
        ValueError: An item is unknown, none would be left, or `output` is missing for a Hub ID.
        OSError: As for `fetch_checkpoint`.
    """
    folder, tokenizer = _open(checkpoint, output)
    ids = as_item_ids(items, "items to remove").to_pylist()
    rows = tokenizer.encode_items(ids)
    if unknown := [item for item, row in zip(ids, rows, strict=True) if row == tokenizer.unk_token_id]:
        raise ValueError(f"{checkpoint} has no item {unknown[0]!r}. Remove only items that it has.")
    removed = {*tokenizer.removed, *ids}
    if len(removed) == len(tokenizer.items):
        raise ValueError("All items of the checkpoint would be removed. Keep at least one.")
    logger.info("%d of %d items are removed.", len(removed), len(tokenizer.items))
    tokenizer.removed = removed
    _save(folder, output, tokenizer, None)


def _open(checkpoint: str | PathLike, output: str | PathLike | None) -> tuple[Path, ItemTokenizer]:
    if output is None and not is_folder(checkpoint):
        raise ValueError(f"{checkpoint} is a Hub ID. Name a folder for the result: `output=...` (`--output ...`).")
    folder = fetch_checkpoint(checkpoint)
    return folder, AutoTokenizer.from_pretrained(folder)


def _first_weights(
    new: list[str], given: NewItems, model: PreTrainedModel, tokenizer: ItemTokenizer, projection: torch.Tensor | None
) -> tuple[torch.Tensor, list[str]]:
    """Return vectors and biases of new items, (new, hidden + 1), and what each starts from."""
    bias: Any = model.get_output_embeddings().bias
    known = torch.cat([model.get_input_embeddings().weight.detach(), bias.detach()[:, None]], dim=1)
    items = known[len(SPECIAL_TOKENS) :]
    weights = torch.cat([items[:, :-1].mean(dim=0), items[:, -1:].min(dim=0).values]).repeat(len(new), 1)
    starts = ["mean"] * len(new)
    for place, item in enumerate(new):
        if item in given.likes:
            rows = tokenizer.encode_items(given.likes[item])
            if (rows == tokenizer.unk_token_id).any():
                other = given.likes[item][int((rows == tokenizer.unk_token_id).argmax())]
                raise ValueError(f"{item!r} is like {other!r}, which the checkpoint does not have.")
            weights[place], starts[place] = known[rows].mean(dim=0), "like"
    if given.features is not None and projection is not None:
        vectors = torch.from_numpy(given.features.vectors(pa.array(new, pa.string()))).to(weights)
        described = vectors[:, 0] > 0
        weights[described] = vectors[described] @ projection.to(weights)
        starts = ["features" if has else start for has, start in zip(described.tolist(), starts, strict=True)]
    return weights, starts


@torch.no_grad()
def _append(model: PreTrainedModel, weights: torch.Tensor) -> None:
    """Append rows (new, hidden + 1) to the item table and the output biases, and to an output table of its own."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    vectors, biases = weights[:, :-1], weights[:, -1]
    tied = head.weight is embeddings.weight
    table = nn.Parameter(torch.cat([embeddings.weight, vectors]))
    head.weight = table if tied else nn.Parameter(torch.cat([head.weight, vectors]))
    embeddings.weight, head.bias = table, nn.Parameter(torch.cat([head.bias, biases]))
    model.config.vocab_size = embeddings.num_embeddings = head.out_features = len(table)


def _save(folder: Path, output: str | PathLike | None, tokenizer: ItemTokenizer, model: PreTrainedModel | None) -> None:
    """Write a copy of a checkpoint with another tokenizer and, if given, model; all of its other files are kept."""
    features = tokenizer.features  # read before its file is replaced
    with replaced_folder(folder if output is None else output) as new:
        shutil.copytree(folder, new)
        tokenizer.features = features
        tokenizer.save_pretrained(new)
        if model is not None:
            for name in weight_files(new):
                (new / name).unlink()
            model.save_pretrained(new)
