"""Splits: row by row, no future in the past, and the registry."""

import datetime
import inspect
import re

import numpy as np
import pytest
from datasets import Value
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_bert4rec import (
    SPLITS,
    Split,
    before,
    build_histories,
    item_tokenizer,
    leave_one_out,
    new_interactions,
    sort_by_user,
    split_at_time,
    train_on_all,
)
from hf_bert4rec.data.audit import audit
from tests.data.logs import MASK, UNK, A, B, C, D, E, actions, log_of, logs, row, targets


def test_leave_one_out_gives_exactly_these_rows(interactions, tokenizer):
    splits = leave_one_out(interactions, tokenizer)
    assert list(splits) == ["train", "validation", "test"]
    assert splits["train"].to_list() == [
        row(0, "u1", [A, B, C], [10, 20, 30]),
        row(1, "u2", [B, C], [11, 21]),
        row(2, "u3", [C], [12]),
        row(3, "u4", [A, B], [13, 23]),
    ]
    assert splits["validation"].to_list() == [
        row(0, "u1", [A, B, C, MASK], [10, 20, 30, 40], [-100, -100, -100, D], [A, B, C]),
        row(1, "u2", [B, C, MASK], [11, 21, 31], [-100, -100, D], [B, C]),
        row(2, "u3", [C, MASK], [12, 22], [-100, A], [C]),
    ]
    assert splits["test"].to_list() == [
        row(0, "u1", [A, B, C, D, MASK], [10, 20, 30, 40, 50], [-100] * 4 + [E], [A, B, C, D]),
        row(1, "u2", [B, C, D, MASK], [11, 21, 31, 41], [-100] * 3 + [A], [B, C, D]),
        row(2, "u3", [C, A, MASK], [12, 22, 32], [-100, -100, E], [C, A]),
    ]


def test_users_with_fewer_than_three_actions_are_in_train_only(tokenizer):
    log = log_of(("1", "a", 1), ("2", "b", 1), ("2", "c", 2), ("3", "a", 1), ("3", "b", 2), ("3", "c", 3))
    splits = leave_one_out(log, tokenizer)
    assert splits["train"]["user"][:] == ["1", "2", "3"]
    assert splits["train"]["input_ids"][:] == [[A], [B, C], [A]]
    assert splits["validation"]["user"][:] == ["3"]
    assert splits["test"]["user"][:] == ["3"]


def test_validation_items_merged_into_train_are_trained_on_and_not_evaluated(interactions, tokenizer):
    splits = leave_one_out(interactions, tokenizer, validation_in_train=True)
    assert list(splits) == ["train", "test"]
    assert splits["train"]["input_ids"][:] == [[A, B, C, D], [B, C, D], [C, A], [A, B]]
    assert splits["test"].to_list() == leave_one_out(interactions, tokenizer)["test"].to_list()


@settings(max_examples=20, deadline=None)
@given(log=logs(), max_length=st.integers(2, 6), share=st.sampled_from([0.3, 0.5, 1.0]))
def test_no_held_out_action_is_trained_on(log, max_length, share):
    splits = leave_one_out(log, item_tokenizer(log, max_length=max_length), window_step=share)
    train = set(actions(splits["train"]))
    assert train.isdisjoint(targets(splits["validation"]))
    assert train.isdisjoint(targets(splits["test"]))
    assert set(targets(splits["validation"])).isdisjoint(targets(splits["test"]))
    assert not set(targets(splits["test"])) & set(actions(splits["validation"]))


@settings(max_examples=20, deadline=None)
@given(log=logs())
def test_every_action_is_in_exactly_one_split(log):
    splits = leave_one_out(log, item_tokenizer(log, max_length=100))
    everything = actions(splits["train"]) + targets(splits["validation"]) + targets(splits["test"])
    assert sorted(everything) == sorted(zip(log["user"], log["timestamp"], strict=True))


def test_a_log_where_no_user_has_three_actions_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"at least 3 interactions.* longest history has 2"):
        leave_one_out(log_of(("u", "a", 1), ("u", "b", 2), ("v", "a", 1)), tokenizer)


