"""Input and output of the format readers: a file with its options, and an opened log with its columns."""

import codecs
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from datasets import Dataset

from .arguments import as_table
from .ids import Values

COMPRESSED = {".gz": ("gzip", rb"\x1f\x8b"), ".bz2": ("bz2", rb"BZh\d1AY&SY"), ".zst": ("zstd", rb"\x28\xb5\x2f\xfd")}
OTHER_FILES = {  # first bytes of files that are not text -> what they are, and what to do
    rb"(?s)PK\x03\x04.{,4000}xl/|\xd0\xcf\x11\xe0": "an Excel workbook. Export CSV, or pass `pandas.read_excel(path)`",
    rb"(?s)PK\x03\x04|Rar!\x1a|7z\xbc\xaf|.{257}ustar": "an archive. Extract it and pass one of its files",
    rb"\x1f\x8b|BZh\d1AY&SY|\x28\xb5\x2f\xfd": "compressed twice. Extract it",
    rb"\xfd7zXZ|x[\x01\x9c\xda]|\x5d\0\0": "compressed with xz, zlib or lzma. Extract it",
    rb"ARROW1\0|SQLite format 3\0|\x89HDF|\x80[\x02-\x05]": "a binary file. Export CSV, or pass a pandas data frame",
    rb"(?i)\s*<(!doctype |html)": "an HTML page, perhaps of a failed download. Download the data again",
    rb"%PDF-": "a PDF document. Export the data as CSV",
}
BYTE_ORDER_MARKS = {  # UTF-32 before UTF-16, because the mark of UTF-32-LE begins with the mark of UTF-16-LE
    **{codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"},
    **{codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"},
}


def spell(option: str, value: Any = "...", command: str | None = None) -> str:
    """Return how to write an option with a value in Python and on the command line.

    On the command line the option is called `command`, by default `option`; "" stands for an option in Python only.
    """
    word = "$'\\t'" if value == "\t" else shlex.quote(str(value))
    return f"`{option}={value!r}`" + f" (command line: `--{command or option} {word}`)" * (command != "")


@contextmanager
def library_errors(
    name: str, advice: str = "Save or download it again, or pass a data frame or CSV file of text, numbers and dates."
) -> Iterator[None]:
    """Raise errors of libraries as a ValueError that begins with the `name` of the source and ends with advice."""
    try:
        yield
    except Exception as error:
        if type(error) in (ValueError, FileNotFoundError) and str(error).startswith(name):
            raise
        advice = "Check the permissions of its files." if isinstance(error, PermissionError) else advice
        advice = "Free memory, or use a machine with more of it." if isinstance(error, MemoryError) else advice
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        raise ValueError(f"{name}: cannot be read ({reason:.300}). {advice}") from error


@dataclass(frozen=True)
class SourceFile:
    """A file of a log or a table of items, with the options that the user passed for text files."""

    path: Path
    separator: str | None = None
    encoding: str | None = None
    names: frozenset[str] = frozenset()  # columns that the user named; a first line with one of them is a header
    timestamp: str | int | None = None  # column of the time, if the user named it
    is_log: bool = True  # False for titles and features, whose format cannot be named on the command line

    @property
    def name(self) -> str:
        """The name of the file without its folder."""
        return self.path.name

    def spell(self, option: str, value: str) -> str:
        """Return how to write an option for this file, or what to do on the command line if it has no such option."""
        solution = " (command line: convert the file to CSV with commas, in UTF-8)"
        return spell(option, value) if self.is_log else spell(option, value, "") + solution

    def content(self, size: int | None = None) -> bytes:
        """Return the decompressed bytes of the file, or the first `size` bytes."""
        with self.path.open("rb") as file:
            first, suffix = file.read(10), self.path.suffix.lower()
        fits = (codec for end, (codec, start) in COMPRESSED.items() if re.match(start, first) or suffix == end)
        with pa.input_stream(self.path, compression=next(fits, None)) as stream:
            return stream.read(size)

    def check_kind(self, data: bytes) -> None:
        """Raise ValueError if the first bytes are those of a known kind of file that is not text."""
        for pattern, advice in OTHER_FILES.items():
            if re.match(pattern, data):
                raise ValueError(f"{self.name}: the file is {advice}.")

    def text(self, usual_encoding: str = "utf-8") -> str:
        """Return the content as text, in the encoding that the user named, otherwise in `usual_encoding`.

        A byte order mark takes precedence. With another `usual_encoding` than UTF-8, UTF-8 is tried first. ValueError
        if the content is empty, binary or not in this encoding.
        """
        data = self.content()
        self.check_kind(data)
        encoding = self.encoding or usual_encoding
        if self.encoding is None and usual_encoding != "utf-8":
            with suppress(UnicodeDecodeError):  # later files of MovieLens are in UTF-8
                data.decode()
                encoding = "utf-8"
        encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), encoding)
        if b"\0" in data[:1000] and not re.search("16|32", str(encoding)):
            likely = "utf-16-be" if data[0] == 0 else "utf-16-le"
            found, option = "found null characters, as in binary files and UTF-16", self.spell("encoding", likely)
            raise ValueError(f"{self.name}: {found}. For UTF-16, pass {option}. Otherwise remove these characters.")
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            found = f"{self.name}, line {line}: expected {encoding} text, found the byte {data[error.start]:#04x}"
            usual = "latin-1" if codecs.lookup(encoding).name == "cp1252" else "cp1252"  # latin-1 decodes every byte
            other = self.spell("encoding", usual)
            raise ValueError(f"{found}. Name the encoding, such as {other}, or fix this line.") from None
        except LookupError:
            example = self.spell("encoding", "utf-8")
            raise ValueError(f"{self.name}: unknown encoding {encoding!r}. Name another, such as {example}.") from None
        if not text.strip():
            raise ValueError(f"{self.name}: the file is empty or has only whitespace. Check the path.")
        return text


