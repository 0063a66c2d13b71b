"""The item tokenizer: raw item id ↔ row of the item table, and the titles that travel with it.

An item id is one token, whatever Unicode it holds. The saved files are those of any fast tokenizer, so AutoTokenizer
loads them without this package; with it, the titles come back too.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ..models.configuration_bert4rec import SPECIAL_TOKENS

TITLES_FILE = "items.parquet"


class ItemTokenizer(PreTrainedTokenizerFast):
    """A stock word-level tokenizer whose words are item ids, plus a title an item.

    Build one with `item_tokenizer`, load one with `AutoTokenizer.from_pretrained`. Called like any tokenizer it takes a
    history as a list of words, `tokenizer(["1", "a b"], is_split_into_words=True)`; in bulk use `encode_items`, which
    is some ten times faster.

    Attributes:
        titles: The title of every item (None = unknown) in the order of `items`, or None where there are no titles.
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json", "titles_file": TITLES_FILE}
    titles: list[str | None] | None = None

    # Not in `__init__`: transformers rebuilds the vocabulary of a class that has one, and loses the pre-tokenizer.
    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "ItemTokenizer":
        """Load tokenizer and, where the folder or Hub repository has them, titles.

        Raises:
            FileNotFoundError: It was saved with titles, and `items.parquet` is gone.
            ValueError: `items.parquet` has not one row for each item.
        """
        tokenizer = super().from_pretrained(*args, **kwargs)
        if titles_file := tokenizer.init_kwargs.pop("titles_file", None):
            tokenizer.set_titles(pq.read_table(titles_file)["title"].to_pylist(), source=str(titles_file))
        elif tokenizer.init_kwargs.get("has_titles"):
            raise FileNotFoundError(
                f"{args[0]}: expected {TITLES_FILE} beside the tokenizer, found none. Copy it from where it "
                "was saved; to do without titles, remove has_titles from tokenizer_config.json."
            )
        return tokenizer

    def set_titles(self, titles: list[str | None], source: str = "titles") -> None:
        """Give every item its title (None = unknown), in the order of `items`."""
        if len(titles) != len(self.items):
            raise ValueError(
                f"{source}: expected {len(self.items)} titles, one for each item of the tokenizer, found "
                f"{len(titles)}. "
                "Take tokenizer and titles from the same save."
            )
        self.titles = titles
        self.init_kwargs["has_titles"] = True  # saved in tokenizer_config.json

    @cached_property
    def items(self) -> pa.StringArray:
        """Raw ids in the order of the item table, without the special rows."""
        vocab = self.get_vocab()
        return pa.array(sorted(vocab, key=vocab.__getitem__)[len(SPECIAL_TOKENS) :], pa.string())

    def encode_items(self, items: pa.Array | pa.ChunkedArray | Iterable[str | float]) -> np.ndarray:
        """Rows of the item table, (n,) int32, for raw ids; an id that is not known becomes [UNK]."""
        if not isinstance(items, pa.Array | pa.ChunkedArray):
            items = as_item_ids(items)
        rows = pc.add(pc.index_in(items, value_set=self.items), len(SPECIAL_TOKENS))
        return pc.fill_null(rows, self.unk_token_id).to_numpy().astype(np.int32, copy=False)

    def decode_items(self, rows: Iterable[int]) -> list[str]:
        """Raw ids for rows of the item table; the inverse of `encode_items`. Special rows are refused by IndexError."""
        return self.items.take(pa.array(np.asarray(rows, np.int64) - len(SPECIAL_TOKENS))).to_pylist()

    def save_pretrained(self, save_directory: str | PathLike, **kwargs: Any) -> tuple[str, ...]:
        """Write the files of a stock tokenizer and, where there are titles, `items.parquet`."""
        titles_file = Path(save_directory, TITLES_FILE)
        titles_file.parent.mkdir(parents=True, exist_ok=True)
        titles_file.unlink(missing_ok=True)  # those of another tokenizer, saved here before
        if self.titles is not None:  # before the others, which `push_to_hub` uploads from there
            pq.write_table(pa.table({"title": pa.array(self.titles, pa.string())}), titles_file)
        files = super().save_pretrained(save_directory, **kwargs)
        return files if self.titles is None else (*files, str(titles_file))


