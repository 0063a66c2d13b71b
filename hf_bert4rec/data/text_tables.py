"""Read text files with one row per line: tables with a separator, and lines of `user item item …`.

Arrow reads the file. If Arrow fails, Python reads it, which is slower and finds the line with the error.
"""

import csv
import dataclasses
import io
import logging
import re
from collections import deque
from collections.abc import Iterator
from functools import reduce
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from .columns import SEPARATORS, are_sequences, is_header, is_usual
from .ids import Values
from .json_objects import parse_literal
from .sources import RawLog, SourceFile, spell

logger = logging.getLogger(__name__)

QUOTED = re.compile(r'\s*"[^"]*"\s*')
SAMPLE = 20_000  # characters from which it is found whether a separator fits


def read_delimited(file: SourceFile, separator: str = ",", encoding: str = "utf-8") -> RawLog:
    """Open a text file with one row per line, with or without a header.

    If the first line lacks the usual `separator` of the format, the first of `SEPARATORS` in this line is used. A
    warning names another one that may be right.
    """
    text = _plain_text(file, encoding)
    if excel := re.match(r'(?i)"?sep=(.)"?(?=[\r\n])', text):  # Excel names the separator in the first line
        text, found = text[excel.end() :], file.separator or excel[1]
    else:
        first = next(iter(_first_lines(text, quoted=True)), "")
        found = file.separator or next((it for it in (separator, *SEPARATORS) if it in first), separator)
    quoted = "," in (separator, found) or _is_quoted(_first_lines(text, quoted=False), found)
    if file.separator is None and not excel:
        _warn_about_separator(file, text, found, quoted)
    return _open(file, _Rows(file, text.encode(), found, quoted))


def _is_quoted(lines: list[str], separator: str) -> bool:
    """Return whether all header fields are quoted, as R writes them, and all lines have equally many fields."""
    header = lines[0].split(separator) if lines and len(separator) == 1 else [""]
    if not all(map(QUOTED.fullmatch, header)):
        return False
    return [len(row) for row in csv.reader(lines, delimiter=separator)] == [len(header)] * len(lines)


def _first_lines(text: str, quoted: bool) -> list[str]:
    """Return the first lines that are not blank, from `SAMPLE` characters. Text in quotation marks is removed."""
    sample = text[:SAMPLE]
    if len(text) > SAMPLE:
        sample = sample[: sample.rfind("\n") + 1] or sample
    sample = re.sub('"[^"]*"', '""', sample) if quoted else sample
    return [line for line in sample.splitlines() if line.strip()]


def _warn_about_separator(file: SourceFile, text: str, chosen: str, quoted: bool) -> None:
    """Warn if another separator divides the first rows into more columns, all of them into as many."""
    for other in SEPARATORS:
        lines = _first_lines(text, quoted or other == ",")
        widths = {len(line.split(other)) for line in lines}
        width = len(lines[0].split(chosen)) if lines else 1
        if other != chosen and len(widths) == 1 and min(widths) > width:
            found = f"with {chosen!r} as separator, the first row has {width} column{'s' * (width > 1)}"
            advice = f"If {other!r} is the separator, pass {file.spell('separator', other)}."
            logger.warning(f"{file.name}: {found}. With {other!r}, each of the first rows has {min(widths)}. {advice}")


def _plain_text(file: SourceFile, encoding: str = "utf-8") -> str:
    text = file.text(encoding)
    first = re.match(r"""[\s\[]*(\{\s*u?["'][^\r\n]*)""", text)  # the first line, which may end inside an object
    ends = (parse_literal(f"[{first[1].rstrip(' ,')}{end}") for end in ("", "]", "}]")) if first else ()
    if any(isinstance(rows, list) and all(isinstance(row, dict) for row in rows) for rows in ends):
        raise ValueError(f"{file.name}: the file contains JSON. Name the format: {file.spell('format', 'jsonl')}.")
    return text


