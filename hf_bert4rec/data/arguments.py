"""Checks of numbers, lists and rows that are passed as arguments."""

from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict


def check_number(name: str, value: Any, expected: str, holds: Callable[[Any], object], kind: type = Real) -> None:
    """Raise ValueError, "`name` must be `expected`", unless a value is a `kind`, not a bool, and fulfills `holds`."""
    if isinstance(value, bool) or not isinstance(value, kind) or not holds(value):
        raise ValueError(f"`{name}` must be {expected}, found {value!r:.100}.")


def check_count(name: str, value: Any) -> None:
    """Raise ValueError unless a value is a whole number of at least 1."""
    check_number(name, value, "a whole number of at least 1", lambda number: number >= 1, Integral)


def check_bool(name: str, value: Any) -> None:
    """Raise ValueError unless a value is a bool of Python or NumPy."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"`{name}` must be True or False, found {value!r:.100}.")


def read_rows(rows: Any, *columns: str, advice: str = "Pass a split that `leave_one_out` returns.") -> pa.Table:
    """Return `rows` as an Arrow table; raise ValueError with `advice` unless it is a `Dataset` with all `columns`."""
    found = rows.column_names if isinstance(rows, Dataset) else [type(rows).__name__]
    if not set(columns) <= set(found):
        if isinstance(rows, DatasetDict):
            advice = f"Pass one of its splits, such as `data[{next(iter(rows), 'train')!r}]`."
        expected = " and ".join(filter(None, (", ".join(columns[:-1]), columns[-1])))
        raise ValueError(f"Expected a Dataset with {expected}, found {', '.join(found)}. {advice}")
    return as_table(rows)


def as_table(rows: Dataset) -> pa.Table:
    """Return a `Dataset` as an Arrow table, with the names of class labels; ValueError if it has a transform."""
    if rows.format["type"] == "custom":
        raise ValueError("The transform of the Dataset would not be applied. Use `map` instead of `with_transform`.")
    table = rows.with_format("arrow")[:]
    labels = {name: feature.names for name, feature in rows.features.items() if isinstance(feature, ClassLabel)}
    for name, texts in labels.items():
        named = pc.take(pa.array([None, *texts], pa.string()), pc.add(table[name], 1))  # -1 is a missing label
        table = table.set_column(table.column_names.index(name), name, named)
    return table


def read_list(values: Any, name: str, ordered: bool = False) -> list[Any]:
    """Return a collection or a column of a table as a list; raise ValueError for others, and for sets if `ordered`."""
    if type(values) is list:
        return values
    if isinstance(values, Mapping) or hasattr(values, "column_names") or hasattr(values, "columns"):
        advice = "Pass one of its columns or values, such as data['history'] or data['train']['item']."
        raise ValueError(f"{name}: expected a list, found {type(values).__name__}. {advice}")
    for method in ("tolist", "to_pylist", "to_list"):  # NumPy, PyTorch and pandas; Arrow; Polars
        if hasattr(values, method):
            values = getattr(values, method)()
            break
    unordered = ordered and isinstance(values, set | frozenset)
    if unordered or not is_collection(values) or isinstance(values, bytearray | memoryview):
        example = [["1", "6"]] if name == "histories" else ["1", "6"]
        advice = f"Pass a list, such as {example}.{' A set has no order.' * unordered}"
        raise ValueError(f"{name}: expected a list, found {type(values).__name__} {values!r:.100}. {advice}")
    return list(values)


def is_collection(value: Any) -> bool:
    """Return whether a value is a collection of IDs. Text and a tensor without dimensions are single IDs."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes) and getattr(value, "ndim", 1) > 0