TIMED = [
    ("u1", "a", 1), ("u2", "b", 2), ("u1", "b", 3), ("u2", "a", 4), ("u1", "c", 10), ("u2", "c", 11),
    ("u1", "a", 12), ("new", "b", 20), ("u1", "d", 21), ("new", "a", 22),
]  # fmt: skip


def past_tokenizer(max_length=5):
    return item_tokenizer(["a", "b"], max_length=max_length)


def test_split_at_time_gives_exactly_these_rows():
    splits = split_at_time(log_of(*TIMED), past_tokenizer(), validation_time=10, test_time=20)
    assert list(splits) == ["train", "validation", "test"]
    assert splits["train"].to_list() == [row(0, "u1", [A, B], [1, 3]), row(1, "u2", [B, A], [2, 4])]
    assert splits["validation"].to_list() == [
        row(0, "u1", [A, B, MASK], [1, 3, 10], [-100, -100, UNK], [A, B]),
        row(1, "u2", [B, A, MASK], [2, 4, 11], [-100, -100, UNK], [B, A]),
    ]
    assert splits["test"].to_list() == [
        row(0, "u1", [A, B, A, MASK], [1, 3, 12, 21], [-100] * 3 + [UNK], [A, B, A]),
        row(1, "new", [MASK], [20], [B], []),
    ]


def test_split_at_time_with_validation_in_train_trains_on_all_before_the_test_time():
    tokenizer = item_tokenizer(["a", "b", "c"], max_length=5)
    splits = split_at_time(log_of(*TIMED), tokenizer, validation_time=10, test_time=20, validation_in_train=True)
    assert list(splits) == ["train", "test"]
    assert splits["train"]["input_ids"][:] == [[A, B, C, A], [B, A, C]]
    assert splits["test"]["user"][:] == ["u1", "new"]
    assert splits["test"]["history"][:] == [[A, B, C, A], []]


def test_a_tokenizer_with_items_of_the_future_is_refused():
    with pytest.raises(
        ValueError, match=r"1 items of the tokenizer do not occur before `validation_time`, such as 'c'\. .*before\("
    ):
        split_at_time(log_of(*TIMED), item_tokenizer(["a", "b", "c"]), validation_time=10, test_time=20)


def test_before_gives_the_interactions_for_the_tokenizer():
    log = log_of(*TIMED)
    assert before(log, 10).to_list() == log.select(range(4)).to_list()
    split_at_time(log, item_tokenizer(before(log, 10)), validation_time=10, test_time=20)


def test_before_reads_times_of_any_number_type(interactions):
    for dtype in ("int8", "float16", "float32"):
        past = before(interactions.cast_column("timestamp", Value(dtype)), 20)
        assert past["timestamp"][:] == [time for time in interactions["timestamp"][:] if time < 20]


def test_a_max_length_above_the_integers_of_numpy_keeps_whole_histories(interactions, tokenizer):
    for split in (leave_one_out, train_on_all, new_interactions):
        for prefixes in (False, True):
            found, expected = (split(interactions, tokenizer, max_length=n, prefixes=prefixes) for n in (10**30, 100))
            assert {name: rows.to_list() for name, rows in found.items()} == {
                name: rows.to_list() for name, rows in expected.items()
            }


@pytest.mark.parametrize("option", ["prefixes", "validation_in_train"])
def test_text_is_not_true_or_false(interactions, tokenizer, option):
    with pytest.raises(ValueError, match=f"^`{option}` must be True or False, found 'false'"):
        leave_one_out(interactions, tokenizer, **{option: "false"})
    with pytest.raises(ValueError, match=f"^`{option}` must be True or False, found 'false'"):
        split_at_time(log_of(*TIMED), past_tokenizer(), validation_time=10, test_time=20, **{option: "false"})


def test_times_out_of_order_are_refused():
    for times in ((20, 10), (10, 10)):
        with pytest.raises(ValueError, match=f"must be before `test_time`, found {times[0]} and {times[1]}"):
            split_at_time(log_of(*TIMED), past_tokenizer(), validation_time=times[0], test_time=times[1])


