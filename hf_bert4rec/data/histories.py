"""Histories: one row per training window or evaluated user, built from a log sorted by user and time."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, DatasetDict
from transformers.utils import logging

from .arguments import check_bool, check_number, read_rows
from .ids import READ_FIRST, as_ids
from .tokenization import ItemTokenizer, check_max_length, check_tokenizer

logger = logging.get_logger(__name__)

COLUMNS = {  # column -> its meaning; all splits have the columns of train, so that a `DatasetDict` can be pushed
    "row": "number of the row within its split, from 0; the masks of `DataCollatorForCloze` depend on this number",
    "user": "raw user ID",
    "input_ids": "token IDs, oldest item first; rows of validation and test end in the [MASK] of the query",
    "timestamps": "time of each of the `input_ids`, in the unit of the log; the [MASK] has the time of the target",
    "labels": "null in train (the collator makes them); else the token ID of the target at the [MASK], -100 elsewhere",
    "history": "null in train; else the token IDs of all items before the target, including items too old for "
    "`input_ids`; with `exclude_history=True`, rankings exclude these items",
    "candidates": "token IDs of the items among which sampled metrics rank the target; only in validation and test, "
    "after `popularity_candidates` or `uniform_candidates`",
    "length": "number of `input_ids`, so that batches can be grouped by length without reading the rows",
}
REPEATS = 0.05  # share of targets in the history of their user, above which a warning is logged
TOGETHER = 0.5  # share of test targets with the time of the interaction before them, above which a warning is logged


@dataclass(frozen=True)
class SortedLog:
    """All interactions, sorted by user and then by time. User u has the interactions `starts[u]` to `ends[u] - 1`.

    Attributes:
        users: (users,) raw user IDs.
        starts: (users,) index of each user's first interaction.
        ends: (users,) index of each user's last interaction, plus 1.
        items: (interactions,) token IDs; [UNK] for items that the tokenizer does not contain.
        timestamps: (interactions,) times in the unit of the log.
    """

    users: pa.Array
    starts: np.ndarray
    ends: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray


def check_interactions(interactions: Dataset) -> pa.Table:
    """Return interactions as a table, with IDs as text; raise ValueError if a column is not as expected."""
    table = read_rows(interactions, "user", "item", "timestamp", advice=READ_FIRST)
    for name in ("user", "item"):
        table = table.set_column(table.column_names.index(name), name, as_ids(table[name], f"column {name!r}"))
    times = table["timestamp"]
    numbers = pa.types.is_integer(times.type) or pa.types.is_floating(times.type)
    finite = int(np.isfinite(times.to_numpy()).sum()) if numbers else 0  # Arrow 17 has no such function for float16
    missing = {name: table[name].null_count for name in ("user", "item")} | {"timestamp": len(table) - finite}
    for name, rows in missing.items():
        if rows or (name == "timestamp" and not numbers):
            expected = "a finite number" if name == "timestamp" else "an ID"
            found = f"found none in {rows} of {len(table)} rows (type: {table[name].type})"
            raise ValueError(f"Expected {expected} in every row of the column {name!r}, {found}. {READ_FIRST}")
    return table


def sort_by_user(interactions: Dataset, tokenizer: ItemTokenizer) -> SortedLog:
    """Return interactions sorted by user and, stably, by time; ValueError if a column is not as expected."""
    check_tokenizer(tokenizer)
    table = check_interactions(interactions)
    users = table["user"].combine_chunks().dictionary_encode()
    codes, timestamps = users.indices.to_numpy(), table["timestamp"].to_numpy()
    order = _stable_order(timestamps)
    order = order[_stable_order(codes[order])]
    counts = np.bincount(codes, minlength=len(users.dictionary))
    ends = np.cumsum(counts)
    items = tokenizer.encode_items(table["item"])[order]
    return SortedLog(users.dictionary, ends - counts, ends, items, timestamps[order])


def _stable_order(values: np.ndarray) -> np.ndarray:
    """Return the indices that sort values; equal values keep their order. torch sorts faster than numpy."""
    return torch.sort(torch.tensor(values), stable=True).indices.numpy()


def build_histories(
    log: SortedLog,
    tokenizer: ItemTokenizer,
    train_ends: np.ndarray,
    targets: Mapping[str, np.ndarray],
    *,
    max_length: int | None = None,
    window_step: float = 0.5,
    prefixes: bool = False,
) -> DatasetDict:
    """Build the rows of all splits; warn if most test targets have the same time as the interaction before.

    Args:
        log: Result of `sort_by_user`.
        tokenizer: Items that it does not contain are dropped from histories; as targets they count as missed.
        train_ends: (users,) index after the last training interaction; `log.starts` for users without training rows.
        targets: "validation" or "test" → (users,) index of the interaction to predict, -1 for users without a row. The
            history of a row is all interactions of the user before the target.
        max_length: Longest input, including the [MASK] of the query. Default: `tokenizer.model_max_length`.
        window_step: Step between training windows, as a share of `max_length`, for histories longer than `max_length`.
        prefixes: Instead of windows, use one training row for each item but the first: this item and those before it,
            at most `max_length` in all. A single item is one row. Set the masks of `recommended_settings` as well.

    Returns:
        `DatasetDict` with `train` and the splits of `targets`; columns: `COLUMNS`.

    Raises:
        ValueError: An option is out of range, or `train_ends` or an array of `targets` is not one index per user among
            the interactions of this user. (`train_ends` may also be `log.ends`, and targets may be -1.)
    """
    max_length = tokenizer.model_max_length if max_length is None else max_length
    check_max_length(max_length)
    max_length = min(max_length, len(log.items) + 1)  # longer than any history; NumPy has no larger integers
    check_bool("prefixes", prefixes)
    check_number("window_step", window_step, "above 0 and at most 1", lambda share: 0 < share <= 1)
    for name, actions in {"train_ends": train_ends, **{f"targets[{it!r}]": targets[it] for it in targets}}.items():
        last = log.ends - (name != "train_ends")
        none = (actions == -1) & (name != "train_ends")
        if np.shape(actions) != (len(log.users),) or not (none | (log.starts <= actions) & (actions <= last)).all():
            expected = "one index of `log.items` per user, from `log.starts` to "
            expected += "`log.ends`" if name == "train_ends" else "`log.ends` - 1, or -1 for a user without a target"
            raise ValueError(f"`{name}` must be {expected}, found {actions!r:.80}.")
    # From here on only items in the tokenizer count: `position[i]` of them precede interaction i.
    known = log.items != tokenizer.unk_token_id
    position = np.concatenate([[0], np.cumsum(known)])
    items, times = log.items[known], log.timestamps[known]
    starts = position[log.starts]

    step = 1 if prefixes else max(1, int(window_step * max_length))
    users, firsts, lasts = _windows(starts, position[train_ends], max_length, step, prefixes)
    empty = pa.nulls(len(users), pa.list_(pa.int32()))
    inputs, input_times = _lists(items, firsts, lasts), _lists(times, firsts, lasts)
    splits = {"train": _rows(log.users.take(users), inputs, input_times, labels=empty, history=empty)}
    for name, actions in targets.items():
        users = np.flatnonzero(actions >= 0)
        target = actions[users]
        lasts = position[target]
        firsts = np.maximum(starts[users], lasts - (max_length - 1))
        splits[name] = _rows(
            log.users.take(users),
            _lists(items, firsts, lasts, np.full(len(users), tokenizer.mask_token_id)),
            _lists(times, firsts, lasts, log.timestamps[target]),
            labels=_lists(np.full_like(items, -100), firsts, lasts, log.items[target]),
            history=_lists(items, starts[users], lasts),
        )
    if not known.all():
        logger.warning_once(
            f"Interactions with items that the tokenizer does not contain: {(~known).sum():,} of {len(known):,}. They "
            "are dropped from histories, and count as missed if they are targets."
        )
    tests = targets.get("test", np.full(len(log.users), -1))
    tests = tests[tests > log.starts]  # targets with an interaction before them
    if len(tests) and (together := np.mean(log.timestamps[tests] == log.timestamps[tests - 1])) > TOGETHER:
        logger.warning_once(
            f"{together:.0%} of the test targets have the same time as the interaction before them, like products of "
            "one order. To measure how well a model predicts the next order, use `split_at_time` (command line: "
            "`--split at_time` with `--validation_time` and `--test_time`)."
        )
    return DatasetDict(splits)


def flatten(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a column of lists, and for each value the number of its row."""
    lists = column.combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0)
    return lists.flatten().to_numpy(zero_copy_only=False), np.repeat(np.arange(len(lists)), lengths)


