"""Read interactions from any log and filter them. Each row has a user, an item and a timestamp."""

import logging
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from .arguments import check_bool, check_number, read_rows
from .columns import Column, find_columns, is_doubtful, is_range, is_usual
from .formats import open_log
from .ids import READ_FIRST, as_ids, as_item_ids, warn_about_variants
from .sources import RawLog, library_errors, spell
from .values import UNITS, as_numbers, as_text, as_times, check_ids

logger = logging.getLogger(__name__)


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
    """Read a log of interactions between users and items.

    Rows without user, item or timestamp are dropped. The numbers of rows that were read and dropped are logged. Rows
    keep the order of the source, also among equal timestamps. Without a column of times, the rows are assumed to be in
    time order, and row numbers from 0 are used as timestamps.

    Args:
        source: A file (also compressed with gzip, bzip2 or Zstandard), a folder of MovieLens, `"ml-latest-small"`
            (contained in this package), a pandas, Polars or Arrow table, a (saved) `datasets.Dataset`, or the Hub ID
            of a dataset, whose split `train` is read.
        format: Format of a file: a key of `FORMATS`, such as csv, jsonl or parquet. Default: the suffix of the file.
        user: Column of the user: a name, or a position from 0. Default: a column with a usual name, or in a file
            without a header its place in `user item [rating timestamp]`.
        item: Column of the item, as for `user`.
        timestamp: Column of the time: numbers are kept as they are, dates become seconds since 1970. Default: a column
            with a usual name (`date` is joined with a column `time`), or the only column whose type is a date.
        rating: Column of the rating, as for `user`; read only if `min_rating` is given.
        min_rating: Drop interactions with a lower rating or without one.
        min_user_interactions: Drop users with fewer interactions. This filter and `min_item_interactions` count what
            the other filters keep, and are repeated until all users and items have enough (k-core).
        min_item_interactions: Drop items with fewer interactions.
        keep_repeats: Whether to keep a user's later interactions with the same item.
        separator: Separator of a text file. Default: the usual separator of the format or, if the first line lacks it,
            a semicolon, tab, `|`, comma or `::` in this line.
        encoding: Encoding of a text file. Default: UTF-8. Files of the formats dat and item that are not UTF-8 are read
            as Latin-1.

    Returns:
        `Dataset` with `user` and `item` (strings) and `timestamp` (int64; float64 if there are fractions).

    Raises:
        FileNotFoundError: There is no such file, or the folder has no file of MovieLens.
        ValueError: An option is invalid, the source cannot be read, a column is missing or ambiguous, a value is
            invalid, or no interactions are left. The message says what to do.
    """
    fewest = {"min_user_interactions": min_user_interactions, "min_item_interactions": min_item_interactions}
    for name, value in {"min_rating": 0 if min_rating is None else min_rating, **fewest}.items():
        check_number(name, value, "a number", lambda number: number == number)  # not NaN
    check_bool("keep_repeats", keep_repeats)
    log = open_log(source, "interactions", format, separator, encoding, [user, item, timestamp, rating], timestamp)
    wanted: dict[str, Column] = {"user": user, "item": item, "timestamp": timestamp}
    if min_rating is not None:
        wanted["rating"] = rating
    with library_errors(log.name):
        found = find_columns(log, wanted, needed={role: role for role in wanted if role != "timestamp"})
        table, complete = _read(log, found)
        *roles, last = table.column_names
        dropped = {f"without {', '.join(roles)} or {last}": (~complete).sum()}
        if "timestamp" not in found:
            table = table.append_column("timestamp", pa.array(np.arange(len(table))))
        if min_rating is not None:
            rated = table
            table = table.filter(pc.greater_equal(table["rating"], float(min_rating)))
            dropped[f"rated below {min_rating}"] = len(rated) - len(table)
        table = table.select(["user", "item", "timestamp"])
        coded = {role: table[role].dictionary_encode().combine_chunks() for role in ("user", "item")}
        actions = pd.DataFrame({role: column.indices.to_numpy() for role, column in coded.items()})
        kept = actions
        if not keep_repeats:
            kept = actions.iloc[np.argsort(np.asarray(table["timestamp"]), kind="stable")].drop_duplicates()
        core = _k_core(kept, {"user": min_user_interactions, "item": min_item_interactions})
        dropped["repeated"] = len(actions) - len(kept)
        dropped["of users or items with too few interactions"] = len(kept) - len(core)
        if len(core) < len(table):
            table = table.take(pa.array(np.sort(core.index)))
        table = table.combine_chunks()
        losses = ", ".join(f"{rows:,} {why}" for why, rows in dropped.items() if rows) or "none"
        if not len(table):
            left = f"no interactions are left. Dropped: {losses}. Relax the filters, or check the columns."
            raise ValueError(f"{log.name}: {left if len(complete) else 'found no rows. Check the source.'}")
        _check_ids(coded, core, log.name)
        notes = _check(log, found, wanted, pc.max(table["timestamp"]).as_py())
    sizes = {"interaction": len(table), **{role: core[role].nunique() for role in coded}}
    total, users, items = (f"{number:,} {name}{'s' * (number != 1)}" for name, number in sizes.items())
    report = f"{log.name}: {total} of {users} with {items}{notes}; dropped: {losses}."
    if 10 * (~complete).sum() > len(complete):
        logger.warning(f"{report} More than 10 % of the rows are incomplete, so check the columns.")
    else:
        logger.info(report)
    return Dataset(table)


