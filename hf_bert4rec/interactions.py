"""Readers of raw logs: any source in, interactions out, one row an action with user, item and timestamp.

A source is opened as a `RawLog` (which columns there are, how to read some of them, where a row stood), then read the
same way whatever it was. A new format is a new line in `FORMATS`.
"""

import ast
import codecs
import csv
import json
import logging
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

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
EMBEDDED = Path(__file__).parent / "data"
ASIN = re.compile(r"B0[0-9A-Z]{8}|[0-9]{9}[0-9X]")

Column = str | int | None


@dataclass
class RawLog:
    """A source that has been opened: what can be read from it, and where each of its rows stood."""

    name: str  # what errors and reports call it
    columns: list[str]  # names, or "0", "1" … where the source has none
    read: Callable[[list[int]], list[pa.ChunkedArray]]  # columns by position
    locate: Callable[[int], str]  # row → "ratings.csv, line 17"
    has_names: bool = True


def load_interactions(
    source: Any,
    *,
    format: str | None = None,  # noqa: A002
    user: Column = None,
    item: Column = None,
    timestamp: Column = None,
    rating: Column = None,
    min_rating: float | None = None,
    min_user_interactions: int = 1,
    min_item_interactions: int = 1,
    keep_repeats: bool = True,
    separator: str | None = None,
    encoding: str | None = None,
) -> Dataset:
    """Read a log of who acted on what, and when.

    One line of the log tells what was read and what was dropped. Rows keep the order of the source, so that equal
    timestamps stay in it. A source without timestamps is taken to be in time order: its row numbers become them.

    Args:
        source: A file (see `FORMATS`; .gz and .zst too), a folder of MovieLens, `"ml-latest-small"` (which travels with
            this package), a pandas, Polars or Arrow table, a `datasets.Dataset`, or the Hub id of one.
        format: Name in `FORMATS`, where the file's ending does not tell.
        user: Column of the user: its name, or its position from 0. Found by its usual names if not given.
        item: Column of the item.
        timestamp: Column of the time: numbers are kept as they are, dates become seconds since 1970.
        rating: Column of the rating; read only where `min_rating` is given.
        min_rating: Drop actions rated below this.
        min_user_interactions: Drop users with fewer actions, until all have enough (with the next one, the k-core).
        min_item_interactions: Drop items with fewer actions, until all have enough.
        keep_repeats: Whether a user's later actions on the same item are kept.
        separator: Separator of a text file, where it is not the usual one of its format.
        encoding: Encoding of a text file; UTF-8 if not given.

    Returns:
        `Dataset` with `user` and `item` (strings) and `timestamp` (int64; float64 where there are fractions).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The source cannot be read as told; the message says which line, what was expected and what to do.
    """
    log = open_log(source, "interactions", format, separator, encoding)
    found = find_columns(log, user=user, item=item, timestamp=timestamp, rating=rating)
    for role in ("user", "item"):
        if role not in found:
            raise ValueError(
                f"{log.name}: expected a column for the {role}, found {', '.join(log.columns)}. Name it: "
                f"{role}='…'" + ("" if len(log.columns) > 1 else ", or the separator: separator=';'.")
            )
    if min_rating is not None and "rating" not in found:
        raise ValueError(f"{log.name}: min_rating needs a rating, found {', '.join(log.columns)}. Name it: rating='…'")
    if min_rating is None:
        found.pop("rating", None)

    columns = dict(zip(found, log.read(list(found.values())), strict=True))
    table = pa.table({role: _as_ids(columns[role], f"{log.name}: the {role}") for role in ("user", "item")})
    present = pc.and_(pc.is_valid(table["user"]), pc.is_valid(table["item"]))
    if "timestamp" in columns:
        times = _as_times(columns["timestamp"].filter(present), _located(log, present))
    else:
        times = pa.array(np.arange(pc.sum(present).as_py() or 0))
    keep, dropped = np.ones(len(times), bool), {"without an id": table.num_rows - len(times)}
    if min_rating is not None:
        ratings = _as_numbers(columns["rating"].filter(present), _located(log, present), "a rating")
        keep &= np.asarray(ratings) >= min_rating
    table = table.filter(present).append_column("timestamp", times).filter(pa.array(keep))
    dropped[f"rated below {min_rating}"] = int((~keep).sum())

    users, items = (_encode(table[role]) for role in ("user", "item"))
    keep = (
        np.ones(table.num_rows, bool) if keep_repeats else _first_of_each(users, items, np.asarray(table["timestamp"]))
    )
    dropped["repeated"] = int((~keep).sum())
    core = _k_core(users, items, keep, min_user_interactions, min_item_interactions)
    dropped["of users or items with too few"] = int(keep.sum() - core.sum())
    table = table.filter(pa.array(core)).combine_chunks()

    if table.num_rows == 0:
        raise ValueError(
            f"{log.name}: expected interactions, found none after dropping {_listed(dropped) or 'nothing'}."
        )
    logger.info(
        "%s: %s interactions of %s users with %s items%s; dropped: %s.",
        log.name,
        *(f"{n:,}" for n in (table.num_rows, pc.count_distinct(table["user"]).as_py())),
        f"{pc.count_distinct(table['item']).as_py():,}",
        "" if "timestamp" in found else " (no timestamps: the order of the rows is the order in time)",
        _listed(dropped) or "none",
    )
    return Dataset(table)


