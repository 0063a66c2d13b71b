"""Features of items, and how they become vectors. They are saved with the tokenizer."""

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
PROJECTION_FILE = "item_features.safetensors"  # of a checkpoint: how features become item vectors
BYTES = 50_000  # of an item
MOST_CATEGORIES = 1000  # per column; more would rarely be shared by enough items
MOST_INTERVALS = 10  # of a number
_SCHEMA = b"hf-bert4rec"  # key in the metadata of the Parquet file


@dataclass(frozen=True)
class ItemFeatures:
    """Features of items, and how they become vectors.

    Args:
        table: `item`, then one column per feature: numbers, lists of categories, or vectors. Text is its vector.
        columns: Name of a column -> `kind` ("number", "categories", "vector" or "text") and what its encoding needs:
            `edges` of intervals; `values`; `width` and `scale`; for text also `encoder`.
    """

    table: pa.Table
    columns: dict[str, dict[str, Any]]

    @property
    def items(self) -> pa.ChunkedArray:
        """Raw IDs of the items that have features."""
        return self.table["item"]

    def vectors(self, items: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Return the vectors of raw IDs, (items, width) float32; zeros for items without features.

        The first number is 1 if the item has features. A number becomes the interval that it is in, of intervals with
        the same number of items; a category whether the item has it, divided by the root of how many it has. Vectors
        are divided by their mean length.
        """
        blocks = [_encode(self.table[name], how) for name, how in self.columns.items()]
        ones = np.ones((len(self.table), 1), np.float32)
        encoded = np.concatenate([ones, *blocks], axis=1)
        places = pc.fill_null(pc.index_in(items, value_set=self.items), -1).to_numpy()
        return np.where(places[:, None] >= 0, encoded[places], np.float32(0))

    def extended(self, others: Self) -> Self:
        """Return these features and those of other items, which have the same encoding."""
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
        raise ValueError(
            f"{file} is damaged: expected features of at most {number} items. Download or save the checkpoint again."
        )


def read_parquet(file: str | PathLike, most_bytes: int) -> pa.Table:
    """Read a Parquet file; ValueError if it needs more memory. A small one can repeat a long text in gigabytes."""
    with pq.ParquetFile(file) as parquet:
        groups = [parquet.metadata.row_group(group) for group in range(parquet.num_row_groups)]
        values = sum(group.column(place).num_values for group in groups for place in range(group.num_columns))
        size = max(8 * values, sum(group.total_byte_size for group in groups))
        leaves = [parquet.schema.column(place) for place in range(len(parquet.schema))]
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        if size <= most_bytes and texts:
            with pq.ParquetFile(file, read_dictionary=texts) as encoded:
                columns = [pc.list_flatten(it) if pa.types.is_list(it.type) else it for it in encoded.read(texts)]
            distinct = [chunk.dictionary for column in columns for chunk in column.chunks]
            size = values * (8 + max((pc.max(pc.binary_length(it)).as_py() or 0 for it in distinct), default=0))
        if size > most_bytes:
            raise ValueError(f"expected at most {most_bytes:,} bytes in memory, found {size:,}")
        return parquet.read()


def _check_encoding(columns: dict[str, dict[str, Any]]) -> None:
    """Raise an error unless the encoding of each column is one that `load_item_features` makes."""
    for how in columns.values():
        numbers = how["edges"] if how["kind"] == "number" else [] if how["kind"] == "categories" else [how["scale"]]
        sizes = len(numbers) <= MOST_INTERVALS and len(how.get("values", ())) <= MOST_CATEGORIES
        if not sizes or not np.isfinite(np.array(numbers, float)).all():
            raise ValueError("too many or infinite numbers")


def _encode(column: pa.ChunkedArray, how: dict[str, Any]) -> np.ndarray:
    """Return the numbers of a column, (rows, width) float32."""
    if how["kind"] == "number":
        numbers, bins = column.to_numpy(), np.arange(len(how["edges"]) + 1)
        found = np.where(np.isnan(numbers), -1, np.searchsorted(how["edges"], numbers, side="right"))
        return (found[:, None] == bins).astype(np.float32)
    if how["kind"] != "categories":
        return np.stack(column.to_numpy(zero_copy_only=False)).astype(np.float32) * np.float32(how["scale"])
    rows = column.combine_chunks()
    places = pc.fill_null(pc.index_in(rows.flatten(), value_set=pa.array(how["values"], pa.string())), -1).to_numpy()
    owners = np.repeat(np.arange(len(rows)), pc.list_value_length(rows).to_numpy())
    encoded = np.zeros((len(rows), len(how["values"])), np.float32)
    encoded[owners[places >= 0], places[places >= 0]] = 1
    return encoded / np.sqrt(np.maximum(encoded.sum(axis=1, keepdims=True), 1))
