"""The item tokenizer: it converts raw item IDs to token IDs and back, and is saved with titles and other item data.

An item ID is one token, whatever Unicode it contains. The saved files are those of any fast tokenizer, so AutoTokenizer
loads them without this package. With this package, titles, removed items and features are loaded too.
"""

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ..models.configuration_bert4rec import SPECIAL_TOKENS, Bert4RecConfig
from .arguments import check_number, read_list, read_rows
from .features import FEATURES_FILE, ItemFeatures, check_features, read_parquet
from .ids import as_ids, as_item_ids, warn_about_variants

logger = logging.getLogger(__name__)

PAD, MASK, UNK = SPECIAL_TOKENS
TITLES_FILE = "items.parquet"
LOOKUP_SHARE = 0.25  # up to this share of the catalog, looking IDs up one by one is faster than hashing it
TITLE_BYTES = 10_000  # largest size of a title in UTF-8
REPAIR = "Download or save the tokenizer again."


class ItemTokenizer(PreTrainedTokenizerFast):
    """A stock word-level tokenizer whose words are item IDs, with an optional title per item.

    Build one with `item_tokenizer`, load one with `AutoTokenizer.from_pretrained`. Like any tokenizer it encodes a
    history given as a list of words: `tokenizer(["1", "a b"], is_split_into_words=True)`. For many items use
    `encode_items`, which is about ten times faster. `add_tokens` appends items, `extend_item_tokenizer` to a copy.

    Attributes:
        titles: Title of each item (None: unknown) in the order of `items`, or None if there are no titles.
        features: Features of items, or None. A loaded tokenizer reads its features when they are first needed.
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json", "titles_file": TITLES_FILE, "features_file": FEATURES_FILE}
    titles: list[str | None] | None = None
    _features_file: str | None = None
    _items: pa.StringArray | None = None

    # There is no `__init__`, because transformers would rebuild the vocabulary and lose the pre-tokenizer.
    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "ItemTokenizer":
        """Load the tokenizer and, if the folder or Hub repository has them, the titles and features.

        Raises:
            OSError: There is no such folder or repository, or `items.parquet` is missing for a tokenizer with titles.
            ValueError: A file is missing or damaged, or the tokenizer is not an `ItemTokenizer`.
        """
        source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        try:
            tokenizer = super().from_pretrained(*args, **kwargs)
            check_tokenizer(tokenizer)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # the tokenizers library raises `Exception` itself
            reason = f"Check the path. {REPAIR} The cause is {type(error).__name__}: {' '.join(str(error).split())}"
            raise ValueError(f"{source}: the tokenizer cannot be loaded. {reason}") from error
        tokenizer._features_file = tokenizer.init_kwargs.pop("features_file", None)
        if titles_file := tokenizer.init_kwargs.pop("titles_file", None):
            try:
                tokenizer.set_titles(_read_titles(titles_file, tokenizer.items), source=titles_file)
            except ValueError as error:
                raise ValueError(f"{error} {REPAIR}") from None
        elif tokenizer.init_kwargs.get("has_titles"):
            advice = f"{REPAIR} To load it without titles, remove `has_titles` from tokenizer_config.json."
            raise FileNotFoundError(f"{source}: found no {TITLES_FILE}, which contains the titles. {advice}")
        return tokenizer

    def set_titles(self, titles: Iterable[Any], source: str = "titles") -> None:
        """Set a list of titles in the order of `items`: text, numbers, None or NaN (no title).

        ValueError if their number is not that of the items, or a title has more than 10,000 bytes in UTF-8. The message
        begins with `source`.
        """
        if isinstance(titles, Mapping):
            advice = "Pass `[titles.get(item) for item in tokenizer.items.to_pylist()]`."
            raise ValueError(f"{source}: expected a list, found a dict. {advice}")
        found = pd.Series(read_list(titles, source, ordered=True), dtype=object)
        if len(found) != len(self.items):
            expected = f"expected {len(self.items)} titles, one for each of `items` (None: no title)"
            raise ValueError(f"{source}: {expected}, found {len(found)}.")
        given = found.notna()
        texts = as_item_ids(found[given], source)
        if (longest := pc.max(pc.binary_length(texts)).as_py() or 0) > TITLE_BYTES:
            start = texts[pc.index(pc.binary_length(texts), longest).as_py()].as_py()[:30]
            wrong = f"found one of {longest:,}, which begins with {start!r}."
            if source == "titles":
                wrong += " Shorten it, or name another column: `load_titles(..., title=...)` (command line: "
                wrong += "`--title_column`; `items add`: `--title`)."
            raise ValueError(f"{source}: expected titles of at most {TITLE_BYTES:,} bytes, {wrong}")
        found[given] = texts.to_pylist()
        self.titles = found.where(given, None).tolist()
        self.init_kwargs["has_titles"] = True  # saved in tokenizer_config.json

    @property
    def removed(self) -> list[str]:
        """Raw IDs of items that are no longer recommended, but may be in histories. The tokenizer saves them."""
        return self.init_kwargs.get("removed_items", [])

    @removed.setter
    def removed(self, items: Iterable[str]) -> None:
        self.init_kwargs["removed_items"] = sorted({*as_item_ids(items, "removed").to_pylist()})

    @cached_property
    def features(self) -> ItemFeatures | None:
        """Features of items, or None; ValueError if the file of the features is damaged."""
        return ItemFeatures.load(self._features_file, len(self.items)) if self._features_file else None

    @property
    def items(self) -> pa.StringArray:
        """Raw IDs in the order of their token IDs, without special tokens; ValueError if token IDs have gaps."""
        if self._items is None or len(self._items) + len(SPECIAL_TOKENS) != len(self):  # items have been added
            vocab = self.get_vocab()
            rows = np.fromiter(vocab.values(), np.int64, len(vocab))
            order = np.argsort(rows)
            tokens = np.array([*vocab], object)[order]
            if (*tokens[:3],) != SPECIAL_TOKENS or (rows[order] != np.arange(len(self))).any():
                found = ", ".join(f"{vocab[token]}: {token!r}" for token in (*tokens[:4], tokens[-1]))
                raise ValueError(
                    f"Expected {', '.join(SPECIAL_TOKENS)} with the token IDs 0, 1, 2, and one item for each token ID "
                    f"from 3 to {len(self) - 1}, found {found}. Build the tokenizer with `item_tokenizer`."
                )
            self._items = pa.array(tokens[len(SPECIAL_TOKENS) :], pa.string())
        return self._items

    def encode_items(self, items: pa.Array | pa.ChunkedArray | Iterable[str | float]) -> np.ndarray:
        """Return the token IDs, (n,) int32, of raw IDs or of the column `item` of a `Dataset`.

        Unknown IDs, and nulls in an Arrow array, become [UNK]. ValueError if a list has other values than text or
        numbers.
        """
        ids, unknown = _as_text(items), self.unk_token_id  # read once, because each read takes a look-up
        if len(ids) < LOOKUP_SHARE * len(self):
            find = self.backend_tokenizer.token_to_id
            rows = np.array([find(item or UNK) or unknown for item in ids.to_pylist()], np.int32)
            rows[rows < len(SPECIAL_TOKENS)] = unknown
            return rows
        places = pc.add(pc.index_in(ids, value_set=self.items), len(SPECIAL_TOKENS))  # hashes the whole catalog
        return pc.fill_null(places, unknown).to_numpy().astype(np.int32, copy=False)

    def decode_items(self, rows: Iterable[int]) -> list[str]:
        """Return the raw IDs for token IDs; raise IndexError for special tokens and token IDs out of range."""
        return self.items.take(pa.array(np.asarray(rows, np.int64) - len(SPECIAL_TOKENS))).to_pylist()

    def save_pretrained(self, save_directory: str | PathLike, **kwargs: Any) -> tuple[str, ...]:
        """Write the files of a stock tokenizer and, if the tokenizer has them, titles and features as Parquet."""
        titles_file, features_file = Path(save_directory, TITLES_FILE), Path(save_directory, FEATURES_FILE)
        features = self.features  # read before the file may be removed
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        for leftover in (titles_file, features_file):  # of another tokenizer that was saved here before
            leftover.unlink(missing_ok=True)
        # These files are written first, because super() may upload the folder.
        if self.titles is not None:
            pq.write_table(pa.table({"item": self.items, "title": pa.array(self.titles, pa.string())}), titles_file)
        if features is not None:
            features.save(features_file)
        files = super().save_pretrained(save_directory, **kwargs)
        return (*files, *(str(file) for file in (titles_file, features_file) if file.exists()))

    def _encode_plus(self, *args: Any, is_split_into_words: bool = False, **kwargs: Any) -> Any:
        """Encode as the base class does, but never split the words of a list: an unknown ID may contain whitespace."""
        encoder, backend = self, self.backend_tokenizer
        if is_split_into_words:
            encoder = copy.copy(self)
            encoder._tokenizer = words = Tokenizer(backend.model)  # without a pre-tokenizer; the vocabulary is shared
            words.add_tokens([*backend.get_added_tokens_decoder().values()])
            words.post_processor = backend.post_processor
        return super(ItemTokenizer, encoder)._encode_plus(*args, is_split_into_words=is_split_into_words, **kwargs)

    def _add_tokens(self, new_tokens: Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        """Append items, and return how many are new. The base class would split the ID `123` after adding `12`."""
        special = [token for token in new_tokens if special_tokens or getattr(token, "special", False)]
        if others := [str(token) for token in special if str(token) not in SPECIAL_TOKENS]:
            found = f"found {', '.join(others)}. Remove other special tokens."
            raise ValueError(f"The special tokens of an ItemTokenizer are {', '.join(SPECIAL_TOKENS)}, {found}")
        super()._add_tokens(special, special_tokens)
        backend = self.backend_tokenizer
        new = [token for token in dict.fromkeys(map(str, new_tokens)) if token and backend.token_to_id(token) is None]
        if new:
            _set_vocabulary(backend, [*SPECIAL_TOKENS, *self.items.to_pylist(), *new])
            self.titles = self.titles and [*self.titles, *[None] * len(new)]
        return len(new)


def check_tokenizer(tokenizer: Any) -> None:
    """Raise ValueError unless a tokenizer is an `ItemTokenizer` with valid settings and token IDs without gaps.

    [PAD], [MASK] and [UNK] have the token IDs 0 to 2, the items those from 3 on.
    """
    if not isinstance(tokenizer, ItemTokenizer):
        advice = "Build it with `item_tokenizer`. To load one, import hf_bert4rec first. In its tokenizer_config.json, "
        advice += "`tokenizer_class` must be `ItemTokenizer`."
        raise ValueError(f"Expected an ItemTokenizer, found {type(tokenizer).__name__}. {advice}")
    backend, number = tokenizer.backend_tokenizer, len(tokenizer.items) + len(SPECIAL_TOKENS)
    removed, kind = tokenizer.removed, type(tokenizer.removed).__name__
    kinds = {f"list of {type(item).__name__}" for item in removed or [""]} if kind == "list" else {kind}
    properties = {
        "pad_token": (tokenizer.pad_token, PAD),
        "mask_token": (tokenizer.mask_token, MASK),
        "unk_token": (tokenizer.unk_token, UNK),
        "model in tokenizer.json": (type(backend.model).__name__, "WordLevel"),
        "unk_token in tokenizer.json": (getattr(backend.model, "unk_token", None), UNK),
        "normalizer in tokenizer.json": (backend.normalizer, None),
        "number of tokens without added_tokens": (backend.get_vocab_size(with_added_tokens=False), number),
        "type of model_max_length": (type(tokenizer.model_max_length).__name__, "int"),
        "`removed_items` in tokenizer_config.json": (", ".join(sorted(kinds)), "list of str"),
    }
    for name, (found, expected) in properties.items():
        if found != expected:
            advice = "Correct it, or build a tokenizer with `item_tokenizer`."
            raise ValueError(f"Expected {expected} as {name}, found {found}. {advice}")


def item_tokenizer(
    items: Dataset | Iterable[str | float],
    *,
    titles: Mapping[Any, Any] | None = None,
    features: ItemFeatures | None = None,
    max_length: int = Bert4RecConfig.max_position_embeddings,
) -> ItemTokenizer:
    """Build the tokenizer of a catalog: [PAD], [MASK], [UNK], then one token per item in order of first appearance.

    Args:
        items: Interactions with a column `item`, or raw item IDs. Repeated IDs count once; numbers become text.
        titles: Mapping from raw item ID to title, as from `load_titles`. Titles of other items are ignored.
        features: From `load_item_features`. Its items that are not in `items` come last, and get scores from features.
        max_length: Longest input, including the [MASK] of the query.

    Raises:
        ValueError: `items` contains no item; an ID is empty or a special token such as [PAD]; a title is not text or a
            number, or longer than 10,000 bytes; or `features` or `max_length` is not as described.
    """
    check_max_length(max_length)
    check_features("features", features)
    ids = _distinct_ids(items)
    if not ids:
        raise ValueError("`items` contains no item ID. Pass interactions, or a list of item IDs.")
    if features is not None:
        described = len(ids) - len(missing := set(ids).difference(features.items.to_pylist()))
        ids = list(dict.fromkeys([*ids, *_distinct_ids(features.items)]))
        text = "Features: %d items with interactions have features, %d do not; %d items have no interactions."
        logger.info(text, described, len(missing), len(ids) - described - len(missing))
    warn_about_variants(pa.array(ids, pa.string()), "item")
    backend = Tokenizer(models.WordLevel({UNK: 0}, unk_token=UNK))
    _set_vocabulary(backend, [*SPECIAL_TOKENS, *ids])
    tokenizer = ItemTokenizer(
        tokenizer_object=backend,
        pad_token=PAD,
        mask_token=MASK,
        unk_token=UNK,
        model_max_length=int(max_length),
        truncation_side="left",  # the newest items are the ones to keep
        padding_side="right",
        split_special_tokens=True,  # an ID may contain "[MASK]" and stay whole
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    if titles is not None:
        tokenizer.set_titles(found := _titles_in_order(ids, titles))
        text = "%d of %d items have a title. Titles of items that are not in the catalog of the model: %d."
        titled = sum(title is not None for title in found)
        logger.info(text, titled, len(ids), len({*as_item_ids(list(titles)).to_pylist()}.difference(ids)))
    tokenizer.features = features
    return tokenizer


def check_max_length(max_length: int) -> None:
    """Raise ValueError unless an input has room for an item and the [MASK] of the query."""
    expected = "an integer of at least 2 (one item and the [MASK] of the query)"
    check_number("max_length", max_length, expected, lambda number: number >= 2, Integral)


def extend_item_tokenizer(
    tokenizer: ItemTokenizer, items: Dataset | Iterable[str | float], *, titles: Mapping[Any, Any] | None = None
) -> ItemTokenizer:
    """Return a copy of a tokenizer with new items appended; every known item keeps its token ID.

    For a trained model, then call `model.resize_token_embeddings(len(extended))`, which appends rows to the item table.

    `items` and `titles` are as for `item_tokenizer`, but `items` may be empty, and `titles` may also contain new titles
    of known items. ValueError if an ID or a title is invalid, or `tokenizer` is not an `ItemTokenizer`.
    """
    check_tokenizer(tokenizer)
    extended = copy.deepcopy(tokenizer)
    extended.add_tokens(_distinct_ids(items))
    warn_about_variants(extended.items, "item", len(tokenizer.items))
    if titles is not None:
        new, old = _titles_in_order(extended.items.to_pylist(), titles), extended.titles or [None] * len(extended.items)
        extended.set_titles([known if title is None else title for title, known in zip(new, old, strict=True)])
    return extended


def _as_text(items: Any) -> pa.ChunkedArray:
    if isinstance(items, Dataset):
        items = read_rows(items, "item", advice="Pass a log from `load_interactions`, or a list of item IDs.")["item"]
    if isinstance(items, pa.StringArray):  # already text; a conversion would slow down servers
        return pa.chunked_array([items])
    if isinstance(items, pa.Array | pa.ChunkedArray):
        return as_ids(items, "item ID")
    return pa.chunked_array([as_item_ids(items)])


def _distinct_ids(items: Any) -> list[str]:
    ids = pc.unique(_as_text(items)).to_pylist()
    if not all(ids):  # empty text or null
        raise ValueError("Expected item IDs that are not empty, found '' or null. Remove empty IDs.")
    if taken := set(SPECIAL_TOKENS).intersection(ids):
        found = ", ".join(map(repr, sorted(taken)))
        raise ValueError(f"Item IDs must not be special tokens, found {found}. Rename these items in your data.")
    return ids


def _set_vocabulary(backend: Tokenizer, tokens: Sequence[str]) -> None:
    """Give tokens the IDs 0, 1, … in their order. Text is split at whitespace, unless a token contains whitespace."""
    backend.model = models.WordLevel({token: row for row, token in enumerate(tokens)}, unk_token=UNK)
    blanks = any(character.isspace() for character in "".join(tokens))
    backend.pre_tokenizer = None if blanks else pre_tokenizers.WhitespaceSplit()


def _titles_in_order(ids: list[str], titles: Mapping[Any, Any]) -> list[Any]:
    """Return the title of each ID; warn if all titles belong to other IDs."""
    if not isinstance(titles, Mapping):
        raise ValueError(f"`titles` must be a dict, such as from `load_titles`, found {type(titles).__name__}.")
    by_id = dict(zip(as_item_ids(list(titles), "keys of titles").to_pylist(), titles.values(), strict=True))
    if by_id and by_id.keys().isdisjoint(ids):
        examples = [", ".join(map(repr, some[:3])) for some in (list(by_id), ids)]
        text = "None of the titles belongs to an item. Titles have IDs such as %s. Items have IDs such as %s. %s"
        advice = "Name the column of the item: `load_titles(..., item=...)` (command line: `--title_item`)."
        logger.warning(text, *examples, f"The IDs must be those of the log. {advice}")
    return [by_id.get(item) for item in ids]


def _read_titles(file: str, items: pa.StringArray) -> list[str | None]:
    found = None
    with suppress(KeyError, AttributeError, ValueError, pa.ArrowException, OSError):
        table = read_parquet(file, (16 + TITLE_BYTES) * (len(items) + 1) + items.nbytes)
        titles = table["title"].type
        kind = titles.value_type if pa.types.is_dictionary(titles) else titles
        if kind in (pa.string(), pa.large_string(), pa.string_view()):  # Polars writes the last two
            found = table
    if found is None:
        expected = f"expected Parquet with a text column 'title', at most {TITLE_BYTES:,} bytes per title"
        raise ValueError(f"{file}: {expected}.")
    if "item" in found.column_names and found["item"].to_pylist() != items.to_pylist():  # older files have titles only
        raise ValueError(f"{file}: the titles belong to other items than those in tokenizer.json.")
    return found["title"].to_pylist()
