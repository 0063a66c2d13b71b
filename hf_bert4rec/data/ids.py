"""IDs of users and items: always text, whatever their type in a log or a history is."""

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from decimal import Decimal
from numbers import Number
from typing import Any, TypeAlias
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from .arguments import read_list

logger = logging.getLogger(__name__)

Values: TypeAlias = pa.ChunkedArray | list[Any]  # a column; a list if Arrow has no type for its values

EXACT_BITS = {"halffloat": 11, "float": 24, "double": 53}  # type of floats -> b; whole numbers up to 2^b are exact
READ_FIRST = "Read the log with `load_interactions`, which drops incomplete rows and converts IDs and times."
ONE_PER_ROW = (
    "Give each value a row of its own (pandas: `str.split` and `explode`). Pass the new data frame, or save it as CSV."
)


def as_ids(
    values: Values | pa.Array, what: str, locate: Callable[[int], str] = "row {} (from 0)".format
) -> pa.ChunkedArray:
    """Convert IDs to text: 1 and 1.0 become "1"; empty text and missing values become null.

    ValueError if a value is not valid Unicode text, a finite number, a UUID or a date, or is a float too large to be
    exact. The message begins with `locate(row)` and `what`, such as "row 3 (from 0), item".
    """
    values = pa.chunked_array([values]) if isinstance(values, pa.Array) else values
    kind = None if isinstance(values, list) else values.type
    if kind and not (pa.types.is_nested(kind) or re.search("float|double|decimal|binary", str(kind))):
        ids = pc.cast(values, pa.string())
    else:
        digits = EXACT_BITS.get(str(kind), 53)
        distinct, places = distinct_values(values)
        texts = []
        for place, value in enumerate(distinct):
            try:
                texts.append(_as_id(value, digits))
            except ValueError as error:
                raise ValueError(f"{locate(int(np.argmax(places == place)))}, {what}: {error}") from None
        ids = pa.chunked_array([pa.array(texts, pa.string()).take(pa.array(places, mask=places < 0))])
    null = pa.scalar(None, pa.string())  # not by if_else, which damages parts of arrays before pyarrow 23
    given = [pc.replace_with_mask(chunk, pc.equal(chunk, ""), null) for chunk in ids.chunks]
    return pa.chunked_array(given, pa.string())


def as_item_ids(values: Iterable[Any], name: str = "item IDs") -> pa.StringArray:
    """Convert raw item IDs to text in the way `load_interactions` does: 1 and 1.0 become "1".

    ValueError if `values` is not a collection, or a value is missing, is not valid Unicode text or a finite number (int
    or float, also in a tensor), or is a float too large to be exact. The message begins with `name`.
    """
    ids = read_list(values, name)
    try:
        kinds = {*map(type, ids)}
        if kinds == {int}:  # the same as below, but much faster, for servers; bool is another type
            ids = [*map(str, ids)]
        elif not kinds <= {str}:
            ids = [_as_item_id(value, name) for value in ids]
        return pa.array(ids, pa.string())
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: {error.object!r} is not valid Unicode text. Fix or remove this value.") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _as_item_id(value: Any, name: str) -> str:
    scalar = value.item() if getattr(value, "ndim", None) == 0 else value  # numpy scalars, tensors
    text = _as_id(scalar) if isinstance(scalar, str | int | float) and not isinstance(scalar, bool) else None
    if text is None:
        found = f"found {value!r:.100} ({type(value).__name__})"
        advice = "Convert other types to text, and pass no inner lists."
        if pd.isna(scalar) is True:
            advice = "Remove missing values." + " Only `recommender.fill` accepts them." * (name == "histories")
        elif isinstance(value, Mapping) and "item" in value:
            advice = "Pass the value of its key 'item'."
        raise ValueError(f"expected text or numbers, {found}. {advice}")
    return text


def _as_id(value: Any, digits: int = 53) -> str | None:
    """Convert one ID to text, and a missing value to None. Floats below 2^`digits` are exact."""
    if isinstance(value, str | bytes):
        try:
            return value.decode() if isinstance(value, bytes) else value.encode().decode()
        except UnicodeError:
            raise ValueError(f"{value!r:.100} is not valid Unicode text. Fix or remove this value.") from None
    if value is None or value is pd.NA or (isinstance(value, Number | date) and pd.isna(value)):
        return None
    if not isinstance(value, Number | date | UUID):
        advice = ONE_PER_ROW if hasattr(value, "__len__") else "Convert the value to text."
        advice = "Make columns of its parts (pandas: `json_normalize`)." if isinstance(value, dict) else advice
        raise ValueError(f"expected text or numbers, found {value!r:.100} ({type(value).__name__}). {advice}")
    if isinstance(value, float | np.floating | Decimal) and abs(value) == math.inf:
        raise ValueError(f"expected text or a finite number, found {value!r}. Fix or remove this value.")
    if isinstance(value, float | np.floating) and abs(value) >= 2**digits:
        raise ValueError(
            f"found the float {value!r}. Floats from 2^{digits} on are not exact, so different IDs can become the same "
            "ID. Export or read IDs as text (pandas: dtype=str) or as integers."
        )
    if isinstance(value, float | np.floating | Decimal) and value == int(value):
        return str(int(value))
    return str(value)


def distinct_values(values: Values) -> tuple[list[Any], np.ndarray]:
    """Return the distinct values (of a list, all values), and for each row the index of its value, or -1 for null."""
    if isinstance(values, list) or pa.types.is_nested(values.type):
        return values if isinstance(values, list) else values.to_pylist(), np.arange(len(values))
    encoded = values.dictionary_encode().combine_chunks()
    return encoded.dictionary.to_pylist(), pc.fill_null(encoded.indices, -1).to_numpy()


def warn_about_variants(ids: pa.StringArray, role: str, known: int = 0) -> None:
    """Warn about IDs, after the first `known` ones, that differ from another only in case, blanks or Unicode form.

    `role` is "item" or "user".
    """
    if pc.all(pc.ascii_is_decimal(ids)).as_py():
        return  # the usual case, without the time of the following lines
    folded = pc.utf8_lower(pc.utf8_normalize(ids, "NFKC"))
    for pattern, text in (("ß", "ss"), ("ς", "σ"), (r"[\s\pZ\x85]+", " ")):
        folded = pc.replace_substring_regex(folded, pattern, text)
    folded = pc.utf8_trim_whitespace(folded)
    places = folded.dictionary_encode().indices.to_numpy()
    first = np.unique(places, return_index=True)[1][places]  # place of the first ID with the same spelling
    variants = np.flatnonzero((first < np.arange(len(ids))) & (np.arange(len(ids)) >= known))
    if len(variants):
        pair = ids[int(first[variants[0]])].as_py(), ids[int(variants[0])].as_py()
        advice = f"If they are the same {role}, use one spelling before training."
        text = f"%d {role} IDs differ from another ID only in case, spaces or Unicode form, such as %a and %a. {advice}"
        logger.warning(text, len(variants), *pair)
