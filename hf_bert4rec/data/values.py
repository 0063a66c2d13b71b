"""Convert the values of a column to times, ratings or text, and warn about values that look unlike IDs."""

import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from .ids import EXACT_BITS, ONE_PER_ROW, Values, distinct_values
from .sources import RawLog, spell

logger = logging.getLogger(__name__)

# How other programs write a missing value:
MISSING = r"(?i)^\s*(null|none|nan|n/?a|<na>|nat|undefined|\\n|0000-00-00( 00:00:00)?)?\s*$"
SEVERAL = r"^\s*(\[.*\]|[({].*,.*[)}]|\d+([ ,;|]+\d+){2,})\s*$"  # such as "[1, 2]" or "1 2 3"
DOUBTFUL_IDS = {  # IDs that are read as they are, with a warning
    MISSING: "seems to stand for a missing value. If it does, remove these rows",
    r"^[\s\pZ\p{Cf}]|[\s\pZ\p{Cf}]$": "begins or ends with whitespace or an invisible character. Remove the character, "
    "unless it is part of the ID",
    r"""^=?".*"$|^'.*'$""": "is in quotation marks. If these are not part of the ID, remove them. For a text file "
    "other than csv, `format='csv'` with `separator` does this (command line, for a log: `--format csv` with "
    "`--separator`)",
    r"[\r\n]": "contains a line break. If it is not part of the ID, check the quotation marks in the source",
    r"^-?\d+([.,]\d+)?[eE]\+\d+$": "may be a rounded number, so different IDs may look the same. Export IDs as text",
    r"^-?\d+\.0$": "ends in .0, so it differs from the ID without .0. If IDs are integers, export them without .0",
    SEVERAL: "seems to contain several IDs. If it does, give each ID a row of its own",
}
ROUNDED = r"^\s*\d([.,]\d{0,5})?[eE]\+?\d+\s*$"  # times, as Excel shows and exports them
MONTHS = (
    r"^\s*((19|20)\d\d\.(0?[1-9]|1[0-2])|(0?[1-9]|1[0-2])\.(19|20)\d\d|(0?[1-9]|[12]\d|3[01])\.(0[1-9]|1[0-2]))\s*$"
)
MOST_LISTS = 10_000  # IDs that are looked at to find several IDs in one
UNITS = {"seconds": 1e8, "milliseconds": 1e11, "microseconds": 1e14, "nanoseconds": 1e17}  # 1973 in each unit
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_DAY = re.compile(r"(\d{4})([-/.])(\d{1,2})(?:\2(\d{1,2})(?=$|[T ])|$)|(\d{1,2})\.(\d{1,2})\.(\d{4})(?=$|[T ])")
_ISO = re.compile(  # what `fromisoformat` accepts, except fractions of hours and minutes, which it misreads
    r"[\dW-]{8,10}([T ](?!(\d\d:?){1,2}[.,])[\d:.,]+([+-][\d:]+)?)?", re.IGNORECASE
)
_MONTH = re.compile("(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*")
_YEAR = re.compile(r"(?<!\d)(?<!:\d\d[.,])(18|19|20)\d\d(?!\d)")  # not an offset (+0000) or a fraction of a second
_MISREAD = re.compile(r"[CT][+-]|(?<=\d)(?<!:\d\d:\d\d)[.,]\d")  # by pandas: UTC+2, 4.31 PM, March 16,1978
_WORD = re.compile(f"{_MONTH.pattern}|(mon|tue|wed|thu|fri|sat|sun)[a-z]*|am|pm|t|z|utc|gmt")