def item_tokenizer(
    items: Dataset | Iterable[str], *, titles: Mapping[str, str] | None = None, max_length: int = 200
) -> ItemTokenizer:
    """Build the tokenizer of a catalogue: one row an item, in order of first appearance.

    Args:
        items: Interactions with a column `item`, or raw item ids; repeated ids count once.
        titles: Raw id → title; ids that are not in the catalogue are passed over.
        max_length: Positions of the model, the [MASK] of the query included (the paper's N).

    Raises:
        ValueError: No item at all, an id equal to a special token, or a `max_length` below 2.
    """
    if max_length < 2:
        raise ValueError(f"Expected max_length of at least 2, an item and the [MASK] of the query, found {max_length}.")
    ids = pc.drop_null(pc.unique(_item_column(items))).to_pylist()
    if not ids:
        raise ValueError("Expected at least one item, found none.")
    if taken := set(SPECIAL_TOKENS).intersection(ids):
        raise ValueError(
            f"The item id {', '.join(sorted(taken))} is the name of a special token: rename the item in your data."
        )
    vocab = {token: row for row, token in enumerate((*SPECIAL_TOKENS, *ids))}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    if not any(character.isspace() for character in "".join(ids)):
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # so that text works too: "1 6 [MASK]"
    tokenizer = ItemTokenizer(
        tokenizer_object=backend,
        pad_token="[PAD]",
        mask_token="[MASK]",
        unk_token="[UNK]",
        model_max_length=max_length,
        truncation_side="left",  # the newest items are the ones to keep
        padding_side="right",
        split_special_tokens=True,  # an id may contain "[MASK]" without being cut there
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    if titles is not None:
        tokenizer.set_titles([titles.get(item) for item in ids])
    return tokenizer


def extend_item_tokenizer(
    tokenizer: ItemTokenizer, items: Dataset | Iterable[str], *, titles: Mapping[str, str] | None = None
) -> ItemTokenizer:
    """Append the items that `tokenizer` does not know; every known item keeps its row.

    Afterwards `model.resize_token_embeddings(len(tokenizer))` gives the new items their rows.
    """
    known = tokenizer.items.to_pylist()
    old_titles = {item: title for item, title in zip(known, tokenizer.titles or [], strict=False) if title is not None}
    return item_tokenizer(
        [*known, *_item_column(items).to_pylist()],
        titles={**old_titles, **(titles or {})} or None,
        max_length=tokenizer.model_max_length,
    )


def _item_column(items: Dataset | Iterable[str]) -> pa.Array | pa.ChunkedArray:
    """The raw ids of interactions, or of a list of them."""
    if isinstance(items, str):
        raise ValueError(f"Expected a list of item ids, found the text {items!r}: put it in brackets.")
    return items.with_format("arrow")[:]["item"] if isinstance(items, Dataset) else pa.array(items, pa.string())


def as_item_ids(values: Iterable[Any], name: str = "item IDs") -> pa.StringArray:
    """Convert raw item IDs to text in the way `load_interactions` does: 1 and 1.0 become "1".

    Args:
        values: Text or numbers; also numpy scalars and tensors of one number.
        name: What the values are called in errors.

    Raises:
        ValueError: A value is neither text nor a finite number, or a float too large to be exact.
    """
    ids = list(values)
    if not {str}.issuperset(map(type, ids)):
        ids = [_as_item_id(value, name) for value in ids]
    try:
        return pa.array(ids, pa.string())
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: {error.object!r} is not valid Unicode text. Fix or remove this ID.") from None


def _as_item_id(value: Any, name: str) -> str:
    scalar = value.item() if getattr(value, "ndim", None) == 0 else value  # numpy scalars, tensors
    if isinstance(scalar, str):
        return str(scalar)
    exact = isinstance(scalar, int) or (isinstance(scalar, float) and abs(scalar) <= 2**53)  # False for NaN
    if exact and not isinstance(scalar, bool):
        return str(int(scalar) if scalar == int(scalar) else scalar)
    inexact = isinstance(scalar, float) and abs(scalar) > 2**53
    raise ValueError(
        f"{name}: expected text or numbers, found {repr(value)[:100]} ({type(value).__name__}). "
        + ("Floats above 2^53 are not exact: read IDs as text." if inexact else "Convert it to text or remove it.")
    )
