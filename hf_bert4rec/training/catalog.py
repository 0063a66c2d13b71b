"""Change the items of a checkpoint without training: add and remove items, and change titles."""

import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel

from ..data.ids import as_item_ids
from ..data.item_tables import load_new_items
from ..data.tokenization import ItemTokenizer, extend_item_tokenizer
from ..hub.checkpoint import (
    NEEDED,
    check_folder,
    check_output,
    check_sizes,
    fetch_checkpoint,
    folder_lock,
    is_folder,
    replaced_folder,
    weight_files,
)
from ..hub.model_card import set_last_section
from ..models.configuration_bert4rec import SPECIAL_TOKENS
from .item_features import load_projection, start_from_features

logger = logging.getLogger(__name__)

STARTS = ("features", "like", "mean")  # what the vector and the bias of a new item come from
CHANGED_ITEMS = "Items changed after the training"  # heading of the last section of the card


def add_items(
    checkpoint: str | PathLike,
    source: Any,
    output: str | PathLike | None = None,
    *,
    item: str | int | None = None,
    title: str | int | None = None,
    encoder: str | None = None,
    format: str | None = None,  # noqa: A002
    separator: str | None = None,
    encoding: str | None = None,
) -> dict[str, int]:
    """Add items to a checkpoint. New items can be recommended at once, and keep their token IDs in later training.

    The vector and the bias of a new item come from its features, if the checkpoint was trained with features and the
    item has some. Otherwise they are the means of the items in `like`. Without `like`, they are the mean vector and the
    smallest bias of the checkpoint, with which an item is hardly recommended. An item of the checkpoint gets the title
    of the table, and can be recommended again if it was removed.

    Args:
        checkpoint: Folder or Hub ID.
        source: Table with one row per item: a file, a data frame, or anything else that `load_interactions` reads.
            Its columns are `item`, and optionally `title`, `like` (IDs of items of the checkpoint, as a list or as text
            with `|` between them) and the features of the checkpoint.
        output: Folder of the result. Default: `checkpoint` is replaced after all files are written.
        item: Column of the item ID: a name, or a position from 0. Default: a column with a usual name.
        title: Column of the title, like `item`.
        encoder: Model of sentence-transformers, needed if the features of the checkpoint have text.
        format: As for `load_interactions`, like `separator` and `encoding`.

    Returns:
        Counts: new items by what they start from (`features`, `like`, `mean`), removed items that are recommended again
        (`returned`), and titles that were read (`titles`).

    Raises:
        ValueError: The table or the checkpoint cannot be read, `like` names an unknown item, or `output` is missing for
            a Hub ID or has other files.
        OSError: The table or the checkpoint is not found, or the checkpoint is incomplete or cannot be downloaded.
    """
    with _open_checkpoint(checkpoint, output) as (folder, tokenizer):
        form = {"format": format, "separator": separator, "encoding": encoding}
        given = load_new_items(source, tokenizer.features, item=item, title=title, encoder=encoder, **form)
        rows = dict(zip(given.items, tokenizer.encode_items(given.items).tolist(), strict=True))
        new = [item for item, row in rows.items() if row == tokenizer.unk_token_id]
        model = AutoModelForMaskedLM.from_pretrained(folder)
        check_sizes(model, tokenizer)
        extended = extend_item_tokenizer(tokenizer, new, titles=given.titles or None)
        extended.removed = [item for item in tokenizer.removed if item not in rows]
        if given.features is not None and tokenizer.features is not None:
            extended.features = tokenizer.features.extended(given.features)
        starts = append_items(model, tokenizer, extended, load_projection(folder), given.likes)
        _save(folder, output, extended, model if new else None)
    counts: dict[str, int] = {start: starts.count(start) for start in STARTS}
    counts |= {"returned": len(tokenizer.removed) - len(extended.removed), "titles": len(given.titles)}
    text = "New items: %d. Vectors from features: %d, from the items in `like`: %d, from the mean of all items: %d."
    logger.info(text, len(new), *map(starts.count, STARTS))
    if known := len(rows) - len(new):
        logger.info("Items of the table that the model already has: %d. Their `like` and features are not read.", known)
    logger.info("Removed items that are recommended again: %d. Titles read: %d.", counts["returned"], counts["titles"])
    return counts


def remove_items(
    checkpoint: str | PathLike, items: Iterable[str | float], output: str | PathLike | None = None
) -> None:
    """Remove items from the recommendations of a checkpoint. The items keep their token IDs and may be in histories.

    `items` are item IDs; `checkpoint` and `output` are as for `add_items`, which lets removed items return. Evaluation
    still ranks removed items, since they may be targets.

    Raises:
        ValueError: An item is unknown, no item would be left, or as for `add_items`.
        OSError: The checkpoint is not found, is incomplete, or cannot be downloaded.
    """
    with _open_checkpoint(checkpoint, output) as (folder, tokenizer):
        ids = as_item_ids(items, "items to remove").to_pylist()
        rows = tokenizer.encode_items(ids)
        if unknown := [item for item, row in zip(ids, rows, strict=True) if row == tokenizer.unk_token_id]:
            raise ValueError(f"{checkpoint} has no item {unknown[0]!r}. Name only items of the checkpoint.")
        tokenizer.removed = {*tokenizer.removed, *ids}
        if len(tokenizer.removed) == len(tokenizer.items):
            raise ValueError("All items would be removed, counting those removed before. Keep at least one item.")
        logger.info("Removed items, with those removed before: %d of %d.", len(tokenizer.removed), len(tokenizer.items))
        _save(folder, output, tokenizer, None)