def check_ids(distinct: pa.Array, counts: np.ndarray, role: str, name: str) -> None:
    """Warn about values that do not look like IDs; raise ValueError if most look like several IDs, such as `1|2|3`.

    `counts` are the numbers of rows of the distinct values.
    """
    lists = distinct.filter(pc.match_substring_regex(distinct, SEVERAL))
    if 2 * len(lists) > len(distinct):
        raise ValueError(f"{name}: expected one {role} per row, found {lists[0].as_py()!r:.80}. {ONE_PER_ROW}")
    for pattern, doubt in DOUBTFUL_IDS.items():
        matches = pc.match_substring_regex(distinct, pattern)
        if len(doubtful := distinct.filter(matches)):
            rows, examples = counts[np.asarray(matches)].sum(), ", ".join(map(repr, doubtful[:3].to_pylist()))
            logger.warning(f"{name}: the {role} ID of {rows:,} row{'s' * int(rows != 1)} ({examples}) {doubt}.")
    for separator in ",;|" if role == "item" else "":
        joined = distinct.filter(pc.match_substring(distinct, separator))
        if 10 * len(joined) > len(distinct) and _are_lists(joined[:MOST_LISTS].to_pylist(), separator):
            found = f"{len(joined):,} item IDs such as {joined[0].as_py()!r:.80} seem to contain several IDs"
            logger.warning(f"{name}: {found}, because the same parts are at several places. {ONE_PER_ROW}")


def _are_lists(cells: list[str], separator: str) -> bool:
    """Return whether most parts that cells share are at several places, unlike color and size in "shirt, red, S"."""
    places = defaultdict(list)
    for cell in cells:
        for place, part in enumerate(cell.split(separator)):
            places[part.strip()].append(place)
    shared = [len(set(of)) > 1 for of in places.values() if len(of) > 1]
    return 2 * len(places) <= sum(map(len, places.values())) and 2 * sum(shared) > len(shared)


def as_times(values: Values, log: RawLog, rows: np.ndarray) -> pa.ChunkedArray:
    """Convert times: numbers stay as they are, dates become seconds since 1970; see `as_numbers`."""
    kind = None if isinstance(values, list) else values.type
    if kind and (pa.types.is_date(kind) or pa.types.is_timestamp(kind)):
        micros = pc.cast(values, pa.timestamp("us"), safe=getattr(kind, "unit", "") != "ns")
        values = pc.divide(pc.cast(pc.cast(micros, pa.int64()), pa.float64(), safe=False), 1e6)
    elif kind and (pa.types.is_temporal(kind) or pa.types.is_boolean(kind)):
        advice = f"If these are times of day, add the date, or name another column: {spell('timestamp')}."
        raise ValueError(f"{log.name}: expected dates or numbers as timestamp, found {kind}. {advice}")
    if isinstance(values, pa.ChunkedArray) and pa.types.is_string(values.type):
        if len(rounded := values.filter(pc.match_substring_regex(values, ROUNDED))):
            found = f"{len(rounded):,} timestamps such as {rounded[0].as_py()!r} are rounded"
            logger.warning(f"{log.name}: {found}, so interactions may be out of order. Export them with all digits.")
        months = values.filter(pc.match_substring_regex(values, MONTHS))
        if len(months) and len(months) == len(values) - values.null_count:
            text = f"{log.name}: timestamps such as {months[0].as_py()!r} are read as decimal numbers"
            logger.warning(f"{text}. If they are months or days, write them as dates, such as 2016-01-31.")
    times = as_numbers(values, "timestamp", log, rows, dates=True)
    digits = EXACT_BITS.get(str(kind)) or EXACT_BITS.get(str(times.type), 64)
    _check_times(times.filter(pa.array(rows)).drop_null().to_numpy(), digits, log.name)
    return times