def read_blank_separated(file: SourceFile) -> RawLog | pa.Table:
    """Open lines of `user item`, `user item rating timestamp` or `user item item …`."""
    if file.separator:
        return read_delimited(file, file.separator)
    text = _plain_text(file)
    rows = [line.split("\t") for line in _first_lines(text, quoted=False)]
    widths = {len(row) for row in rows}
    if len(widths) == 1 and min(widths) > 1 + file.is_log:  # two columns of a log may also be a user and items
        file = dataclasses.replace(file, separator="\t")
        return _read_found_sequences(file) if file.is_log and are_sequences(rows) else read_delimited(file, "\t")
    _warn_about_separator(file, text, " ", quoted=False)
    data = b"\n".join(b" ".join(line.split()) for line in text.encode().splitlines())
    first = [line.decode().split(" ") for line in data.lstrip().split(b"\n", 1000)[:1000] if line]
    return _read_found_sequences(file) if are_sequences(first) else _open(file, _Rows(file, data, " ", quoted=False))


def _read_found_sequences(file: SourceFile) -> pa.Table:
    advice = f"For a table with one interaction per line, pass {file.spell('format', 'csv')} and its separator."
    logger.info(f"{file.name}: each line is read as a user and all items of this user. {advice}")
    return read_sequences(file)


def read_sequences(file: SourceFile) -> pa.Table:
    """Read lines of `user item item …`, oldest item first. Blanks around IDs are removed."""
    users, items = list[str](), list[str]()
    separator = file.separator.encode() if file.separator else None
    for number, line in enumerate(_plain_text(file).encode().splitlines(), start=1):
        user, *history = [cell.decode().strip() for cell in line.split(separator)] or [""]
        if user and not history:
            found = f"{file.name}, line {number}: expected a user and items, found only {user!r:.80}"
            example = file.spell("separator", "...")
            raise ValueError(f"{found}. Fix or remove this line, or name the separator of the file: {example}.")
        if not users and is_usual(user, "user"):
            advice = f"Remove this line. For a table, name separator and format: {file.spell('format', 'csv')}."
            raise ValueError(f"{file.name}, line {number}: expected a user and items, found a header. {advice}")
        users += [user] * len(history)
        items += history
    ends = [item for item in items if separator is None and item.endswith((",", ";"))]
    if 2 * len(ends) > len(items):
        solution = f"Name the separator: {file.spell('separator', ends[0][-1])} with {spell('format', 'sequences')}"
        raise ValueError(f"{file.name}: expected blanks between items, found {ends[0]!r:.80}. {solution}.")
    return pa.table({"user": users, "item": items})


def _open(file: SourceFile, rows: "_Rows") -> RawLog:
    lines = [(line, list(map(str.strip, fields))) for line, fields in islice(rows, 21)]
    sample = [fields for _, fields in lines]
    if not sample:
        raise ValueError(f"{file.name}: found no rows. Check the source.")
    start = next((row for row, fields in enumerate(sample) if any(fields)), 0)  # rows of empty cells may precede
    first_rows = sample[start:]
    headers = (line for line, fields in lines[start:] if len(fields) != len(first_rows[0]) and _names_roles(fields))
    if not any(map(is_usual, first_rows[0])) and (line := next(headers, None)):
        advice = f"If line {line} is the header, remove the lines before it."
        raise ValueError(f"{file.name}: found the usual names of columns in line {line}, below other lines. {advice}")
    names, width = first_rows[0], len(first_rows[0])
    if width == 1 or is_header(first_rows) or file.names.intersection(names):
        skipped, first_rows = start + 1, []
    else:
        skipped, names = 0, [str(place) for place in range(width)]

    def locate(row: int) -> str:
        return f"{file.name}, line {next(islice(rows, row + skipped, None))[0]}"

    def read(places: list[int]) -> list[Values]:
        columns = rows.read(places, width, skipped)
        if skipped and len(places) > 1:
            headers = reduce(pc.and_, (pc.equal(column, names[i]) for column, i in zip(columns, places, strict=True)))
            if count := pc.sum(headers).as_py():
                line = locate(headers.index(True).as_py())
                advice = f"Remove all lines that repeat the header (number of lines: {count:,})."
                raise ValueError(f"{line}: expected values, found the header again. {advice}")
        return columns

    return RawLog(file.name, names, read, locate, first_rows, file=file)


