"""Ids of users and items: always text, whatever type a log has them in."""

import pyarrow as pa
import pyarrow.compute as pc


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
