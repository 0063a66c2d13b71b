"""The draws, baselines and measures of scripts/bidirectional.py, scripts/cold_items.py and scripts/drift.py."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from hf_bert4rec import item_tokenizer
from tests.conftest import load_script

RANK_2, RANK_3 = 1 / math.log2(3), 1 / math.log2(4)  # NDCG@10 of a target at these ranks


@pytest.fixture(scope="module")
def bidirectional():
    return load_script("bidirectional")


@pytest.fixture(scope="module")
def cold_items():
    return load_script("cold_items")


@pytest.fixture(scope="module")
def drift():
    return load_script("drift")


def test_gaps_are_neither_first_nor_last_and_at_most_five_per_user(bidirectional):
    histories = [["a"], ["a", "b"], ["a", "b", "c"], [*"abcdefghij"]]
    gaps = bidirectional.draw_gaps(histories)
    assert [user for user, _ in gaps] == [2, 3, 3, 3, 3, 3]
    assert len(set(gaps)) == len(gaps)
    assert all(0 < place < len(histories[user]) - 1 for user, place in gaps)
    assert gaps == bidirectional.draw_gaps(histories)


def test_the_two_sided_chain_multiplies_both_transitions(bidirectional):
    # b follows a twice, c follows a once; d follows c twice, and b never.
    chain = bidirectional.TwoSidedChain([["a", "b"], ["a", "b"], ["a", "c", "d"], ["c", "d"]], [*"abcd"], 0.01)
    assert chain.rank(["a", "b", "d"], 1, two_sided=False) == 1
    assert chain.rank(["a", "b", "d"], 1, two_sided=True) == 2  # c is before d
    assert chain.rank(["a", "c", "d"], 1, two_sided=True) == 1
    assert chain.rank(["a", "unknown", "d"], 1, two_sided=True) == 4  # the number of items


def test_ties_of_the_two_sided_chain_count_half(bidirectional):
    chain = bidirectional.TwoSidedChain([["a", "b"], ["a", "c"]], [*"abc"], 1)
    assert chain.rank(["a", "b", "a"], 1, two_sided=False) == 1.5


def test_the_area_is_the_share_of_pairs_in_order(bidirectional):
    scores, labels = [np.array([3.0, 1.0]), np.array([2.0, 2.0])], [np.array([True, False]), np.array([True, False])]
    assert bidirectional.area(scores, labels) == (2 + 1.5) / 4  # 3 > 1, 3 > 2, 2 > 1, and 2 = 2 counts half
    assert bidirectional.area([-of for of in scores], labels) == 1 - 3.5 / 4


def test_means_per_user_and_places_in_lists(bidirectional):
    np.testing.assert_allclose(bidirectional.per_user(np.array([1.0, 0.0, 0.5]), np.array([0, 0, 2])), [0.5, 0.5])
    answer = [{"item": "x"}, {"item": "y"}]
    assert [bidirectional.place_of(answer, item, 9) for item in ("x", "y", "z")] == [1, 2, 9]


def test_a_tenth_of_each_band_of_popularity_is_removed(cold_items):
    items = pd.Series([f"i{number}" for number in range(100) for _ in range(200 - number)])  # i0 is the most popular
    removed = cold_items.draw_removed(items, seed=1)
    assert sorted(int(item[1:]) // 10 for item in removed) == [*range(10)]
    assert removed == cold_items.draw_removed(items, seed=1)
    assert removed != cold_items.draw_removed(items, seed=2)


def test_a_target_is_ranked_after_ties_and_among_the_candidates_only(cold_items):
    scores = torch.tensor([[0.9, 0.5, 0.5, 0.1], [0.9, 0.1, 0.5, 0.7]])
    everything, without_first = torch.arange(4), torch.tensor([1, 2, 3])
    targets = torch.tensor([1, 3])
    assert cold_items.ndcg(scores, targets, everything) == round((RANK_3 + RANK_2) / 2, 5)
    assert cold_items.ndcg(scores, targets, without_first) == round((RANK_2 + 1) / 2, 5)


def test_tables_of_features_have_the_year_as_a_number(cold_items, tmp_path):
    (movies := tmp_path / "movies.csv").write_text("movieId,title,genres\n7,Heat (1995),Crime|Drama\n8,Untitled,\n")
    table = cold_items.read_table(movies)
    assert table["item"].tolist() == [7, 8]
    assert table["title"].tolist() == ["Heat", "Untitled"]
    assert table["year"].iloc[0] == 1995
    assert math.isnan(table["year"].iloc[1])
    (attributes := tmp_path / "attributes.json").write_text('{"7": [3, 5]}')
    assert cold_items.read_table(attributes).to_dict("list") == {"item": ["7"], "attributes": [["3", "5"]]}


def test_the_generated_log_replaces_a_tenth_of_the_items_in_each_period(drift):
    log = drift.generate_log(60)
    assert not log.duplicated(["user", "item"]).any()
    periods = log["timestamp"].astype(int)
    assert sorted(periods.unique()) == [*range(drift.PERIODS)]
    for period in range(drift.PERIODS):  # items are numbered in the order of their first period
        items = log["item"][periods == period]
        assert items.max() < drift.ITEMS + period * drift.ITEMS // 10
        assert period == 0 or items.max() >= drift.ITEMS + (period - 1) * drift.ITEMS // 10
    pd.testing.assert_frame_equal(log, drift.generate_log(60))


def test_targets_are_the_first_interactions_of_the_period_with_all_before_as_history(drift):
    log = pd.DataFrame(
        {"user": [*"aaaabb"], "item": [*"uvwxuv"], "timestamp": [1, 5, 6, 7, 5, 9]}  # b begins in the period
    )
    tokenizer = item_tokenizer([*"uvwx"])

    def targets(number: int, end: float) -> list[tuple[str, list[int], list[int]]]:
        rows = drift.targets_of(log, tokenizer, 5, end, number)
        return [(row["user"], row["history"], [it for it in row["labels"] if it > 0]) for row in rows]

    u, v, w, x = range(3, 7)
    assert targets(1, 8) == [("a", [u], [v])]
    assert targets(2, 8) == [("a", [u], [v]), ("a", [u, v], [w])]
    assert targets(3, 10) == [("a", [u], [v]), ("a", [u, v], [w]), ("b", [u], [v]), ("a", [u, v, w], [x])]
