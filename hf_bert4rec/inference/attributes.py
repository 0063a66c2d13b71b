"""Attributes of items, such as category, price and stock: which items fulfill conditions, and their values."""

from collections.abc import Collection, Iterable, Mapping
from datetime import date
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from transformers.utils import logging

from ..data.columns import Column
from ..data.features import ItemFeatures
from ..data.item_tables import SEPARATOR, distinct_texts, read_items
from ..data.sources import library_errors, open_table
from .arguments import user_errors

logger = logging.get_logger(__name__)

CHECKED = 20  # number of values of a condition that are checked for a warning


class ItemAttributes:
    """Attributes of items, from a table with one row per item.

        products = ItemAttributes(pd.read_csv("products.csv", dtype={"sku": str}), item="sku")
        recommender(histories, attributes=products, where={"in_stock": True})

    A call also accepts the table itself, and then reads it each time. A cell has one value, a list of values, or text
    with values separated by `|`. An item without a row, or without a value, has no values.

    Args:
        source: Table of pandas, Polars, Arrow or `datasets`, or `ItemFeatures`. After changes, make a new object.
        item: Name or position (from 0) of the column of item IDs. Default: found by usual names, such as `item_id`.

    Raises:
        ValueError: `source` is not a table, column names repeat, no item column is found, or IDs are missing or repeat.
    """

    def __init__(self, source: Any, item: Column = None) -> None:
        wanted = "attributes: expected a table"
        if isinstance(source, str | PathLike):
            advice = "Read the file first, with IDs as text: `pd.read_csv(path, dtype={'item': str})`."
            raise ValueError(f"{wanted}, found {type(source).__name__}. {advice}")
        self._are_features = isinstance(source, ItemFeatures)
        self._table = open_table(source.table if self._are_features else source, "attributes", wanted)
        names = self._table.columns
        if repeated := [name for name in names if names.count(name) > 1]:
            found = f"{names.count(repeated[0])} columns named {repeated[0]!r}"
            raise ValueError(f"attributes: expected distinct column names, found {found}. Rename all but one.")
        with library_errors(self._table.name):
            _, items = read_items(self._table, item, "")
        self.items = items.combine_chunks()
        self._columns: dict[str, pd.Series] = {}
        self._values: dict[str, dict[str, list[Any]]] = {}

    def values(self, name: str) -> dict[str, list[Any]]:
        """Return a dict from raw ID to list of values, for items with values; ValueError for an unknown attribute."""
        if name not in self._values:  # once, because a rule asks for each user
            groups = self._column(name).groupby(level=0).agg(list)
            self._values[name] = dict(zip(self._items_of(groups).to_pylist(), groups, strict=True))
        return self._values[name]

    def matching(self, name: str, condition: Any) -> pa.Array:
        """Return the raw IDs of the items that fulfill a condition with at least one of their values.

        Args:
            name: The attribute.
            condition: A value of the type of the column, a list of values of which one must match, or a function. The
                function gets the column, a pandas Series with one element per value, and returns a Series of bools with
                the same index, such as `lambda price: price < 20`.

        Raises:
            ValueError: The attribute is unknown, the condition has another form, the function fails or returns
                something else, or a bool is compared with numbers other than 0 and 1.
        """
        column, what = self._column(name), f"The condition on {name!r}"
        if callable(condition):
            with user_errors(what, f"Fix this function. It gets the column, a Series of {column.dtype}."):
                found = condition(column)
            ordered = isinstance(found, pd.Series) and found.index.equals(column.index)
            if not ordered or found.dtype.kind != "b":
                index = "" if ordered else " with another index"
                kind = f"Series of {found.dtype}{index}" if isinstance(found, pd.Series) else type(found).__name__
                expected = f"a Series with the index of the column and one bool per value, found {kind}"
                raise ValueError(f"{what} must return {expected}. Fix this function.")
            return self._items_of(column[np.asarray(found.fillna(False), bool)])
        several = isinstance(condition, Iterable) and not isinstance(condition, str | bytes | Mapping)
        wanted = list(condition) if several else [condition]
        if any(isinstance(value, Collection) and not isinstance(value, str | bytes) for value in wanted):
            expected = "a value, a list of values, or a function of the column"
            raise ValueError(f"{what} must be {expected}, found {condition!r:.100}.")
        if column.dtype.kind in "iuf" and any(isinstance(it, bool) for it in wanted) and not column.isin([0, 1]).all():
            found = f"is {condition!r:.100}, but the column has numbers other than 0 and 1"
            raise ValueError(f"{what} {found}. Use a function, such as `lambda it: it > 0`.")
        if column.dtype.kind == "M":
            wanted = [pd.Timestamp(value) if isinstance(value, date) else value for value in wanted]
        if self._are_features and not pd.api.types.is_numeric_dtype(column):
            wanted = list(map(str, wanted))  # categories of features are text
        with user_errors(what, f"Pass values of the type of the column, {column.dtype}."):
            matches = column.isin(wanted)
            for value in wanted[:CHECKED]:
                if not column.isin([value]).any():
                    known = ", ".join(map(repr, column.drop_duplicates()[:3].tolist())) or "none"
                    text = f"No item has the value {value!r:.100} in {name!r}. First values: {known}."
                    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
                        text += " For a range, pass `lambda it: it < 20`."
                    logger.warning_once(text + " Text is split at `|`." * ("|" in str(value)))
        return self._items_of(column[matches])

    def _items_of(self, column: pd.Series) -> pa.Array:
        return self.items.take(pa.array(column.index.unique(), pa.int64()))

    def _column(self, name: str) -> pd.Series:
        """Return the values of a column without missing ones; the index is the row of the table.

        A cell with a list, or with text separated by `|`, has several values.
        """
        name = str(name)  # a column of a data frame can be named 0
        if name not in self._table.columns:
            raise ValueError(f"Unknown attribute {name!r}. Choose from {self._table}.")
        if name not in self._columns:
            with library_errors(self._table.name):
                (cells,) = self._table.read([self._table.columns.index(name)])
            if isinstance(cells, pa.ChunkedArray):  # without nulls, which would turn whole numbers into floats
                column = cells.drop_null().to_pandas(date_as_object=False)
                column.index = np.flatnonzero(cells.is_valid())
            else:
                column = pd.Series(cells, dtype=object)
            if column.dtype == object or isinstance(column.dtype, pd.StringDtype):
                split = [distinct_texts(cell.split(SEPARATOR)) if isinstance(cell, str) else cell for cell in column]
                column = pd.Series(split, column.index, dtype=object).explode()
            self._columns[name] = column.dropna().infer_objects()
        return self._columns[name]


