"""Histories: the windows of the paper, inputs, unknown items, and what is checked."""

import datetime
import logging

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_bert4rec import (
    before,
    build_histories,
    item_tokenizer,
    leave_one_out,
    popularity_candidates,
    sort_by_user,
    split_at_time,
    train_on_all,
)
from hf_bert4rec.data.histories import COLUMNS, are_repeats, target_items, warn_about_repeats
from tests.data.logs import MASK, UNK, A, B, C, D, E, log_of, logs, row


@pytest.fixture(autouse=True)
def no_earlier_warnings():
    logging.Logger.warning_once.cache_clear()


def test_equal_timestamps_keep_the_order_of_the_log(tokenizer):
    splits = leave_one_out(
        log_of(("u", "c", 5), ("u", "a", 5), ("u", "d", 5), ("u", "b", 5), ("u", "e", 4)), tokenizer, max_length=10
    )
    assert splits["test"]["history"][:] == [[E, C, A, D]]
    assert splits["test"]["labels"][0][-1] == B


def test_timestamps_with_fractions_are_kept(tokenizer):
    splits = leave_one_out(log_of(("u", "a", 1.75), ("u", "b", 1.5), ("u", "c", 2.25)), tokenizer)
    assert splits["test"]["timestamps"][:] == [[1.5, 1.75, 2.25]]


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


def test_unknown_items_are_dropped_from_histories_and_count_as_missed_as_targets(caplog):
    tokenizer = item_tokenizer(["a", "b", "c"], max_length=5)
    with caplog.at_level(logging.WARNING, "hf_bert4rec.data.histories"):
        splits = leave_one_out(
            log_of(*(("u", item, time) for time, item in enumerate(["a", "?", "b", "c", "!"]))), tokenizer
        )
    assert splits["train"].to_list() == [row(0, "u", [A, B], [0, 2])]
    assert splits["validation"].to_list() == [row(0, "u", [A, B, MASK], [0, 2, 3], [-100, -100, C], [A, B])]
    assert splits["test"].to_list() == [row(0, "u", [A, B, C, MASK], [0, 2, 3, 4], [-100] * 3 + [UNK], [A, B, C])]
    assert "tokenizer does not contain: 2 of 5." in caplog.text


def test_a_user_whose_train_items_are_all_unknown_has_no_window():
    splits = leave_one_out(
        log_of(("u", "?", 1), ("u", "a", 2), ("u", "b", 3), ("v", "a", 1)), item_tokenizer(["a", "b"], max_length=5)
    )
    assert splits["train"].to_list() == [row(0, "v", [A], [1])]
    assert splits["validation"].to_list() == [row(0, "u", [MASK], [2], [A], [])]
    assert splits["test"].to_list() == [row(0, "u", [A, MASK], [2, 3], [-100, B], [A])]


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


@pytest.mark.parametrize("step", [0, -0.5, 1.5, None, "5"])
def test_a_window_step_out_of_range_is_refused(interactions, tokenizer, step):
    with pytest.raises(ValueError, match=f"window_step.* must be above 0 and at most 1, found {step!r}"):
        leave_one_out(interactions, tokenizer, window_step=step)


@pytest.mark.parametrize("max_length", [-3, 0, 1, True, 2.5])
def test_a_max_length_without_room_for_an_item_is_refused(interactions, tokenizer, max_length):
    with pytest.raises(ValueError, match=f"max_length.*{max_length}"):
        leave_one_out(interactions, tokenizer, max_length=max_length)


def test_another_object_as_tokenizer_is_refused(interactions):
    with pytest.raises(ValueError, match="Expected an ItemTokenizer, found NoneType"):
        leave_one_out(interactions, None)


@pytest.mark.parametrize("column", ["user", "item", "timestamp"])
def test_a_missing_column_is_refused_and_those_found_are_named(interactions, tokenizer, column):
    others = [name for name in interactions.column_names if name != column]
    with pytest.raises(ValueError, match=f"user, item and timestamp, found {', '.join(others)}"):
        leave_one_out(interactions.remove_columns(column), tokenizer)


def test_class_labels_are_read_as_their_names(interactions):
    labels = interactions.cast_column("item", ClassLabel(names=list("abcdefghij")))
    tokenizer = item_tokenizer(labels, max_length=5)
    assert set(tokenizer.items.to_pylist()) <= set("abcdefghij")
    rows = leave_one_out(labels, tokenizer)["test"]
    assert all(target in tokenizer.get_vocab().values() and target > 2 for target in target_items(rows))


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


@pytest.mark.parametrize(("times", "exclude_history", "warnings"), [(3, True, 0), (6, True, 1), (6, False, 0)])
def test_targets_that_a_model_excludes_are_reported_once(tokenizer, caplog, times, exclude_history, warnings):
    rows = [(f"u{user}", "abc"[(user + time) % 3], time) for user in range(9) for time in range(times)]
    log = log_of(*rows, ("v", "a", 1), ("v", "b", 2), ("v", "e", 3))
    for max_length in (3, 5):
        warn_about_repeats(leave_one_out(log, tokenizer, max_length=max_length)["test"], exclude_history)
    assert caplog.messages == warnings * [
        "90% of the targets are items that the user has interacted with before. The model excludes the history, so "
        "these targets count as missed. To recommend such items, set `exclude_history=False` in the configuration of "
        "the model (command line: `--exclude_history false`)."
    ]


@pytest.mark.parametrize(("together", "warnings"), [(5, 0), (6, 1)])
def test_targets_that_belong_to_the_last_order_are_reported(tokenizer, caplog, together, warnings):
    rows = [
        (f"u{user}", item, min(time, 2 - (user < together))) for user in range(10) for time, item in enumerate("abc")
    ]
    log = log_of(*rows, ("v", "a", 1))
    leave_one_out(log, tokenizer)
    assert len(caplog.messages) == warnings
    assert not warnings or caplog.messages[0].startswith("60% of the test targets have the same time as the ")


