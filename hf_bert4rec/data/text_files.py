"""Text files: one row per line with a separator, or one line per user.

Arrow reads the rows. Python's csv module, which is slower, reads what Arrow refuses and finds the line with an error.
"""

import csv
import io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.csv

from .columns import are_sequences, is_header
from .sources import RawLog, SourceFile


def read_delimited(file: SourceFile, separator: str = ",", encoding: str = "utf-8") -> RawLog:
    """Open a text file with one row per line, with or without a header."""
    return _open(_Rows(file.name, file.text(encoding).encode(), file.separator or separator, separator == ","))


def read_blank_separated(file: SourceFile) -> RawLog | pa.Table:
    """Open lines of `user item`, `user item rating timestamp` or `user item item …`."""
    if file.separator:
        return read_delimited(file, file.separator)
    data = b"\n".join(b" ".join(line.split()) for line in file.text().encode().splitlines())
    first = [line.decode().split(" ") for line in data.split(b"\n", 1000)[:1000] if line]
    return read_sequences(file) if are_sequences(first) else _open(_Rows(file.name, data, " ", quoted=False))


def read_sequences(file: SourceFile) -> pa.Table:
    """Read lines of `user item item …`, oldest item first."""
    users, items = [], []
    separator = file.separator.encode() if file.separator else None
    for number, line in enumerate(file.text().encode().splitlines(), start=1):
        user, *history = [cell.decode() for cell in line.split(separator)] or [""]
        if user and not history:
            raise ValueError(f"{file.name}, line {number}: expected 'user item item …', found only {user!r:.80}.")
        users += [user] * len(history)
        items += history
    return pa.table({"user": users, "item": items})


@dataclass
class _Rows:
    """The rows of a text file."""

    name: str
    data: bytes  # UTF-8
    separator: str
    quoted: bool

    def __post_init__(self) -> None:
        self.delimiter = self.separator
        if len(self.separator.encode()) > 1:  # Arrow splits at a single byte; MovieLens separates by "::"
            self.data, self.delimiter = self.data.replace(self.separator.encode(), b"\x1f"), "\x1f"

    def __iter__(self) -> Iterator[tuple[int, int, list[str]]]:
        """Yield the first and the last line of each row, from 1, and its fields; blank lines are not rows."""
        quoting: Any = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        limit, end = csv.field_size_limit(2**31 - 1), 0
        try:
            reader = csv.reader(io.StringIO(self.data.decode(), newline=""), delimiter=self.delimiter, quoting=quoting)
            for fields in reader:
                begin, end = end + 1, reader.line_num
                if fields:
                    yield begin, end, fields
        finally:
            csv.field_size_limit(limit)

    def fields(self, width: int, rows: int) -> Iterator[list[str]]:
        """Yield the fields after the first `rows`; other widths or an open quotation raise ValueError at the end."""
        begin, end, bad = 0, 0, []
        for begin, end, fields in islice(self, rows, None):  # noqa: B007
            if len(fields) == width:
                yield fields
            else:
                bad.append((begin, fields))
        if bad:
            line, fields = bad[0]
            raise ValueError(
                f"{self.name}, line {line}: expected {width} columns, found {len(fields)} in "
                f"{self.separator.join(fields)!r:.80} ({len(bad):,} such lines: {str([n for n, _ in bad[:9]])[1:-1]}). "
                "Fix or remove these lines, or name another separator or format: separator=';', format='sequences'."
            )
        if self.quoted and begin < end and self.data.split(b"\n", begin - 1)[-1].count(b'"') % 2:
            raise ValueError(f"{self.name}, line {begin}: a quotation mark is not closed. Fix or remove this line.")

    def read(self, places: list[int], width: int, lines: int, rows: int) -> list[pa.ChunkedArray]:
        """Read columns as text, without the first `rows` rows, which are the first `lines` lines."""
        names = [str(place) for place in range(width)]
        quote = '"' if self.quoted else False
        types = dict.fromkeys(names, pa.string())
        try:
            table = pyarrow.csv.read_csv(
                pa.BufferReader(self.data),
                pyarrow.csv.ReadOptions(column_names=names, skip_rows=lines),
                pyarrow.csv.ParseOptions(delimiter=self.delimiter, quote_char=quote, newlines_in_values=self.quoted),
                pyarrow.csv.ConvertOptions(column_types=types, include_columns=sorted({names[i] for i in places})),
            )
            if self.quoted and self.data.count(b'"') % 2:
                deque(self.fields(width, rows), maxlen=0)
        except pa.ArrowInvalid:  # also if a row is longer than a block
            columns = list(zip(*self.fields(width, rows), strict=True)) or [()] * width
            table = pa.table([pa.array(column, pa.string()) for column in columns], names)
        return [table[names[place]] for place in places]


def _open(rows: _Rows) -> RawLog:
    sample = [(end, list(map(str.strip, fields))) for _, end, fields in islice(rows, 21)]
    header = next((row for row, (_, fields) in enumerate(sample) if any(fields)), 0)  # rows of empty cells may precede
    lines, first = sample[header]
    first_rows = [fields for _, fields in sample[header:]]
    has_names = len(first) == 1 or is_header(first_rows)

    def skip(amount: int) -> int:
        return 0 if log.first_rows else amount

    log = RawLog(
        rows.name,
        first if has_names else [str(place) for place in range(len(first))],
        lambda places: rows.read(places, len(first), skip(lines), skip(header + 1)),
        lambda row: f"{rows.name}, line {next(islice(rows, row + skip(header + 1), None))[0]}",
        () if has_names else first_rows,
    )
    return log
