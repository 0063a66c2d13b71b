"""Popularity and the Markov chain on tables small enough to count by hand, and their ranks and losses."""

import pytest
import torch
from datasets import Dataset

from hf_bert4rec import MarkovChain, Popularity, target_ranks

VOCAB = 8
MASK, UNK = 1, 2
A, B, C, D, E = 3, 4, 5, 6, 7


@pytest.fixture
def train() -> Dataset:
    """Actions: a 4, b 3, c 2, d 1, e none. Steps: a→b twice, b→a, b→c, c→a, a→a."""
    return Dataset.from_dict({"input_ids": [[A, B, C], [B, A, A], [C, A, B], [D]]})


def query(*histories: list[int]) -> dict[str, torch.Tensor]:
    """Histories as the evaluation split has them: [MASK] after the newest item, padding on the right."""
    longest = max(map(len, histories)) + 1
    rows = [[*history, MASK] + [0] * (longest - 1 - len(history)) for history in histories]
    input_ids = torch.tensor(rows)
    return {"input_ids": input_ids, "attention_mask": (input_ids != 0).long()}


def labelled(targets: list[int], *histories: list[int]) -> dict[str, torch.Tensor]:
    batch = query(*histories)
    labels = torch.full_like(batch["input_ids"], -100)
    labels[batch["input_ids"] == MASK] = torch.tensor(targets)
    return {**batch, "labels": labels, "history": torch.full((len(targets), 1), -100)}


def test_popularity_scores_are_the_counts(train):
    scores = Popularity(train, VOCAB).scores(**query([A], [E, D], []))
    assert scores.tolist() == [[0, 0, 0, 4, 3, 2, 1, 0]] * 3


def test_the_markov_chain_scores_what_followed_the_last_item_then_popularity(train):
    scores = MarkovChain(train, VOCAB).scores(**query([C, B], [B, A]))
    #                      a                      b                      c             d            e
    after_b = [0, 0, 0, 1 + 0.9 * 4 / 4, 0 + 0.9 * 3 / 4, 1 + 0.9 * 2 / 4, 0.9 * 1 / 4, 0]
    after_a = [0, 0, 0, 1 + 0.9 * 4 / 4, 2 + 0.9 * 3 / 4, 0 + 0.9 * 2 / 4, 0.9 * 1 / 4, 0]
    torch.testing.assert_close(scores, torch.tensor([after_b, after_a]))


def test_the_order_of_the_markov_chain_is_counted_by_hand(train):
    scores = MarkovChain(train, VOCAB).scores(**query([B], [A], [C], [D], [E]))
    orders = scores[:, 3:].argsort(dim=1, descending=True, stable=True).add(3).tolist()
    assert orders == [[A, C, B, D, E], [B, A, C, D, E], [A, B, C, D, E], [A, B, C, D, E], [A, B, C, D, E]]


@pytest.mark.parametrize("history", [[], [D], [E], [UNK]])
def test_where_nothing_followed_the_markov_chain_falls_back_on_popularity(train, history):
    chain, popularity = MarkovChain(train, VOCAB), Popularity(train, VOCAB)
    torch.testing.assert_close(chain.scores(**query(history)), 0.9 / 4 * popularity.scores(**query(history)))


def test_padding_does_not_hide_the_last_item(train):
    chain = MarkovChain(train, VOCAB)
    together = chain.scores(**query([A], [C, C, B], []))
    for row, history in enumerate([[A], [C, C, B], []]):
        assert torch.equal(together[row], chain.scores(**query(history))[0])


def test_one_observed_step_outweighs_any_popularity():
    train = Dataset.from_dict({"input_ids": [[A] * 50, [B, C]]})
    scores = MarkovChain(train, VOCAB).scores(**query([B]))
    assert scores[0, 3:].argmax() == C - 3


@pytest.mark.parametrize("kind", [Popularity, MarkovChain])
def test_logits_keep_the_order_of_the_scores_and_have_the_shape_of_a_model(train, kind):
    baseline = kind(train, VOCAB)
    batch = labelled([A, C], [B, A], [B])
    logits = baseline(**batch).logits
    scores = baseline.scores(batch["input_ids"], batch["attention_mask"])
    assert logits.shape == (2, 1, VOCAB)
    assert logits.isfinite().all()
    targets = torch.tensor([A, C])
    assert torch.equal(target_ranks(logits[:, 0], targets), target_ranks(scores, targets))


def test_the_loss_of_popularity_is_that_of_its_shares(train):
    loss = Popularity(train, VOCAB)(**labelled([A, C], [B], [B])).loss
    expected = -(torch.tensor(4 / 10).log() + torch.tensor(2 / 10).log()) / 2
    torch.testing.assert_close(loss, expected)


def test_unknown_targets_are_left_out_of_the_loss(train):
    popularity = Popularity(train, VOCAB)
    torch.testing.assert_close(popularity(**labelled([A, UNK], [B], [B])).loss, popularity(**labelled([A], [B])).loss)


def test_a_batch_of_unknown_targets_alone_has_a_finite_loss(train):
    assert Popularity(train, VOCAB)(**labelled([UNK], [B])).loss.isfinite()


@pytest.mark.parametrize("kind", [Popularity, MarkovChain])
def test_histories_of_equal_length_are_counted_alike(kind):
    even = Dataset.from_dict({"input_ids": [[A, B], [B, C], [A, C]]})
    uneven = Dataset.from_dict({"input_ids": [[A, B], [B, C], [A, C], [D]]})
    one, other = (kind(train, VOCAB).scores(**query([A], [B])) for train in (even, uneven))
    torch.testing.assert_close(one[:, [A, B, C, E]], other[:, [A, B, C, E]])
