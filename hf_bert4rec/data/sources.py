"""Opening a raw log, whatever it is: which columns it has, how to read some of them, and where each row stood.

Arrow reads; Python's own csv and json, much slower, look for the line to blame when Arrow refuses. A new format is a
line in `FORMATS`.
"""

import ast
import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from tqdm.auto import tqdm

USUAL_NAMES = {  # lower case, without "_"; the first that a source has is taken
    "user": ("user", "userid", "reviewerid", "uid", "username", "customerid", "visitorid", "sessionid"),
    "item": ("item", "itemid", "movieid", "parentasin", "asin", "productid", "iid", "sid"),
    "rating": ("rating", "overall", "score", "stars"),
    "timestamp": ("timestamp", "unixreviewtime", "time", "date", "datetime", "eventtime", "createdat"),
    "title": ("title", "name", "productname", "appname", "movietitle"),
}
FOLDER_FILES = {  # what is read where the source is a folder, as MovieLens unpacks
    "interactions": ("ratings.csv", "ratings.csv.gz", "ratings.dat", "u.data"),
    "titles": ("movies.csv", "movies.csv.gz", "movies.dat", "u.item"),
}
EMBEDDED = Path(__file__).parent / "embedded"
ASIN = re.compile(r"B0[0-9A-Z]{8}|[0-9]{9}[0-9X]")

Column = str | int | None


@dataclass
class RawLog:
    """A source that has been opened."""

    name: str  # what errors and reports call it
    columns: list[str]  # names, or "0", "1" … where the source has none
    read: Callable[[list[int]], list[pa.ChunkedArray]]  # columns by position
    locate: Callable[[int], str]  # row → "ratings.csv, line 17"
    has_names: bool = True
    first_line: Sequence[str] = ()  # of a text file

    @property
    def shown(self) -> str:
        """The columns, for messages."""
        hint = "" if self.has_names else f" (no header; the first line is {', '.join(self.first_line)!r})"
        return ", ".join(self.columns) + hint

    def find_columns(self, **wanted: Column) -> dict[str, int]:
        """Which column plays which role: as named by the user, else by its usual names.

        Raises:
            ValueError: A column that the user named is not there.
        """
        named = {name for name in wanted.values() if isinstance(name, str) and not name.isdigit()}
        if named.intersection(self.first_line):  # then the first line is a header, whatever its names
            self.columns, self.has_names = list(self.first_line), True
        plain = [_plain(column) for column in self.columns]
        found = {}
        for role, name in wanted.items():
            if isinstance(name, str) and name not in self.columns and name.isdigit():
                name = int(name)  # from a command line
            if isinstance(name, int):
                if not 0 <= name < len(plain):
                    raise ValueError(f"{self.name}: expected a column {name} for {role}, found 0 to {len(plain) - 1}.")
                found[role] = name
            elif name is not None:
                if name not in self.columns:
                    raise ValueError(f"{self.name}: expected a column {name!r} for {role}, found {self.shown}.")
                found[role] = self.columns.index(name)
            elif usual := next((usual for usual in USUAL_NAMES[role] if usual in plain), None):
                found[role] = plain.index(usual)
        return found


def open_log(source: Any, kind: str, format: str | None, separator: str | None, encoding: str | None) -> RawLog:  # noqa: A002
    """Open anything that `load_interactions` takes; `kind` is the key of `FOLDER_FILES` for folders.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is none of the things that can be read, or not what its name says.
    """
    if not isinstance(source, str | PathLike):
        return _open_table(source, type(source).__name__)
    path = Path(source)
    if is_embedded(path):
        path = EMBEDDED / path
    if any((path / name).exists() for name in ("dataset_info.json", "dataset_dict.json")):
        return _open_table(load_from_disk(path), path.name)
    if path.is_dir():
        files = [path / name for name in FOLDER_FILES[kind] if (path / name).exists()]
        if not files:
            raise FileNotFoundError(
                f"{path}: expected one of {', '.join(FOLDER_FILES[kind])} in this folder, found none."
            )
        path = files[0]
    if not path.exists():
        is_file = path.name.removesuffix(".gz").rpartition(".")[2] in FORMATS
        if re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and not path.parent.is_dir() and not is_file:
            return _open_table(load_dataset(str(source), split="train"), str(source))
        raise FileNotFoundError(f"{source}: expected a file, a folder, 'ml-latest-small' or a data set's Hub id.")
    name = format or path.name.removesuffix(".gz").removesuffix(".zst").rpartition(".")[2].lower()
    if name not in FORMATS:
        near = get_close_matches(name, FORMATS) or ["csv"]
        raise ValueError(
            f"{path.name}: expected a format among {', '.join(FORMATS)}, found {name!r}. Name it, for instance "
            f"format={near[0]!r}."
        )
    return FORMATS[name](path, separator, encoding)


def is_embedded(source: str | PathLike) -> bool:
    """Whether a name means data that travel with this package; what is on the disk by that name goes first."""
    return not Path(source).exists() and (EMBEDDED / source).is_dir()


