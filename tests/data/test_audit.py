"""Hand-made leaks are found with their rows; the splits of the package have none."""

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_bert4rec import before, item_tokenizer, leave_one_out, split_at_time
from hf_bert4rec.data.audit import audit

A, B, C, D, E = 3, 4, 5, 6, 7
MASK, UNK = 1, 2


def train(*rows: tuple[str, list[int], list[int]]) -> Dataset:
    users, input_ids, timestamps = zip(*rows, strict=True)
    nothing = [None] * len(rows)
    columns = {"user": users, "input_ids": input_ids, "timestamps": timestamps, "labels": nothing, "history": nothing}
    return Dataset.from_dict(columns)


def held_out(*rows: tuple[str, list[int], list[int], int]) -> Dataset:
    users, histories, timestamps, targets = zip(*rows, strict=True)
    columns = {
        "user": users,
        "input_ids": [[*history, MASK] for history in histories],
        "timestamps": timestamps,
        "labels": [[-100] * len(history) + [target] for history, target in zip(histories, targets, strict=True)],
        "history": histories,
    }
    return Dataset.from_dict(columns)


def found(histories: DatasetDict, words: str) -> list[int]:
    """Rows of the one finding whose words these are."""
    findings = [finding for finding in audit(histories) if words in finding.what]
    assert len(findings) == 1
    return findings[0].rows.tolist()


CLEAN = DatasetDict(
    train=train(("u", [A, B], [1, 2]), ("v", [B, C], [3, 4]), ("w", [D], [9])),
    test=held_out(("u", [A, B], [1, 2, 5], C), ("v", [B, C], [3, 4, 6], E)),
)


def leaks(histories: DatasetDict) -> list[str]:
    return [str(finding) for finding in audit(histories) if finding.leak and len(finding.rows)]


def test_a_clean_split_has_no_leak():
    assert leaks(CLEAN) == []


def test_every_leak_is_called_one_and_names_its_rows():
    future = train(("w", [D], [9]), ("u", [A, D], [1, 7]), ("v", [B], [3]))
    assert leaks(DatasetDict(CLEAN, train=future)) == [
        "train: 1 of 3 rows (33.3%) contain an interaction later than an evaluated target of the same user (row 1)"
    ]
    assert leaks(DatasetDict(CLEAN, train=train(("u", [A, C], [1, 5])))) == [
        "test: 1 of 2 rows (50.0%) have a target that is in the user's training rows (row 0)"
    ]
    inputs = held_out(("u", [A, B, C], [1, 2, 5, 5], C), ("v", [B, C], [3, 4, 6], E))
    assert leaks(DatasetDict(CLEAN, test=inputs)) == [
        "test: 1 of 2 rows (50.0%) have a target that is among their inputs (row 0)"
    ]
    later = held_out(("u", [A], [1, 5], C), ("v", [B, C], [3, 8, 6], E))
    assert leaks(DatasetDict(CLEAN, test=later)) == [
        "test: 1 of 2 rows (50.0%) have an input later than the target (row 1)"
    ]
    second = held_out(("u", [A], [1, 5], C), ("v", [B], [3, 6], E), ("u", [A], [1, 6], D))
    assert leaks(DatasetDict(CLEAN, test=second)) == [
        "test: 1 of 3 rows (33.3%) have the user of an earlier row (row 2)"
    ]


def test_choosing_a_model_by_the_test_targets_is_found():
    assert leaks(DatasetDict(CLEAN, validation=CLEAN["test"])) == [
        "test: 2 of 2 rows (100.0%) have a target that is in the user's validation row (rows 0, 1)"
    ]
    seen = held_out(("v", [E], [6, 7], D), ("u", [A], [1, 2], B))  # v's test target among the inputs of validation
    assert found(DatasetDict(CLEAN, validation=seen), "in the user's validation row") == [1]
    clean = held_out(("u", [A], [1, 2], B), ("v", [B], [3, 4], C))
    assert found(DatasetDict(CLEAN, validation=clean), "in the user's validation row") == []


def test_training_between_validation_and_test_is_training_on_the_future():
    histories = DatasetDict(
        train=train(("u", [A, D], [1, 4])),
        validation=held_out(("u", [A], [1, 3], B)),
        test=held_out(("u", [A, B], [1, 3, 5], C)),
    )
    assert found(histories, "later than an evaluated target") == [0]


def test_a_target_among_its_candidates_is_found():
    test = CLEAN["test"].add_column("candidates", [[A, D], [D, E]])
    assert found(DatasetDict(CLEAN, test=test), "among their candidates") == [1]
    assert not [finding for finding in audit(CLEAN) if "candidates" in finding.what]


