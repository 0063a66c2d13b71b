"""Leaks of a split: what a model could have known of its targets, row by row, and what the protocol lets it know."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict

from ..models.configuration_bert4rec import SPECIAL_TOKENS
from .histories import are_repeats, target_items, times_are_comparable

SHOWN = 5


@dataclass
class Finding:
    """One thing that was looked for in a split.

    Attributes:
        what: In words, as the end of "rows …".
        split: Whose rows were looked at.
        rows: Their numbers.
        of: How many rows the split has.
        leak: Whether it must not happen. The other findings are how the protocol is, to be told with its figures.
    """

    what: str
    split: str
    rows: np.ndarray
    of: int
    leak: bool

    def __str__(self) -> str:
        shown = f", such as {', '.join(map(str, self.rows[:SHOWN]))}" if self.leak and len(self.rows) else ""
        share = f"{len(self.rows) / max(1, self.of):.1%}"
        return f"{self.split}: {len(self.rows):,} of {self.of:,} rows ({share}) {self.what}{shown}"


@dataclass
class _Actions:
    """Actions of a split, one after the other."""

    rows: np.ndarray  # their row in the split
    users: np.ndarray  # numbers
    items: np.ndarray
    times: np.ndarray


def audit(histories: DatasetDict) -> list[Finding]:
    """Look for leaks in a `DatasetDict`, as from `leave_one_out`, `split_at_time`, or of one's own making.

    Leaks, in the validation and test splits: a target that the same user's training rows or its own inputs hold (same
    user, item and time; somebody who acted twice on an item at one time looks the same), at test also what validation
    holds of that user; a target among its own candidates; an input later than its target; a user with two rows. In the
    training split: rows with an action later than an evaluated target of the same user.

    Told with the protocol: targets that follow an action of somebody else which was trained on, although it came later
    (every leave-one-out split has these; `split_at_time` has none; where times of different users cannot be compared,
    `times_are_comparable`, nobody can tell); users who are trained on as well; targets that the
    user has had before; targets that never occur in training, of which nothing is learnt; and those that the tokenizer
    does not know, which count as missed.

    Args:
        histories: `train`, and any of `validation` and `test`, with `user`, `input_ids`, `timestamps`, `labels` and
            `history`; perhaps `candidates`.

    Returns:
        All findings, also those without rows.

    Raises:
        ValueError: There is no training split, or one that is none of these; a column is missing, or a row to evaluate
            has no labels.
    """
    if not isinstance(histories, Mapping) or (others := set(histories) - {"train", "validation", "test"}):
        found = ", ".join(others) if isinstance(histories, Mapping) else type(histories).__name__
        raise ValueError(f"Expected the splits train, validation and test, found {found}.")
    needed = {"user", "input_ids", "timestamps", "labels", "history"}
    for name, rows in histories.items():
        if missing := needed - set(rows.column_names):
            raise ValueError(f"{name}: expected the columns {', '.join(sorted(needed))}, found no {missing.pop()}.")
        if name != "train" and None in (labels := rows["labels"][:]):
            raise ValueError(f"{name}: expected labels in every row, found none in row {labels.index(None)}.")
    if "train" not in histories:
        raise ValueError(f"Expected a split `train` to compare with, found {', '.join(histories)}.")
    numbers: dict[str, int] = {}
    for rows in histories.values():
        for user in rows["user"][:]:
            numbers.setdefault(user, len(numbers))
    train = _trained_on(histories["train"], numbers)
    held_out = {name: _targets(histories[name], numbers) for name in ("validation", "test") if name in histories}
    every = [train, *held_out.values()]
    comparable = times_are_comparable(*(np.concatenate([getattr(it, of) for it in every]) for of in ("users", "times")))
    findings = []
    first_target = np.full(len(numbers), np.inf)  # the time of each user's first evaluated target
    for name, targets in held_out.items():
        np.minimum.at(first_target, targets.users, targets.times)
        findings += _held_out(name, histories[name], train, targets, numbers, comparable)
    if "validation" in held_out and "test" in held_out:  # what chose the model, and what judges it
        chosen = _joined(held_out["validation"], _actions(histories["validation"], numbers, "input_ids"))
        seen, what = _same(held_out["test"], chosen), "have a target that the user's validation row holds"
        findings.append(Finding(what, "test", seen, histories["test"].num_rows, leak=True))
    late = np.unique(train.rows[train.times > first_target[train.users]])
    own = "hold an action later than an evaluated target of the same user"
    return [Finding(own, "train", late, histories["train"].num_rows, leak=True), *findings]


def _held_out(
    name: str, rows: Dataset, train: _Actions, targets: _Actions, numbers: dict[str, int], comparable: bool
) -> list[Finding]:
    inputs = _actions(rows, numbers, "input_ids")
    trained, read = _same(targets, train), _same(targets, inputs)
    late = np.unique(inputs.rows[inputs.times > targets.times[inputs.rows]])
    _, first = np.unique(targets.users, return_index=True)
    twice = np.setdiff1d(targets.rows, targets.rows[first])
    known = targets.items >= len(SPECIAL_TOKENS)
    learnt = np.isin(targets.items, train.items)
    later = targets.times < (train.times.max() if len(train.times) else -np.inf)
    looked_for = [
        ("have a target that the user's training rows hold", trained, True),
        ("have their target among their inputs", read, True),
        ("have an input later than the target", late, True),
        ("are a second row of their user", twice, True),
        ("are of users who are trained on as well", np.flatnonzero(np.isin(targets.users, train.users)), False),
        ("have a target that the user has had before", np.flatnonzero(are_repeats(rows)), False),
        ("have a target that never occurs in training", np.flatnonzero(known & ~learnt), False),
        ("have a target that the tokenizer does not know, and count as missed", np.flatnonzero(~known), False),
    ]
    if "candidates" in rows.column_names:
        among = [target in drawn for target, drawn in zip(targets.items, rows["candidates"][:], strict=True)]
        looked_for.insert(2, ("have their target among their candidates", np.flatnonzero(among), True))
    if comparable:
        of_anybody = "have a target older than an action, of anybody, that was trained on"
        looked_for.append((of_anybody, np.flatnonzero(later), False))
    return [Finding(what, name, np.asarray(found), rows.num_rows, leak) for what, found, leak in looked_for]


def _actions(rows: Dataset, numbers: dict[str, int], column: str) -> _Actions:
    """All items of a split's rows with their times; the [MASK] of a query is none."""
    table = rows.with_format("arrow")[:]
    items, times = (_flat(table[name]) for name in (column, "timestamps"))
    lengths = np.asarray(table[column].combine_chunks().value_lengths())
    places = np.repeat(np.arange(len(lengths)), lengths)
    users = np.array([numbers[user] for user in table["user"].to_pylist()], np.int64)
    real = items >= len(SPECIAL_TOKENS)
    return _Actions(places[real], users[places[real]], items[real], times[real])


