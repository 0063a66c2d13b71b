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
MOST_VALUES = 10_000  # per item
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
        """Read what `save` has written, for a catalog of `number` items. ValueError: the file is damaged."""
        with suppress(KeyError, TypeError, ValueError, pa.ArrowException, OSError), pq.ParquetFile(file) as parquet:
            groups = [parquet.metadata.row_group(group) for group in range(parquet.num_row_groups)]
            values = sum(group.column(place).num_values for group in groups for place in range(group.num_columns))
            if values <= MOST_VALUES * max(number, parquet.metadata.num_rows) and parquet.metadata.num_rows <= number:
                table = parquet.read()  # sizes first: a small file can hold gigabytes
                return cls(table.replace_schema_metadata(None), json.loads(table.schema.metadata[_SCHEMA]))
        raise ValueError(f"{file}: expected features of at most {number} items. Copy it from where it was saved.")


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
