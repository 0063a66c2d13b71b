"""Recommend for all users of a table or a log, in shards. Memory does not depend on the number of rows of a table."""

import json
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from tqdm.auto import tqdm

from ..data.arguments import check_count
from ..data.ids import as_item_ids
from ..data.interactions import load_interactions
from ..data.sources import library_errors
from ..hub.checkpoint import fetch_checkpoint
from ..hub.errors import disk_errors, read_json
from .arguments import ITEM_LISTS, check_options
from .export import OPTIONS, OnnxRecommender, is_export
from .pipeline import pipeline

REQUEST_FILE = "_request.json"  # readers of Parquet folders skip names that begin with "_"
FIRST_BYTES = b"PAR1"

_recommender: "BatchRecommender | None" = None  # only in worker processes
Table = TypeVar("Table", pa.Table, pd.DataFrame)


class BatchRecommender:
    """Recommender for tables of users, such as the batches of Ray Data (`map_batches`) and Spark (`mapInPandas`).

    Args:
        checkpoint: Folder or Hub ID of a checkpoint, or a folder that `export_checkpoint` wrote.
        user: Name of the column of user IDs.
        history: Name of the column of histories, lists of raw item IDs, oldest first.
        **options: As for a call of the pipeline, or of `OnnxRecommender` for an exported folder. `allow` and `deny` are
            one list for all users, not one list per user.

    Raises:
        ImportError: The extra `export`, which an exported folder needs, is missing.
        OSError, ValueError: As for `pipeline` or `OnnxRecommender`; or `user` has the name of another column.
    """

    def __init__(
        self, checkpoint: str | PathLike, *, user: str = "user", history: str = "history", **options: Any
    ) -> None:
        if user in (history, "rank", "item", "score"):
            expected = f"a name other than {history!r}, 'rank', 'item' and 'score'"
            raise ValueError(f"`user` must be {expected}, found {user!r}. Rename your column of users.")
        exported = is_export(checkpoint)
        self.recommender: Any = OnnxRecommender(checkpoint, threads=1) if exported else pipeline(checkpoint)
        self.user, self.history, self.options = user, history, options
        self.recommender([], **options)  # raises ValueError for invalid options

    def __call__(self, table: Table) -> Table:
        """Return one row per recommendation, with the user, `rank` from 1, `item` and `score`.

        The result is a DataFrame for a DataFrame, and a `pyarrow.Table` for a `Table` or `RecordBatch`. A user without
        a history gets the recommendations for an empty history. Unknown item IDs are skipped.

        Raises:
            ValueError: A column or a user ID is missing, or a value of a history, such as None, is not an item ID.
        """
        frame = isinstance(table, pd.DataFrame)
        if not isinstance(table, pd.DataFrame | pa.Table | pa.RecordBatch):
            advice = "Convert it, or for Ray Data pass `batch_format='pyarrow'`."
            raise ValueError(f"Expected a table of Arrow or pandas, found {type(table).__name__}. {advice}")
        names = list(table.columns if frame else table.column_names)
        if missing := [name for name in (self.user, self.history) if name not in names]:
            advice = "Pass the names of your columns of users and histories as `user=` and `history=`."
            raise ValueError(f"Expected a column {missing[0]!r}, found {', '.join(map(str, names))}. {advice}")
        users, histories = table[self.user], table[self.history]
        if users.isna().any() if frame else pc.any(pc.is_null(users, nan_is_null=True)).as_py():
            found = "found a row without one. Fix or remove such rows."
            raise ValueError(f"Expected a user ID in every row of the column {self.user!r}, {found}")
        given = histories.notna() if frame else histories.is_valid().to_pylist()
        lists = histories.tolist() if frame else histories.to_pylist()
        answers = self.recommender([of if has else [] for of, has in zip(lists, given, strict=True)], **self.options)
        places = [user for user, answer in enumerate(answers) for _ in answer]
        rows = [{**row, "rank": rank} for answer in answers for rank, row in enumerate(answer, 1)]
        schema = pa.schema([("rank", pa.int32()), ("item", pa.string()), ("score", pa.float32())])
        result = pa.Table.from_pylist(rows, schema)
        if not frame:
            return result.add_column(0, self.user, users.take(pa.array(places, pa.int64())))
        found = result.to_pandas()
        found.insert(0, self.user, users.take(places).array)
        return found