def load_titles(
    source: Any,
    *,
    format: str | None = None,  # noqa: A002
    item: Column = None,
    title: Column = None,
    separator: str | None = None,
    encoding: str | None = None,
) -> dict[str, str]:
    """Read raw item id → title, from the same kinds of source as `load_interactions`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: There is no column for the item or the title.
    """
    log = open_log(source, "titles", format, separator, encoding)
    if log.has_names or len(log.columns) < 2:
        found = find_columns(log, item=item, title=title)
    else:
        given = {"item": item, "title": title}
        found = {"item": 0, "title": 1} | find_columns(log, **{k: v for k, v in given.items() if v is not None})
    if len(found) < 2:
        raise ValueError(f"{log.name}: expected columns for item and title, found {', '.join(log.columns)}. Name them.")
    ids, titles = log.read([found["item"], found["title"]])
    pairs = zip(
        _as_ids(ids, f"{log.name}: the item").to_pylist(), pc.cast(titles, pa.string()).to_pylist(), strict=True
    )
    return {item: title for item, title in pairs if item is not None and title}


def find_columns(log: RawLog, **wanted: Column) -> dict[str, int]:
    """Which column of the log plays which role: as named by the user, else by its usual names."""
    plain = [_plain(column) for column in log.columns]
    found = {}
    for role, name in wanted.items():
        if isinstance(name, int) and not 0 <= name < len(log.columns):
            raise ValueError(f"{log.name}: expected at least {name + 1} columns for {role}, found {len(log.columns)}.")
        if isinstance(name, int):
            found[role] = name
        elif name is not None:
            if name not in log.columns:
                raise ValueError(f"{log.name}: expected a column {name!r} for {role}, found {', '.join(log.columns)}.")
            found[role] = log.columns.index(name)
        elif usual := next((usual for usual in USUAL_NAMES[role] if usual in plain), None):
            found[role] = plain.index(usual)
    return found


def _plain(name: str) -> str:
    return re.sub(r":.*|[_\s]", "", name).lower()  # RecBole writes user_id:token


# ------------------------------------------------------------------------------------------------- opening a source


