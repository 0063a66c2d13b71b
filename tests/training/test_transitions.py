"""Transitions: counts by hand, and the share that follows a Markov chain."""

import numpy as np
import pytest

from hf_bert4rec import Bert4RecForMaskedLM
from hf_bert4rec.training.transitions import Transitions
from tests.conftest import small_config


def test_pairs_count_once_per_user_and_not_across_rows_or_unknown_items():
    users = np.array([7, 7, 7, 7, 7, 7, 3, 3, 3, 3])
    rows_ = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 2])
    items = np.array([1, 2, 1, 2, 2, 5, 1, 2, -1, 5])
    found = Transitions.count(users, rows_, items)
    assert found.items.tolist() == [1, 2, 2]
    assert found.followers.tolist() == [2, 1, 5]
    assert found.counts.tolist() == [2, 1, 1]


def test_followers_with_the_most_users_come_first():
    users, rows_ = np.repeat(np.arange(6), 2), np.repeat(np.arange(6), 2)
    found = Transitions.count(users, rows_, np.array([4, 1, 4, 9, 4, 9, 4, 2, 4, 2, 4, 2]))
    assert list(zip(found.followers.tolist(), found.counts.tolist(), strict=True)) == [(2, 3), (9, 2), (1, 1)]


def test_no_transition_follows_a_chain_if_there_is_none():
    found = Transitions.count(np.array([1, 2]), np.array([1, 2]), np.array([1, 2]))
    assert found.mixture() == (0, 1)


@pytest.mark.parametrize(("share", "gain"), [(0.0, 1.0), (0.3, 3.0), (1.0, 1000)])
def test_the_mixture_has_the_share_of_items_that_follow_the_item_before(share, gain):
    random = np.random.default_rng(0)
    users, items = np.repeat(np.arange(40_000), 2), 1000  # so many items that other pairs hardly have two users
    firsts = random.integers(0, items, 40_000)
    seconds = np.where(random.random(40_000) < share, (firsts + 7) % items, random.integers(0, items, 40_000))
    found = Transitions.count(users, users, np.stack([firsts, seconds], axis=1).flatten())
    weight, found_gain = found.mixture()
    assert weight == pytest.approx(share, abs=0.05)
    assert found_gain == pytest.approx(gain, rel=0.1)


def test_a_head_keeps_the_followers_with_the_most_users():
    head = Bert4RecForMaskedLM(small_config(num_followers=2)).transition_head
    users = np.repeat(np.arange(6), 2)
    Transitions.count(users, users, np.array([4, 5, 4, 6, 4, 6, 4, 7, 4, 7, 4, 7])).add_to(head)
    assert (head.followers[4].tolist(), head.counts[4].tolist(), head.totals[4].item()) == ([7, 6], [3, 2], 6)
    assert not head.counts[:4].any()
    users = np.repeat(np.arange(8), 2)
    Transitions.count(users, users, np.array([4, 7] + 4 * [4, 8] + 3 * [5, 4])).add_to(head)
    assert (head.followers[4].tolist(), head.counts[4].tolist(), head.totals[4].item()) == ([7, 8], [4, 4], 11)
    assert (head.followers[5].tolist(), head.totals[5].item()) == ([4, 0], 3)