def _check_times(times: np.ndarray, digits: int, name: str) -> None:
    """Warn about numbers that are unlike times of one unit. Numbers up to 2^`digits` are exact."""
    sizes = np.abs(times.astype(float))
    if (sizes >= 2.0**digits).any():
        advice = "Export timestamps as integers (pandas: dtype='int64') below 2^63."
        logger.warning(f"{name}: timestamps such as {times[sizes.argmax()]} may be rounded and out of order. {advice}")
    units = {unit: (lowest <= times) & (times < lowest * 21.4) for unit, lowest in UNITS.items()}
    mixed = [f"{unit} ({times[matches.argmax()]})" for unit, matches in units.items() if matches.any()]
    if len(mixed) > 1:
        advice = "Convert them to one unit. If there are dates after the year 5138, fix these."
        logger.warning(f"{name}: timestamps seem to be in {' and in '.join(mixed)}. {advice}")
    elif mixed and (future := _in_the_future(times)).any():
        found = f"number of timestamps in the future: {future.sum():,}, up to {format_time(times.max())}"
        advice = "Fix or remove these rows. Otherwise, `--continue_from` rejects later logs."
        logger.warning(f"{name}: {found}. {advice}")
    elif mixed and not units["seconds"].any():
        logger.info(f"{name}: timestamps seem to be in {mixed[0]}. In options such as `test_time`, use this unit.")
    if len(times) and times.min() >= 1_011_970 and times.max() < 32_000_000:  # such as 31012019 or 1312019
        parts = times // 1_000_000, times // 10_000 % 100  # day and month, in either order
        year, low, high = times % 10_000, np.minimum(*parts), np.maximum(*parts)
        if ((year >= 1970) & (year < 2038) & (low >= 1) & (low <= 12) & (high <= 31)).all():
            call = "`pandas.to_datetime(column.astype(str).str.zfill(8), format='%d%m%Y')`"
            advice = f"Convert the column with {call}, or with '%m%d%Y' if the month comes first."
            logger.warning(f"{name}: timestamps such as {times[0]} seem to be dates with the year at the end. {advice}")


def _in_the_future(times: np.ndarray) -> np.ndarray:
    """Return which times are in the future, (times,) bool; none if the median is too, or is not in seconds."""
    latest = tomorrow()
    future = times > latest
    if future.any():  # only then, because the median of a large log takes long
        future &= UNITS["seconds"] <= np.median(times) <= latest
    return future


def as_numbers(values: Values, role: str, log: RawLog, rows: np.ndarray, dates: bool = False) -> pa.ChunkedArray:
    """Convert to int64, or to float64 if there are fractions; missing values become null.

    ValueError if a value in `rows` (a mask) is not a finite number, or not a date if `dates` and most are dates.
    """
    if isinstance(values, list) or not pa.types.is_primitive(values.type):
        values = as_text(values)
    with suppress(pa.ArrowException):
        return pc.cast(values, pa.int64())
    parse: Callable[[str], float] = float
    try:
        found = pc.cast(values, pa.float64()).to_numpy()
        missing = np.isnan(found)
    except pa.ArrowException:
        distinct, places = distinct_values(values)
        if dates and 2 * sum(map(bool, map(NUMBER.fullmatch, map(str, distinct)))) < len(distinct):
            parse = date_as_seconds
        parsed = np.full(len(distinct) + 1, np.inf)
        for place, value in enumerate(distinct):
            with suppress(ValueError, OverflowError):
                parsed[place] = parse(value)
        found, missing = parsed[places], places < 0
    missing = missing | ~rows
    bad = np.flatnonzero(~np.isfinite(found) & ~missing).tolist()
    if bad:
        shown = "; ".join(f"{log.locate(row)}: found {values[row].as_py()!r:.80}" for row in bad[:3])
        what = "a finite number" if parse is float else "a date such as 2026-01-31 or 31.01.2026"
        other = "Convert dates in another format, for example with `pandas.to_datetime(..., format='%d/%m/%Y')`."
        advice = f"Fix or remove these rows.{f' {other}' * dates}"
        raise ValueError(f"{shown} (number of rows: {len(bad):,}). Expected {what} as {role}. {advice}")
    whole = np.all(missing | ((found == np.floor(found)) & (np.abs(found) < 2**53)))
    result = pa.chunked_array([pa.array(np.where(missing, 0, found), mask=missing)])
    return pc.cast(result, pa.int64()) if whole else result


