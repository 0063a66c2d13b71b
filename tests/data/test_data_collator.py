"""Cloze masking: how many, which, the same wherever they are drawn; and plain padding of rows with labels."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from hf_bert4rec import DataCollatorForCloze, item_tokenizer
from hf_bert4rec.data.data_collator import DataCollatorForNextItem

PAD, MASK, FIRST_ITEM = 0, 1, 3
TOKENIZER = item_tokenizer([str(item) for item in range(50)], max_length=50)

lengths = st.lists(st.integers(1, 50), min_size=1, max_size=20)
shares = st.floats(0.01, 0.99)
seeds = st.integers(0, 2**32)


def collator(**settings) -> DataCollatorForCloze:
    return DataCollatorForCloze(TOKENIZER, **{"last_item_probability": 0.0, "epoch": 0, **settings})


def rows_of(lengths: list[int], first_row: int = 0) -> list[dict]:
    """Row i is the items 3, 4, 5 … so that the item says the position."""
    return [
        {"input_ids": list(range(FIRST_ITEM, FIRST_ITEM + length)), "row": row}
        for row, length in enumerate(lengths, first_row)
    ]


def masked_positions(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    return [(labels != -100).nonzero()[:, 0].tolist() for labels in batch["labels"]]


@given(lengths, shares, seeds)
def test_the_number_of_masks_is_the_rounded_share_and_one_item_stays_visible(lengths, share, seed):
    counts = [len(masked) for masked in masked_positions(collator(mask_probability=share, seed=seed)(rows_of(lengths)))]
    assert counts == [1 if n == 1 else min(n - 1, max(1, round(share * n))) for n in lengths]


@pytest.mark.parametrize(
    ("length", "share", "count"),
    [(1, 0.2, 1), (2, 0.2, 1), (2, 0.99, 1), (3, 0.2, 1), (7, 0.2, 1), (8, 0.2, 2), (50, 0.2, 10), (50, 0.99, 49)],
)
def test_masks_are_counted_as_in_the_paper(length, share, count):
    (masked,) = masked_positions(collator(mask_probability=share)(rows_of([length])))
    assert len(masked) == count


@given(lengths, shares, st.floats(0, 1), seeds)
def test_labels_carry_the_items_that_were_masked_and_nothing_else_changes(lengths, share, last_share, seed):
    rows = rows_of(lengths)
    batch = collator(mask_probability=share, last_item_probability=last_share, seed=seed)(rows)
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        "input_ids": torch.int64, "attention_mask": torch.int64, "labels": torch.int64
    }  # fmt: skip
    for i, length in enumerate(lengths):
        ids, labels, real = (batch[name][i].tolist() for name in ("input_ids", "labels", "attention_mask"))
        assert real == [1] * length + [0] * (max(lengths) - length)
        assert ids[length:] == [PAD] * (max(lengths) - length)
        assert labels[length:] == [-100] * (max(lengths) - length)
        for shown, label, item in zip(ids[:length], labels[:length], rows[i]["input_ids"], strict=True):
            assert (shown, label) in {(MASK, item), (item, -100)}


@given(lengths, shares, st.integers(1, 6), seeds)
def test_max_predictions_caps_the_number_of_masks(lengths, share, most, seed):
    masked = masked_positions(collator(mask_probability=share, max_predictions=most, seed=seed)(rows_of(lengths)))
    uncapped = masked_positions(collator(mask_probability=share, seed=seed)(rows_of(lengths)))
    assert list(map(len, masked)) == [min(most, len(positions)) for positions in uncapped]


@given(lengths, shares, seeds)
def test_certain_last_item_masks_the_last_item_alone(lengths, share, seed):
    batch = collator(mask_probability=share, last_item_probability=1.0, seed=seed)(rows_of(lengths))
    assert masked_positions(batch) == [[length - 1] for length in lengths]


def test_last_item_only_is_one_row_in_eleven():
    batch = DataCollatorForCloze(TOKENIZER, mask_probability=0.5, epoch=0)(rows_of([20] * 11_000))
    last_only = [masked for masked in masked_positions(batch) if masked == [19]]
    assert all(len(masked) in (1, 10) for masked in masked_positions(batch))
    assert len(last_only) == pytest.approx(1000, abs=90)  # three standard deviations


def test_no_row_is_last_item_only_where_the_share_is_zero():
    assert all(len(masked) == 10 for masked in masked_positions(collator(mask_probability=0.5)(rows_of([20] * 2000))))


def test_another_seed_epoch_or_row_masks_other_positions():
    rows = rows_of([40] * 30)
    drawn = masked_positions(collator(mask_probability=0.5)(rows))
    assert len({tuple(masked) for masked in drawn}) == 30
    for other in (collator(mask_probability=0.5, seed=1), collator(mask_probability=0.5, epoch=1)):
        assert all(one != two for one, two in zip(drawn, masked_positions(other(rows)), strict=True))


def test_seed_epoch_and_row_are_not_interchangeable():
    draws = [
        tuple(masked_positions(collator(mask_probability=0.5, seed=seed, epoch=epoch)(rows_of([40], first_row=row)))[0])
        for seed in range(4)
        for epoch in range(4)
        for row in range(4)
    ]
    assert len(set(draws)) == 64


def test_last_item_only_rows_change_with_the_epoch():
    drawn = []
    for epoch in range(2):
        batch = collator(mask_probability=0.5, last_item_probability=0.5, epoch=epoch)(rows_of([20] * 400))
        drawn.append([masked == [19] for masked in masked_positions(batch)])
    both = sum(one and other for one, other in zip(*drawn, strict=True))
    assert both == pytest.approx(100, abs=30)  # a half of a half


@given(
    st.lists(st.integers(1, 50), min_size=2, max_size=20), shares, st.floats(0, 1), seeds, st.integers(0, 50), st.data()
)
def test_masks_do_not_depend_on_who_shares_the_batch(lengths, share, last_share, seed, epoch, data):
    draw = collator(mask_probability=share, last_item_probability=last_share, seed=seed, epoch=epoch)
    rows = rows_of(lengths)
    together = masked_positions(draw(rows))
    assert [masked_positions(draw([row]))[0] for row in rows] == together
    order = data.draw(st.permutations(range(len(rows))))
    assert masked_positions(draw([rows[i] for i in order])) == [together[i] for i in order]


def test_all_positions_are_masked_about_equally_often():
    counts = np.zeros(10)
    for epoch in range(50):
        batch = collator(mask_probability=0.3, epoch=epoch)(rows_of([10] * 100))
        counts += (batch["labels"] != -100).sum(dim=0).numpy()
    assert counts.sum() == 50 * 100 * 3
    assert np.abs(counts - 1500).max() < 4 * np.sqrt(5000 * 0.3 * 0.7)  # four standard deviations


def test_every_pair_of_positions_is_masked_together_about_equally_often():
    batch = collator(mask_probability=0.4)(rows_of([5] * 10_000))
    masked = (batch["labels"] != -100).double()
    together = (masked.T @ masked)[~torch.eye(5, dtype=torch.bool)]
    assert (together - 1000).abs().max() < 4 * (10_000 * 0.1 * 0.9) ** 0.5  # two of five: ten pairs


def test_rows_with_labels_are_only_padded():
    batch = DataCollatorForCloze(TOKENIZER, last_item_probability=1.0)(
        [
            {"input_ids": [3, 4, 1], "labels": [-100, -100, 5], "history": [9, 8, 3, 4], "row": 0},
            {"input_ids": [6, 1], "labels": [-100, 7], "history": [6], "row": 1},
        ]
    )
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[3, 4, 1], [6, 1, 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[-100, -100, 5], [-100, 7, -100]],
        "history": [[9, 8, 3, 4], [6, -100, -100, -100]],
    }


def test_an_empty_history_is_all_padding():
    batch = DataCollatorForCloze(TOKENIZER)([{"input_ids": [1], "labels": [5], "history": []}])
    assert batch["history"].shape == (1, 0)
    assert batch["labels"].tolist() == [[5]]


def test_training_rows_need_their_number():
    advice = r"`remove_unused_columns=False`.*dataset\.add_column\('row', range\(len\(dataset\)\)\)"
    with pytest.raises(ValueError, match=rf"need a column `row`.*{advice}"):
        collator()([{"input_ids": [3, 4]}])


def test_the_share_of_scored_positions_is_that_of_the_row_with_most_labels():
    shares = [collator(mask_probability=0.3, last_item_probability=last).scored_share for last in (0, 0.5, 1)]
    assert shares == [0.3, 0.3, 1 / TOKENIZER.model_max_length]
    assert collator(last_item_probability=0.5, max_predictions=1).scored_share == 1 / TOKENIZER.model_max_length


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"mask_probability": 0.0}, "`mask_probability` must be above 0 and below 1, found 0.0"),
        ({"mask_probability": 1.0}, "`mask_probability` must be above 0 and below 1, found 1.0"),
        ({"mask_probability": float("nan")}, "found nan"),
        ({"last_item_probability": -0.1}, "`last_item_probability` must be from 0 to 1, found -0.1"),
        ({"last_item_probability": 1.1}, "`last_item_probability` must be from 0 to 1, found 1.1"),
        ({"seed": -1}, r"`seed` must be from 0 to 2\^63 - 1, or None, found -1"),
        ({"seed": "7"}, r"`seed` must be from 0 to 2\^63 - 1, or None, found '7'"),
        ({"max_predictions": 0}, "`max_predictions` must be a whole number of at least 1, or None, found 0"),
        ({"max_predictions": 1.5}, "`max_predictions` must be a whole number of at least 1, or None, found 1.5"),
    ],
)
def test_shares_out_of_range_are_refused(settings, found):
    with pytest.raises(ValueError, match=found):
        collator(**settings)


@pytest.mark.parametrize("form", [None, "numpy", "torch"])
def test_the_format_of_the_dataset_does_not_matter(form):
    rows = rows_of([4, 9, 1])
    expected = collator()(rows)
    batch = collator()(list(Dataset.from_list(rows).with_format(form)))
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor), name


def test_workers_of_a_data_loader_change_nothing():
    rows = rows_of([3, 8, 1, 20, 5, 9, 30])
    by_workers = [
        list(DataLoader(rows, batch_size=3, collate_fn=collator(seed=4), num_workers=workers)) for workers in (0, 2)
    ]
    assert len(by_workers[0]) == 3
    for one, two in zip(*by_workers, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


def loop(workers: int, seed: int) -> list[list[list[int]]]:
    """Masked positions of each epoch of a loop without the Trainer."""
    torch.manual_seed(seed)
    rows = [{"input_ids": row["input_ids"]} for row in rows_of([40] * 6)]
    collate = DataCollatorForCloze(TOKENIZER, last_item_probability=0)
    loader = DataLoader(rows, batch_size=3, collate_fn=collate, num_workers=workers)
    return [[masked for batch in loader for masked in masked_positions(batch)] for _ in range(2)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loop_without_the_trainer_gets_fresh_masks_in_every_epoch(workers):
    first, second = loop(workers, seed=0)
    assert len({tuple(masked) for masked in first + second}) == 12
    assert loop(workers, seed=0) == [first, second]
    assert loop(workers, seed=1)[0] != first


def test_a_set_epoch_repeats_its_masks():
    first, second = (masked_positions(collator(epoch=3)(rows_of([40] * 6))) for _ in range(2))
    assert first == second


def test_rows_with_and_without_labels_may_share_a_batch():
    evaluated = {"input_ids": [3, 4, 1], "labels": [-100, -100, 5], "history": [9, 3, 4], "candidates": [6, 7]}
    training = {"input_ids": [5, 6, 7, 8, 9], "labels": None, "history": None, "row": 0}
    alone = {name: tensor.tolist()[0] for name, tensor in collator()([training]).items()}
    for rows, place in (([evaluated, training], 0), ([training, evaluated], 1)):
        batch = {name: tensor.tolist() for name, tensor in collator()(rows).items()}
        assert batch["input_ids"][place] == [3, 4, 1, 0, 0]
        assert batch["labels"][place] == [-100, -100, 5, -100, -100]
        assert {name: batch[name][1 - place] for name in alone} == alone
        assert (batch["history"][place], batch["history"][1 - place]) == ([9, 3, 4], [-100, -100, -100])
        assert (batch["candidates"][place], batch["candidates"][1 - place]) == ([6, 7], [-100, -100])


@pytest.mark.parametrize("column", ["history", "candidates"])
def test_a_column_of_some_evaluated_rows_only_is_refused(column):
    rows = [{"input_ids": [1], "labels": [5], column: [6]}, {"input_ids": [1], "labels": [5], column: None}]
    with pytest.raises(ValueError, match=f"Evaluated rows without `{column}`: 1 of 2"):
        collator()(rows)


@pytest.mark.parametrize("labels", [[5], [-100, -100, 5]])
def test_labels_that_do_not_match_the_inputs_are_refused(labels):
    with pytest.raises(ValueError, match="Give each of the `input_ids` one label"):
        collator()([{"input_ids": [3, 1], "labels": labels}])


def test_special_rows_are_no_labels():
    rows = [{"input_ids": [2, 4, 2, 5], "row": 0}]
    cloze = DataCollatorForCloze(TOKENIZER, mask_probability=0.99)  # all but one
    drawn = [cloze([{**rows[0], "row": row}])["labels"][0].tolist() for row in range(30)]
    assert {label for labels in drawn for label in labels} == {-100, 4, 5}
    assert DataCollatorForNextItem(TOKENIZER)(rows)["labels"].tolist() == [[-100, 4, -100, 5]]


@pytest.mark.parametrize("make", [DataCollatorForCloze, DataCollatorForNextItem])
@pytest.mark.parametrize("lengths", [[0], [3, 0, 2]])
def test_training_rows_without_items_are_refused(make, lengths):
    with pytest.raises(ValueError, match="an item in each training row, found empty `input_ids`"):
        make(TOKENIZER)(rows_of(lengths))