@pytest.mark.parametrize(
    ("validation_time", "test_time", "problem"),
    [
        (0, 20, "from 1 to 22, but `validation_time` is 0. Pass a time in the unit of the log, after the first"),
        (1, 20, "but `validation_time` is 1. Pass a time in the unit of the log, after the first one of the log."),
        (13, 20, "The validation split is empty: found no interactions from 13 to before 20. Set an earlier"),
        (10, 30, "but `test_time` is 30. Pass a time in the unit of the log, up to the last one of the log."),
    ],
)
def test_times_that_leave_a_split_empty_are_refused(validation_time, test_time, problem):
    tokenizer = item_tokenizer(["other"])
    with pytest.raises(ValueError, match=re.escape(problem)):
        split_at_time(log_of(*TIMED), tokenizer, validation_time=validation_time, test_time=test_time)


@pytest.mark.parametrize(("factor", "unit"), [(1000, "milliseconds"), (10**6, "microseconds")])
def test_a_date_for_a_log_in_another_unit_is_refused(factor, unit):
    first, last = 1704207091, 1727013853
    log = log_of(("u", "a", first * factor), ("u", "b", 1718000000 * factor), ("v", "a", last * factor))

    def found(name, where="after the first"):
        return re.escape(
            f"The log runs from {first * factor} (2024-01-02 14:51 UTC, if these are {unit}) to {last * factor} "
            f"(2024-09-22 14:04 UTC, if these are {unit}), but `{name}` is 1717200000 (2024-06-01 00:00 UTC). "
            f"Pass a time in the unit of the log, {where} one of the log."
        )

    with pytest.raises(ValueError, match=found("time")):
        before(log, "2024-06-01")
    split = SPLITS["at_time"]  # as a recipe uses it
    with pytest.raises(ValueError, match=found("validation_time")):
        split.past_of(log, {"validation_time": "2024-06-01", "test_time": "2024-07-01"})
    values = {"validation_time": 1717200000 * factor, "test_time": 1719792000 * factor}
    assert len(split.past_of(log, values)) == 1
    assert f"from {1719792000 * factor} (2024-07-01 00:00 UTC, if these are {unit}) on" in split.describe(values)
    with pytest.raises(ValueError, match=found("validation_time")):
        split_at_time(log, item_tokenizer(["a"]), validation_time="2024-06-01", test_time="2024-07-01")
    with pytest.raises(ValueError, match=found("since", "up to the last")):
        new_interactions(log, item_tokenizer(["a"]), since="2024-06-01")
    with pytest.raises(ValueError, match="`replay` must be at least 0, found -1"):
        new_interactions(log, item_tokenizer(["a"]), replay=-1)
    for since, found in ((None, ", found 1. Pass more interactions."), (2, " from `since` (2) on, found 1. Pass more")):
        with pytest.raises(ValueError, match=re.escape(f"Expected at least 2 users with interactions{found}")):
            new_interactions(log_of(("u", "a", 1), ("u", "b", 2)), item_tokenizer(["a"]), since=since)


def test_a_time_that_is_no_time_is_refused():
    with pytest.raises(ValueError, match="number or an ISO date such as 2016-01-31, found 'yesterday'"):
        split_at_time(log_of(*TIMED), past_tokenizer(), validation_time="yesterday", test_time=20)
    with pytest.raises(ValueError, match="number or an ISO date"):
        before(log_of(*TIMED), "yesterday")


@pytest.mark.parametrize("nonsense", [float("nan"), None])
def test_a_missing_time_is_refused(nonsense):
    with pytest.raises(ValueError, match="number or an ISO date"):
        before(log_of(*TIMED), nonsense)


def test_a_date_as_yaml_reads_it_is_a_time():
    log = log_of(("u", "a", 0), ("u", "b", 86_399), ("u", "a", 86_400))
    assert before(log, datetime.date(1970, 1, 2))["timestamp"][:] == [0, 86_399]