@contextmanager
def _open_checkpoint(checkpoint: str | PathLike, output: str | PathLike | None) -> Iterator[tuple[Path, ItemTokenizer]]:
    """Yield the folder of a checkpoint and its tokenizer. Other calls that replace the same folder wait."""
    if output is None and not is_folder(checkpoint):
        advice = "Check the path. For a Hub ID, also pass `output` (`--output`)."
        raise ValueError(f"Found no folder {checkpoint}. {advice}")
    with folder_lock(checkpoint if output is None else output):
        folder = fetch_checkpoint(checkpoint)
        if output is not None and (target := Path(output).resolve()) != (source := folder.resolve()):
            if target in source.parents or source in target.parents:
                advice = "Name another `output` (`--output`)."
                raise ValueError(f"One folder contains the other: {output}, {folder}. {advice}")
            check_output(output, NEEDED[0], folder)
            if (target / NEEDED[0]).exists():
                logger.warning("%s exists and will be replaced at the end, unless there is an error.", output)
        yield folder, AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def append_items(
    model: PreTrainedModel,
    tokenizer: ItemTokenizer,
    extended: ItemTokenizer,
    projection: torch.Tensor | None,
    likes: Mapping[str, list[str]] | None = None,
) -> list[str]:
    """Append a row for each new item of an extended tokenizer to the item table and biases of a model, in place.

    Return for each new item what its row was computed from, an entry of `STARTS`; see `add_items`.
    """
    tables, likes, new = _tables(model), likes or {}, extended.items[len(tokenizer.items) :]
    rows = [table[len(SPECIAL_TOKENS) :].mean(dim=0).repeat(len(new), 1) for table in tables]
    rows[-1][:] = tables[-1][len(SPECIAL_TOKENS) :].min()
    starts = ["like" if likes.get(item) else "mean" for item in new.to_pylist()]
    named = [(place, other) for place, item in enumerate(new.to_pylist()) for other in likes.get(item, ())]
    if named:
        places, others = zip(*named, strict=True)
        known = tokenizer.encode_items(others)  # all at once, because each call looks at the whole catalog
        if (unknown := known == tokenizer.unk_token_id).any():
            place, other = named[int(unknown.argmax())]
            found = f"`like` of the new item {new[place].as_py()!r} has {other!r}, which is not in the checkpoint"
            raise ValueError(f"{found}. Use IDs of items of the checkpoint, separated by `|`.")
        chosen, counts = torch.tensor(places).unique_consecutive(return_counts=True)
        for values, table in zip(rows, tables, strict=True):
            values[chosen] = torch.stack([part.mean(dim=0) for part in table[known].split(counts.tolist())])
    model.resize_token_embeddings(len(extended), mean_resizing=False)
    for values, table in zip(rows, _tables(model), strict=True):
        table[len(tokenizer) :] = values
    described = start_from_features(model, extended, torch.arange(len(tokenizer), len(extended)), projection)
    return ["features" if has else start for has, start in zip(described.tolist(), starts, strict=True)]


def _tables(model: PreTrainedModel) -> list[torch.Tensor]:
    """Return input embeddings and output matrix, which may be the same tensor, and the biases (vocab_size, 1)."""
    head = model.get_output_embeddings()
    return [model.get_input_embeddings().weight, head.weight, head.bias[:, None]]


def _describe_items(tokenizer: ItemTokenizer) -> str:
    """Return a paragraph for the card about the items after a change."""
    items, removed = len(tokenizer.items), len(tokenizer.removed)
    counts = f"The model has {items:,} items now. Removed items, which are never recommended: {removed:,}."
    before = "Any results above are from before the change."
    return f"Items were added or removed, or titles changed, without training. {counts} {before}"


def _save(folder: Path, output: str | PathLike | None, tokenizer: ItemTokenizer, model: PreTrainedModel | None) -> None:
    """Write a checkpoint with another tokenizer and, if given, another model. Subfolders are not copied to `output`."""
    own = None if output is None else lambda path, names: [name for name in names if Path(path, name).is_dir()]
    with replaced_folder(folder if output is None else output) as new:
        shutil.copytree(folder, new, ignore=own, copy_function=shutil.copyfile)  # read-only files become writable
        tokenizer.save_pretrained(new)
        set_last_section(new, CHANGED_ITEMS, _describe_items(tokenizer))
        if model is not None:
            for name in weight_files(new):
                (new / name).unlink()
            model.save_pretrained(new)
        check_sizes(check_folder(new), AutoTokenizer.from_pretrained(new))  # before the old folder is replaced
