"""Features of items: their encoding as vectors, and the file in which a tokenizer saves them."""

import json
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

FEATURES_FILE = "item_features.parquet"
PROJECTION_FILE = "item_features.safetensors"  # in a checkpoint: the weights that turn features into item vectors
BYTES = 50_000  # limit of the features in memory, per item on average
MOST_CATEGORIES = 1000  # per column; more would rarely be shared by enough items
MOST_INTERVALS = 10  # per column of numbers
_SCHEMA = b"hf-bert4rec"  # key in the metadata of the Parquet file


@dataclass(frozen=True)
class ItemFeatures:
    """Features of items, and the encoding that converts them to vectors.

    Args:
        table: `item`, then one column per feature: numbers, lists of categories, or vectors (also for text).
        columns: For each feature its `kind` and encoding: `edges` of the intervals for "number", `values` for
            "categories", `width` and `scale` for "vector" and "text", and for "text" also `encoder`.
    """

    table: pa.Table
    columns: dict[str, dict[str, Any]]

    @property
    def items(self) -> pa.ChunkedArray:
        """Raw IDs of the items that have features."""
        return self.table["item"]

    def vectors(self, items: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Return the vectors of raw IDs, (items, width) float32; zeros for items without features.

        The first number is 1 if the item has features. A number is encoded by its interval: 1 or 0 for each of up to
        ten intervals with about the same number of items, 0 for all if it is missing. Each category of a column is
        encoded as 1 or 0, divided by the square root of the number of ones. Vectors are divided by their mean norm.
        """
        blocks = [_encode(self.table[name], how) for name, how in self.columns.items()]
        encoded = np.concatenate([np.ones((len(self.table), 1), np.float32), *blocks], axis=1)
        encoded = np.pad(encoded, ((0, 1), (0, 0)))  # the last row, at -1, is for items without features
        return encoded[pc.fill_null(pc.index_in(items, value_set=self.items), -1).to_numpy()]

    def extended(self, others: Self) -> Self:
        """Return these features with those of other items in the same encoding. Items in both keep their features."""
        new = pc.invert(pc.is_in(others.items, value_set=self.items.combine_chunks()))
        return type(self)(pa.concat_tables([self.table, others.table.filter(new)]), self.columns)

    def save(self, file: Any) -> None:
        """Write the table and its encoding as Parquet."""
        metadata = {_SCHEMA: json.dumps(self.columns, ensure_ascii=False)}
        pq.write_table(self.table.replace_schema_metadata(metadata), file)

    @classmethod
    def load(cls, file: str | PathLike, number: int) -> Self:
        """Load the features that `save` wrote for a catalog of `number` items; ValueError if the file is damaged."""
        with suppress(KeyError, TypeError, ValueError, AttributeError, pa.ArrowException, OSError):
            table = read_parquet(file, BYTES * (number + 1))
            columns = json.loads(table.schema.metadata[_SCHEMA])
            features = cls(table.replace_schema_metadata(None), columns)
            if len(table) <= number and table.column_names == ["item", *columns]:
                _check_encoding(columns)
                features.vectors(table["item"][:1])
                return features
        problem = f"the features are damaged, or do not belong to the {number} items of the tokenizer"
        raise ValueError(f"{file}: {problem}. Download or save the checkpoint again.")


def check_features(name: str, features: Any) -> None:
    """Raise ValueError unless features are `ItemFeatures` or None."""
    if not isinstance(features, ItemFeatures | None):
        raise ValueError(f"`{name}` must be from `load_item_features`, found {type(features).__name__}.")


def read_parquet(file: str | PathLike, most_bytes: int) -> pa.Table:
    """Read a Parquet file; ValueError if its values need more than `most_bytes`, which is possible for a small file."""
    with pq.ParquetFile(file) as parquet:
        groups = [parquet.metadata.row_group(group) for group in range(parquet.num_row_groups)]
        values = sum(group.column(place).num_values for group in groups for place in range(group.num_columns))
        size = max(8 * values, sum(group.total_byte_size for group in groups))
        leaves = [parquet.schema.column(place) for place in range(len(parquet.schema))]
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        if size <= most_bytes and texts:
            with pq.ParquetFile(file, read_dictionary=texts) as encoded:
                columns = [pc.list_flatten(it) if pa.types.is_list(it.type) else it for it in encoded.read(texts)]
            chunks = [chunk for column in columns for chunk in column.chunks]
            lengths = (pc.take(pc.binary_length(chunk.dictionary), chunk.indices) for chunk in chunks)
            size = 8 * values + sum(pc.sum(it).as_py() or 0 for it in lengths)
        if size > most_bytes:
            raise ValueError(f"expected at most {most_bytes:,} bytes in memory, found {size:,}")
        return parquet.read()


def _check_encoding(columns: dict[str, dict[str, Any]]) -> None:
    """Raise an error if an encoding lacks a key, has too many values, or has a number that is not finite."""
    for how in columns.values():
        numbers = how["edges"] if how["kind"] == "number" else [how.get("scale", 0)]  # categories have no scale
        sizes = len(numbers) <= MOST_INTERVALS and len(how.get("values", ())) <= MOST_CATEGORIES
        if not sizes or not np.isfinite(np.array(numbers, float)).all():
            raise ValueError("too many or infinite numbers")


def _encode(column: pa.ChunkedArray, how: dict[str, Any]) -> np.ndarray:
    """Return the encoded values of a column, (rows, width) float32."""
    if how["kind"] == "number":
        numbers, bins = column.to_numpy(), np.arange(len(how["edges"]) + 1)
        found = np.where(np.isnan(numbers), -1, np.searchsorted(how["edges"], numbers, side="right"))
        return (found[:, None] == bins).astype(np.float32)
    if how["kind"] != "categories":
        # `stack` needs a row, so there is one more.
        rows = [*column.to_numpy(zero_copy_only=False), np.zeros(how["width"], np.float32)]
        return np.stack(rows)[:-1].astype(np.float32) * np.float32(how["scale"])
    rows = column.combine_chunks()
    places = pc.fill_null(pc.index_in(rows.flatten(), value_set=pa.array(how["values"], pa.string())), -1).to_numpy()
    owners = np.repeat(np.arange(len(rows)), pc.list_value_length(rows).to_numpy())
    encoded = np.zeros((len(rows), len(how["values"])), np.float32)
    encoded[owners[places >= 0], places[places >= 0]] = 1
    return encoded / np.sqrt(np.maximum(encoded.sum(axis=1, keepdims=True), 1))