def _names_roles(fields: list[str]) -> bool:
    """Return whether a row has usual names of a user and an item, or of an item and a title."""
    roles = [role for role in ("user", "item", "title") if any(is_usual(name, role) for name in fields)]
    return "item" in roles and len(roles) > 1


class _Rows:
    """The rows of a text file, encoded as UTF-8."""

    def __init__(self, file: SourceFile, data: bytes, separator: str, quoted: bool) -> None:
        self.file, self.data, self.separator, self.quoted = file, data, separator, quoted
        self.delimiter = separator
        if len(separator.encode()) > 1:  # Arrow splits at a single byte; MovieLens separates by "::"
            self.data, self.delimiter = data.replace(separator.encode(), b"\x1f"), "\x1f"

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the number of the first line (from 1) and the fields of each row; empty lines are not rows."""
        quoting: Any = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        limit, line = csv.field_size_limit(2**31 - 1), 1
        try:
            reader = csv.reader(io.StringIO(self.data.decode(), newline=""), delimiter=self.delimiter, quoting=quoting)
            for fields in reader:
                if fields:
                    yield line, fields
                line = reader.line_num + 1
        finally:
            csv.field_size_limit(limit)

    def fields(self, width: int, skipped: int) -> Iterator[list[str]]:
        """Yield the fields after `skipped` rows; then raise ValueError for other widths or an open quotation."""
        line, fields, bad = 1, [""], []
        for line, fields in islice(self, skipped, None):
            if len(fields) == width:
                yield fields
            else:
                bad.append((line, fields))
        several_lines = self.quoted and "\n" in "".join(fields)
        if several_lines and self.data.split(b"\n", line - 1)[-1].count(b'"') % 2:
            raise ValueError(f"{self.file.name}, line {line}: a quotation mark is not closed. Fix or remove this line.")
        if bad:
            line, fields = bad[0]
            lines = ", ".join(str(number) for number, _ in bad[:9]) + f" and {len(bad) - 9:,} more" * (len(bad) > 9)
            advice = f"name another separator: {self.file.spell('separator', '...')}"
            if self.file.is_log:
                sequences = spell("format", "sequences")
                advice += f". For lines of 'user item item …', name separator and format: {sequences}"
            raise ValueError(
                f"{self.file.name}, line {line}: expected {width} column{'s' * (width > 1)}, found {len(fields)} in "
                f"{self.separator.join(fields)!r:.80}. Fix or remove all such lines ({lines}), or {advice}."
            )

    def read(self, places: list[int], width: int, skipped: int) -> list[pa.ChunkedArray]:
        """Read columns as text, without the first `skipped` rows."""
        names = [str(place) for place in range(width)]
        quote, types = '"' if self.quoted else False, dict.fromkeys(names, pa.string())
        try:
            table = pyarrow.csv.read_csv(
                pa.BufferReader(self.data),
                pyarrow.csv.ReadOptions(column_names=names),
                pyarrow.csv.ParseOptions(delimiter=self.delimiter, quote_char=quote, newlines_in_values=self.quoted),
                pyarrow.csv.ConvertOptions(column_types=types, include_columns=sorted({names[i] for i in places})),
            ).slice(skipped)
            if self.quoted and self.data.count(b'"') % 2:
                deque(self.fields(width, skipped), maxlen=0)
        except pa.ArrowInvalid:  # also if a row is longer than a block, or rows before the header have other widths
            columns = list(zip(*self.fields(width, skipped), strict=True)) or [()] * width
            table = pa.table([pa.array(column, pa.string()) for column in columns], names)
        columns = [table[names[place]] for place in places]
        if self.delimiter != self.separator and self.quoted:  # the separator may be part of a quoted cell
            columns = [pc.replace_substring(column, self.delimiter, self.separator) for column in columns]
        return columns