def count_items(rows: Dataset, vocab_size: int) -> np.ndarray:
    """Return the number of occurrences of each token ID in the `input_ids` of rows, (vocab_size,)."""
    return np.bincount(flatten(rows.with_format("arrow")[:]["input_ids"])[0], minlength=vocab_size)


def target_items(rows: Dataset) -> np.ndarray:
    """Return the token ID of the target of each row of a validation or test split, (rows,)."""
    labels, places = flatten(read_rows(rows, "labels")["labels"])
    targets = np.full(rows.num_rows, -100)
    np.maximum.at(targets, places, labels)
    return targets


def warn_about_repeats(rows: Dataset, exclude_history: bool) -> None:
    """Warn if a model excludes many targets of evaluation rows, because they are in the history of the user."""
    repeats = are_repeats(rows).sum() / max(1, len(rows)) if exclude_history else 0
    if repeats > REPEATS:
        logger.warning_once(
            f"{repeats:.0%} of the targets are items that the user has interacted with before. The model excludes the "
            "history, so these targets count as missed. To recommend such items, set `exclude_history=False` in the "
            "configuration of the model (command line: `--exclude_history false`)."
        )


def are_repeats(rows: Dataset) -> np.ndarray:
    """Return whether the target of each row is in the history of its user, (rows,) bool."""
    items, places = flatten(read_rows(rows, "history")["history"])
    return np.isin(np.arange(rows.num_rows), places[items == target_items(rows)[places]])