def _read(log: RawLog, found: Mapping[str, int]) -> tuple[pa.Table, np.ndarray]:
    """Return the complete rows, and a mask of all rows that marks them."""
    columns = dict(zip(found, log.read(list(found.values())), strict=True))
    values = {role: as_ids(columns[role], role, log.locate) for role in ("user", "item")}
    complete = np.asarray(pc.and_(*map(pc.is_valid, values.values())))
    if "timestamp" in found:
        try:
            if "time of day" in found:
                dates = pc.replace_substring_regex(as_text(columns["timestamp"]), r"[ T]00:00:00(\.0+)?$", "")
                times = _as_clock(columns["time of day"], log)
                columns["timestamp"] = pc.binary_join_element_wise(dates, times, "T")
            values["timestamp"] = as_times(columns["timestamp"], log, complete)
        except ValueError as error:
            if "time of day" not in found:
                raise
            date, time = log.columns[found["timestamp"]], log.columns[found["time of day"]]
            advice = f"{date!r} and {time!r} are joined as date and time of day. If one alone is the time, name it"
            clock = as_text(columns["time of day"])
            whole = pc.any(pc.match_substring_regex(clock, r"^(\d{4}-|\d{8,})")).as_py()  # a date or a Unix time
            raise ValueError(f"{error} {advice}: {spell('timestamp', time if whole else date)}.") from None
    if "rating" in found:
        values["rating"] = as_numbers(columns["rating"], "rating", log, complete)
    for column in values.values():
        complete = complete & np.asarray(pc.is_valid(column))
    return pa.table(values).filter(pa.array(complete)), complete


def _as_clock(values: Any, log: RawLog) -> pa.ChunkedArray:
    """Return times of day as text; ValueError for numbers such as durations, which Python would read as times."""
    clock = as_text(values)
    numbers = clock.filter(pc.fill_null(pc.match_substring_regex(clock, r"^(\d{1,3}|\d{5}|\d{7,})(\.\d*)?$"), False))
    if len(numbers):
        raise ValueError(f"{log.name}: expected a time of day such as 17:30, found {numbers[0].as_py()!r}.")
    return clock


