"""A time as seconds since 1970: numbers, and dates in which day and month are certain."""

import math
import re
from datetime import UTC, datetime
from typing import Any

import pandas as pd

_DAY = re.compile(
    r"(\d{4})([-/.])(\d{1,2})(?:\2(\d{1,2})(?=$|[T ])|$)|(\d{1,2})\.(\d{1,2})\.(\d{4})(?=$|[T ])", re.IGNORECASE
)
_ISO = re.compile(r"[\dW-]{8,10}([T ][\d:.,]+([+-][\d:]+)?)?", re.IGNORECASE)  # of what `fromisoformat` accepts
_MONTH = re.compile(r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*", re.IGNORECASE)
_OTHER_WORD = re.compile(r"(mon|tue|wed|thu|fri|sat|sun)[a-z]*|am|pm|t|z|utc|gmt", re.IGNORECASE)


def as_seconds(time: Any) -> float:
    """Return a number as it is, a date as seconds since 1970 (UTC if it names no time zone).

    Dates are ISO 8601, year first with slashes or dots, like 31.01.2019, or have the name of the month in English.

    Raises:
        ValueError: Not finite, or not a date in which day and month are certain.
    """
    try:
        seconds = float(time)
    except OverflowError:
        seconds = math.inf
    except (TypeError, ValueError):
        seconds = date_as_seconds(str(time).strip())
    if not math.isfinite(seconds):
        raise ValueError(f"Expected a finite number or a date, found {time!r}.")
    return seconds


def date_as_seconds(text: str) -> float:
    """Return a date as seconds since 1970; see `as_seconds`."""
    words = re.findall(r"[^\W\d_]+", text)
    in_words = any(map(_MONTH.fullmatch, words)) and re.search(r"\d{4}", text) and not re.search("[CT][+-]", text)
    if in_words and len(text) < 60 and all(_MONTH.fullmatch(word) or _OTHER_WORD.fullmatch(word) for word in words):
        return pd.to_datetime(text, utc=True).timestamp()
    text = re.sub(r"\s*(UTC|GMT|Z)$", "", text, flags=re.IGNORECASE)
    if day := _DAY.match(text):
        year, _, month, of_month, first, second, last = day.groups()
        text = f"{year or last}-{int(month or second):02}-{int(of_month or first or 1):02}{text[day.end() :]}"
    text = re.sub(r"(?<=\d)\s+(?=[+-]\d\d:?\d\d$)", "", text)
    text = re.sub(r"(?<=\d[T ])(?=\d:)", "0", text)  # 9:30
    if not _ISO.fullmatch(text):
        raise ValueError(f"Expected a date in which day and month are certain, found {text!r}.")
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