def as_text(values: Values) -> pa.ChunkedArray:
    """Convert to text without surrounding whitespace; words for missing values become null."""
    if isinstance(values, list) or pa.types.is_nested(values.type) or "binary" in str(values.type):
        rows = values if isinstance(values, list) else values.to_pylist()
        texts = [row.decode(errors="replace") if isinstance(row, bytes) else str(row) for row in rows]  # null: "None"
        values = pa.chunked_array([pa.array([text.encode(errors="replace").decode() for text in texts], pa.string())])
    text = pc.utf8_trim_whitespace(pc.cast(values, pa.string()))
    return pc.if_else(pc.match_substring_regex(text, MISSING), pa.scalar(None, pa.string()), text)


def as_seconds(time: Any, name: str) -> float:
    """Return a number unchanged, and a date as seconds since 1970; ValueError for NaN, infinity and other text."""
    seconds, text = math.inf, str(time).strip()
    with suppress(ValueError, OverflowError):
        seconds = float(text) if NUMBER.fullmatch(text) else date_as_seconds(text)
    if not math.isfinite(seconds):
        raise ValueError(f"`{name}` must be a number or an ISO date such as 2016-01-31, found {time!r:.100}.")
    return seconds


def format_time(time: float) -> str:
    """Return a time for messages, with the date that it may mean: 1500000000 (2017-07-14 02:40 UTC)."""
    shown = str(int(time) if abs(time) < 2**64 and time == int(time) else time)
    if unit := time_unit(time):
        date = datetime.fromtimestamp(time / UNITS[unit] * UNITS["seconds"], UTC)
        shown += f" ({date:%Y-%m-%d %H:%M} UTC{'' if unit == 'seconds' else f', if these are {unit}'})"
    return shown


def tomorrow() -> float:
    """Return the time in 24 hours, in seconds since 1970: no time zone or clock makes a present time later."""
    return datetime.now(UTC).timestamp() + 86_400


def time_unit(time: float) -> str | None:
    """Return the unit in which a number can be a time since 1970, or None."""
    return next((unit for unit, lowest in UNITS.items() if lowest <= float(time) < 100 * lowest), None)


def date_as_seconds(text: str) -> float:
    """Return a date as seconds since 1970 (UTC if the date has no time zone).

    Accepted are ISO 8601, the year first with slashes or dots, 31.01.2019, and the English name of the month. Other
    dates raise ValueError, because they may be ambiguous: 01/02/2026 can be in January or February.
    """
    words = re.findall(r"[^\W\d_]+", text.lower())
    in_words = any(map(_MONTH.fullmatch, words)) and all(map(_WORD.fullmatch, words)) and len(text) < 60
    if in_words and _YEAR.search(text) and not _MISREAD.search(text):
        text = re.sub(r"(?<=:\d\d),(?=\d)", ".", text)  # pandas 2.2 drops a fraction after a comma
        return pd.to_datetime(text, utc=True).timestamp()
    text = re.sub(r"\s*(UTC|GMT|Z)$", "", text, flags=re.IGNORECASE)
    if day := _DAY.match(text):
        year, _, month, of_month, first, second, last = day.groups()
        text = f"{year or last}-{int(month or second):02}-{int(of_month or first or 1):02}{text[day.end() :]}"
    text = re.sub(r"(?<=\d)\s+(?=[+-]\d\d:?\d\d$)", "", text)
    text = re.sub(r"(?<=\d[T ])\d\d?(\.\d\d){1,2}$", lambda time: time[0].replace(".", ":"), text)  # such as 19.46
    text = re.sub(r"(?<=\d[T ])(?=\d:)", "0", text)  # such as 9:30
    if not _ISO.fullmatch(text):
        raise ValueError(f"Expected an unambiguous date such as 2016-01-31, found {text!r}.")
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