def _check(log: RawLog, found: Mapping[str, int], wanted: Mapping[str, Column], latest: float) -> str:
    """Warn about columns that may have been read wrongly; return notes for the message about the log.

    `latest` is the largest timestamp.
    """
    columns = {role: log.columns[place] for role, place in found.items()}
    notes = [f"{role}: column {name!r}" for role, name in columns.items() if name != role]
    for role, name in columns.items():
        short = role != "timestamp" or latest < UNITS["seconds"]  # perhaps a duration
        if wanted.get(role) is None and is_doubtful(name, role) and short and not log.first_rows:
            solution = f"To confirm this, or to use another column, name it: {spell(role, name)}."
            logger.warning(f"{log.name}: {name!r} is used as {role}. {solution}")
    if log.first_rows:
        notes = [f"no header; {', '.join(f'{role}: column {place}' for role, place in found.items())}"]
        if len(columns) > 2 and is_range(log.first_rows[0]):
            advice = "If these are numbers of columns, remove this line."
            logger.warning(f"{log.name}: the first line {', '.join(log.first_rows[0])} was read as data. {advice}")
        elif not re.search(r"\d", first := ", ".join(log.first_rows[0])):
            solution = f"If {first!r} is a header, pass the names of the columns, such as {spell('user')}."
            logger.warning(f"{log.name}: the first line has no known column name, so it was read as data. {solution}")
    elif "timestamp" in found and wanted["timestamp"] is None and not is_usual(columns["timestamp"], "timestamp"):
        solution = f"To confirm or change this, name the column: {spell('timestamp', columns['timestamp'])}."
        logger.warning(f"{log.name}: {columns['timestamp']!r} is used as time, because it has dates. {solution}")
    if "timestamp" not in found:
        notes.append("no timestamps; the rows are assumed to be in time order")
        if unread := [repr(name) for place, name in enumerate(log.columns) if place not in found.values()]:
            which = "one of " * (len(unread) > 1) + ", ".join(unread)[:200]
            solution = f"If {which} has the time, pass {spell('timestamp')}."
            logger.warning(f"{log.name}: found no column of times, so the order of the rows is used. {solution}")
    return f" ({', '.join(notes)})" * bool(notes)


def _check_ids(coded: Mapping[str, pa.DictionaryArray], actions: pd.DataFrame, name: str) -> None:
    """Warn about IDs that look wrong. In `actions`, users and items are numbers of IDs in `coded`."""
    used = {}
    for role, column in coded.items():
        rows = np.bincount(actions[role], minlength=len(column.dictionary))
        used[role] = column.dictionary.filter(pa.array(rows > 0))
        check_ids(used[role], rows[rows > 0], role, name)
    warn_about_variants(used["user"], "user")  # the tokenizer checks the spelling of items


def rename_items(interactions: Dataset, names: Mapping[str, str]) -> Dataset:
    """Return a log with new item IDs, for example with IDs of the catalog instead of numbers.

    `names` is a dict from old to new ID. It may contain items that are not in the log.

    Raises:
        ValueError: `names` lacks an item of the log, or gives two of them the same new ID.
    """
    table = read_rows(interactions, "item", advice=READ_FIRST)
    old = pc.unique(table["item"])
    names = dict(names)  # also of a Series
    known = dict(zip(as_item_ids(list(names)).to_pylist(), as_item_ids(names.values()).to_pylist(), strict=True))
    new = [known.get(item) for item in old.to_pylist()]
    if None in new:
        found = f"{new.count(None):,} of {len(new):,} items have no new ID, such as {old[new.index(None)].as_py()!r}"
        raise ValueError(f"{found}. Add these items to `names` (command line: to the table of `--item_ids`).")
    name, times = Counter(new).most_common(1)[0]
    if times > 1:
        merged = [item for item, other in zip(old.to_pylist(), new, strict=True) if other == name]
        advice = "Give each item an ID of its own in `names` (command line: in the table of `--item_ids`)."
        raise ValueError(f"The items {merged[:5]} have the same new ID {name!r}. {advice}")
    renamed = pa.array(new, pa.string()).take(pc.index_in(table["item"], value_set=old))
    return Dataset(table.set_column(table.schema.get_field_index("item"), "item", renamed))


def _k_core(actions: pd.DataFrame, minimum: Mapping[str, int]) -> pd.DataFrame:
    """Drop users and items with fewer interactions than the minimum until all have enough."""
    size = None
    while size != len(actions):
        size = len(actions)
        for role, number in ((role, number) for role, number in minimum.items() if number > 1):
            actions = actions[actions.groupby(role)[role].transform("size") >= number]
    return actions
