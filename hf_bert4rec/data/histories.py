"""Interactions → histories: a row a training window or an evaluated user, split so that the future stays unseen.

Every split has the same columns, so that the `DatasetDict` can be saved and pushed:

- `row`: number of the row within its split; the collator draws masks from it;
- `user`: raw id;
- `input_ids`: rows of the item table, oldest first; validation and test end in the [MASK] of the query;
- `timestamps`: the time of each of them, that of the [MASK] being the time of the target;
- `labels`: null in train (the collator masks); else -100, and the target at the [MASK];
- `history`: null in train; else all items before the target, those too old for `input_ids` too: metrics exclude them;
- `candidates`: not in train, and only after `popularity_candidates` or `uniform_candidates`: what sampled metrics rank
  the target among;
- `length`: of `input_ids`, so that batches are grouped without reading the rows.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict

from ..models.configuration_bert4rec import SPECIAL_TOKENS
from .interactions import as_seconds
from .tokenization import ItemTokenizer

logger = logging.getLogger(__name__)


@dataclass
class _Log:
    """All actions, by user and then in time. User u's are those from `starts[u]` to before `starts[u + 1]`."""

    users: pa.Array  # (users,) raw ids
    starts: np.ndarray  # (users + 1,)
    items: np.ndarray  # (actions,) rows of the item table
    timestamps: np.ndarray  # (actions,)


def leave_one_out(
    interactions: Dataset,
    tokenizer: ItemTokenizer,
    *,
    max_length: int | None = None,
    window_step: float = 0.5,
    validation_in_train: bool = False,
) -> DatasetDict:
    """Hold out every user's last item for test and the one before for validation; train on the rest.

    Users with fewer than three actions are in train only. This is the strict protocol: neither held-out item is ever
    trained on, and every target counts.

    Args:
        interactions: Columns `user`, `item`, `timestamp`, as from `load_interactions`.
        tokenizer: Knows the items. Those that it does not know are left out of the histories; as targets they count
            as missed.
        max_length: Longest input N, the [MASK] of the query included; the tokenizer's `model_max_length` if not given.
        window_step: Step between the training windows of a history longer than N, as a share of N.
        validation_in_train: Train on the validation items too, as the paper's final runs do and as one does before
            deploying. There is no validation split then: it would be no test of anything.

    Returns:
        `DatasetDict` of `train`, `validation` (unless folded into train) and `test`.

    Raises:
        ValueError: No user has three actions, or a column is missing.
    """
    log = _sort(interactions, tokenizer)
    lengths = np.diff(log.starts)
    held_out = lengths >= 3
    if not held_out.any():
        raise ValueError(
            f"Leave-one-out needs users with at least 3 actions (train, validation, test); the longest of "
            f"{len(lengths)} histories has {lengths.max(initial=0)}."
        )
    train_ends = np.where(held_out, log.starts[1:] - (1 if validation_in_train else 2), log.starts[1:])
    targets = {} if validation_in_train else {"validation": np.where(held_out, log.starts[1:] - 2, -1)}
    targets["test"] = np.where(held_out, log.starts[1:] - 1, -1)
    return _assemble(log, tokenizer, train_ends, targets, max_length, window_step)