def _plain(name: str) -> str:
    return re.sub(r":.*|[_\s]", "", name).lower()  # RecBole writes user_id:token


# ---------------------------------------------------------------------------------------------------------- tables


def _open_table(source: Any, name: str) -> RawLog:
    if isinstance(source, DatasetDict):
        raise ValueError(
            f"Expected one split of a data set, found {', '.join(source)}: pass source['{next(iter(source))}']."
        )
    if isinstance(source, Dataset):
        source = source.with_format("arrow")[:]
    if not hasattr(source, "__arrow_c_stream__"):
        raise ValueError(f"Expected a path, a Hub id or a table (pandas, Polars, Arrow, datasets), found {name}.")
    table = pa.table(source)
    return RawLog(
        name,
        table.column_names,
        lambda columns: [_plain_type(table.column(i)) for i in columns],
        lambda row: f"{name}, row {row}",
    )


def _plain_type(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without categories and, as Polars has them, string views: few functions of Arrow take these."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = pa.string() if pa.types.is_string_view(kind.value_type) else kind.value_type
        return pa.chunked_array([pc.cast(c.dictionary, kind).take(c.indices) for c in column.chunks], kind)
    return pc.cast(column, pa.string()) if pa.types.is_string_view(kind) else column


def _open_parquet(path: Path, separator: str | None, encoding: str | None) -> RawLog:
    try:
        return _open_table(pq.read_table(path), path.name)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path.name}: expected a Parquet file, found another or half of one ({error}).") from error


# ------------------------------------------------------------------------------------------------------ text files


def _read_bytes(path: Path, encoding: str) -> bytes:
    """The text of a file as UTF-8, decompressed; a broken byte is an error that names its line."""
    try:
        with pa.input_stream(path, compression="detect") as stream:
            data = stream.read()
    except OSError as error:
        raise ValueError(f"{path.name}: expected a whole compressed file, found part or none ({error}).") from error
    if not data.strip():
        raise ValueError(f"{path.name}: expected a row a line, found an empty file.")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path.name}, line {line}: expected {encoding} text, found the byte {data[error.start]:#04x}. Name the "
            "file's encoding, for instance encoding='latin-1', or mend the line."
        ) from None
    return data.removeprefix(codecs.BOM_UTF8) if codecs.lookup(encoding).name == "utf-8" else text.encode()


@dataclass
class _Rows:
    """The rows of a text file: `arrow` reads them, `by_line` says where they stand."""

    path: Path
    data: bytes
    separator: str  # as the user knows it
    quoted: bool

    def __post_init__(self) -> None:
        self.delimiter = self.separator
        if len(self.separator) > 1:  # Arrow splits at one character; MovieLens separates by "::"
            self.data, self.delimiter = self.data.replace(self.separator.encode(), b"\x1f"), "\x1f"

    def by_line(self) -> Iterator[tuple[int, list[str]]]:
        """The line where each row begins, from 1, and its fields; blank lines are no rows."""
        quoting: Any = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        reader = csv.reader(io.StringIO(self.data.decode(), newline=""), delimiter=self.delimiter, quoting=quoting)
        begin = 1
        for fields in reader:
            if fields:
                yield begin, fields
            begin = reader.line_num + 1

    def arrow(self, width: int, skip: int, columns: list[int]) -> list[pa.ChunkedArray]:
        """Columns as text, of all rows after the first `skip` lines."""
        names = [str(position) for position in range(width)]
        wanted = [names[i] for i in columns]
        try:
            table = pyarrow.csv.read_csv(
                pa.BufferReader(self.data),
                pyarrow.csv.ReadOptions(column_names=names, skip_rows=skip),
                pyarrow.csv.ParseOptions(
                    delimiter=self.delimiter, quote_char=self.quoted and '"', newlines_in_values=self.quoted
                ),
                pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()), include_columns=list(dict.fromkeys(wanted))
                ),
            )
        except pa.ArrowInvalid as error:
            for line, fields in self.by_line():
                if len(fields) != width:
                    raise ValueError(
                        f"{self.path.name}, line {line}: expected {width} columns, found {len(fields)} in "
                        f"{self.separator.join(fields)[:80]!r}. Mend or remove the line, or name another separator: "
                        "separator=';'."
                    ) from None
            raise ValueError(f"{self.path.name}: {error}") from error
        return [table[name] for name in wanted]