def test_an_iso_date_is_a_time_in_utc_seconds():
    day = 86_400
    log = log_of(("u", "a", 0), ("u", "b", day - 1), ("u", "a", day), ("u", "b", 2 * day))
    splits = split_at_time(log, past_tokenizer(), validation_time="1970-01-02", test_time="1970-01-03T00:00:00+00:00")
    assert targets(splits["validation"]) == [("u", day)]
    assert targets(splits["test"]) == [("u", 2 * day)]
    assert before(log, "1970-01-02")["timestamp"][:] == [0, day - 1]


@settings(max_examples=20, deadline=None)
@given(log=logs(), times=st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_split_at_time_trains_on_the_past_and_asks_for_each_user_s_first_action_of_the_future(log, times):
    validation_time, test_time = min(times), max(times)
    every = sorted(log["timestamp"])
    if validation_time == test_time or test_time > every[-1]:
        return
    splits = split_at_time(
        log,
        item_tokenizer(before(log, validation_time), max_length=100),
        validation_time=validation_time,
        test_time=test_time,
    )
    assert sorted(time for _, time in actions(splits["train"])) == list(range(validation_time))
    for name, first, end in (("validation", validation_time, test_time), ("test", test_time, every[-1] + 1)):
        expected = {}
        for user, time in sorted(zip(log["user"], log["timestamp"], strict=True), key=lambda pair: pair[1]):
            if first <= time < end:
                expected.setdefault(user, time)
        assert dict(targets(splits[name])) == expected


def test_train_on_all_trains_on_every_action_and_holds_none_out(interactions, tokenizer):
    splits = train_on_all(interactions, tokenizer)
    assert {name: rows.to_list() for name, rows in splits.items()} == {
        "train": [
            row(0, "u1", [A, B, C, D, E], [10, 20, 30, 40, 50]),
            row(1, "u2", [B, C, D, A], [11, 21, 31, 41]),
            row(2, "u3", [C, A, E], [12, 22, 32]),
            row(3, "u4", [A, B], [13, 23]),
        ]
    }


# ---- the registry ----------------------------------------------------------------------------------------------------


def hold_out_users(interactions, tokenizer, *, max_length=None, share: float, seed: int = 0):
    """Test the last item of a share of the users, who are not trained on."""
    log = sort_by_user(interactions, tokenizer)
    held_out = np.random.default_rng(seed).permutation(len(log.users)) < share * len(log.users)
    train_ends = np.where(held_out, log.starts, log.ends)
    return build_histories(
        log, tokenizer, train_ends, {"test": np.where(held_out, log.ends - 1, -1)}, max_length=max_length
    )


OWN = Split(hold_out_users, "last item of {share:.0%} of the users, who are not trained on")


def test_a_split_of_ones_own_needs_one_function_and_one_entry(interactions, tokenizer, monkeypatch):
    monkeypatch.setitem(SPLITS, "users", OWN)
    split, given = SPLITS["users"], {"share": 0.5, "validation_time": None}
    histories = split.function(interactions, tokenizer, max_length=3, **split.resolve(given))
    assert len(histories["test"]) == 2
    assert set(histories["train"]["user"]) | set(histories["test"]["user"]) == {"u1", "u2", "u3", "u4"}
    assert set(histories["train"]["user"]).isdisjoint(histories["test"]["user"])
    assert max(histories["test"]["length"]) == 3
    assert not [finding for finding in audit(histories) if finding.leak and len(finding.rows)]
    assert split.describe(given) == "last item of 50% of the users, who are not trained on"
    assert split.past_of(interactions, given) is interactions


def test_options_of_a_split_are_the_parameters_of_its_function():
    assert list(OWN.options) == ["share", "seed"]
    assert OWN.options["share"].annotation is float
    assert list(SPLITS["train_on_all"].options) == ["window_step", "prefixes"]


@pytest.mark.parametrize("name", SPLITS)
def test_the_splits_have_the_options_of_build_histories(name):
    ours = inspect.signature(build_histories).parameters
    assert all(SPLITS[name].options[option] == ours[option] for option in ("window_step", "prefixes"))


@pytest.mark.parametrize(
    ("function", "options", "rows"),
    [
        (leave_one_out, {}, [[B, C], [A, B], [B], [B, A]]),
        (train_on_all, {}, [[A, D], [C, A], [B, C], [A, B], [A, C], [B, A], [B, A]]),
        (split_at_time, {"validation_time": 12, "test_time": 21}, [[B, C], [A, B], [A, C], [B, A]]),
        (new_interactions, {}, [[A, D], [C, A], [B, C], [A, B], [A, C], [B, A], [B]]),
    ],
)
def test_training_rows_follow_the_options_of_a_split(function, options, rows):
    log, tokenizer = log_of(*TIMED), item_tokenizer(["a", "b", "c"] if options else ["a", "b", "c", "d"])
    splits = function(log, tokenizer, **options, max_length=2, window_step=1, prefixes=True)
    assert splits["train"]["input_ids"][:] == rows


def test_a_split_of_ones_own_may_pass_its_options_on():
    def own(interactions, tokenizer, *, share: float = 0.5, **rows):
        raise NotImplementedError

    assert list(Split(own, "").options) == ["share", "window_step", "prefixes"]


def test_options_that_are_not_given_have_their_defaults():
    assert OWN.resolve({"share": 0.1, "seed": None, "other": 3}) == {"share": 0.1, "seed": 0}
    assert SPLITS["leave_one_out"].resolve({}) == {"validation_in_train": False, "window_step": 0.5, "prefixes": False}


def test_a_missing_option_is_named_with_its_split():
    with pytest.raises(ValueError, match="The split 'at_time' needs `--validation_time` and `--test_time`"):
        SPLITS["at_time"].resolve({"window_step": 0.5})
    with pytest.raises(ValueError, match="The split 'hold_out_users' needs `--share`"):
        OWN.resolve({"share": None})


@pytest.mark.parametrize(("validation_in_train", "end"), [(False, 10), (True, 20)])
def test_the_tokenizer_of_a_split_at_time_is_built_from_the_past(validation_in_train, end):
    log = log_of(*TIMED)
    given = {"validation_time": 10, "test_time": 20, "validation_in_train": validation_in_train}
    split = SPLITS["at_time"]
    past = split.past_of(log, given)
    assert max(past["timestamp"]) < end
    assert split.function(log, item_tokenizer(past), **split.resolve(given))["test"]["user"][:] == ["u1", "new"]


def test_protocols_state_the_options_that_shape_the_split():
    describe = SPLITS["leave_one_out"].describe
    assert describe({}) == "leave-one-out (every user's last item)"
    assert describe({"validation_in_train": True}) == f"{describe({})}, validation items trained on"
    at_time = SPLITS["at_time"].describe({"validation_time": "2015-01-01", "test_time": "2016-01-01"})
    assert at_time == "first item of every user from 2016-01-01 on"
    for since, shown in (
        (None, "the first interaction"),
        (7.0, "7"),
        ("2017-07-14T02:40:00", "1500000000 (2017-07-14 02:40 UTC)"),
    ):
        new = SPLITS["new_interactions"].describe({"since": since})
        assert new == f"last new item of 10% of the users with interactions since {shown}"


def test_a_date_is_no_time_of_a_log_with_other_numbers():
    log = log_of(("u", "a", 20240101), ("u", "b", 20240201))  # as a table of pandas has them
    with pytest.raises(ValueError, match=r"runs from 20240101 to 20240201, but `time` is 1706\d+ \(2024-01-2"):
        before(log, "2024-01-25")
    assert before(log, 20240125)["item"][:] == ["a"]


def test_all_interactions_are_new_without_a_time():
    log = log_of(("u", "a", 1700000000), ("u", "b", 1700000001), ("v", "a", 1700000002), ("v", "b", 1700000003))
    assert len(new_interactions(log, item_tokenizer(["a", "b"]), held_out=0.5)["validation"]) == 1


def test_times_around_the_smallest_unix_time_are_not_another_unit():
    log = log_of(("u", "a", 99_999_990), ("u", "b", 100_000_010), ("u", "c", 100_000_020))
    assert before(log, 99_999_999)["item"][:] == ["a"]
