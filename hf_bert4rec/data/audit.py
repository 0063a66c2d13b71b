"""Audit of a split: leaks of evaluated targets into training, and what the protocol lets a model learn from."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from datasets import Dataset, DatasetDict

from ..models.configuration_bert4rec import SPECIAL_TOKENS
from .histories import are_repeats, flatten, target_items, times_are_comparable

NEEDED = ("user", "input_ids", "timestamps", "labels", "history")


@dataclass(frozen=True)
class Finding:
    """One property of the rows of a split.

    Attributes:
        what: The property, as the predicate of a sentence about the rows.
        split: Name of the split.
        rows: Numbers of the rows that have the property.
        of: Number of rows in the split.
        leak: Whether no row may have it. Other findings describe the protocol and belong next to its results.
    """

    what: str
    split: str
    rows: np.ndarray
    of: int
    leak: bool

    def __str__(self) -> str:
        examples = f", such as {', '.join(map(str, self.rows[:5]))}" if self.leak and len(self.rows) else ""
        share = len(self.rows) / max(1, self.of)
        return f"{self.split}: {len(self.rows):,} of {self.of:,} rows ({share:.1%}) {self.what}{examples}"


@dataclass(frozen=True)
class _Actions:
    """Actions as columns: row of the split, number of the user, row of the item table, time."""

    rows: np.ndarray
    users: np.ndarray
    items: np.ndarray
    times: np.ndarray


def audit(histories: DatasetDict) -> list[Finding]:
    """Look for leaks in histories, whether from a function in `SPLITS` or from elsewhere.

    Leaks are, in validation and test: a target in the training rows or the inputs of the same user (same user, item and
    time; a user with the same item twice at one time looks the same) or, in test, in the user's validation row; a
    target among its candidates; an input later than its target; a second row of a user. In train: an action later than
    an evaluated target of the same user.

    The other findings describe the protocol: targets of users who are in train; repeats; targets that never occur in
    train; targets that are not in the tokenizer; and targets older than a training action of any user. Every
    leave-one-out split has the last, `split_at_time` has none; without comparable times (`times_are_comparable`) it is
    not reported.

    Args:
        histories: `train` and perhaps `validation` and `test`, with the columns `user`, `input_ids`, `timestamps`,
            `labels` and `history`, and perhaps `candidates`.

    Returns:
        All findings, including those without rows.

    Raises:
        ValueError: There is no training split, a split of another name, a missing column, or a row to evaluate without
            labels.
    """
    _check(histories)
    numbers: dict[str, int] = {}
    for rows in histories.values():
        for user in rows["user"][:]:
            numbers.setdefault(user, len(numbers))
    inputs = {name: _actions(rows, numbers, "input_ids") for name, rows in histories.items()}
    targets = {name: _targets(rows, numbers) for name, rows in histories.items() if name != "train"}
    train = _join(inputs["train"], _actions(histories["train"], numbers, "labels"))
    every = _join(train, *targets.values())
    comparable = times_are_comparable(every.users, every.times)
    first_target = np.full(len(numbers), np.inf)
    for target in targets.values():
        np.minimum.at(first_target, target.users, target.times)
    late = np.unique(train.rows[train.times > first_target[train.users]])
    what = "contain an action later than an evaluated target of the same user"
    findings = [Finding(what, "train", late, histories["train"].num_rows, leak=True)]
    for name, target in targets.items():
        found = _evaluated(histories[name], train, inputs[name], target)
        if name == "test" and "validation" in targets:
            chosen_by = _join(targets["validation"], inputs["validation"])
            found.append(("have a target that is in the user's validation row", _in(target, chosen_by), True))
        if comparable:
            older = np.flatnonzero(target.times < (train.times.max() if len(train.times) else -np.inf))
            found.append(("have a target older than a training action of any user", older, False))
        findings += [Finding(what, name, rows, histories[name].num_rows, leak) for what, rows, leak in found]
    return findings


def _check(histories: DatasetDict) -> None:
    names = list(histories) if isinstance(histories, Mapping) else [type(histories).__name__]
    if not {"train"} <= set(names) <= {"train", "validation", "test"}:
        raise ValueError(f"Expected the splits train, validation and test (train at least), found {', '.join(names)}.")
    for name, rows in histories.items():
        if missing := set(NEEDED) - set(rows.column_names):
            raise ValueError(f"{name}: expected the columns {', '.join(NEEDED)}, found no {min(missing)}.")
        if name != "train" and None in (labels := rows["labels"][:]):
            raise ValueError(f"{name}: expected labels in every row, found none in row {labels.index(None)}.")


def _evaluated(
    rows: Dataset, train: _Actions, inputs: _Actions, target: _Actions
) -> list[tuple[str, np.ndarray, bool]]:
    """Findings in a validation or test split: text, rows, and whether it is a leak."""
    late = np.unique(inputs.rows[inputs.times > target.times[inputs.rows]])
    second = np.setdiff1d(target.rows, np.unique(target.users, return_index=True)[1])
    known = target.items >= len(SPECIAL_TOKENS)
    unlearned = known & ~np.isin(target.items, train.items)
    found = [
        ("have a target that is in the user's training rows", _in(target, train), True),
        ("have a target that is among their inputs", _in(target, inputs), True),
        ("have an input later than the target", late, True),
        ("are a second row of their user", second, True),
        ("are of users who are in train too", np.flatnonzero(np.isin(target.users, train.users)), False),
        ("have a target that the user has had before", np.flatnonzero(are_repeats(rows)), False),
        ("have a target that never occurs in train", np.flatnonzero(unlearned), False),
        ("have a target that is not in the tokenizer and counts as missed", np.flatnonzero(~known), False),
    ]
    if "candidates" in rows.column_names:
        drawn = zip(target.items, rows["candidates"][:], strict=True)
        among = np.flatnonzero([item in candidates for item, candidates in drawn])
        found.insert(2, ("have a target that is among their candidates", among, True))
    return found


def _actions(rows: Dataset, numbers: Mapping[str, int], column: str) -> _Actions:
    """Actions on the items in a column, which is null in some rows; special tokens are not items."""
    table = rows.select_columns(["user", "timestamps", column]).with_format("arrow")[:]
    given = np.flatnonzero(table[column].is_valid())
    if not len(given):
        return _Actions(*np.zeros((4, 0), np.int64))
    table = table.take(given)
    (items, places), (times, _) = flatten(table[column]), flatten(table["timestamps"])
    users = np.array([numbers[user] for user in table["user"].to_pylist()])
    real = items >= len(SPECIAL_TOKENS)
    return _Actions(*(values[real] for values in (given[places], users[places], items, times)))


def _targets(rows: Dataset, numbers: Mapping[str, int]) -> _Actions:
    """The target of each row; its time is that of the [MASK], the last one."""
    users = np.array([numbers[user] for user in rows["user"][:]], np.int64)
    times = np.array([times[-1] for times in rows["timestamps"][:]])
    return _Actions(np.arange(rows.num_rows), users, target_items(rows), times)


def _join(*actions: _Actions) -> _Actions:
    return _Actions(*map(np.concatenate, zip(*(vars(one).values() for one in actions), strict=True)))


def _in(targets: _Actions, actions: _Actions) -> np.ndarray:
    """Rows of the targets whose user, item and time are those of an action."""
    both = _join(targets, actions)
    keys = np.zeros(len(both.rows), np.int64)
    for values in (both.users, both.items, both.times):
        codes = np.unique(values, return_inverse=True)[1]
        keys = np.unique(keys * (codes.max(initial=0) + 1) + codes, return_inverse=True)[1]
    return np.flatnonzero(np.isin(keys[: len(targets.rows)], keys[len(targets.rows) :]))
