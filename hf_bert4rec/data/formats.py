"""The formats of logs. A new format is a function and an entry in `FORMATS`.

The function takes a `SourceFile`, with the methods `text()` and `content()` (bytes) and the attributes `path` and
`separator`. It returns a table of pandas, Polars, Arrow or datasets. Columns are found by usual names such as `user`.
Users pass other names to `load_interactions`.
"""

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from .columns import Column
from .json_objects import read_json
from .sources import COMPRESSED, RawLog, SourceFile, library_errors, open_table
from .text_tables import read_blank_separated, read_delimited, read_sequences

EMBEDDED = Path(__file__).parent / "embedded"
FOLDER_FILES = {  # files of MovieLens; if the source is a folder, the first one that exists is read
    "interactions": ("ratings.csv", "ratings.csv.gz", "ratings.dat", "u.data"),
    "titles": ("movies.csv", "movies.csv.gz", "movies.dat", "u.item"),
}

FORMATS: dict[str, Callable[[SourceFile], Any]] = {  # suffix -> function
    "csv": read_delimited,  # also MovieLens ratings.csv and the ratings of Amazon
    "tsv": partial(read_delimited, separator="\t"),
    "dat": partial(read_delimited, separator="::", encoding="latin-1"),  # MovieLens 1M, 10M
    "data": partial(read_delimited, separator="\t"),  # MovieLens 100K u.data
    "item": partial(read_delimited, separator="|", encoding="latin-1"),  # MovieLens 100K u.item, the titles
    "inter": partial(read_delimited, separator="\t"),  # RecBole
    "txt": read_blank_separated,  # user item, or user item item …
    "sequences": read_sequences,  # user item item …
    "json": read_json,  # Amazon reviews, Steam
    "jsonl": read_json,
    "ndjson": read_json,
    "parquet": lambda file: pq.ParquetFile(file.path, page_checksum_verification=True).read(),
}


def open_log(
    source: Any,
    kind: str,
    format: str | None = None,  # noqa: A002
    separator: str | None = None,
    encoding: str | None = None,
    columns: Iterable[Column] = (),
    timestamp: Column = None,
) -> RawLog:
    """Open a source: `kind` is "interactions", or "titles" for every table of items (titles, IDs, features).

    `columns` and `timestamp` are columns that the user named. A first line with one of these `columns` is a header.
    """
    for option, value in {"format": format, "separator": separator, "encoding": encoding}.items():
        if not isinstance(value, str | None):
            raise ValueError(f"`{option}` must be text, found {value!r}.")
    if not isinstance(source, str | PathLike):
        return open_table(source, type(source).__name__)
    advice = "Check the path or the Hub ID. For a dataset of the Hub, check the network too. "
    advice += "In Python, you can also pass `datasets.load_dataset(..., split=...)`."
    with library_errors(str(source)[:99], advice):
        path = _find(source, kind)
    if not isinstance(path, Path):
        return open_table(path, Path(source).name)
    names = frozenset(name for name in columns if isinstance(name, str) and not name.isdecimal())
    file = SourceFile(path, separator, encoding, names, timestamp, is_log=kind == "interactions")
    with library_errors(file.name):
        first = file.content(5000)
        name = "parquet" if first.startswith(b"PAR1") else format or _suffix(path)
        name = name if name in FORMATS else name.lower()
        if name not in FORMATS:
            file.check_kind(first)
            known, near = ", ".join(FORMATS), (get_close_matches(name, FORMATS) or ["csv"])[0]
            found = f"unknown format {name!r}" if name else "unknown format, because the name has no suffix"
            advice = f"Choose from {known}, such as {file.spell('format', near)}."
            if name and file.is_log:
                advice += " For a format of your own, import its module (command line: `--import`)."
            raise ValueError(f"{file.name}: {found}. {advice}")
        opened = FORMATS[name](file)
    expected = f"{file.name}: expected a table from the format {name!r}"
    return opened if isinstance(opened, RawLog) else open_table(opened, file.name, expected)


def _find(source: str | PathLike, kind: str) -> Path | Dataset | DatasetDict:
    """Return the file of a path, a folder or the embedded data, or the dataset of a saved folder or Hub ID."""
    path = EMBEDDED / source if is_embedded(source) else Path(source)
    if any((path / name).exists() for name in ("dataset_info.json", "dataset_dict.json")):
        return load_from_disk(path)
    if path.is_dir():
        if files := [path / name for name in FOLDER_FILES[kind] if (path / name).exists()]:
            return files[0]
        expected = " or ".join(FOLDER_FILES[kind])
        raise FileNotFoundError(f"{source}: expected {expected} in this folder, found none. Pass the path of a file.")
    if path.exists():
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and _suffix(path).lower() not in FORMATS:
        return load_dataset(str(source), split="train")
    others = "You can also pass the Hub ID of a dataset (org/name), or 'ml-latest-small', which this package contains."
    raise FileNotFoundError(f"{source}: found no such file or folder. Check the path. {others}")


def _suffix(path: Path) -> str:
    """Return the last suffix that does not stand for compression, without the dot; "" if there is none."""
    return ([suffix for suffix in path.suffixes if suffix.lower() not in COMPRESSED] or ["."])[-1][1:]


def is_embedded(source: str | PathLike) -> bool:
    """Return whether a name stands for data of this package; an existing path of this name takes precedence."""
    return not Path(source).exists() and (EMBEDDED / source).is_dir()
