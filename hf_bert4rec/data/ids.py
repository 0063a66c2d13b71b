"""Ids of users and items: always text, whatever type a log has them in."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

READ_FIRST = "Read the data with load_interactions(dataset): it converts ids to text and times to numbers."


def as_ids(column: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    """Ids as strings: 1 and 1.0 become "1" (a column of numbers with gaps is floats in pandas); "" is no id."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        if pc.all(pc.equal(column, pc.round(column))).as_py() is not False:
            column = pc.cast(column, pa.int64(), safe=False)
    try:
        column = pc.cast(column, pa.string())
    except pa.ArrowNotImplementedError:
        raise ValueError(f"{what}: expected text or numbers, found a column of {column.type}.") from None
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)


def as_item_ids(values: Iterable[Any], name: str = "item IDs") -> pa.StringArray:
    """Convert raw item IDs to text in the way `load_interactions` does: 1 and 1.0 become "1".

    Args:
        values: Text or numbers; also numpy scalars and tensors of one number.
        name: What the values are called in errors.

    Raises:
        ValueError: A value is neither text nor a finite number, or a float too large to be exact.
    """
    if isinstance(values, str | bytes | Mapping) or hasattr(values, "columns"):  # tables
        raise ValueError(f"{name}: expected a list, found the {type(values).__name__} {str(values)[:100]!r}.")
    ids = list(values)
    if not {str}.issuperset(map(type, ids)):
        ids = [_as_item_id(value, name) for value in ids]
    try:
        return pa.array(ids, pa.string())
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: {error.object!r} is not valid Unicode text. Fix or remove it.") from None


def _as_item_id(value: Any, name: str) -> str:
    scalar = value.item() if getattr(value, "ndim", None) == 0 else value  # numpy scalars, tensors
    if isinstance(scalar, str):
        return str(scalar)
    exact = isinstance(scalar, int) or (isinstance(scalar, float) and abs(scalar) <= 2**53)  # False for NaN
    if exact and not isinstance(scalar, bool):
        return str(int(scalar) if scalar == int(scalar) else scalar)
    inexact = isinstance(scalar, float) and abs(scalar) > 2**53
    raise ValueError(
        f"{name}: expected text or numbers, found {repr(value)[:100]} ({type(value).__name__}). "
        + ("Floats above 2^53 are not exact: read IDs as text." if inexact else "Convert it to text or remove it.")
    )