def open_log(
    source: Any,
    kind: str,
    format: str | None,  # noqa: A002
    separator: str | None,
    encoding: str | None,
) -> RawLog:
    """Open anything that `load_interactions` takes; `kind` is the key of `FOLDER_FILES` for folders."""
    if not isinstance(source, str | PathLike):
        return _open_table(source, type(source).__name__)
    path = Path(source)
    if not path.exists() and (EMBEDDED / path).is_dir():
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
        if re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and not path.parent.is_dir():
            return _open_table(load_dataset(str(source), split="train"), str(source))
        raise FileNotFoundError(f"{source}: expected a file, a folder, 'ml-latest-small' or a data set's Hub id.")
    ending = path.name.removesuffix(".gz").removesuffix(".zst").rpartition(".")[2].lower()
    name = format or ending
    if name not in FORMATS:
        near = get_close_matches(name, FORMATS)
        raise ValueError(
            f"{path.name}: expected a format among {', '.join(FORMATS)}, found {name!r}. "
            f"Pass format={(near or ['csv'])[0]!r}, for instance."
        )
    return FORMATS[name](path, separator, encoding)


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
        raise ValueError(
            f"{path.name}: expected a Parquet file, found something else or half of one ({error})."
        ) from error


def _open_text(
    path: Path, separator: str | None, encoding: str | None, *, usual_separator: str, usual_encoding: str = "utf-8"
) -> RawLog:
    """A text file with a row a line, with or without a header."""
    data, above = _read_bytes(path, encoding or usual_encoding)
    shown = separator = separator or usual_separator
    quoted = usual_separator == ","
    if len(separator) > 1:  # Arrow splits at one character; MovieLens separates by "::"
        data, separator = data.replace(separator.encode(), b"\x1f"), "\x1f"
    if separator == " ":
        data = b"\n".join(b" ".join(line.split()) for line in data.split(b"\n"))
        head = [len(line.split()) for line in data.split(b"\n", 1000)[:1000] if line]
        if max(head) > 3 and 2 * Counter(head).most_common(1)[0][1] <= len(head):  # as good as no two of a length
            return _open_sequences(path, data, above)
    lines = csv.reader(
        [_first_line(data)], delimiter=separator, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    )
    first = [field.strip() for field in next(lines)]
    has_names = any(_plain(name) in USUAL_NAMES[role] for role in USUAL_NAMES for name in first)
    columns = first if has_names or len(first) == 1 else [str(position) for position in range(len(first))]
    if not has_names and len(first) in (2, 4):  # user item, or user item rating timestamp (MovieLens, Amazon 2014)
        columns = ["user", "item", "rating", "timestamp"][: len(first)]
        if ASIN.fullmatch(first[0]) and not ASIN.fullmatch(first[1]):  # Amazon 2018 writes the item first
            columns[:2] = ["item", "user"]
    locate = _locate_line(path, data, above, quoted, blank=b"\r")
    return RawLog(
        path.name,
        columns,
        partial(_read_text, path, data, separator, shown, quoted, len(first), int(has_names), locate),
        lambda row: locate(row + int(has_names)),
        has_names,
    )


def _read_text(
    path: Path,
    data: bytes,
    separator: str,
    shown: str,
    quoted: bool,
    width: int,
    skip: int,
    locate: Callable[[int], str],
    columns: list[int],
) -> list[pa.ChunkedArray]:
    bad: list[Any] = []

    def refuse(row: Any) -> str:
        bad.append(row)
        return "error"

    names = [str(position) for position in range(width)]
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(data),
            pyarrow.csv.ReadOptions(use_threads=False, column_names=names, skip_rows=skip),  # threads lose line numbers
            pyarrow.csv.ParseOptions(
                delimiter=separator,
                quote_char='"' if quoted else False,
                invalid_row_handler=refuse,
                newlines_in_values=quoted,
            ),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), include_columns=[names[i] for i in columns]
            ),
        )
    except pa.ArrowInvalid as error:
        if not bad:
            raise ValueError(f"{path.name}: {error}") from error
        text = repr(bad[0].text[:80].replace(separator, shown))
        raise ValueError(
            f"{locate(bad[0].number - 1)}: expected {bad[0].expected_columns} columns, found "
            f"{bad[0].actual_columns} in {text}. Mend or remove the line, or name another separator: separator=';'."
        ) from None
    return [table[str(i)] for i in columns]