def test_a_target_that_was_trained_on_is_found_with_its_row():
    histories = DatasetDict(CLEAN, train=train(("u", [A, B], [1, 2]), ("v", [B, C, E], [3, 4, 6])))
    assert found(histories, "in the user's training rows") == [1]
    assert found(histories, "later than an evaluated target") == []


def test_unknown_items_at_the_same_time_are_not_the_same_item():
    target, histories = held_out(("u", [A, UNK], [1, 2, 2], UNK)), train(("u", [A, UNK], [1, 2]))
    assert leaks(DatasetDict(train=histories, test=target)) == []


def test_the_same_item_at_another_time_or_of_another_user_is_no_leak():
    histories = DatasetDict(CLEAN, train=train(("u", [C, B], [1, 2]), ("v", [C, E], [5, 5])))
    assert found(histories, "in the user's training rows") == []


def test_properties_of_the_protocol_are_reported():
    assert found(CLEAN, "older than a training interaction") == [0, 1]  # w's action at 9 was trained on
    assert found(CLEAN, "who are in train too") == [0, 1]
    assert found(CLEAN, "never occurs") == [1]  # e
    again = DatasetDict(CLEAN, test=held_out(("u", [A, B], [1, 2, 5], A), ("x", [], [6], UNK)))
    assert found(again, "had before") == [0]
    assert found(again, "never occurs") == []
    assert found(again, "not in the tokenizer") == [1]
    assert found(again, "who are in train too") == [0]


def test_training_on_the_labels_of_targets_is_found():
    assert found(DatasetDict(train=CLEAN["test"], test=CLEAN["test"]), "in the user's training rows") == [0, 1]


def test_without_comparable_times_nothing_is_reported_of_other_users():
    by_rows = DatasetDict(
        train=train(("u", [A, B], [0, 1]), ("v", [B, C], [3, 4]), ("w", [D], [6])),
        test=held_out(("u", [A, B], [0, 1, 2], C), ("v", [B, C], [3, 4, 5], E)),
    )
    assert not [finding for finding in audit(by_rows) if "of any user" in finding.what]
    assert [finding for finding in audit(CLEAN) if "of any user" in finding.what]


def test_the_text_of_a_finding_has_rows_and_shares():
    histories = DatasetDict(CLEAN, train=train(("u", [A, B], [1, 2]), ("v", [B, C, E], [3, 4, 6])))
    lines = [str(finding) for finding in audit(histories)]
    assert "test: 1 of 2 rows (50.0%) have a target that is in the user's training rows (row 1)" in lines
    assert "test: 2 of 2 rows (100.0%) are of users who are in train too" in lines


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.sampled_from("uvw"), st.sampled_from("abcd"), st.integers(0, 9)), min_size=12, max_size=30,
        unique=True,
    )
)  # fmt: skip
def test_the_splits_of_the_package_never_leak(actions):
    users, items, timestamps = zip(*actions, strict=True)
    interactions = Dataset.from_dict({"user": users, "item": items, "timestamp": timestamps})
    tokenizer = item_tokenizer(interactions, max_length=4)
    splits = [leave_one_out(interactions, tokenizer)]
    if min(timestamps) < 4 and any(4 <= time < 7 for time in timestamps) and max(timestamps) >= 7:
        past = item_tokenizer(before(interactions, 4), max_length=4)
        splits.append(split_at_time(interactions, past, validation_time=4, test_time=7))
        late = [finding for finding in audit(splits[1]) if "older than a training interaction" in finding.what]
        assert not any(len(finding.rows) for finding in late)
    for histories in splits:
        for finding in audit(histories):
            assert not (finding.leak and len(finding.rows)), finding


def test_histories_that_cannot_be_audited_are_refused():
    with pytest.raises(
        ValueError, match=r"the split `train`, and optionally `validation` and `test`, found train, test, val\."
    ):
        audit(DatasetDict(CLEAN, val=CLEAN["test"]))
    with pytest.raises(ValueError, match=r"Expected a DatasetDict with the split `train`.*, found Dataset\."):
        audit(CLEAN["test"])
    for column, values in {"labels": [[-100, -100, C], None], "timestamps": [[1, 2, 3], []]}.items():
        nothing = CLEAN["test"].remove_columns(column).add_column(column, values)
        with pytest.raises(ValueError, match=rf"test: row 1 \(from 0\) has no {column}\. Add {column} to every row"):
            audit(DatasetDict(CLEAN, test=nothing))
    with pytest.raises(ValueError, match=r"Expected a DatasetDict with the split `train`.*, found test\."):
        audit(DatasetDict(test=CLEAN["test"]))
    with pytest.raises(
        ValueError,
        match=r"^Expected a Dataset with user, input_ids, .* Add the missing columns to the split 'train'\.$",
    ):
        audit(DatasetDict(CLEAN, train=CLEAN["train"].remove_columns("timestamps")))
