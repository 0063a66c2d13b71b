"""The formats of logs. A new format is a function and an entry in `FORMATS`.

The function takes a `SourceFile`, which gives it `text()`, `content()` in bytes, `path` and the user's `separator`. It
returns a table of pandas, Polars, Arrow or datasets; columns with the usual names are found, others named by the user.
"""

import re
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from .json_lines import read_json
from .sources import COMPRESSED, RawLog, SourceFile, library_errors, open_table
from .text_files import read_blank_separated, read_delimited, read_sequences

EMBEDDED = Path(__file__).parent / "embedded"
FOLDER_FILES = {  # files of MovieLens, which are read if the source is a folder
    "interactions": ("ratings.csv", "ratings.csv.gz", "ratings.dat", "u.data"),
    "titles": ("movies.csv", "movies.csv.gz", "movies.dat", "u.item"),
}


def read_parquet(file: SourceFile) -> pa.Table:
    """Read a Parquet file."""
    return pq.ParquetFile(file.path, page_checksum_verification=True).read()


FORMATS: dict[str, Callable[[SourceFile], Any]] = {  # suffix -> function
    "csv": read_delimited,  # also MovieLens ratings.csv, Amazon ratings only
    "tsv": partial(read_delimited, separator="\t"),
    "dat": partial(read_delimited, separator="::", encoding="latin-1"),  # MovieLens 1M, 10M
    "data": partial(read_delimited, separator="\t"),  # MovieLens 100K u.data
    "item": partial(read_delimited, separator="|", encoding="latin-1"),  # and its titles
    "inter": partial(read_delimited, separator="\t"),  # RecBole
    "txt": read_blank_separated,  # user item, or user item item …
    "sequences": read_sequences,  # user item item …
    "json": read_json,  # Amazon reviews, Steam
    "jsonl": read_json,
    "parquet": read_parquet,
}


def open_log(source: Any, kind: str, format: str | None, separator: str | None, encoding: str | None) -> RawLog:  # noqa: A002
    """Open anything that `load_interactions` takes; `kind` is the key of `FOLDER_FILES` for folders."""
    if not isinstance(source, str | PathLike):
        return open_table(source, type(source).__name__)
    with library_errors(
        str(source)[:99], "If it is a dataset on the Hub, use datasets.load_dataset and pass one split."
    ):
        path = _find(source, kind)
    if not isinstance(path, Path):
        return open_table(path, Path(source).name)
    file = SourceFile(path, separator, encoding)
    with library_errors(file.name):
        first = file.content(5000)
        name = "parquet" if first.startswith(b"PAR1") else (format or _suffix(path)).lower()
        if name not in FORMATS:
            file.check_kind(first)
            known, near = ", ".join(FORMATS), (get_close_matches(name, FORMATS) or ["csv"])[0]
            raise ValueError(f"{file.name}: unknown format {name!r}. Name one of {known}, such as format={near!r}.")
        opened = FORMATS[name](file)
        return opened if isinstance(opened, RawLog) else open_table(opened, file.name)


def _find(source: str | PathLike, kind: str) -> Path | Dataset | DatasetDict:
    """Return the file of a path, a folder or the embedded data, or the dataset of a saved folder or Hub ID."""
    path = EMBEDDED / source if is_embedded(source) else Path(source)
    if any((path / name).exists() for name in ("dataset_info.json", "dataset_dict.json")):
        return load_from_disk(path)
    if path.is_dir():
        if files := [path / name for name in FOLDER_FILES[kind] if (path / name).exists()]:
            return files[0]
        raise FileNotFoundError(f"{source}: expected one of {', '.join(FOLDER_FILES[kind])} in this folder.")
    if path.exists():
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and _suffix(path).lower() not in FORMATS:
        return load_dataset(str(source), split="train")
    raise FileNotFoundError(f"{source}: expected a file, a folder, 'ml-latest-small' or the Hub ID of a dataset.")


def _suffix(path: Path) -> str:
    """Return the last suffix, without its dot, that is not one of compression."""
    return ([suffix for suffix in path.suffixes if suffix.lower() not in COMPRESSED] or ["."])[-1][1:]


def is_embedded(source: str | PathLike) -> bool:
    """Return whether a name stands for data of this package; an existing path of this name takes precedence."""
    return not Path(source).exists() and (EMBEDDED / source).is_dir()
