"""Attributes of items, such as category, price and stock: which items fulfill conditions, and their values."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ..data.columns import Column, find_columns
from ..data.features import ItemFeatures
from ..data.ids import as_ids
from ..data.item_tables import SEPARATOR, check_items, distinct_texts
from ..data.sources import library_errors, open_table
from ..models.configuration_bert4rec import SPECIAL_TOKENS

logger = logging.getLogger(__name__)

CHECKED = 20  # values of a condition for which a warning is given if no item has them


class ItemAttributes:
    """Attributes of items, from a table with one row per item.

        products = ItemAttributes(pd.read_csv("products.csv", dtype={"sku": str}), item="sku")
        recommender(histories, attributes=products, where={"in_stock": True})

    Calls also accept the table itself, and then read it in each call. A cell has one value, a list of values, or text
    with values separated by `|`. An item without a row, or without a value, has no values.

    Args:
        source: Data frame, `Dataset`, Arrow table, or `ItemFeatures`. Later changes of it are not seen.
        item: Column of the item. Default: found by its usual names.

    Raises:
        ValueError: It is not a table, two columns have the same name, no column fits the item, or an item has no ID or
            several rows.
    """

    def __init__(self, source: Any, item: Column = None) -> None:
        if isinstance(source, str | PathLike | Mapping):
            advice = "pd.DataFrame(...)" if isinstance(source, Mapping) else 'pd.read_csv(..., dtype={"item": str})'
            raise ValueError(f"attributes: expected a table, found {type(source).__name__}. Pass {advice}.")
        log = open_table(source.table if isinstance(source, ItemFeatures) else source, "attributes")
        if len(set(log.columns)) < len(log.columns):
            raise ValueError(f"attributes: expected columns with different names, found {log}.")
        with library_errors(log.name):
            place = find_columns(log, {"item": item}, needed=["item"])["item"]
            items = as_ids(log.read([place])[0], "item", log.locate)
            check_items(items, log)
        self._name = log.columns[place]
        self._items, self._log, self._features = items.combine_chunks(), log, isinstance(source, ItemFeatures)
        self._warned: set[tuple[str, str]] = set()
        self._bound: tuple[pa.Array, CatalogAttributes] | None = None
        self._columns: dict[str, pd.Series] = {}
        self._lists: dict[str, dict[Any, list[Any]]] = {}

    def of(self, items: pa.Array) -> "CatalogAttributes":
        """Return the attributes of the items of a catalog, raw IDs in its order; ValueError if the table has none."""
        if self._bound is None or self._bound[0] is not items:
            places = pc.fill_null(pc.index_in(items, value_set=self._items), -1).to_numpy()
            if len(places) and places.max() < 0:
                shown = " and ".join(repr(of[0].as_py()) for of in (self._items, items) if len(of))
                raise ValueError(f"attributes: no item of the table is in the model, found {shown}. Use the same IDs.")
            if (found := int((places >= 0).sum())) < len(places) / 2:
                total = f"{found:,} of the {len(places):,} items of the model"
                logger.warning(
                    "attributes: only %s have a row in the table. Is %r the column of IDs?", total, self._name
                )
            specials = np.full(len(SPECIAL_TOKENS), -1)
            self._bound = items, CatalogAttributes(self, np.concatenate([specials, places]))
        return self._bound[1]

    def values_by_row(self, name: str) -> dict[Any, list[Any]]:
        """Return row of the table -> values of an attribute, of the rows that have values."""
        if name not in self._lists:  # once, because a rule asks for each user
            self._lists[name] = self._column(name).groupby(level=0).agg(list).to_dict()
        return self._lists[name]

    def matching_rows(self, name: str, condition: Any) -> np.ndarray:
        """Return the rows of the table with a value that fulfills a condition; see `CatalogAttributes.matches`."""
        column = self._column(name)
        if callable(condition):
            try:
                found = condition(column)
                ordered = isinstance(found, pd.Series) and found.index.equals(column.index)
                if not ordered or str(found.dtype) not in ("bool", "boolean"):
                    raise ValueError("return one bool per value, as a Series in the order of the column")
                chosen = np.asarray(found.fillna(False), bool)
            except Exception as error:  # whatever the function of the user raises
                raise ValueError(f"The condition on {name!r} failed for a column of {column.dtype}: {error}") from error
        else:
            several = isinstance(condition, Iterable) and not isinstance(condition, str | bytes | Mapping)
            wanted = list(condition) if several else [condition]
            if self._features and not pd.api.types.is_numeric_dtype(column):
                wanted = list(map(str, wanted))  # categories of features are text
            chosen = column.isin(wanted).to_numpy()
            for value in map(repr, (it for it in wanted[:CHECKED] if not column.isin([it]).any())):
                if (name, value) not in self._warned:
                    self._warned.add((name, value))
                    known = ", ".join(map(repr, column.drop_duplicates()[:3].tolist()))
                    text = "No item has %s among its values of %r, such as %s. For a range use a function."
                    logger.warning(text, value, name, known)
        return np.unique(column.index[chosen])

    def _column(self, name: str) -> pd.Series:
        """Return the values of a column; the index is the row of the table, once for each value of its cell."""
        if name not in self._log.columns:
            raise ValueError(f"Unknown attribute {name!r}. The table has {self._log}.")
        if name not in self._columns:
            with library_errors(self._log.name):
                (cells,) = self._log.read([self._log.columns.index(name)])
            if isinstance(cells, pa.ChunkedArray):  # without nulls, which would turn whole numbers into floats
                column = cells.drop_null().to_pandas(date_as_object=False)
                column.index = np.flatnonzero(cells.is_valid())
            else:
                column = pd.Series(cells, dtype=object)
            if column.dtype == object or isinstance(column.dtype, pd.StringDtype):
                column = column.map(_split).explode()
            self._columns[name] = column.dropna().infer_objects()
        return self._columns[name]


@dataclass(frozen=True, eq=False)
class CatalogAttributes:
    """Attributes by row of the item table of a model.

    Args:
        table: The attributes.
        places: (rows,) row of the table for each row of the item table, -1 without one.
    """

    table: ItemAttributes
    places: np.ndarray

    def values(self, name: str, rows: np.ndarray) -> list[list[Any]]:
        """Return a list of values for each row of the item table; ValueError for an unknown attribute."""
        found = self.table.values_by_row(name)
        return [found.get(place, []) for place in self.places[rows].tolist()]

    def matches(self, conditions: Mapping[str, Any]) -> np.ndarray:
        """Return whether each row of the item table fulfills each condition, (conditions, rows) bool.

        Args:
            conditions: Attribute -> its value, a list of values of which one is enough, or a function of the column
                (a pandas Series with one element per value) that returns one bool per element, such as
                `lambda price: price < 20`.

        Raises:
            ValueError: An attribute is unknown, `conditions` is not a dict, or a function fails.
        """
        if not isinstance(conditions, Mapping):
            raise ValueError(f"Conditions must be a dict, such as {{'in_stock': True}}, found {conditions!r:.100}.")
        found = [np.isin(self.places, self.table.matching_rows(*condition)) for condition in conditions.items()]
        return np.array(found, bool).reshape(len(found), len(self.places))


def _split(cell: Any) -> Any:
    """Return the values of a cell of text, without blanks around them; other cells as they are."""
    return distinct_texts(cell.split(SEPARATOR)) if isinstance(cell, str) else cell