@pytest.mark.parametrize(
    ("user", "item"), [([7, 7, 7, 8], list("abcd")), ([7.0, 7.0, 7.0, 8.0], list("abcd")), (list("7778"), [1, 2, 3, 4])]
)
def test_numbers_as_ids_become_text_as_in_a_log_that_is_read(user, item):
    log = Dataset.from_dict({"user": user, "item": item, "timestamp": [1, 2, 3, 4]})
    test = leave_one_out(log, item_tokenizer(log))["test"]
    assert test.to_list() == [row(0, "7", [A, B, MASK], [1, 2, 3], [-100, -100, C], [A, B])]


@pytest.mark.parametrize(
    ("column", "values", "found"),
    [
        ("timestamp", ["9", "10", "11", "100"], r"found none in 4 of 4 rows \(type: string\)"),
        ("timestamp", [1.0, float("nan"), 3.0, 4.0], r"found none in 1 of 4 rows \(type: double\)\. Read the log"),
        ("timestamp", [1.0, float("inf"), 3.0, None], "found none in 2 of 4 rows"),
        ("timestamp", [1, None, 3, 4], "finite number in every row of the column 'timestamp', found none in 1 of 4"),
        ("timestamp", [datetime.datetime(2020, 1, day) for day in (1, 2, 3, 4)], r"\(type: timestamp\[us\]\)"),
        ("timestamp", [True, False, True, True], r"\(type: bool\)"),
        ("item", ["a", None, "b", "c"], "column 'item', found none in 1 of 4 rows"),
        ("user", ["", "u", "u", "u"], "column 'user', found none in 1 of 4 rows"),
        ("item", [["a"], ["b"], ["c"], ["d"]], "column .item.: expected text or numbers, found \\["),
    ],
)
@pytest.mark.parametrize(
    "use",
    [
        leave_one_out,
        train_on_all,
        lambda log, tokenizer: split_at_time(log, tokenizer, validation_time=2, test_time=3),
        lambda log, tokenizer: before(log, 2),
    ],
)
def test_columns_of_other_types_are_refused(tokenizer, column, values, found, use):
    columns = {"user": ["u"] * 4, "item": list("abcd"), "timestamp": [1, 2, 3, 4], column: values}
    with pytest.raises(ValueError, match=found) as error:
        use(Dataset.from_dict(columns), tokenizer)
    assert "`load_interactions`" in str(error.value) or "expected text or numbers" in str(error.value)


def test_a_table_that_is_not_a_dataset_is_refused(interactions, tokenizer):
    with pytest.raises(ValueError, match=r"found DataFrame.*load_interactions"):
        leave_one_out(interactions.to_pandas(), tokenizer)


@pytest.mark.parametrize(
    ("train_ends", "targets", "name"),
    [
        ([3, 1], {"test": [-1, 3]}, "train_ends"),
        ([2, 5], {}, "train_ends"),
        ([2], {}, "train_ends"),
        ([2, 4], {"test": [-1, 4]}, "test"),
        ([2, 4], {"test": [-2, 3]}, "test"),
        ([2, 4], {"validation": [2, -1]}, "validation"),
    ],
)
def test_numbers_that_are_not_of_an_action_of_the_user_are_refused(tokenizer, train_ends, targets, name):
    log = sort_by_user(log_of(("u", "a", 1), ("u", "b", 2), ("v", "a", 1), ("v", "c", 2)), tokenizer)
    targets = {split: np.array(numbers) for split, numbers in targets.items()}
    with pytest.raises(
        ValueError, match=f"{name}.* must be one index of `log.items` per user, from `log.starts` to `log.ends`"
    ):
        build_histories(log, tokenizer, np.array(train_ends), targets)


def test_every_column_has_a_description(interactions, tokenizer):
    test = popularity_candidates(leave_one_out(interactions, tokenizer)["test"], np.ones(13, int), number=1)
    assert set(test.column_names) == set(COLUMNS)


def test_repeats_and_targets_are_found_row_by_row(tokenizer):
    log = log_of(*(("u", item, time) for time, item in enumerate("abca")), *(("v", i, t) for t, i in enumerate("abc")))
    test = leave_one_out(log, tokenizer)["test"]
    assert target_items(test).tolist() == [A, C]
    assert are_repeats(test).tolist() == [True, False]
    with pytest.raises(ValueError, match=r"labels, found DatasetDict\. Pass one of its splits, such as `data"):
        target_items(leave_one_out(log, tokenizer))


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4), max_length=st.integers(2, 6))
def test_prefixes_are_a_row_for_each_item_but_the_first(lengths, max_length):
    log = [(f"u{user}", f"i{time}", time) for user, length in enumerate(lengths) for time in range(length)]
    tokenizer = item_tokenizer([f"i{time}" for time in range(12)], max_length=max_length)
    rows = train_on_all(log_of(*log), tokenizer, prefixes=True)["train"]
    expected = {
        (f"u{user}", *range(max(0, last + 1 - max_length), last + 1))
        for user, length in enumerate(lengths)
        for last in range(min(1, length - 1), length)  # a single item has a row, too
    }
    found = [(user, *times) for user, times in zip(rows["user"][:], rows["timestamps"][:], strict=True)]
    assert len(found) == len(expected)
    assert set(found) == expected


def test_an_empty_log_without_numbers_as_times_is_refused():
    log = Dataset.from_dict({"user": [], "item": [], "timestamp": []})  # columns of the type null
    with pytest.raises(ValueError, match=r"'timestamp', found none in 0 of 0 rows \(type: null\)"):
        sort_by_user(log, item_tokenizer(["a"]))
