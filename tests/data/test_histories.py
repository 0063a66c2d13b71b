"""Histories: both splits row by row, the windows of the paper, and no future in the past."""

import datetime
import logging

import numpy as np
import pytest
from datasets import Dataset, load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_bert4rec import before, item_tokenizer, leave_one_out, popularity_candidates, split_at_time, uniform_candidates

PAD, MASK, UNK = 0, 1, 2
A, B, C, D, E = range(3, 8)


def log_of(*rows):
    """Interactions from (user, item, timestamp)."""
    users, items, timestamps = zip(*rows, strict=True)
    return Dataset.from_dict({"user": users, "item": items, "timestamp": timestamps})


def row(number, user, input_ids, timestamps, labels=None, history=None):
    """A row as the splits should have it."""
    return {
        "row": number,
        "user": user,
        "input_ids": input_ids,
        "timestamps": timestamps,
        "labels": labels,
        "history": history,
        "length": len(input_ids),
    }


@st.composite
def logs(draw):
    """Up to 6 users whose actions each have a timestamp of their own, in any order of the rows."""
    users = draw(st.lists(st.integers(0, 5), min_size=3, max_size=40))
    users += users[:1] * 3
    timestamps = draw(st.permutations(range(len(users))))
    items = draw(st.lists(st.sampled_from("abcdefgh"), min_size=len(users), max_size=len(users)))
    return log_of(*zip(map(str, users), items, timestamps, strict=True))


def actions(split):
    """Multiset of (user, time), without the query's own of validation and test."""
    return [
        (user, time)
        for user, times, labels in zip(split["user"], split["timestamps"], split["labels"], strict=True)
        for time in (times if labels is None else times[:-1])
    ]


def targets(split):
    return [(user, times[-1]) for user, times in zip(split["user"], split["timestamps"], strict=True)]


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


def test_equal_timestamps_keep_the_order_of_the_log(tokenizer):
    splits = leave_one_out(
        log_of(("u", "c", 5), ("u", "a", 5), ("u", "d", 5), ("u", "b", 5), ("u", "e", 4)), tokenizer, max_length=10
    )
    assert splits["test"]["history"][:] == [[E, C, A, D]]
    assert splits["test"]["labels"][0][-1] == B


def test_timestamps_with_fractions_are_kept(tokenizer):
    splits = leave_one_out(log_of(("u", "a", 1.75), ("u", "b", 1.5), ("u", "c", 2.25)), tokenizer)
    assert splits["test"]["timestamps"][:] == [[1.5, 1.75, 2.25]]


def test_validation_folded_into_train_is_trained_on_and_not_evaluated(interactions, tokenizer):
    splits = leave_one_out(interactions, tokenizer, validation_in_train=True)
    assert list(splits) == ["train", "test"]
    assert splits["train"]["input_ids"][:] == [[A, B, C, D], [B, C, D], [C, A], [A, B]]
    assert splits["test"].to_list() == leave_one_out(interactions, tokenizer)["test"].to_list()


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 40), max_length=st.integers(2, 12), share=st.sampled_from([0.01, 0.3, 0.5, 0.75, 1.0]))
def test_windows_start_where_the_paper_s_code_starts_them(length, max_length, share):
    items = [f"i{number}" for number in range(length + 2)]
    splits = leave_one_out(
        log_of(*(("u", item, time) for time, item in enumerate(items))),
        item_tokenizer(items, max_length=max_length),
        window_step=share,
    )
    step = max(1, int(share * max_length))
    starts = [*range(length - max_length, 0, -step), 0]
    expected = [list(range(length))[start : start + max_length] for start in starts]
    assert splits["train"]["timestamps"][:] == expected
    assert splits["train"]["input_ids"][:] == [[3 + time for time in window] for window in expected]
    assert splits["train"]["row"][:] == list(range(len(expected)))


def test_a_long_history_is_cut_to_the_newest_in_the_input_and_whole_in_the_history(tokenizer):
    splits = leave_one_out(log_of(*(("u", item, time) for time, item in enumerate("abcdefghij"))), tokenizer)
    assert splits["test"].to_list() == [
        row(0, "u", [8, 9, 10, 11, MASK], [5, 6, 7, 8, 9], [-100] * 4 + [12], list(range(3, 12)))
    ]
    assert splits["train"]["input_ids"][:] == [[6, 7, 8, 9, 10], [4, 5, 6, 7, 8], [3, 4, 5, 6, 7]]


def test_max_length_of_the_call_goes_before_that_of_the_tokenizer(interactions, tokenizer):
    splits = leave_one_out(interactions, tokenizer, max_length=3)
    assert splits["test"]["input_ids"][:] == [[C, D, MASK], [C, D, MASK], [C, A, MASK]]


