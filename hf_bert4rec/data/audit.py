"""Audit of a split: leaks of evaluated targets into training, and properties of the protocol."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict

from ..models.configuration_bert4rec import SPECIAL_TOKENS
from .arguments import read_rows
from .histories import are_repeats, flatten, target_items, times_are_comparable

NEEDED = ("user", "input_ids", "timestamps", "labels", "history")
KEY = ["user", "item", "time"]  # columns that identify an interaction: number of the user, token ID, time


@dataclass(frozen=True)
class Finding:
    """One property of the rows of a split.

    Attributes:
        what: The property, as the predicate of a sentence about rows, such as "have an input later than the target".
        split: Name of the split.
        rows: Indices of the rows that have the property, from 0.
        of: Number of rows in the split.
        leak: Whether the property is a leak. Other findings describe the protocol.
    """

    what: str
    split: str
    rows: np.ndarray
    of: int
    leak: bool

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.rows[:5])) + ", …" * (len(self.rows) > 5)
        examples = f" (row{'s' * (len(self.rows) > 1)} {shown})" if self.leak and len(self.rows) else ""
        share = len(self.rows) / max(1, self.of)
        return f"{self.split}: {len(self.rows):,} of {self.of:,} rows ({share:.1%}) {self.what}{examples}"


def audit(histories: DatasetDict) -> list[Finding]:
    """Look for leaks in the splits of a `DatasetDict`, from a function in `SPLITS` or from your own code.

    Leaks are:

    - a target (same user, item and time) in the training rows of the user or in the inputs of its own row, or a test
      target in the validation row of the user;
    - a target among the candidates of its row;
    - an input that is later than the target of its row;
    - more than one row of a user in validation or test;
    - a training interaction that is later than an evaluated target of the same user.

    If a user has two interactions with the same item at the same time, the first leak may be reported by mistake.
    The other findings describe the protocol. Targets older than a training interaction of any user are usual in
    leave-one-out splits and impossible in `split_at_time`. They are not reported if no two users overlap in time,
    because row numbers may stand for times then.

    Args:
        histories: `train` and optionally `validation` and `test`, with the columns `user`, `input_ids`,
            `timestamps`, `labels`, `history` and optionally `candidates`.

    Returns:
        All findings, including those without rows.

    Raises:
        ValueError: `train`, a column or a label is missing, or a split has another name.
    """
    _check(histories)
    users = dict.fromkeys(user for rows in histories.values() for user in rows["user"][:])
    numbers = {user: number for number, user in enumerate(users)}
    inputs = {name: _actions(rows, numbers, "input_ids") for name, rows in histories.items()}
    targets = {name: _targets(rows, numbers) for name, rows in histories.items() if name != "train"}
    train = pd.concat([inputs["train"], _actions(histories["train"], numbers, "labels")])
    every = pd.concat([train, *targets.values()])
    comparable = times_are_comparable(every["user"].to_numpy(), every["time"].to_numpy())
    first_target = np.full(len(numbers), np.inf)
    for target in targets.values():
        np.minimum.at(first_target, target["user"], target["time"])
    late = train["row"][train["time"] > first_target[train["user"]]].unique()
    what = "contain an interaction later than an evaluated target of the same user"
    findings = [Finding(what, "train", late, histories["train"].num_rows, leak=True)]
    for name, target in targets.items():
        found = _describe_targets(histories[name], train, inputs[name], target)
        if name == "test" and "validation" in targets:
            chosen_by = pd.concat([targets["validation"], inputs["validation"]])
            found.append(("have a target that is in the user's validation row", _occur(target, chosen_by), True))
        if comparable:
            older = target["time"] < (train["time"].max() if len(train) else -np.inf)
            found.append(("have a target older than a training interaction of any user", older, False))
        findings += [Finding(what, name, np.flatnonzero(rows), len(target), leak) for what, rows, leak in found]
    return findings


def _check(histories: DatasetDict) -> None:
    names = list(histories) if isinstance(histories, Mapping) else [type(histories).__name__]
    if not {"train"} <= set(names) <= {"train", "validation", "test"}:
        found = ", ".join(names) or "no splits"
        expected = "a DatasetDict with the split `train`, and optionally `validation` and `test`"
        raise ValueError(f"Expected {expected}, found {found}.")
    for name, rows in histories.items():
        table = read_rows(rows, *NEEDED, advice=f"Add the missing columns to the split {name!r}.")
        for column in ("labels", "timestamps") if name != "train" else ():
            empty = pc.equal(pc.fill_null(pc.list_value_length(table[column]), 0), 0)
            if (row := empty.index(True).as_py()) >= 0:
                advice = f"Add {column} to every row of this split."
                raise ValueError(f"{name}: row {row} (from 0) has no {column}. {advice}")


def _describe_targets(
    rows: Dataset, train: pd.DataFrame, inputs: pd.DataFrame, target: pd.DataFrame
) -> list[tuple[str, Any, bool]]:
    """Return the findings in a validation or test split: text, rows (bool), and whether the finding is a leak."""
    late = inputs["row"][inputs["time"].to_numpy() > target["time"].to_numpy()[inputs["row"]]]
    known = target["item"] >= len(SPECIAL_TOKENS)
    found = [
        ("have a target that is in the user's training rows", _occur(target, train), True),
        ("have a target that is among their inputs", _occur(target, inputs), True),
        ("have an input later than the target", target["row"].isin(late), True),
        ("have the user of an earlier row", target["user"].duplicated(), True),
        ("are of users who are in train too", target["user"].isin(train["user"]), False),
        ("have a target that the user has had before", are_repeats(rows), False),
        ("have a target that never occurs in train", known & ~target["item"].isin(train["item"]), False),
        ("have a target that is not in the tokenizer and counts as missed", ~known, False),
    ]
    if "candidates" in rows.column_names:
        drawn = zip(target["item"], rows["candidates"][:], strict=True)
        among = np.array([item in candidates for item, candidates in drawn], bool)
        found.insert(2, ("have a target that is among their candidates", among, True))
    return found


def _actions(rows: Dataset, numbers: Mapping[str, int], column: str) -> pd.DataFrame:
    """Return the interactions in a column of token IDs, without special tokens. The column may be null in some rows."""
    table = rows.select_columns(["user", "timestamps", column]).with_format("arrow")[:]
    given = np.flatnonzero(table[column].is_valid())
    if not len(given):
        return pd.DataFrame(columns=["row", *KEY], dtype=np.int64)
    table = table.take(given)
    (items, places), (times, _) = flatten(table[column]), flatten(table["timestamps"])
    users = np.array([numbers[user] for user in table["user"].to_pylist()])
    found = pd.DataFrame({"row": given[places], "user": users[places], "item": items, "time": times})
    return found[items >= len(SPECIAL_TOKENS)]


def _targets(rows: Dataset, numbers: Mapping[str, int]) -> pd.DataFrame:
    """Return the target of each row. The time of a target is the time of the [MASK], the last time of the row."""
    users = np.array([numbers[user] for user in rows["user"][:]], np.int64)
    times = np.array([times[-1] for times in rows["timestamps"][:]])
    return pd.DataFrame({"row": range(len(users)), "user": users, "item": target_items(rows), "time": times})


def _occur(targets: pd.DataFrame, actions: pd.DataFrame) -> np.ndarray:
    """Return for each target if an interaction has its user, item and time, (targets,) bool; False for [UNK]."""
    known = targets["item"].to_numpy() >= len(SPECIAL_TOKENS)
    return known & pd.MultiIndex.from_frame(targets[KEY]).isin(pd.MultiIndex.from_frame(actions[KEY]))