def times_are_comparable(users: np.ndarray, times: np.ndarray) -> bool:
    """Return whether timestamps show which of two users acted first.

    In a log without timestamps, row numbers stand for times. If such a log is written user by user, each user begins
    after the previous user has ended, and times cannot be compared. Both arrays are (interactions,), users from 0.
    """
    first, last = (np.full(users.max(initial=0) + 1, limit) for limit in (np.inf, -np.inf))
    np.minimum.at(first, users, times)
    np.maximum.at(last, users, times)
    order = np.argsort(first)[: np.isfinite(first).sum()]
    return len(order) < 2 or bool((first[order[1:]] <= last[order[:-1]]).any())


def _windows(
    starts: np.ndarray, ends: np.ndarray, max_length: int, step: int, prefixes: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return user, start and end of every training window, as in the published code.

    Windows end at the last item and at multiples of `step` before it. The earliest window begins at the start of
    the history. With `prefixes`, shorter windows also begin there, down to two items.
    """
    lengths = ends - starts
    shortest = 2 if prefixes else max_length  # nothing precedes a single item
    extra = np.maximum(0, -(-(lengths - shortest) // step))  # number of windows before the newest
    counts = np.where(lengths > 0, 1 + extra, 0)
    users = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)  # 0 = the newest of its user
    lasts = ends[users] - number * step
    firsts = np.maximum(starts[users], lasts - max_length)
    return users, firsts, lasts if prefixes else np.minimum(firsts + max_length, ends[users])


def _lists(values: np.ndarray, firsts: np.ndarray, lasts: np.ndarray, last: np.ndarray | None = None) -> pa.ListArray:
    """Return the lists `values[firsts[i]:lasts[i]]`, each followed by `last[i]` if `last` is given."""
    lengths = lasts - firsts + (last is not None)
    ends = np.cumsum(lengths)
    places = np.arange(lengths.sum()) + np.repeat(firsts - (ends - lengths), lengths)
    flat = np.pad(values, (0, 1))[places]  # the place of an appended value may be one past the end
    if last is not None:
        flat[ends - 1] = last
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]), pa.int32()), flat)


def _rows(user: pa.Array, input_ids: pa.Array, timestamps: pa.Array, **lists: pa.Array) -> Dataset:
    lists = {name: pc.cast(values, pa.list_(pa.int32())) for name, values in lists.items()}
    lengths = pc.cast(pc.list_value_length(input_ids), pa.int32())
    columns = {"user": user, "input_ids": pc.cast(input_ids, pa.list_(pa.int32())), "timestamps": timestamps, **lists}
    return Dataset(pa.table({"row": pa.array(np.arange(len(user))), **columns, "length": lengths}))
