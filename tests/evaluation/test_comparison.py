"""Comparison of models: results per user, metrics of groups and statistical tests, against values counted by hand."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_bert4rec.evaluation.comparison import (
    UserResults,
    holm,
    paired_difference,
    results_of_logits,
    split_metrics,
    user_groups,
)
from hf_bert4rec.evaluation.ranking import bootstrap_interval

ROWS = 14  # of an item table of 11 items


def test_results_of_each_user_are_those_counted_by_hand():
    """Items 3 to 13 score 11 down to 1. The first user has had item 3, and the target 5 is level with 6."""
    scores = torch.zeros(2, 1, ROWS)
    scores[:, 0, 3:] = torch.arange(11, 0, -1.0)
    scores[0, 0, 6] = scores[0, 0, 5]
    labels = torch.tensor([[-100, 5], [-100, 13]])
    history, candidates = torch.tensor([[3], [-100]]), torch.tensor([[4, 6], [3, 4]])
    found = results_of_logits((scores, {"history": history, "candidates": candidates}), labels).tolist()
    assert found[0] == [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 2.5, 1, 2.5]
    assert found[1] == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 11, 0, 3]
    found = results_of_logits((scores, {"history": history[:, :0]}), labels).tolist()
    assert found[0] == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 3.5, 1]


def test_where_fewer_than_ten_items_remain_the_other_places_are_minus_one():
    history = torch.tensor([[3, 4, 5]])
    found = results_of_logits((torch.arange(ROWS * 1.0).expand(1, 1, -1), {"history": history}), torch.tensor([[6]]))
    assert found[0, :10].tolist() == [13, 12, 11, 10, 9, 8, 7, 6, -1, -1]


def test_an_unknown_target_has_no_ties():
    found = results_of_logits((torch.zeros(1, 1, ROWS), {"history": torch.tensor([[3]])}), torch.tensor([[2]]))
    assert found[0, 11] == 0


def test_a_catalog_that_is_not_larger_than_the_cutoff_raises():
    with pytest.raises(ValueError, match="Metrics at 10 need a catalog of more than 10 items, found 10"):
        results_of_logits((torch.zeros(1, 1, 13), {"history": torch.tensor([[3]])}), torch.tensor([[4]]))


def test_metrics_of_a_split_are_those_counted_by_hand():
    recommended = np.full((2, 10), -1)
    recommended[0, :2], recommended[1, 0] = (3, 4), 3
    results = UserResults(np.array([1.0, 11.0]), np.array([0, 2]), recommended, np.array([2.0, 4.0]))
    counts = np.array([0, 0, 0, 8, 2, 1, 3] + [0] * 7)
    found = split_metrics(results, np.array([3, 5]), counts)
    assert found["ndcg@10"] == 0.5
    assert found["hr@10"] == 0.5
    assert found["coverage@10"] == 2 / 11
    assert found["popularity@10"] == (8 + 2 + 8) / 3 / ((8 + 1) / 2)
    assert found["ties"] == 0.5
    assert found["mrr_popularity_sampled"] == (1 / 2 + 1 / 4) / 2


def test_unknown_targets_do_not_change_the_popularity_of_recommendations():
    results = UserResults(np.array([1.0, 12.0]), np.zeros(2, int), np.full((2, 10), 3))
    counts = np.array([0, 0, 0, 8, 2] + [0] * 9)
    assert split_metrics(results, np.array([3, 2]), counts)["popularity@10"] == 1
    assert np.isnan(split_metrics(results, np.array([2, 2]), counts)["popularity@10"])


def test_groups_of_users_are_those_counted_by_hand():
    """Of eleven items the fifth that occurs most are two: 3 and 4."""
    rows = Dataset.from_dict(
        {"labels": [[-100, 3], [-100, 5], [-100, 9], [4]], "history": [[3], [3, 4], [3, 4, 5], []]}
    )
    counts = np.array([99, 99, 99, 8, 7, 1, 1] + [0] * 7)
    found = {name: np.flatnonzero(users).tolist() for name, users in user_groups(rows, counts).items()}
    assert found == {
        "head items": [0, 3],
        "tail items": [1],
        "unseen items": [2],
        "short histories": [0, 3],
        "long histories": [1, 2],
        "new users": [3],
    }


def test_the_p_value_is_the_share_of_all_exchanges():
    """Eight users: of the 256 ways to exchange the models, those with a difference as large are counted."""
    first, second = np.array([1.0] * 8), np.array([3.0] * 7 + [1.0])
    gains = np.array([0.5] * 7 + [0.0])
    sums = [abs(np.dot(signs, gains)) for signs in product([-1, 1], repeat=8)]
    expected = np.mean(np.array(sums) >= gains.sum() - 1e-9)  # 2 / 128
    found = paired_difference(first, second)
    assert found.mean == 7 / 16
    assert found.p == pytest.approx(expected, abs=0.004)
    assert found.low < found.mean < found.high
    assert paired_difference(second, first).mean == -found.mean


def test_the_p_value_depends_on_how_far_the_models_differ():
    """Six users, six different gains: of the 64 exchanges half have a difference as large. By signs it would be .22."""
    first, second = np.array([9.0, 1, 2, 6, 7, 5]), np.array([2.0, 3, 4, 9, 10, 8])
    gains = 1 / np.log2(first + 1) - 1 / np.log2(second + 1)
    sums = [abs(np.dot(signs, gains)) for signs in product([-1, 1], repeat=6)]
    expected = np.mean(np.array(sums) >= abs(gains.sum()) - 1e-9)
    assert expected == 0.5
    assert paired_difference(first, second).p == pytest.approx(expected, abs=0.02)


def test_the_smallest_p_value_is_that_of_the_number_of_randomizations():
    assert paired_difference(np.ones(60), np.full(60, 3.0)).p == 1 / 10_001


def test_a_model_does_not_differ_from_itself():
    found = paired_difference([1.0, 5.0, 20.0], [1.0, 5.0, 20.0])
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_the_gain_of_a_user_is_the_mean_over_the_seeds_of_a_method():
    first, second = [[1.0, 3.0, 20.0], [3.0, 20.0, 1.0], [1.0, 1.0, 1.0]], [[3.0, 1.0, 1.0]]
    gains = np.array([(1 + 0.5 + 1) / 3, (0.5 + 0 + 1) / 3, (0 + 1 + 1) / 3]) - [0.5, 1, 1]
    found = paired_difference(first, second)
    assert found.mean == pytest.approx(gains.mean())
    assert found.low == pytest.approx(bootstrap_interval(gains)[0])
    assert paired_difference([second[0]] * 3, second).p == 1
    again = paired_difference(np.array(second * 2), np.array(second[0]))
    assert (again.mean, again.p) == (0, 1)
    with pytest.raises(ValueError, match="found 3 and 2 users"):
        paired_difference(first, [[1.0, 2.0]])


def test_ranks_of_different_users_raise():
    with pytest.raises(ValueError, match="same users, at least one, found 2 and 3 users"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])


@pytest.mark.parametrize("wrong", [0, math.nan])
def test_invalid_ranks_have_no_difference(wrong):
    with pytest.raises(ValueError, match=f"Expected one or more ranks of at least 1, found {float(wrong)}"):
        paired_difference([1.0, 2.0], [1.0, wrong])


def test_p_values_are_corrected_step_by_step():
    """Holm: the smallest times 3, the next times 2, the last once; never smaller than one before."""
    found = holm({("a", "b"): 0.04, ("a", "c"): 0.01, ("b", "c"): 0.035})
    assert found == pytest.approx({("a", "b"): 0.07, ("a", "c"): 0.03, ("b", "c"): 0.07})
    assert holm({("a", "b"): 0.9, ("a", "c"): 0.8})["a", "b"] == 1.0