def split_at_time(
    interactions: Dataset,
    tokenizer: ItemTokenizer,
    *,
    validation_time: str | float,
    test_time: str | float,
    max_length: int | None = None,
    window_step: float = 0.5,
    validation_in_train: bool = False,
) -> DatasetDict:
    """Train on what happened before a point in time; test on each user's first action from it on.

    Nothing of the future is trained on: no action, no user and no item. So the tokenizer must be built from the past
    too, `item_tokenizer(before(interactions, validation_time))`. Users who first appear later are asked for with an
    empty history; targets that the tokenizer does not know count as missed.

    Args:
        interactions: Columns `user`, `item`, `timestamp`, as from `load_interactions`.
        tokenizer: As for `leave_one_out`.
        validation_time: Validation targets are the first actions from here to before `test_time`; in the unit of the
            timestamps, or an ISO date where these are seconds.
        test_time: Test targets are the first actions from here on.
        max_length: Longest input N; the tokenizer's `model_max_length` if not given.
        window_step: Step between the training windows of a history longer than N, as a share of N.
        validation_in_train: Train on the validation targets too, without a validation split.

    Raises:
        ValueError: The times are not in order, nothing happened before or after one of them, or the tokenizer knows
            items of the future.
    """
    validation_from, test_from = _as_time(validation_time), _as_time(test_time)
    if not validation_from < test_from:
        raise ValueError(f"Expected validation_time before test_time, found {validation_time} and {test_time}.")
    log = _sort(interactions, tokenizer)
    past = log.timestamps < (test_from if validation_in_train else validation_from)
    leaked = np.setdiff1d(log.items[~past], [*np.unique(log.items[past]), tokenizer.unk_token_id])
    if len(leaked):
        raise ValueError(
            f"The tokenizer knows {len(leaked)} items that first occur after training ends, such as "
            f"{tokenizer.decode_items(leaked[:1])[0]!r}. Build it from the past: "
            f"item_tokenizer(before(interactions, {test_time if validation_in_train else validation_time!r}))."
        )
    # Of each user: the first action from each point on, were there one.
    first_of_validation = log.starts[:-1] + _count_by_user(log, log.timestamps < validation_from)
    first_of_test = log.starts[:-1] + _count_by_user(log, log.timestamps < test_from)
    targets = {"test": np.where(first_of_test < log.starts[1:], first_of_test, -1)}
    if not validation_in_train:
        validation = np.where(first_of_validation < first_of_test, first_of_validation, -1)
        targets = {"validation": validation, **targets}
    sizes = {"train": past.sum(), **{name: (rows >= 0).sum() for name, rows in targets.items()}}
    if empty := [name for name, size in sizes.items() if not size]:
        raise ValueError(
            f"No action falls into the {empty[0]} split; the log runs from {log.timestamps.min()} to "
            f"{log.timestamps.max()}."
        )
    train_ends = first_of_test if validation_in_train else first_of_validation
    return _assemble(log, tokenizer, train_ends, targets, max_length, window_step)


def before(interactions: Dataset, time: str | float) -> Dataset:
    """The interactions before a point in time: what a tokenizer for `split_at_time` may know."""
    table = interactions.with_format("arrow")[:]
    return Dataset(table.filter(pc.less(table["timestamp"], _as_time(time))))


def popularity_candidates(rows: Dataset, counts: np.ndarray, number: int = 100, seed: int = 0) -> Dataset:
    """Draw the items among which the paper ranks each target (section 4.2): popular ones that the user has not had.

    Figures from these candidates never compare with those from the whole catalogue, and differ with the draw.

    Args:
        rows: A split to evaluate, from `leave_one_out` or `split_at_time`.
        counts: (rows of the item table,) how often each item occurs, in the paper over all actions, held-out ones too;
            those of the special rows are passed over.
        number: Items to draw for each user, without replacement and in proportion to their counts.
        seed: Of the draw, with the number in `row`: no other row of the split matters.

    Returns:
        The split with a column `candidates`.

    Raises:
        ValueError: `number` is below 1, the rows have no targets, or a user is left with fewer items than `number`.
    """
    if number < 1:
        raise ValueError(f"Expected at least one candidate, found {number}.")
    table = rows.with_format("arrow")[:]
    if table["labels"].null_count:
        raise ValueError("Expected rows with targets, the validation or test split, found training rows.")
    counts = np.where(np.arange(len(counts)) < len(SPECIAL_TOKENS), 0, counts)
    reach, occurring = np.cumsum(counts), np.count_nonzero(counts)
    drawn = np.empty((rows.num_rows, number), np.int32)
    for place, (row, history, labels) in enumerate(zip(*(table[n] for n in ("row", "history", "labels")), strict=True)):
        had = np.append(np.asarray(history.values), labels.values[-1].as_py())
        if number > occurring - np.count_nonzero(counts[np.unique(had)]):
            raise ValueError(f"Expected {number} items that user {table['user'][place]} has not had, found fewer.")
        generator = np.random.default_rng((seed, row.as_py()))
        found = np.empty(0, np.int64)
        while len(found) < number:  # as drawing one by one and passing over what was drawn or had before
            more = np.searchsorted(reach, generator.integers(reach[-1], size=3 * number), side="right")
            found = np.concatenate([found, more[~np.isin(more, had)]])
            found = found[np.sort(np.unique(found, return_index=True)[1])]
        drawn[place] = found[:number]
    return Dataset(
        table.append_column("candidates", pa.FixedSizeListArray.from_arrays(pa.array(drawn.ravel()), number))
    )


