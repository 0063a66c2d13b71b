"""Candidates of sampled metrics: which items are drawn, and how often."""

import numpy as np
import pytest

from hf_bert4rec import leave_one_out, popularity_candidates, uniform_candidates
from tests.data.logs import log_of

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


def test_uniform_candidates_are_any_other_items_of_the_catalog_as_likely(tokenizer):
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
    with pytest.raises(ValueError, match=rf"must be a whole number of at least 1 .*, found {number}"):
        popularity_candidates(leave_one_out(interactions, tokenizer)["test"], COUNTS, number=number)


def test_training_rows_have_no_candidates(interactions, tokenizer):
    with pytest.raises(ValueError, match="found training rows"):
        popularity_candidates(leave_one_out(interactions, tokenizer)["train"], COUNTS, number=1)


def test_more_candidates_than_items_left_are_refused(interactions, tokenizer):
    test = leave_one_out(interactions, tokenizer)["test"]
    with pytest.raises(ValueError, match=r"`number` .* is 6, but only 5 items are new to the user u1\."):
        popularity_candidates(test, COUNTS, number=6)
    with pytest.raises(
        ValueError, match=r"Expected `len\(tokenizer\)` as `vocab_size`, .* found 3, but .* the token ID"
    ):
        uniform_candidates(test, 3, number=1)


@pytest.mark.parametrize("counts", [np.full(13, 0.5), np.full(13, np.nan), np.arange(13) - 5])
def test_counts_that_are_not_integers_from_0_on_are_refused(interactions, tokenizer, counts):
    with pytest.raises(ValueError, match="`counts` must be integers of at least 0"):
        popularity_candidates(leave_one_out(interactions, tokenizer)["test"], counts, number=1)


def test_a_second_draw_replaces_the_first(interactions, tokenizer):
    test = leave_one_out(interactions, tokenizer)["test"]
    once, twice = popularity_candidates(test, COUNTS, number=4), uniform_candidates(test, 13, number=2)
    assert uniform_candidates(once, 13, number=2).to_list() == twice.to_list()


def test_other_tables_than_one_split_are_refused_by_name(interactions, tokenizer):
    histories = leave_one_out(interactions, tokenizer)
    with pytest.raises(ValueError, match=r"row, user, labels and history, found DatasetDict\. .*`data\['train'\]`\.$"):
        popularity_candidates(histories, COUNTS)
    with pytest.raises(ValueError, match=r"found DataFrame\. Pass a split that `leave_one_out` returns\.$"):
        uniform_candidates(histories["test"].to_pandas(), len(tokenizer))
    with pytest.raises(ValueError, match=r"^`vocab_size` must be a whole number of at least 1, found -1\.$"):
        uniform_candidates(histories["test"], -1)
    with pytest.raises(ValueError, match=r"^`seed` must be a whole number of at least 0, found -1\.$"):
        uniform_candidates(histories["test"], len(tokenizer), number=1, seed=-1)