def _open_text(
    path: Path, separator: str | None, encoding: str | None, *, usual_separator: str, usual_encoding: str = "utf-8"
) -> RawLog:
    """A text file with a row a line, with or without a header."""
    data = _read_bytes(path, encoding or usual_encoding)
    if separator is None and usual_separator == " ":
        data = b"\n".join(b" ".join(line.split()) for line in data.split(b"\n"))
        widths = Counter(len(line.split()) for line in data.split(b"\n", 1000)[:1000] if line)
        if max(widths) > 3 and 2 * max(widths.values()) <= widths.total():  # lines of all lengths
            return _open_sequences(path, data)
    rows = _Rows(path, data, separator or usual_separator, quoted=usual_separator == ",")
    (line, fields), *others = islice(rows.by_line(), 21)
    first = [field.strip() for field in fields]
    has_names = any(_plain(name) in usual for usual in USUAL_NAMES.values() for name in first)
    has_names = has_names or _is_header(first, [fields for _, fields in others])
    columns = first if has_names or len(first) == 1 else [str(position) for position in range(len(first))]
    # user item, or user item rating timestamp, as MovieLens and Amazon write them
    if not has_names and (len(first) == 2 or (len(first) == 4 and re.fullmatch(r"[\d.]+", first[3]))):
        columns = ["user", "item", "rating", "timestamp"][: len(first)]
        if ASIN.fullmatch(first[0]) and not ASIN.fullmatch(first[1]):  # Amazon 2018 writes the item first
            columns[:2] = ["item", "user"]
    log = RawLog(
        path.name,
        columns,
        lambda columns: rows.arrow(len(first), line if log.has_names else 0, columns),
        lambda row: f"{path.name}, line {next(islice(rows.by_line(), row + log.has_names, None))[0]}",
        has_names,
        first,
    )
    return log


def _is_header(first: list[str], others: list[list[str]]) -> bool:
    """Whether a row names columns in words of its own: it has no number or date; below it a column is all of these."""
    number = re.compile(r"\s*-?\d[\d.:TZ /+-]*").fullmatch
    columns = zip(*(fields for fields in others if len(fields) == len(first)), strict=True)
    return len(others) > 2 and not any(map(number, first)) and any(all(map(number, column)) for column in columns)


def _open_sequences(path: Path, data: bytes) -> RawLog:
    """Lines of `user item item …`, oldest first."""
    users, items = [], []
    for number, line in enumerate(data.decode().split("\n"), start=1):
        user, *history = line.split() or [""]
        if user and not history:
            raise ValueError(f"{path.name}, line {number}: expected 'user item item …', found only {line!r}.")
        users += [user] * len(history)
        items += history
    return _open_table(pa.table({"user": users, "item": items}), path.name)


def _open_json_lines(path: Path, separator: str | None, encoding: str | None) -> RawLog:
    """One JSON object a line (Amazon), or one Python literal (Steam's public dump)."""
    data = _read_bytes(path, encoding or "utf-8")

    def by_line() -> Iterator[tuple[int, str]]:
        lines = io.StringIO(data.decode(), newline="\n")
        return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())

    first: dict[str, Any] = {}  # a value of every key, some of which the first lines may lack
    for number, line in islice(by_line(), 1000):
        first |= {k: v for k, v in _parse_object(path, number, line).items() if first.get(k) is None}

    def read(columns: list[int]) -> list[pa.ChunkedArray]:
        wanted = [list(first)[i] for i in columns]
        schema = pa.schema([(name, pa.array([first[name]]).type) for name in wanted])
        options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        try:
            table = pyarrow.json.read_json(pa.BufferReader(data), parse_options=options)
            return [table[name] for name in wanted]
        except pa.ArrowInvalid:  # Python literals, types that change from line to line, or a broken line: this finds it
            lines = tqdm(by_line(), desc=f"Reading {path.name}", unit=" lines", leave=False)
            rows = [_parse_object(path, number, line) for number, line in lines]
        return [pa.chunked_array([pa.array([_text(row.get(name)) for row in rows], pa.string())]) for name in wanted]

    return RawLog(
        path.name, list(first), read, lambda row: f"{path.name}, line {next(islice(by_line(), row, None))[0]}"
    )


def _parse_object(path: Path, number: int, line: str) -> dict:
    for parse in (json.loads, ast.literal_eval):
        try:
            parsed = parse(line)
        except (ValueError, SyntaxError):
            continue
        if isinstance(parsed, dict):
            return parsed
    raise ValueError(
        f"{path.name}, line {number}: expected one JSON object, found {line[:80].rstrip()!r}. Mend or remove the line."
    )


def _text(value: Any) -> str | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return None if value is None else str(value)


FORMATS: dict[str, Callable[[Path, str | None, str | None], RawLog]] = {
    "csv": partial(_open_text, usual_separator=","),  # any CSV, MovieLens ratings.csv, Amazon ratings only
    "tsv": partial(_open_text, usual_separator="\t"),
    "dat": partial(_open_text, usual_separator="::", usual_encoding="latin-1"),  # MovieLens 1M, 10M
    "data": partial(_open_text, usual_separator="\t"),  # MovieLens 100K u.data
    "item": partial(_open_text, usual_separator="|", usual_encoding="latin-1"),  # and its titles
    "inter": partial(_open_text, usual_separator="\t"),  # RecBole
    "txt": partial(_open_text, usual_separator=" "),  # user item, or user item item …
    "json": _open_json_lines,  # Amazon reviews, Steam
    "jsonl": _open_json_lines,
    "parquet": _open_parquet,
}