def recommend_to_parquet(
    checkpoint: str | PathLike,
    source: str | PathLike,
    output: str | PathLike,
    *,
    processes: int = 1,
    shard_size: int = 10_000,
    user: str = "user",
    history: str = "history",
    columns: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Write the recommendations for all users of a file to a folder of Parquet files, and return the folder.

    The columns are those of a call of `BatchRecommender`. A file appears when it is complete. After an interruption,
    the same call continues with the missing files. Few shards are in memory at a time, but a log is read completely.

    Args:
        checkpoint: As for `BatchRecommender`.
        source: Parquet with one row per user and columns `user` and `history` (a list), or a log of any format.
        output: Folder of the result: a new one, or that of the same call before an interruption.
        processes: Number of processes. Two or more have one thread each; a single process uses the threads of torch (an
            exported folder: one thread). One process per core is fastest. In a script, more than one needs
            `if __name__ == "__main__":` before the call, because each process imports the script again.
        shard_size: Number of users per file.
        user: Name of the column of user IDs in the result, and in a Parquet file of histories.
        history: Name of the column of histories in such a file.
        columns: Columns of a log, a dict with the keys `user`, `item` and `timestamp`, and other options of
            `load_interactions`, such as `separator`. Default: columns are found by their usual names.
        **options: `top_k`, `exclude_history`, `allow` and `deny`, the same for all users; see a call of the pipeline.

    Raises:
        OSError: As for `fetch_checkpoint`; `source` is missing; or the disk is full.
        ValueError: `output` contains another result, or as for `BatchRecommender` and `load_interactions`.
        ChildProcessError: A process was killed or could not start.
    """
    options = check_options(options, OPTIONS, ("processes", "shard_size", "user", "history", "columns"))
    for name in ITEM_LISTS & options.keys():
        options[name] = as_item_ids(options[name], name).to_pylist()
    check_count("processes", processes)
    check_count("shard_size", shard_size)
    if not isinstance(source, str | PathLike):
        advice = "Save the table as Parquet, or pass it to a `BatchRecommender`."
        raise ValueError(f"`source` must be the path of a file, found {type(source).__name__}. {advice}")
    file, folder = Path(source), Path(output)
    if file.is_dir():
        advice = "Pass a single file. For a folder of Parquet files, use `BatchRecommender` with Ray Data or Spark."
        raise ValueError(f"{file} is a folder. {advice}")
    if not file.is_file():
        raise FileNotFoundError(f"{file}: found no such file. Pass a Parquet file of histories, or the file of a log.")
    model = Path(checkpoint) if is_export(checkpoint) else fetch_checkpoint(checkpoint)
    arguments = {"checkpoint": str(model.resolve()), "user": user, "history": history, **options}
    request = {**arguments, "shard_size": shard_size, "source": str(file.resolve())}
    request |= {"columns": columns} if columns else {}
    request |= {"state of the weights": _states(model), "state of the source": _states(file)}
    users, shards = _read_shards(file, shard_size, user, history, columns or {})
    recommender = BatchRecommender(**arguments)  # also for several processes, to find errors before they start
    with disk_errors(folder):
        _begin(folder, json.loads(json.dumps(request, default=int)))
        with tqdm(total=users, desc="Recommending", unit="user", disable=None) as bar:  # None: not in a log file
            for count in _write_shards(shards, folder, processes, arguments, recommender):
                bar.update(count)
    return folder


def _begin(folder: Path, request: dict[str, Any]) -> None:
    """Record the request in a new folder, or check that the request in an existing folder is the same."""
    noted, advice = folder / REQUEST_FILE, "Pass a new folder as `output=` (command line: `--output`)."
    unfinished = noted.with_suffix(".tmp")
    if noted.exists() and any(folder.glob("part-*")):
        begun = read_json(noted, folder, advice)
        for name in {**request, **begun}:
            was, now = begun.get(name), request.get(name)
            if was != now:
                then, new = ("the default" if it is None else f"{it!r:.100}" for it in (was, now))
                option = "`source` (command line: `--input`)" if name == "source" else f"`{name}`"
                found = f"with another {option} (then {then}, now {new})"
                if name.startswith("state"):
                    found = f"before the {'source' if 'source' in name else 'model'} changed"
                raise ValueError(f"The recommendations in {folder} were started {found}. {advice}")
    elif folder.is_file() or (folder.exists() and not noted.exists() and {*folder.iterdir()} - {unfinished}):
        raise ValueError(f"{folder} is a file, or a folder with other files than recommendations. {advice}")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(request, indent=2), encoding="utf-8")
        unfinished.replace(noted)


def _read_shards(
    file: Path, size: int, user: str, history: str, columns: Mapping[str, Any]
) -> tuple[int, Iterator[pa.Table]]:
    """Return the number of users, and tables of `size` users with the columns of users and histories."""
    with library_errors(str(file)), file.open("rb") as opened:
        parquet = pq.ParquetFile(file, pre_buffer=False) if opened.read(len(FIRST_BYTES)) == FIRST_BYTES else None
    if parquet and history in (schema := parquet.schema_arrow).names:
        kind = schema.field(history).type
        if not pa.types.is_list(kind) and not pa.types.is_large_list(kind):
            found = f"{kind}. Convert this column to lists (pandas: `str.split`), or rename it if the file is a log"
            raise ValueError(f"{file}: expected lists of item IDs in the column {history!r}, found {found}.")
        if columns:
            names = [", ".join(f"`{dash}{name}`" for name in sorted(columns)) for dash in ("", "--")]
            kind = "which is" if len(columns) == 1 else "which are"
            omit = f"Omit {names[0]} in `columns` (command line: {names[1]}), {kind} for logs."
            raise ValueError(f"{file} has one history per user. {omit}")
        if user not in schema.names:
            advice = "Rename your column of users, or in Python pass its name as `user=`."
            raise ValueError(f"{file}: expected a column {user!r}, found {', '.join(schema.names)}. {advice}")
        return parquet.metadata.num_rows, _cut(parquet.iter_batches(size, columns=[user, history]), size)
    log = load_interactions(str(file), **columns).with_format("arrow")[:]
    log = log.sort_by([("user", "ascending"), ("timestamp", "ascending")])
    users = pc.run_end_encode(log["user"].combine_chunks())
    offsets = pa.array(np.append(0, users.run_ends.to_numpy()), pa.int64())
    histories = pa.LargeListArray.from_arrays(offsets, log["item"].combine_chunks().cast(pa.large_string()))
    table = pa.table({user: users.values, history: histories})
    return len(table), (table.slice(start, size) for start in range(0, len(table), size))


def _cut(batches: Iterator[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Yield tables of exactly `size` rows, except the last one, whatever the sizes of the batches are."""
    kept: list[pa.RecordBatch] = []
    for batch in batches:
        kept.append(batch)
        while sum(map(len, kept)) >= size:
            table = pa.Table.from_batches(kept)
            yield table.slice(0, size)
            kept = table.slice(size).to_batches()
    if kept:
        yield pa.Table.from_batches(kept)


def _write_shards(
    shards: Iterator[pa.Table], folder: Path, processes: int, arguments: dict[str, Any], recommender: BatchRecommender
) -> Iterator[int]:
    """Write the missing files, and yield the number of users of every file, also of those that exist."""
    named = ((folder / f"part-{number:05}.parquet", shard) for number, shard in enumerate(shards))
    if processes == 1:
        for path, shard in named:
            yield len(shard) if path.exists() else _write(path, shard, recommender)
        return
    running: deque[Future[int]] = deque()
    context = multiprocessing.get_context("spawn")  # torch has threads, which a forked process would lose
    module = type(getattr(recommender.recommender, "model", recommender)).__module__
    with ProcessPoolExecutor(processes, context, _start, (arguments, module)) as pool:
        try:
            for path, shard in named:
                if path.exists():
                    yield len(shard)
                    continue
                running.append(pool.submit(_write, path, shard))
                if len(running) > processes:  # one shard waits for the process that is free next
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        except BrokenProcessPool as error:
            found = "A process ended too early. If memory is short, lower `processes` (command line: `--processes`)."
            advice = 'In a Python script, put the call below `if __name__ == "__main__":`. Finished files are kept.'
            raise ChildProcessError(f"{found} {advice}") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start(arguments: dict[str, Any], module: str) -> None:
    """Load the recommender in a worker process, which ends with its parent. Importing `module` registers the model."""
    global _recommender
    parent: Any = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    import_module(module)
    torch.set_num_threads(1)
    _recommender = BatchRecommender(**arguments)


def _write(path: Path, shard: pa.Table, recommender: BatchRecommender | None = None) -> int:
    """Write a file under another name first, so that only complete files appear; return the number of users."""
    recommender = recommender or _recommender
    assert recommender is not None
    unfinished = path.with_name(f"_{path.name}.{os.getpid()}.tmp")
    pq.write_table(recommender(shard), unfinished)
    unfinished.replace(path)
    return len(shard)


def _states(path: Path) -> list[Any]:
    """Return name, size and modification time of a file, or of the weights, ONNX and JSON files in a folder."""
    files = sorted(file for pattern in ("*.safetensors", "*.onnx", "*.json") for file in path.glob(pattern)) or [path]
    return [[file.name, file.stat().st_size, file.stat().st_mtime] for file in files]
