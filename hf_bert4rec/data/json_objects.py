"""Read logs with one JSON object per row.

Arrow reads the file. If Arrow fails, Python reads it, which is slower and finds the line with the error.
"""

import ast
import io
import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.json
from tqdm.auto import tqdm

from .columns import is_usual
from .ids import Values
from .sources import RawLog, SourceFile

WRITE_LINES = "write one object per line (pandas: `to_json(orient='records', lines=True)`)"
JSON_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64()}


def read_json(file: SourceFile) -> RawLog | pd.DataFrame:
    """Open a file with one JSON object or Python literal (Steam) per line, or with an array of objects."""
    text = file.text()
    if text.lstrip().startswith("["):
        return _read_array(file.name, text)

    def lines() -> Iterator[tuple[int, str]]:
        numbered = enumerate(io.StringIO(text, newline="\n" if "\n" in text else "\r"), start=1)
        return ((number, line) for number, line in numbered if line.strip())

    def parse(number: int, line: str) -> dict:
        row = parse_literal(line)
        if not isinstance(row, dict):
            found = f"line {number}: expected one complete JSON object per line, found {line.strip()!r:.80}"
            raise ValueError(f"{file.name}, {found}. Fix or remove this line, or {WRITE_LINES}.")
        return row

    count, first = 0, dict[Any, Any]()  # key -> its first value that is not null
    for count, line in enumerate(lines()):
        if count == 1000 and any(key == file.timestamp or is_usual(key, "timestamp") for key in first):
            break  # without such a key, a later line may still have the time
        first |= {key: value for key, value in parse(*line).items() if first.get(key) is None}

    _check_rows(file.name, first, count + 1)

    def read(places: list[int]) -> list[Values]:
        keys = [list(first)[place] for place in places]
        try:
            schema = pa.schema([(key, JSON_TYPES[type(first[key])]) for key in keys])
            options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
            table = pyarrow.json.read_json(pa.BufferReader(text.encode()), parse_options=options)
            return [table[key] for key in keys]
        except (KeyError, TypeError, pa.ArrowException):
            progress = tqdm(lines(), f"Reading {file.name}", unit=" lines", leave=False, delay=1)
            rows = [list(map(parse(*line).get, keys)) for line in progress]
            return [list(column) for column in zip(*rows, strict=True)]

    def locate(row: int) -> str:
        return f"{file.name}, line {next(islice(lines(), row, None))[0]}"

    return RawLog(file.name, list(map(str, first)), read, locate)


def _read_array(name: str, text: str) -> pd.DataFrame:
    array = parse_literal(text) or json.loads(text)  # the error of `json` names the line
    if others := [row for row in array if not isinstance(row, dict)]:
        found = f"found the element {others[0]!r:.80}"
        raise ValueError(f"{name}: expected a JSON array of objects, {found}. Fix the array, or {WRITE_LINES}.")
    return pd.DataFrame(array, dtype=object)


def _check_rows(name: str, first: dict[Any, Any], count: int) -> None:
    """Raise ValueError if a file is one object of lists or objects, as pandas writes by default."""
    if count == 1 and first and all(isinstance(value, dict | list) for value in first.values()):
        found = f"found one object with the keys {', '.join(map(repr, first)):.80}"
        raise ValueError(f"{name}: expected one object per row, {found}. Instead, {WRITE_LINES}.")


def parse_literal(text: str) -> Any:
    """Parse JSON or a Python literal; None if the text is neither."""
    for parse in (json.loads, ast.literal_eval):
        with suppress(Exception):  # also RecursionError and MemoryError, for deep nesting
            return parse(text.strip())
    return None