def _open_sequences(path: Path, data: bytes, above: int) -> RawLog:
    """Lines of `user item item …`, oldest first."""
    users, items, lengths = [], [], []
    for number, line in enumerate(data.decode().split("\n"), start=1 + above):
        user, *history = line.split() or [""]
        if user and not history:
            raise ValueError(f"{path.name}, line {number}: expected 'user item item …', found only {line!r}.")
        users.append(user)
        items += history
        lengths.append(len(history))
    table = pa.table({"user": np.repeat(np.array(users, dtype=object), lengths), "item": items})
    return _open_table(table, path.name)


def _open_json_lines(path: Path, separator: str | None, encoding: str | None) -> RawLog:
    """One JSON object a line (Amazon), or one Python literal (Steam's public dump)."""
    data, above = _read_bytes(path, encoding or "utf-8")
    columns = list(_parse_object(_first_line(data), path, 1 + above))
    read = partial(_read_json_lines, path, data, above, columns)
    return RawLog(path.name, columns, read, _locate_line(path, data, above, quoted=False, blank=None))


def _read_json_lines(
    path: Path, data: bytes, above: int, names: list[str], columns: list[int]
) -> list[pa.ChunkedArray]:
    wanted = [names[i] for i in columns]
    sample = _parse_object(_first_line(data), path, 1)
    schema = pa.schema([(name, pa.array([sample[name]]).type) for name in wanted])
    options = pyarrow.json.ParseOptions(
        explicit_schema=schema, unexpected_field_behavior="ignore", newlines_in_values=False
    )
    try:
        table = pyarrow.json.read_json(pa.BufferReader(data), parse_options=options)
        return [table[name] for name in wanted]
    except pa.ArrowInvalid:  # Python literals, types that change from line to line, or a broken line, which this finds
        lines = tqdm(data.decode().split("\n"), desc=f"Reading {path.name}", unit=" lines", leave=False)
        rows = [_parse_object(line, path, number) for number, line in enumerate(lines, start=1 + above) if line.strip()]
    values = [[row.get(name) for row in rows] for name in wanted]
    return [
        pa.chunked_array([pa.array([v if v is None else _as_text(v) for v in column], pa.string())])
        for column in values
    ]


def _as_text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _parse_object(line: str, path: Path, number: int) -> dict:
    try:
        try:
            parsed = json.loads(line)
        except json.JSONDecodeError:
            parsed = ast.literal_eval(line)
        if isinstance(parsed, dict):
            return parsed
    except (ValueError, SyntaxError):
        pass
    raise ValueError(
        f"{path.name}, line {number}: expected one JSON object, found {line[:80]!r}. Mend or remove the line."
    )


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


def _read_bytes(path: Path, encoding: str) -> tuple[bytes, int]:
    """The file's text as UTF-8, decompressed, from the first line that is not blank, and how many stood above it.

    A broken byte is an error that names its line.
    """
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
    data = data.removeprefix(codecs.BOM_UTF8) if codecs.lookup(encoding).name == "utf-8" else text.encode()
    start = re.match(rb"(?:[ \t\r]*\n)*", data).end()  # type: ignore[union-attr]
    return data[start:], data.count(b"\n", 0, start)


def _first_line(data: bytes) -> str:
    return data.partition(b"\n")[0].decode()


def _locate_line(path: Path, data: bytes, above: int, quoted: bool, blank: bytes | None) -> Callable[[int], str]:
    """Row (a header is row 0) → the line where it begins, blank lines and those within quotes being no rows."""

    def locate(row: int) -> str:
        starts, within = [], False
        for number, line in enumerate(data.split(b"\n"), start=1 + above):
            if not within and line.strip(blank):
                starts.append(number)
            within ^= quoted and line.count(b'"') % 2 == 1
        return f"{path.name}, line {starts[row]}"

    return locate


