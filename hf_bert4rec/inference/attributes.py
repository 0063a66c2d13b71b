"""Attributes of items, such as category, price and stock: who matches a filter, and which values an item has."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ..data.columns import Column, find_columns
from ..data.features import ItemFeatures
from ..data.ids import as_ids
from ..data.item_tables import SEPARATOR, check_items
from ..data.sources import library_errors, open_table
from ..data.tokenization import ItemTokenizer
from ..models.configuration_bert4rec import SPECIAL_TOKENS


class ItemAttributes:
    """Attributes of the items of a catalog, from a table with one row per item.

        products = ItemAttributes(pd.read_csv("products.csv"), recommender.tokenizer)
        recommender(histories, attributes=products, where={"in_stock": True})

    Calls also accept the table itself, which they read again each time. A cell has one value, a list of values, or text
    with values separated by `|`. An item without a row, or without a value, has no values: it matches no filter.

    Args:
        source: Data frame, `Dataset`, Arrow table, or `ItemFeatures`.
        tokenizer: The tokenizer of the model. Other items of the table are ignored.
        item: Column of the item. Default: found by its usual names.

    Raises:
        ValueError: It is not a table, has no column for the item, or an item has no ID or several rows.
    """

    def __init__(self, source: Any, tokenizer: ItemTokenizer, item: Column = None) -> None:
        log = open_table(source.table if isinstance(source, ItemFeatures) else source, "attributes")
        with library_errors(log.name):
            place = find_columns(log, {"item": item}, needed=["item"])["item"]
            ids, *values = log.read([place, *(other for other in range(len(log.columns)) if other != place)])
            items = as_ids(ids, "item", log.locate)
            check_items(items, log)
        names = [name for other, name in enumerate(log.columns) if other != place]
        # Row of the table for each row of the item table; -1 without one.
        places = pc.fill_null(pc.index_in(tokenizer.items, value_set=items.combine_chunks()), -1).to_numpy()
        self._places = np.concatenate([np.full(len(SPECIAL_TOKENS), -1), places])
        self._lists: dict[str, dict[Any, list[Any]]] = {}
        self._values = {name: _one_per_row(column) for name, column in zip(names, values, strict=True)}

    def values(self, name: str, rows: np.ndarray) -> list[list[Any]]:
        """Return the values of an attribute for each row of the item table; ValueError for an unknown attribute."""
        if name not in self._lists:  # once, because a rule asks for each user
            self._lists[name] = self._column(name).groupby(level=0).agg(list).to_dict()
        return [self._lists[name].get(place, []) for place in self._places[rows].tolist()]

    def matches(self, where: Mapping[str, Any]) -> np.ndarray:
        """Return which rows of the item table fulfill all conditions, (rows,) bool.

        Args:
            where: Attribute -> its value, a list of values of which one is enough, or a function of the column
                (a pandas Series, one element per value) that returns one bool per element, such as
                `lambda price: price < 20`.

        Raises:
            ValueError: An attribute is unknown, `where` is not a dict, or a function returns something else.
        """
        if not isinstance(where, Mapping):
            raise ValueError(f"`where` must be a dict, such as {{'in_stock': True}}, found {where!r:.100}.")
        matching = self._places >= 0
        for name, condition in where.items():
            column = self._column(name)
            if callable(condition):
                chosen = condition(column)
                if str(getattr(chosen, "dtype", None)) not in ("bool", "boolean") or len(chosen) != len(column):
                    raise ValueError(f"`where`: the function of {name!r} must return one bool per value of the column.")
            else:
                several = isinstance(condition, Sequence | set | np.ndarray) and not isinstance(condition, str)
                chosen = column.isin(list(condition) if several else [condition])
            matching &= np.isin(self._places, column.index[np.asarray(chosen, bool)])
        return matching

    def _column(self, name: str) -> pd.Series:
        if name not in self._values:
            known = ", ".join(map(repr, self._values)) or "none"
            raise ValueError(f"Unknown attribute {name!r}. The table has {known}.")
        return self._values[name]


def _one_per_row(column: Any) -> pd.Series:
    """Return the values of a column; the index is the row of the table, once for each value of its cell."""
    cells = column.to_pandas() if isinstance(column, pa.ChunkedArray) else pd.Series(column, dtype=object)
    if cells.dtype == object or isinstance(cells.dtype, pd.StringDtype):
        cells = cells.map(lambda cell: cell.split(SEPARATOR) if isinstance(cell, str) else cell)
    return cells.explode().dropna().infer_objects()