def test_unknown_items_are_left_out_of_histories_and_count_as_missed_as_targets(caplog):
    tokenizer = item_tokenizer(["a", "b", "c"], max_length=5)
    with caplog.at_level(logging.WARNING, "hf_bert4rec.data.histories"):
        splits = leave_one_out(
            log_of(*(("u", item, time) for time, item in enumerate(["a", "?", "b", "c", "!"]))), tokenizer
        )
    assert splits["train"].to_list() == [row(0, "u", [A, B], [0, 2])]
    assert splits["validation"].to_list() == [row(0, "u", [A, B, MASK], [0, 2, 3], [-100, -100, C], [A, B])]
    assert splits["test"].to_list() == [row(0, "u", [A, B, C, MASK], [0, 2, 3, 4], [-100] * 3 + [UNK], [A, B, C])]
    assert "2 actions" in caplog.text


def test_a_user_whose_train_items_are_all_unknown_has_no_window():
    splits = leave_one_out(
        log_of(("u", "?", 1), ("u", "a", 2), ("u", "b", 3), ("v", "a", 1)), item_tokenizer(["a", "b"], max_length=5)
    )
    assert splits["train"].to_list() == [row(0, "v", [A], [1])]
    assert splits["validation"].to_list() == [row(0, "u", [MASK], [2], [A], [])]
    assert splits["test"].to_list() == [row(0, "u", [A, MASK], [2, 3], [-100, B], [A])]


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


@settings(max_examples=20, deadline=None)
@given(log=logs(), max_length=st.integers(2, 6))
def test_inputs_are_the_end_of_the_history_and_agree_with_the_log(log, max_length):
    tokenizer = item_tokenizer(log, max_length=max_length)
    item_at = dict(zip(log["timestamp"], tokenizer.encode_items(log["item"]).tolist(), strict=True))
    for name, split in leave_one_out(log, tokenizer).items():
        for line in split:
            times = line["timestamps"]
            assert times == sorted(times)
            assert line["length"] == len(line["input_ids"]) == len(times) <= max_length
            if name == "train":
                assert line["input_ids"] == [item_at[time] for time in times]
                continue
            assert line["input_ids"] == [*line["history"][-(max_length - 1) :], MASK]
            assert line["input_ids"][:-1] == [item_at[time] for time in times[:-1]]
            assert line["labels"] == [-100] * (len(times) - 1) + [item_at[times[-1]]]


def test_a_log_where_no_user_has_three_actions_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"at least 3 actions.*2 histories has 2"):
        leave_one_out(log_of(("u", "a", 1), ("u", "b", 2), ("v", "a", 1)), tokenizer)


@pytest.mark.parametrize("step", [0, -0.5, 1.5])
def test_a_window_step_out_of_range_is_refused(interactions, tokenizer, step):
    with pytest.raises(ValueError, match=f"window_step above 0 and at most 1.*{step}"):
        leave_one_out(interactions, tokenizer, window_step=step)


@pytest.mark.parametrize("max_length", [-3, 0, 1])
def test_a_max_length_without_room_for_an_item_is_refused(interactions, tokenizer, max_length):
    with pytest.raises(ValueError, match=f"max_length.*{max_length}"):
        leave_one_out(interactions, tokenizer, max_length=max_length)


@pytest.mark.parametrize("column", ["user", "item", "timestamp"])
def test_a_missing_column_is_refused_and_those_found_are_named(interactions, tokenizer, column):
    others = [name for name in interactions.column_names if name != column]
    with pytest.raises(ValueError, match=f"user, item and timestamp, found {', '.join(others)}"):
        leave_one_out(interactions.remove_columns(column), tokenizer)


def test_all_splits_have_the_same_features(interactions, tokenizer):
    splits = leave_one_out(interactions, tokenizer)
    assert splits["train"].features == splits["validation"].features == splits["test"].features
    assert splits["train"].features["labels"].feature.dtype == "int32"


def test_saved_splits_come_back_the_same(interactions, tokenizer, tmp_path):
    splits = leave_one_out(interactions, tokenizer)
    splits.save_to_disk(tmp_path)
    loaded = load_from_disk(tmp_path)
    assert list(loaded) == list(splits)
    for name in splits:
        assert loaded[name].features == splits[name].features
        assert loaded[name].to_list() == splits[name].to_list()


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


def test_a_tokenizer_that_knows_the_future_is_refused():
    with pytest.raises(ValueError, match=r"1 items that first occur after training ends, such as 'c'.*before\("):
        split_at_time(log_of(*TIMED), item_tokenizer(["a", "b", "c"]), validation_time=10, test_time=20)


def test_before_gives_what_the_tokenizer_may_know():
    log = log_of(*TIMED)
    assert before(log, 10).to_list() == log.select(range(4)).to_list()
    split_at_time(log, item_tokenizer(before(log, 10)), validation_time=10, test_time=20)


def test_times_out_of_order_are_refused():
    for times in ((20, 10), (10, 10)):
        with pytest.raises(ValueError, match=f"validation_time before test_time, found {times[0]} and {times[1]}"):
            split_at_time(log_of(*TIMED), past_tokenizer(), validation_time=times[0], test_time=times[1])


