"""Checks of arguments that are numbers."""

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any


def check_number(name: str, value: Any, expected: str, holds: Callable[[Any], object], kind: type = Real) -> None:
    """Raise ValueError unless a value is a number (not a bool) for which `holds` is true, as `expected` says."""
    if isinstance(value, bool) or not isinstance(value, kind) or not holds(value):
        raise ValueError(f"`{name}` must be {expected}, found {value!r:.100}.")


def check_count(name: str, value: Any) -> None:
    """Raise ValueError unless a value is a whole number of at least 1."""
    check_number(name, value, "a whole number of at least 1", lambda number: number >= 1, Integral)
