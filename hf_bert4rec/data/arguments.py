"""Checks of arguments: numbers and lists."""

from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any


def check_number(name: str, value: Any, expected: str, holds: Callable[[Any], object], kind: type = Real) -> None:
    """Raise ValueError with the text `expected` unless a value is of type `kind`, is no bool, and fulfills `holds`."""
    if isinstance(value, bool) or not isinstance(value, kind) or not holds(value):
        raise ValueError(f"`{name}` must be {expected}, found {value!r:.100}.")


def check_count(name: str, value: Any) -> None:
    """Raise ValueError unless a value is a whole number of at least 1."""
    check_number(name, value, "a whole number of at least 1", lambda number: number >= 1, Integral)


def read_list(values: Any, name: str, ordered: bool = False) -> list[Any]:
    """Return a collection or a column of a table as a list; ValueError for other values, and if `ordered` for sets."""
    if type(values) is list:
        return values
    if isinstance(values, Mapping) or hasattr(values, "column_names") or hasattr(values, "columns"):
        column = "history" if name.startswith("histor") else "item"
        advice = f"Pass one of its columns, such as data['{column}']."
        raise ValueError(f"{name}: expected a list, found {type(values).__name__}. {advice}")
    for method in ("tolist", "to_pylist", "to_list"):  # NumPy, PyTorch and pandas; Arrow; Polars
        if hasattr(values, method):
            values = getattr(values, method)()
            break
    unordered = ordered and isinstance(values, set | frozenset)
    if unordered or not is_collection(values) or isinstance(values, bytearray | memoryview):
        reason = ", because a set has no order" if unordered else ""
        found = f"{type(values).__name__} {values!r:.100}"
        raise ValueError(f"{name}: expected a list, found {found}. Pass a list{reason}.")
    return list(values)


def is_collection(value: Any) -> bool:
    """Return whether a value is a collection of IDs; a tensor without dimensions is a single ID."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes) and getattr(value, "ndim", 1) > 0