@pytest.mark.parametrize(
    ("validation_time", "test_time", "empty"), [(0, 20, "train"), (13, 20, "validation"), (10, 30, "test")]
)
def test_an_empty_split_is_refused_and_the_log_s_times_are_named(validation_time, test_time, empty):
    tokenizer = item_tokenizer(["stranger"])
    with pytest.raises(ValueError, match=f"{empty} split; the log runs from 1 to 22"):
        split_at_time(log_of(*TIMED), tokenizer, validation_time=validation_time, test_time=test_time)


def test_a_time_that_is_no_time_is_refused():
    with pytest.raises(ValueError, match="number or an ISO date such as 2016-01-31, found 'yesterday'"):
        split_at_time(log_of(*TIMED), past_tokenizer(), validation_time="yesterday", test_time=20)
    with pytest.raises(ValueError, match="number or an ISO date"):
        before(log_of(*TIMED), "yesterday")


@pytest.mark.parametrize("nonsense", [float("nan"), None])
def test_a_time_that_compares_with_nothing_is_refused(nonsense):
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


# ---- candidates of sampled metrics -----------------------------------------------------------------------------------

COUNTS = np.array([0, 0, 0, 4, 8, 0, 2, 2, 1, 1, 1, 1, 1])  # a to j; c never occurs


def test_candidates_are_other_items_that_occur_each_once(interactions, tokenizer):
    test = leave_one_out(interactions, tokenizer)["test"]
    drawn = popularity_candidates(test, COUNTS, number=4, seed=7)
    assert drawn.column_names == [*test.column_names, "candidates"]
    assert drawn.remove_columns("candidates").to_dict() == test.to_dict()
    for found in drawn:
        had = {*found["history"], found["labels"][-1]}
        assert len(set(found["candidates"])) == 4
        assert not had & set(found["candidates"])
        assert 5 not in found["candidates"]
        assert min(found["candidates"]) >= 3


def test_a_draw_is_the_same_for_the_same_seed_and_another_for_another(interactions, tokenizer):
    test = leave_one_out(interactions, tokenizer)["test"]
    draws = [popularity_candidates(test, COUNTS, number=4, seed=seed)["candidates"][:] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_candidates_are_drawn_in_proportion_to_their_counts(tokenizer):
    users = 3000
    log = log_of(*((f"u{user}", item, time) for user in range(users) for time, item in enumerate("jih")))
    drawn = popularity_candidates(leave_one_out(log, tokenizer)["test"], COUNTS, number=1)["candidates"][:]
    shares = np.bincount(np.ravel(drawn), minlength=13) / users
    expected = COUNTS * ~np.isin(np.arange(13), [10, 11, 12]) / 18  # without h, i and j, which everybody has had
    np.testing.assert_allclose(shares, expected, atol=0.03)


def test_uniform_candidates_are_any_other_items_of_the_catalogue_as_likely(tokenizer):
    users = 3000
    log = log_of(*((f"u{user}", item, time) for user in range(users) for time, item in enumerate("jih")))
    drawn = uniform_candidates(leave_one_out(log, tokenizer)["test"], len(tokenizer), number=1)["candidates"][:]
    shares = np.bincount(np.ravel(drawn), minlength=13) / users
    np.testing.assert_allclose(shares, [0, 0, 0, *[1 / 7] * 7, 0, 0, 0], atol=0.03)  # all but the special rows, h, i, j


def test_a_user_s_candidates_are_the_same_in_any_company(interactions, tokenizer):
    test = leave_one_out(interactions, tokenizer)["test"]
    whole, last = (popularity_candidates(rows, COUNTS, number=4) for rows in (test, test.select([len(test) - 1])))
    assert whole[len(test) - 1] == last[0]


@pytest.mark.parametrize("number", [0, -1])
def test_fewer_candidates_than_one_are_refused(interactions, tokenizer, number):
    with pytest.raises(ValueError, match=f"at least one candidate, found {number}"):
        popularity_candidates(leave_one_out(interactions, tokenizer)["test"], COUNTS, number=number)


def test_training_rows_have_no_candidates(interactions, tokenizer):
    with pytest.raises(ValueError, match="the validation or test split, found training rows"):
        popularity_candidates(leave_one_out(interactions, tokenizer)["train"], COUNTS, number=1)


def test_more_candidates_than_items_left_are_refused(interactions, tokenizer):
    test = leave_one_out(interactions, tokenizer)["test"]
    with pytest.raises(ValueError, match="Expected 6 items that user u1 has not had, found fewer"):
        popularity_candidates(test, COUNTS, number=6)


@pytest.mark.parametrize("keep_repeats", [True, False])
def test_repeats_among_the_test_targets_are_reported(tokenizer, caplog, keep_repeats):
    rows = [
        (f"u{user}", "abc"[(user + time) % 3], time) for user in range(9) for time in range(6 if keep_repeats else 3)
    ]
    leave_one_out(log_of(*rows, ("v", "a", 1), ("v", "b", 2), ("v", "e", 3)), tokenizer)
    warned = [message for message in caplog.messages if "items that the user has had before" in message]
    assert [message[:27] for message in warned] == ["90% of the test targets are"] * keep_repeats
    assert all("exclude_history=False" in message for message in warned)