def require_attributes(attributes: ItemAttributes | None) -> ItemAttributes:
    """Return the attributes; ValueError for None."""
    if attributes is None:
        raise ValueError("Attributes are missing. Pass a table with one row per item as `attributes=`.")
    return attributes


def read_attributes(source: Any, items: pa.Array) -> ItemAttributes:
    """Return the attributes of the items of a model, from a table or `ItemAttributes`.

    Warns if fewer than half of the items of the model have a row in the table; ValueError if none has a row.
    """
    try:
        attributes = source if isinstance(source, ItemAttributes) else ItemAttributes(source)
    except ValueError as error:
        if "`item=" not in str(error):  # the error does not advise to name the column
            raise
        raise ValueError(f"{error} In this call: `attributes=ItemAttributes(table, item=...)`.") from None
    found = pc.sum(pc.is_in(items, value_set=attributes.items)).as_py()
    if found == 0:
        table, model = (repr(of[0].as_py()) if len(of) else "none" for of in (attributes.items, items))
        found = f"first ID of the table: {table}, of the model: {model}"
        advice = "Use the same IDs in both, or name their column: `attributes=ItemAttributes(table, item=...)`."
        raise ValueError(f"attributes: no item of the table is in the model ({found}). {advice}")
    if found is not None and found < len(items) / 2:
        text = "attributes: only %s of the %s items of the model have attributes. The others match no condition. %s"
        advice = "Pass a table with all items, or name its column of IDs: `attributes=ItemAttributes(table, item=...)`."
        logger.warning_once(text, f"{found:,}", f"{len(items):,}", advice)
    return attributes