@dataclass(frozen=True)
class RawLog:
    """A source that has been opened."""

    name: str  # of the source; errors and log messages begin with this name
    columns: list[str]  # names, or "0", "1", … if the source has none
    read: Callable[[list[int]], list[Values]]  # positions -> columns
    locate: Callable[[int], str]  # row -> "ratings.csv, line 17"
    first_rows: Sequence[Sequence[str]] = ()  # of a text file without a known header
    dates: Sequence[int] = ()  # positions of columns whose type is a date or a time with a date
    file: SourceFile | None = None  # if the source is a text file with a separator

    def __str__(self) -> str:
        """List the columns for messages."""
        first = ", ".join(self.first_rows[0]) if self.first_rows else ""
        hint = f" (positions, because the first line {first!r:.200} is not recognized as a header)" * bool(first)
        return f"{', '.join(self.columns) or 'no columns':.500}{hint}"


def open_table(source: Any, name: str, expected: str = "Expected a path, a Hub ID or a table") -> RawLog:
    """Open a `Dataset`, or a table of pandas, Polars or Arrow. The error for other types begins with `expected`."""
    if isinstance(source, Dataset):
        source = as_table(source)
    if hasattr(source, "collect_schema") and not hasattr(source, "get_columns"):  # a LazyFrame of Polars
        with library_errors(name):
            source = source.collect()
    if isinstance(source, pd.DataFrame):
        if any(source.index.names) or isinstance(source.index, pd.DatetimeIndex):
            source = source.reset_index(allow_duplicates=True)
        columns = [(str(key), source.iloc[:, place]) for place, key in enumerate(source.columns)]
    elif hasattr(source, "get_columns"):  # Polars, whose Python objects Arrow would read as memory addresses
        with library_errors(name, "Convert the columns to text, numbers or dates."):
            columns = [(s.name, list(s) if str(s.dtype) == "Object" else s.to_arrow()) for s in source.get_columns()]
    elif hasattr(source, "__arrow_c_stream__") and not hasattr(source, "dtype"):  # a Series has a dtype
        with library_errors(name):
            table = pa.table(source)
        columns = list(zip(table.column_names, table.columns, strict=True))
    else:
        keys = f" with the keys {', '.join(map(str, source))}" if isinstance(source, dict) else ""
        found = f"{type(source).__name__}{keys}"
        raise ValueError(
            f"{expected} (pandas, Polars, Arrow, datasets), found {found}. Of a DatasetDict, pass one split, "
            "such as `source['train']`, or its saved subfolder. Convert a list of rows or a dict of columns with "
            "`pandas.DataFrame(source)`; rows without column names need `columns=[...]`."
        )
    names = [key for key, _ in columns]
    types = [str(getattr(column, "type", getattr(column, "dtype", ""))) for _, column in columns]
    return RawLog(
        name,
        names,
        lambda places: [_as_values(columns[i][1]) for i in places],
        lambda i: f"{name}, row {i} (from 0)",
        dates=[place for place, kind in enumerate(types) if kind.startswith(("date", "timestamp"))],
    )


def _as_values(column: Any) -> Values:
    """Return a column as Arrow without dictionaries and string views; as a list for mixed and extension types."""
    try:
        array = column if isinstance(column, pa.Array | pa.ChunkedArray) else pa.array(column, from_pandas=True)
        if array is not column and pa.types.is_date(array.type) and any(isinstance(it, datetime) for it in column):
            return list(column)  # the first value is a date, so Arrow drops the time of day of the others
    except (pa.ArrowException, OverflowError, TypeError, UnicodeError):  # mixed types, or Decimal('Infinity')
        return list(column)
    array = array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])
    array.validate(full=True)  # a damaged file may contain text that is not UTF-8
    if isinstance(array.type, pa.BaseExtensionType):
        if array.type.extension_name == "pandas.period":
            return _as_values(array.to_pandas().dt.to_timestamp())
        return array.to_pylist()
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    return array.cast(pa.string()) if pa.types.is_string_view(array.type) else array
