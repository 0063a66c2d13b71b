"""JSON: one object per line, one Python literal per line (Steam), or an array of objects.

Arrow reads lines of JSON. Python, which is much slower, reads everything else and finds the line with an error.
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

from .ids import Values
from .sources import RawLog, SourceFile

TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64()}


def read_json(file: SourceFile) -> RawLog | pd.DataFrame:
    """Open JSON lines or an array of objects."""
    text = file.text()
    array = _parse(text) if text.lstrip().startswith("[") else None
    if isinstance(array, list) and all(isinstance(row, dict) for row in array):
        return pd.DataFrame(array, dtype=object)
    data = text.encode()

    def lines() -> Iterator[tuple[int, str]]:
        numbered = enumerate(io.StringIO(data.decode(), newline="\n" if b"\n" in data else "\r"), start=1)
        return ((number, line) for number, line in numbered if line.strip())

    def parse(number: int, line: str) -> dict:
        if isinstance(row := _parse(line), dict):
            return row
        where = f"{file.name}, line {number}"
        raise ValueError(
            f"{where}: expected one JSON object per line, found {line.strip()!r:.80}. Fix or remove this line."
        )

    first: dict[Any, Any] = {}  # a value of each key, which the first lines may lack
    for line in islice(lines(), 1000):
        first |= {key: value for key, value in parse(*line).items() if first.get(key) is None}

    def read(places: list[int]) -> list[Values]:
        keys = [list(first)[place] for place in places]
        try:
            schema = pa.schema([(key, TYPES[type(first[key])]) for key in keys])
            options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
            table = pyarrow.json.read_json(pa.BufferReader(data), parse_options=options)
            return [table[key] for key in keys]
        except (KeyError, TypeError, pa.ArrowException):
            progress = tqdm(lines(), f"Reading {file.name}", unit=" lines", leave=False, delay=1)
            rows = [list(map(parse(*line).get, keys)) for line in progress]
            return [list(column) for column in zip(*rows, strict=True)]

    def locate(row: int) -> str:
        return f"{file.name}, line {next(islice(lines(), row, None))[0]}"

    return RawLog(file.name, list(map(str, first)), read, locate)


def _parse(text: str) -> Any:
    """Parse JSON or a Python literal; None if the text is neither."""
    for parse in (json.loads, ast.literal_eval):
        with suppress(Exception):  # also RecursionError and MemoryError, for deep nesting
            return parse(text.strip())
    return None
