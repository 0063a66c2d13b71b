"""Splits: functions that divide interactions into histories for training, validation and test, and their registry."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict

from .arguments import check_bool, check_number
from .histories import SortedLog, build_histories, check_interactions, flatten, sort_by_user
from .tokenization import ItemTokenizer
from .values import NUMBER, as_seconds, format_time, time_unit


def leave_one_out(
    interactions: Dataset, tokenizer: ItemTokenizer, *, validation_in_train: bool = False, **rows: Any
) -> DatasetDict:
    """Hold out every user's last item for test and the item before it for validation (paper, section 4.2).

    All other interactions are for training. Users with fewer than three interactions are in the training split only.

    Args:
        interactions: Columns `user`, `item` and `timestamp`, as from `load_interactions`.
        tokenizer: Items that it does not contain are dropped from histories; as targets they count as missed.
        validation_in_train: Train on the validation items too, without validation split (as in the paper's final runs).
        **rows: Options of `build_histories`: `max_length`, `window_step` and `prefixes`.

    Returns:
        `DatasetDict` with `train`, `validation` (unless `validation_in_train`) and `test`; columns: `COLUMNS`.

    Raises:
        ValueError: No user has three interactions, or an option or the interactions are not as expected.
    """
    check_bool("validation_in_train", validation_in_train)
    log = sort_by_user(interactions, tokenizer)
    lengths = log.ends - log.starts
    held_out = lengths >= 3
    if not held_out.any():
        longest = f"the longest history has {lengths.max(initial=0)}"
        advice = "Relax filters such as `min_rating`, or check that `user` names the right column."
        raise ValueError(f"Leave-one-out needs users with at least 3 interactions, but {longest}. {advice}")
    train_ends = np.where(held_out, log.ends - (1 if validation_in_train else 2), log.ends)
    targets = {} if validation_in_train else {"validation": np.where(held_out, log.ends - 2, -1)}
    targets["test"] = np.where(held_out, log.ends - 1, -1)
    return build_histories(log, tokenizer, train_ends, targets, **rows)


def split_at_time(
    interactions: Dataset,
    tokenizer: ItemTokenizer,
    *,
    validation_time: str | float,
    test_time: str | float,
    validation_in_train: bool = False,
    **rows: Any,
) -> DatasetDict:
    """Split by time: train before `validation_time`, and test on each user's first interaction from `test_time` on.

    The model is not trained on interactions from `validation_time` on. The tokenizer must not contain items that first
    occur from this time on, unless they have features. `item_tokenizer(before(interactions, validation_time))` builds
    it. Users without earlier interactions have an empty history. Other arguments and errors: see `leave_one_out`.

    Args:
        validation_time: The validation target of a user is the first interaction from this time to before `test_time`.
            Pass a number in the unit of the timestamps. If they are seconds since 1970, it can be an ISO date (UTC).
        test_time: The test target of a user is the first interaction from this time on.
        validation_in_train: Train until `test_time`, without validation split. The tokenizer may have items until then.

    Raises:
        ValueError: Times are not in order or outside the log, a split is empty, or the tokenizer contains later items.
    """
    check_bool("validation_in_train", validation_in_train)
    validation_from, test_from = as_seconds(validation_time, "validation_time"), as_seconds(test_time, "test_time")
    if not validation_from < test_from:
        raise ValueError(f"`validation_time` must be before `test_time`, found {validation_time} and {test_time}.")
    log = sort_by_user(interactions, tokenizer)
    name, train_time = ("test_time", test_time) if validation_in_train else ("validation_time", validation_time)
    train_until = test_from if validation_in_train else validation_from
    _check_within(train_until, log.timestamps, name, before=True)
    _check_within(test_from, log.timestamps, "test_time", before=False)
    past = log.timestamps < train_until
    described: Any = [] if tokenizer.features is None else tokenizer.encode_items(tokenizer.features.items)
    leaked = np.setdiff1d(log.items[~past], [*np.unique(log.items[past]), *described, tokenizer.unk_token_id])
    if len(leaked):
        raise ValueError(
            f"{len(leaked)} items of the tokenizer do not occur before `{name}`, such as "
            f"{tokenizer.decode_items(leaked[:1])[0]!r}. Build a tokenizer with `item_tokenizer(before(interactions, "
            f"{train_time!r}))`. For a trained model, use the same split as in training, or a later `{name}`."
        )
    first_of_validation, first_of_test = (first_from(log, time) for time in (validation_from, test_from))
    validation = np.where(first_of_validation < first_of_test, first_of_validation, -1)
    targets = {} if validation_in_train else {"validation": validation}
    targets["test"] = np.where(first_of_test < log.ends, first_of_test, -1)
    if not validation_in_train and not (validation >= 0).any():
        found = f"found no interactions from {validation_time} to before {test_time}"
        advice = "Set an earlier `validation_time`, or a later `test_time`."
        raise ValueError(f"The validation split is empty: {found}. {advice}")
    train_ends = first_of_test if validation_in_train else first_of_validation
    return build_histories(log, tokenizer, train_ends, targets, **rows)


def train_on_all(interactions: Dataset, tokenizer: ItemTokenizer, **rows: Any) -> DatasetDict:
    """Put all interactions into the training split, without validation and test, for the training before deployment.

    Find the number of epochs with another split first. `interactions`, `tokenizer` and `**rows` are as for
    `leave_one_out`; ValueError if one of them is not as expected.
    """
    log = sort_by_user(interactions, tokenizer)
    return build_histories(log, tokenizer, log.ends, {}, **rows)


def before(interactions: Dataset, time: str | float) -> Dataset:
    """Return the interactions before `time`, to build the tokenizer for `split_at_time`; ValueError if there are none.

    `time` is a number in the unit of the timestamps, or an ISO date as in `split_at_time`.
    """
    return _before(interactions, time, "time")


def _before(interactions: Dataset, time: str | float, name: str) -> Dataset:
    table, number = check_interactions(interactions), as_seconds(time, name)
    times = table["timestamp"].to_numpy()
    _check_within(number, times, name, before=True)
    return Dataset(table.filter(pa.array(times < number)))


def _check_within(time: float, timestamps: np.ndarray, name: str, before: bool) -> None:
    """Raise ValueError unless a log has the unit of a time, and interactions before it (or else from it on)."""
    fits = (timestamps < time if before else timestamps >= time).any()
    units, outside = {time_unit(time), time_unit(timestamps.max(initial=0))}, (timestamps < time).all()
    other_unit = len(units) > 1 and (outside or None not in units)
    if len(timestamps) and (other_unit or not fits):
        shown, first, last = map(format_time, (time, timestamps.min(), timestamps.max()))
        advice = (
            f"Pass a time in the unit of the log, {'after the first' if before else 'up to the last'} one of the log."
        )
        raise ValueError(f"The log runs from {first} to {last}, but `{name}` is {shown}. {advice}")


def new_interactions(
    interactions: Dataset,
    tokenizer: ItemTokenizer,
    *,
    since: str | float | None = None,
    held_out: float = 0.1,
    replay: float = 1.0,
    **rows: Any,
) -> DatasetDict:
    """Build a training split of the rows that end with an interaction from `since` on, and a sample of older rows.

    The split is for continued training. Each row also contains the user's older interactions, as far as they fit. For
    `interactions`, `tokenizer` and `**rows`, see `leave_one_out`.

    Args:
        since: Interactions from this time on are new (a number or an ISO date, as for `split_at_time`). None: all.
        held_out: Share of the users with new interactions whose last interaction is held out for validation.
        replay: Number of older training rows for each new one. A row is new if it ends with a new interaction. Older
            rows and validation users are drawn at random, but are the same for the same log.

    Returns:
        `DatasetDict` with `train` and `validation`; columns: `COLUMNS`.

    Raises:
        ValueError: Fewer than two users have new interactions, or an option or the interactions are not as expected.
    """
    check_number("held_out", held_out, "above 0 and below 1", lambda share: 0 < share < 1)
    check_number("replay", replay, "at least 0", lambda number: number >= 0)
    log, random = sort_by_user(interactions, tokenizer), np.random.default_rng(0)
    time = -np.inf if since is None else as_seconds(since, "since")
    _check_within(time, log.timestamps, "since", before=False)
    users = np.flatnonzero(first_from(log, time) < log.ends)
    if len(users) < 2:
        begin, advice = ("", "") if since is None else (f" from `since` ({since}) on", ", or an earlier `since`")
        found = f"found {len(users)}. Pass more interactions{advice}."
        raise ValueError(f"Expected at least 2 users with interactions{begin}, {found}")
    chosen = random.choice(users, max(1, round(held_out * len(users))), replace=False)
    targets = {"validation": np.where(np.isin(np.arange(len(log.users)), chosen), log.ends - 1, -1)}
    train_ends = np.where(targets["validation"] >= 0, log.ends - 1, log.ends)
    histories = build_histories(log, tokenizer, train_ends, targets, **rows)
    train = histories["train"].with_format("arrow")[:]
    newest = flatten(train["timestamps"])[0][np.cumsum(train["length"]) - 1]
    new, old = np.flatnonzero(newest >= time), np.flatnonzero(newest < time)
    replayed = random.choice(old, int(min(len(old), replay * len(new))), replace=False)
    kept = Dataset(train.take(np.sort(np.concatenate([new, replayed]))))
    histories["train"] = kept.remove_columns("row").add_column("row", range(len(kept)))
    return histories


@dataclass(frozen=True)
class Split:
    """One way to divide interactions. An entry in `SPLITS` makes it available to recipes.

    Attributes:
        function: `function(interactions, tokenizer, *, max_length, **options)` returns a `DatasetDict` with `train` and
            optionally `validation` and `test`; `sort_by_user` and `build_histories` do most of the work. `max_length`
            is None by default (`tokenizer.model_max_length`), and 2^31 - 1 for the training rows of baselines.
        protocol: Description in results and cards; `{name}` stands for the value of an option.
        past: `past(interactions, **options)` returns the interactions that the tokenizer may be built from. It gets
            only the options that are among its parameters. None: all interactions.
    """

    function: Callable[..., DatasetDict]
    protocol: str
    past: Callable[..., Dataset] | None = None

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """Options of a recipe: the parameters of `function` after the first two, except `max_length`.

        A `**` parameter of any name stands for the options of `build_histories`.
        """
        parameters = [*inspect.signature(self.function, eval_str=True).parameters.values()][2:]
        if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
            parameters[-1:] = [*inspect.signature(build_histories).parameters.values()][4:]
        return {parameter.name: parameter for parameter in parameters if parameter.name != "max_length"}

    def resolve(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the value of every option: that in `given` or, if it is None or missing, the default.

        ValueError if an option has neither.
        """
        defaults = {name: parameter.default for name, parameter in self.options.items()}
        values = {name: value if given.get(name) is None else given[name] for name, value in defaults.items()}
        if missing := [name for name, value in values.items() if value is inspect.Parameter.empty]:
            name = next((name for name, split in SPLITS.items() if split is self), self.function.__name__)
            raise ValueError(f"The split {name!r} needs {' and '.join(f'`--{option}`' for option in missing)}.")
        return values

    def past_of(self, interactions: Dataset, given: Mapping[str, Any]) -> Dataset:
        """Return the interactions that the tokenizer may be built from, with the given options."""
        if self.past is None:
            return interactions
        names = inspect.signature(self.past).parameters
        return self.past(interactions, **{name: value for name, value in self.resolve(given).items() if name in names})

    def describe(self, given: Mapping[str, Any]) -> str:
        """Return the protocol with the given options."""
        values = self.resolve(given)
        merged = ", validation items trained on" if values.get("validation_in_train") else ""
        for name in ("since", "test_time"):
            if values.get(name) is not None and (name == "since" or NUMBER.fullmatch(str(values[name]))):
                values[name] = format_time(as_seconds(values[name], name))
        values |= {"since": "the first interaction"} if values.get("since", "") is None else {}
        return self.protocol.format(**values) + merged


SPLITS: dict[str, Split] = {  # name in a recipe -> split; add your own before a recipe is parsed
    "leave_one_out": Split(leave_one_out, "leave-one-out (every user's last item)"),
    "at_time": Split(
        split_at_time,
        "first item of every user from {test_time} on",
        lambda interactions, validation_time, test_time, validation_in_train: (
            _before(interactions, test_time, "test_time")
            if validation_in_train
            else _before(interactions, validation_time, "validation_time")
        ),
    ),
    "new_interactions": Split(
        new_interactions, "last new item of {held_out:.0%} of the users with interactions since {since}"
    ),
    "train_on_all": Split(train_on_all, "trained on all interactions, nothing held out"),
}


def first_from(log: SortedLog, time: float) -> np.ndarray:
    """Return the index of each user's first interaction from `time` on, (users,); `log.ends` if there is none."""
    earlier = np.concatenate([[0], np.cumsum(log.timestamps < time)])
    return log.starts + earlier[log.ends] - earlier[log.starts]