def _trained_on(rows: Dataset, numbers: dict[str, int]) -> _Actions:
    """What training rows show or ask for: their items, and the labels of those that bring their own."""
    shown = _actions(rows, numbers, "input_ids")
    places = np.array([place for place, labels in enumerate(rows["labels"][:]) if labels], np.int64)
    if not len(places):
        return shown
    asked = _actions(rows.select(places), numbers, "labels")
    return _joined(shown, _Actions(places[asked.rows], asked.users, asked.items, asked.times))


def _joined(*actions: _Actions) -> _Actions:
    return _Actions(*(np.concatenate(parts) for parts in zip(*(vars(it).values() for it in actions), strict=True)))


def _targets(rows: Dataset, numbers: dict[str, int]) -> _Actions:
    """The target of each row, with its time: that of the [MASK]."""
    items = target_items(rows)
    times = np.array([times[-1] for times in rows.with_format("numpy")["timestamps"]])
    users = np.array([numbers[user] for user in rows["user"][:]], np.int64)
    return _Actions(np.arange(len(items)), users, items, times)


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False)


def _same(targets: _Actions, train: _Actions) -> np.ndarray:
    """Rows of targets whose user, item and time are those of a training action."""
    times, coded = np.unique(np.concatenate([targets.times, train.times]), return_inverse=True)
    items = max(targets.items.max(initial=0), train.items.max(initial=0)) + 1
    users, things = (np.concatenate(both) for both in ((targets.users, train.users), (targets.items, train.items)))
    keys = (users * items + things) * len(times) + coded
    return np.flatnonzero(np.isin(keys[: len(targets.users)], keys[len(targets.users) :]))