def uniform_candidates(rows: Dataset, vocab_size: int, number: int = 100, seed: int = 0) -> Dataset:
    """As `popularity_candidates`, every item of the catalogue, `vocab_size` rows with the special ones, as likely."""
    return popularity_candidates(rows, np.ones(vocab_size, np.int64), number, seed)


def are_repeats(rows: Dataset) -> np.ndarray:
    """(rows,) whether the target of each row is an item that its user has had before."""
    histories = rows.with_format("numpy")["history"][:]
    return np.array([target in history for target, history in zip(target_items(rows), histories, strict=True)], bool)


def target_items(rows: Dataset) -> np.ndarray:
    """(users,) the target of each row of a validation or test split, a row of the item table."""
    return np.array([labels.max() for labels in rows.with_format("numpy")["labels"]], np.int64)


def times_are_comparable(users: np.ndarray, times: np.ndarray) -> bool:
    """Whether times tell which of two users acted first.

    They do not in a log without timestamps that is written user by user: the numbers of its rows stand for times, and
    each user's begin when another's have ended.

    Args:
        users: (actions,) numbers from 0, in any order.
        times: (actions,).
    """
    first, last = (np.full(users.max(initial=0) + 1, limit) for limit in (np.inf, -np.inf))
    np.minimum.at(first, users, times)
    np.maximum.at(last, users, times)
    order = np.argsort(first)[: np.isfinite(first).sum()]
    return len(order) < 2 or bool((first[order[1:]] <= last[order[:-1]]).any())


SPLITS: dict[str, Callable[..., DatasetDict]] = {"leave_one_out": leave_one_out, "at_time": split_at_time}


def _as_time(time: str | float) -> float:
    try:
        return as_seconds(time)
    except ValueError:
        raise ValueError(f"Expected a number or an ISO date such as 2016-01-31, found {time!r}.") from None


def _sort(interactions: Dataset, tokenizer: ItemTokenizer) -> _Log:
    """Sort by user and time; equal times keep the order of the log."""
    missing = {"user", "item", "timestamp"} - set(interactions.column_names)
    if missing:
        raise ValueError(
            f"Expected the columns user, item and timestamp, found {', '.join(interactions.column_names)}. "
            "Read the log with load_interactions."
        )
    table = interactions.with_format("arrow")[:]
    users = table["user"].combine_chunks().dictionary_encode()
    codes, timestamps = users.indices.to_numpy(), table["timestamp"].to_numpy()
    order = np.lexsort((timestamps, codes))  # stable
    starts = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(users.dictionary)))])
    return _Log(users.dictionary, starts, tokenizer.encode_items(table["item"])[order], timestamps[order])


def _count_by_user(log: _Log, chosen: np.ndarray) -> np.ndarray:
    return np.diff(np.concatenate([[0], np.cumsum(chosen)])[log.starts])