# ----------------------------------------------------------------------------------------------- columns and filters


def _located(log: RawLog, kept: pa.ChunkedArray) -> Callable[[int], str]:
    return lambda row: log.locate(int(np.flatnonzero(np.asarray(kept))[row]))


def _as_ids(column: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    """Ids as strings: 1 and 1.0 become "1" (a column of numbers with gaps is floats in pandas); "" is no id."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    if pa.types.is_floating(column.type) and pc.all(pc.equal(column, pc.round(column))).as_py() is not False:
        column = pc.cast(column, pa.int64(), safe=False)
    try:
        column = pc.cast(column, pa.string())
    except pa.ArrowNotImplementedError:
        raise ValueError(f"{what}: expected text or numbers, found a column of {column.type}.") from None
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)


def _as_times(column: pa.ChunkedArray, locate: Callable[[int], str]) -> pa.ChunkedArray:
    """Numbers as they are, int64 where there are no fractions; dates as seconds since 1970."""
    what = "a number or an ISO date as timestamp"
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.utf8_trim_whitespace(column)
        column = _dates(column, locate, what) if len(column) and not _is_number(column[0].as_py()) else column
    if pa.types.is_temporal(column.type):
        column = pc.cast(pc.cast(column, pa.timestamp("us"), safe=False), pa.int64())
        column = pc.divide(column.cast(pa.float64()), 1e6)
    return _as_numbers(column, locate, what)


def _dates(column: pa.ChunkedArray, locate: Callable[[int], str], what: str) -> pa.ChunkedArray:
    for zone in (None, "UTC"):
        try:
            return pc.cast(column, pa.timestamp("us", zone))
        except pa.ArrowInvalid:
            continue
    moments = []
    for row, value in enumerate(column.to_pylist()):
        try:
            moment = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            raise ValueError(f"{locate(row)}: expected {what}, found {value!r}. Mend or remove the row.") from None
        moments.append(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    return pa.chunked_array([pa.array(moments, pa.timestamp("us", "UTC"))])


def _is_number(value: Any) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError):
        return False


def _as_numbers(column: pa.ChunkedArray, locate: Callable[[int], str], what: str) -> pa.ChunkedArray:
    for number in (pa.int64(), pa.float64()):
        try:
            numbers = pc.cast(column, number)
        except pa.ArrowInvalid:
            continue
        except pa.ArrowNotImplementedError:
            break
        if not numbers.null_count and pc.all(pc.is_finite(numbers)).as_py() is not False:
            return numbers
    for row, value in enumerate([] if pa.types.is_nested(column.type) else column.to_pylist()):
        if not _is_number(value):
            raise ValueError(f"{locate(row)}: expected {what}, found {value!r}. Mend or remove the row.")
    raise ValueError(f"{locate(0)}: expected {what}, found a column of {column.type}.")


def _encode(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)


def _first_of_each(users: np.ndarray, items: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Which rows are a user's first action on an item, in time and then in the order of the source."""
    order = np.argsort(times, kind="stable")
    pairs = users * (items.max(initial=0) + 1) + items
    keep = np.zeros(len(users), bool)
    keep[order[np.unique(pairs[order], return_index=True)[1]]] = True
    return keep


def _k_core(users: np.ndarray, items: np.ndarray, keep: np.ndarray, per_user: int, per_item: int) -> np.ndarray:
    """Drop users and items with too few of the kept rows until none is left that has."""
    while keep.any():
        user_counts, item_counts = (np.bincount(codes[keep], minlength=codes.max() + 1) for codes in (users, items))
        smaller = keep & (user_counts[users] >= per_user) & (item_counts[items] >= per_item)
        if smaller.sum() == keep.sum():
            break
        keep = smaller
    return keep


def _listed(dropped: dict[str, int]) -> str:
    return ", ".join(f"{n:,} {why}" for why, n in dropped.items() if n)
