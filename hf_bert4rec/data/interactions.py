"""Interactions: one row an action, with user, item and timestamp, read from any raw log and filtered."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from .ids import as_ids
from .sources import Column, RawLog, open_log

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
    found = log.find_columns(user=user, item=item, timestamp=timestamp, rating=rating)
    for role in ("user", "item"):
        if role not in found:
            raise ValueError(
                f"{log.name}: expected a column for the {role}, found {log.shown}. Name it: "
                f"{role}='…'" + ("" if len(log.columns) > 1 else ", or the separator: separator=';'.")
            )
    unread = [column for place, column in enumerate(log.columns) if place not in found.values()]
    if log.has_names and "timestamp" not in found and unread:
        logger.warning(
            "%s: no column is known to hold times, so the rows are taken to be in order. If one of %s does, name it: "
            "timestamp=…",
            log.name,
            ", ".join(map(str, unread)),
        )
    if min_rating is not None and "rating" not in found:
        raise ValueError(f"{log.name}: min_rating needs a rating, found {log.shown}. Name it: rating='…'")
    if min_rating is None:
        found.pop("rating", None)

    columns = dict(zip(found, log.read(list(found.values())), strict=True))
    table = pa.table({role: as_ids(columns[role], f"{log.name}: the {role}") for role in ("user", "item")})
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
    for role in ("user", "item"):
        _tell_of_blanks(table[role], f"{log.name}: %s ids of the {role}")
    logger.info(
        "%s: %s interactions of %s users with %s items%s; dropped: %s.",
        log.name,
        *(f"{n:,}" for n in (table.num_rows, pc.count_distinct(table["user"]).as_py())),
        f"{pc.count_distinct(table['item']).as_py():,}",
        ("" if log.has_names else f" (no header: {', '.join(log.columns)})")
        + ("" if "timestamp" in found else " (no timestamps: the order of the rows is the order in time)"),
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
    found = log.find_columns(item=item, title=title)
    if not log.has_names and len(log.columns) > 1:
        named = {role for role, column in (("item", item), ("title", title)) if column is not None}
        found = {"item": 0, "title": 1} | {role: found[role] for role in named}
    if len(found) < 2:
        raise ValueError(f"{log.name}: expected columns for item and title, found {log.shown}. Name them.")
    ids, titles = log.read([found["item"], found["title"]])
    pairs = zip(as_ids(ids, f"{log.name}: the item").to_pylist(), pc.cast(titles, pa.string()).to_pylist(), strict=True)
    return {item: title for item, title in pairs if item is not None and title}


def rename_items(interactions: Dataset, names: Mapping[str, str]) -> Dataset:
    """Give the items of a log other ids, such as those of the catalogue where the log only numbers them.

    Args:
        interactions: As from `load_interactions`.
        names: Id in the log → id to have, as from `load_titles`.

    Raises:
        ValueError: An item of the log has no new id, or two have the same.
    """
    table = interactions.with_format("arrow")[:]
    old = pc.unique(table["item"])
    new = [names.get(item) for item in old.to_pylist()]
    if None in new:
        raise ValueError(
            f"Expected a new id for every item of the log, found none for {old[new.index(None)].as_py()!r}."
        )
    name, times = Counter(new).most_common(1)[0]
    if times > 1:
        merged = [item for item, other in zip(old.to_pylist(), new, strict=True) if other == name]
        raise ValueError(f"Expected a new id of its own for every item of the log, found {name!r} for {merged}.")
    renamed = pa.array(new, pa.string()).take(pc.index_in(table["item"], value_set=old))
    return Dataset(table.set_column(table.schema.get_field_index("item"), "item", renamed))


def _located(log: RawLog, kept: pa.ChunkedArray) -> Callable[[int], str]:
    return lambda row: log.locate(int(np.flatnonzero(np.asarray(kept))[row]))


def _tell_of_blanks(ids: pa.ChunkedArray, subject: str) -> None:
    ids = pc.unique(ids)
    padded = ids.filter(pc.not_equal(ids, pc.utf8_trim_whitespace(ids)))
    if len(padded):
        told = f"{subject} begin or end with a blank, such as %r: they are not those without."
        logger.warning(told, f"{len(padded):,}", padded[0].as_py())


def _as_times(column: pa.ChunkedArray, locate: Callable[[int], str]) -> pa.ChunkedArray:
    """Numbers as they are, int64 where there are no fractions; dates as seconds since 1970."""
    if pa.types.is_temporal(column.type):
        column = pc.cast(pc.cast(column, pa.timestamp("us"), safe=False), pa.int64())
        column = pc.divide(column.cast(pa.float64()), 1e6)
    return _as_numbers(column, locate, "a number or an ISO date as timestamp", as_seconds)


def as_seconds(time: Any) -> float:
    """A finite number as it is, an ISO date (UTC if it names no zone) as seconds since 1970; else a ValueError."""
    try:
        number = float(time)
    except (TypeError, ValueError):
        moment = datetime.fromisoformat(str(time).strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not np.isfinite(number):
        raise ValueError
    return number


def _as_numbers(
    column: pa.ChunkedArray, locate: Callable[[int], str], what: str, parse: Callable[[Any], float] = float
) -> pa.ChunkedArray:
    """Arrow converts; where it cannot, `parse` does, value by value, and names the row of the first that is none."""
    for kind in (pa.int64(), pa.float64()):
        try:
            numbers = pc.cast(column, kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
        if not numbers.null_count and pc.all(pc.is_finite(numbers)).as_py() is not False:
            return numbers
    numbers = []
    for row, value in enumerate(column.to_pylist()):
        try:
            numbers.append(parse(value))
            if not np.isfinite(numbers[-1]):
                raise ValueError
        except (TypeError, ValueError):
            raise ValueError(f"{locate(row)}: expected {what}, found {value!r}. Mend or remove the row.") from None
    numbers = pa.chunked_array([pa.array(numbers, pa.float64())])
    whole = pc.all(pc.equal(numbers, pc.floor(numbers))).as_py() is not False
    return pc.cast(numbers, pa.int64()) if whole else numbers


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