def _assemble(
    log: _Log,
    tokenizer: ItemTokenizer,
    train_ends: np.ndarray,
    targets: dict[str, np.ndarray],
    max_length: int | None,
    window_step: float,
) -> DatasetDict:
    """Make the splits: train from each user's start to before `train_ends`, the others at `targets` (-1 = no row)."""
    max_length = tokenizer.model_max_length if max_length is None else max_length
    if max_length < 2:
        raise ValueError(f"Expected max_length of at least 2, an item and the [MASK] of the query, found {max_length}.")
    if not 0 < window_step <= 1:
        raise ValueError(f"Expected window_step above 0 and at most 1, a share of the length, found {window_step}.")
    # From here on positions count known items only: `position[i]` known actions stand before action i.
    known = log.items != tokenizer.unk_token_id
    position = np.concatenate([[0], np.cumsum(known)])
    items, timestamps = log.items[known], log.timestamps[known]
    starts, ends = position[log.starts[:-1]], position[train_ends]

    splits = {}
    users, firsts, lasts = _windows(starts, ends, max_length, max(1, int(window_step * max_length)))
    splits["train"] = _split(
        user=log.users.take(users),
        input_ids=_lists(items, firsts, lasts),
        timestamps=_lists(timestamps, firsts, lasts),
        labels=pa.nulls(len(users), pa.list_(pa.int32())),
        history=pa.nulls(len(users), pa.list_(pa.int32())),
    )
    for name, target in targets.items():
        users = np.flatnonzero(target >= 0)
        target = target[users]
        firsts, lasts = starts[users], position[target]
        inputs = np.maximum(firsts, lasts - (max_length - 1))
        lengths = lasts - inputs
        splits[name] = _split(
            user=log.users.take(users),
            input_ids=_lists(items, inputs, lasts, np.full(len(users), tokenizer.mask_token_id)),
            timestamps=_lists(timestamps, inputs, lasts, log.timestamps[target]),
            labels=_lists(np.full(lengths.max(initial=0), -100), 0 * lengths, lengths, log.items[target]),
            history=_lists(items, firsts, lasts),
        )
    if not known.all():
        logger.warning("%s actions on items that the tokenizer does not know were left out.", f"{(~known).sum():,}")
    return DatasetDict(splits)


def _windows(
    starts: np.ndarray, ends: np.ndarray, max_length: int, step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User, start and end of every training window, as in the published code.

    A history of at most `max_length` is one window. A longer one has windows that end at its last item, `step` before
    it, and so on, and one at its start.
    """
    lengths = ends - starts
    extra = np.maximum(0, -(-(lengths - max_length) // step))  # windows that do not begin at the history's start
    counts = np.where(lengths > 0, 1 + extra, 0)
    users = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)  # 0 = the newest of its user
    firsts = np.maximum(starts[users], ends[users] - max_length - number * step)
    return users, firsts, np.minimum(firsts + max_length, ends[users])


def _lists(values: np.ndarray, firsts: np.ndarray, lasts: np.ndarray, last: np.ndarray | None = None) -> pa.ListArray:
    """`values[first:last]` for each pair, with `last[i]` appended to the i-th if given."""
    lengths = lasts - firsts
    extra = 0 if last is None else 1
    offsets = np.concatenate([[0], np.cumsum(lengths + extra)])
    flat = np.empty(offsets[-1], values.dtype)
    place = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    flat[np.repeat(offsets[:-1], lengths) + place] = values[np.repeat(firsts, lengths) + place]
    if last is not None:
        flat[offsets[1:] - 1] = last
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)


def _split(**columns: pa.Array) -> Dataset:
    rows = pa.array(np.arange(len(columns["user"])))
    lengths = pc.cast(pc.list_value_length(columns["input_ids"]), pa.int32())
    for name in ("input_ids", "labels", "history"):
        columns[name] = pc.cast(columns[name], pa.list_(pa.int32()))
    return Dataset(pa.table({"row": rows, **columns, "length": lengths}))
