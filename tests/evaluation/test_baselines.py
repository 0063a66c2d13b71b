"""The baselines on tables small enough to count by hand."""

import sys

import numpy as np
import psutil
import pytest
import torch
from datasets import Dataset, DatasetDict, Sequence, Value

from hf_bert4rec import MarkovChain, Popularity
from hf_bert4rec.evaluation.baselines import BASELINES, Als, BprMf, DataCollatorWithUsers, Ease, ItemNeighbors, OwnItems

VOCAB = 8
MASK, UNK = 1, 2
A, B, C, D, E = 3, 4, 5, 6, 7


@pytest.fixture
def train() -> Dataset:
    """Actions: a 4, b 3, c 2, d 1, e none. Steps: a→b twice, b→a, b→c, c→a, a→a."""
    return Dataset.from_dict({"user": list("wxyz"), "input_ids": [[A, B, C], [B, A, A], [C, A, B], [D]]})


@pytest.fixture
def people() -> Dataset:
    """Four whole histories; a is had by 3, b by 3, c by 2, d by 1."""
    return Dataset.from_dict({"user": list("wxyz"), "input_ids": [[A, B, C], [B, A, A], [C, A], [D, B]]})


def query(*histories: list[int], users: list[int] | None = None) -> dict[str, torch.Tensor]:
    """Histories as the evaluation split has them: [MASK] after the newest item, padding on the right."""
    longest = max(map(len, histories)) + 1
    rows = [[*history, MASK] + [0] * (longest - 1 - len(history)) for history in histories]
    input_ids = torch.tensor(rows)
    had = torch.where(input_ids > UNK, input_ids, -100)
    mask = (input_ids != 0).long()
    users = torch.tensor(users or [-1] * len(histories))
    return {"input_ids": input_ids, "attention_mask": mask, "history": had, "users": users}


def labeled(targets: list[int], *histories: list[int]) -> dict[str, torch.Tensor]:
    batch = query(*histories)
    labels = torch.full_like(batch["input_ids"], -100)
    labels[batch["input_ids"] == MASK] = torch.tensor(targets)
    return {**batch, "labels": labels}


def test_popularity_scores_are_the_counts(train):
    scores = Popularity(train, VOCAB).scores(query([A], [E, D], []))
    assert scores.tolist() == [[0, 0, 0, 4, 3, 2, 1, 0]] * 3


def test_the_markov_chain_scores_what_followed_the_last_item_then_popularity(train):
    scores = MarkovChain(train, VOCAB).scores(query([C, B], [B, A]))
    #                      a                      b                      c             d            e
    after_b = [0, 0, 0, 1 + 0.9 * 4 / 4, 0 + 0.9 * 3 / 4, 1 + 0.9 * 2 / 4, 0.9 * 1 / 4, 0]
    after_a = [0, 0, 0, 1 + 0.9 * 4 / 4, 2 + 0.9 * 3 / 4, 0 + 0.9 * 2 / 4, 0.9 * 1 / 4, 0]
    torch.testing.assert_close(scores, torch.tensor([after_b, after_a]))


def test_the_order_of_the_markov_chain_is_counted_by_hand(train):
    scores = MarkovChain(train, VOCAB).scores(query([B], [A], [C], [D], [E]))
    orders = scores[:, 3:].argsort(dim=1, descending=True, stable=True).add(3).tolist()
    assert orders == [[A, C, B, D, E], [B, A, C, D, E], [A, B, C, D, E], [A, B, C, D, E], [A, B, C, D, E]]


@pytest.mark.parametrize("kind", ["int8", "uint16", "uint32", "int64"])
def test_training_rows_may_have_integers_of_any_size(train, kind):
    small = train.cast_column("input_ids", Sequence(Value(kind)))
    for baseline in (Popularity, MarkovChain, OwnItems):
        batch = query([A], [])
        assert torch.equal(*(baseline(rows, VOCAB)(**batch).logits for rows in (train, small)))


def test_own_items_are_scored_by_their_number_then_by_popularity(train):
    scores = OwnItems(train, VOCAB).scores(query([D, C, D], [UNK]))
    #             a    b          c              d              e
    counted = [0, 0, 0, 0.9, 0.9 * 3 / 4, 1 + 0.9 * 2 / 4, 2 + 0.9 * 1 / 4, 0]
    nothing = [0, 0, 0, 0.9, 0.9 * 3 / 4, 0.9 * 2 / 4, 0.9 * 1 / 4, 0]
    torch.testing.assert_close(scores, torch.tensor([counted, nothing]))


@pytest.mark.parametrize("history", [[], [D], [E], [UNK]])
def test_without_transitions_the_markov_chain_falls_back_on_popularity(train, history):
    chain, popularity = MarkovChain(train, VOCAB), Popularity(train, VOCAB)
    torch.testing.assert_close(chain.scores(query(history)), 0.9 / 4 * popularity.scores(query(history)))


def test_padding_does_not_hide_the_last_item(train):
    chain = MarkovChain(train, VOCAB)
    together = chain.scores(query([A], [C, C, B], []))
    for row, history in enumerate([[A], [C, C, B], []]):
        assert torch.equal(together[row], chain.scores(query(history))[0])


def test_one_observed_step_outweighs_any_popularity():
    train = Dataset.from_dict({"user": ["u", "v"], "input_ids": [[A] * 50, [B, C]]})
    scores = MarkovChain(train, VOCAB).scores(query([B]))
    assert scores[0, 3:].argmax() == C - 3


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_returns_the_output_of_a_model(people, name):
    baseline = BASELINES[name](people, VOCAB)
    batch = labeled([A, C], [B, A], [B])
    outputs = baseline(**batch)
    assert outputs.logits.shape == (2, 1, VOCAB)
    assert outputs.logits.isfinite().all()
    excluded = batch["history"] if name != "own_items" else batch["history"][:, :0]  # these are what it recommends
    assert torch.equal(outputs.ranking["history"], excluded)
    assert outputs.loss.isnan()


@pytest.mark.parametrize("name", BASELINES)
def test_a_score_does_not_depend_on_the_others_in_the_batch(people, name):
    baseline = BASELINES[name](people, VOCAB)
    histories = [[A], [C, C, B], [B, D]]
    together = baseline.scores(query(*histories))
    for row, history in enumerate(histories):
        torch.testing.assert_close(together[row], baseline.scores(query(history))[0])


def test_popularity_counts_the_most_recent_interactions_only():
    columns = {"user": ["u", "v"], "input_ids": [[A, B], [A, C, C]]}
    train = Dataset.from_dict({**columns, "timestamps": [[1, 9], [2, 8, 10]]})
    assert Popularity(train, VOCAB, recent_share=0.6).counts.tolist() == [0, 0, 0, 0, 1, 2, 0, 0]
    with pytest.raises(ValueError, match="`recent_share` below 1 needs timestamps"):
        Popularity(Dataset.from_dict({**columns, "timestamps": [[0, 1], [2, 3, 4]]}), VOCAB, recent_share=0.6)
    with pytest.raises(ValueError, match="`recent_share` must be above 0 and at most 1, found 0"):
        Popularity(train, VOCAB, recent_share=0)


def test_ease_is_the_closed_form_written_out(people):
    sets = np.zeros((4, VOCAB))
    for user, history in enumerate(people["input_ids"]):
        sets[user, history] = 1
    inverse = np.linalg.inv(sets.T @ sets + 2 * np.eye(VOCAB))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    expected = np.array([weights[A] + weights[C], weights[D]])
    scores = Ease(people, VOCAB, regularization=2).scores(query([A, C, A], [D]))
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_the_memory_of_ease_is_that_of_three_matrices(people, monkeypatch):
    needed = 3 * 4 * VOCAB**2
    for free, fits in ((needed + 1, True), (needed - 1, False)):
        memory = psutil.virtual_memory()._replace(available=free)
        monkeypatch.setattr(psutil, "virtual_memory", lambda memory=memory: memory)
        if fits:
            Ease(people, VOCAB)
        else:
            with pytest.raises(MemoryError):
                Ease(people, VOCAB)


def test_ease_on_a_catalog_that_does_not_fit_raises():
    train = Dataset.from_dict({"user": ["u"], "input_ids": [[A]]})
    with pytest.raises(MemoryError, match=r"EASE needs 1200000\.0 GB .* or use the baseline `item_neighbors`"):
        Ease(train, 10_000_000)
    with pytest.raises(ValueError, match="`regularization` must be above 0, found 0"):
        Ease(train, VOCAB, regularization=0)


def test_cosine_neighbors_are_counted_by_hand(people):
    """a is had by 3, b by 3, c by 2, d by 1; a and b together by 2, a and c by 2, b and c by 1."""
    scores = ItemNeighbors(people, VOCAB).scores(query([C], [A, B]))
    of_c = {A: 2 / 6**0.5, B: 1 / 6**0.5, C: 1, D: 0}
    of_a_and_b = {A: 1 + 2 / 3, B: 1 + 2 / 3, C: 3 / 6**0.5, D: 1 / 3**0.5}
    for row, expected in enumerate((of_c, of_a_and_b)):
        assert {item: scores[row, item].item() for item in expected} == pytest.approx(expected, abs=1e-6)


def test_only_the_nearest_neighbors_of_an_item_count(people):
    scores = ItemNeighbors(people, VOCAB, neighbors=1).scores(query([A], [B, C]))
    assert scores.tolist() == [[0, 0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 0, 0]]


def test_bm25_is_written_out(people):
    """Robertson and Walker's weights, K1 1.2 and B .75 as `implicit` sets them: items are documents, people terms."""
    sets = np.zeros((VOCAB, 4))
    for user, history in enumerate(people["input_ids"]):
        sets[history, user] = 1
    lengths = sets.sum(axis=1, keepdims=True)
    rarity = np.log(VOCAB) - np.log1p(sets.sum(axis=0))
    norm = (1 - 0.75) + 0.75 * lengths / lengths.mean()
    weights = sets * 2.2 / (1.2 * norm + sets) * rarity
    similarity = weights @ weights.T
    scores = ItemNeighbors(people, VOCAB, weighting="bm25").scores(query([C], [A, B]))
    np.testing.assert_allclose(scores, [similarity[C], similarity[A] + similarity[B]], rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ItemNeighbors, {"neighbors": 0}),
        (ItemNeighbors, {"neighbors": 2.5}),
        (Als, {"factors": 0}),
        (Als, {"iterations": -3}),
        (BprMf, {"factors": -1}),
        (BprMf, {"iterations": 0}),
    ],
)
def test_options_out_of_range_raise(people, kind, options):
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=f"`{name}` must be a whole number of at least 1, found {value}"):
        kind(people, VOCAB, **options)


@pytest.mark.parametrize("name", sorted(set(BASELINES) - {"bpr_mf"}))
def test_users_without_history_get_the_popular_items(people, name):
    scores = BASELINES[name](people, VOCAB).scores(query([A], [], [UNK]))
    popular = Popularity(people, VOCAB).scores(query([], []))
    for row in (1, 2):
        torch.testing.assert_close(scores[row].argsort(stable=True), popular[0].argsort(stable=True))


def test_als_solves_for_a_new_user(people):
    """x = (Yᵀ Y + Yᵀ (C − 1) Y + λ)⁻¹ Yᵀ C p (Hu et al., equation 4), C being `alpha` for what the user has."""
    als = Als(people, VOCAB, factors=3, alpha=5.0, regularization=0.2)
    factors = als.model.item_factors.astype(float)
    has = np.zeros(VOCAB)
    has[[A, C]] = 1
    confidence = np.where(has, 5.0, 1.0)
    left = factors.T @ (confidence[:, None] * factors) + 0.2 * np.eye(3)
    user = np.linalg.solve(left, factors.T @ (confidence * has))
    np.testing.assert_allclose(als.scores(query([A, C]))[0], factors @ user, atol=1e-4)


@pytest.fixture
def single_thread():
    """Several threads of `implicit` update the factors of BPR-MF in an order that changes from run to run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", [Als, BprMf])
def test_with_one_thread_the_seed_determines_the_factors(kind, single_thread):
    one, same, other = (kind(two_groups(), VOCAB, factors=3, iterations=1, seed=seed) for seed in (1, 1, 2))
    scores = [model.scores(query([A], [D], users=[0, 31])) for model in (one, same, other)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.allclose(scores[0], scores[2])


def test_bpr_scores_each_user_by_the_own_factors():
    bpr = BprMf(two_groups(), VOCAB, factors=4)
    scores = bpr.scores(query([A], [B], [D], users=[1, 2, 59]))
    torch.testing.assert_close(scores, bpr.user_factors[[1, 2, 59]] @ bpr.item_factors.T)


def test_an_unknown_weighting_raises_with_the_known_ones(people):
    with pytest.raises(ValueError, match="`weighting` must be cosine or bm25, found 'tfidf'"):
        ItemNeighbors(people, VOCAB, weighting="tfidf")


def two_groups() -> Dataset:
    """Thirty people who have some of a, b and c, and thirty who have some of d and e."""
    histories = [[A, B], [B, C], [C, A]] * 10 + [[D], [E], [D, E]] * 10
    return Dataset.from_dict({"user": [f"u{number}" for number in range(60)], "input_ids": histories})


def test_factors_recommend_the_items_of_similar_users():
    train = two_groups()
    als = Als(train, VOCAB, factors=2)
    bpr = BprMf(train, VOCAB, factors=4, iterations=200)
    users = [bpr.users["u0"], bpr.users["u30"]]
    for model in (als, bpr):
        of_first, of_second = model.scores(query([A, B], [D], users=users))
        assert of_first[C] > of_first[[D, E]].max()
        assert of_second[E] > of_second[[A, B, C]].max()


def test_the_collator_adds_the_numbers_of_the_users(tokenizer):
    collator = DataCollatorWithUsers(tokenizer, {"u1": 0, "u2": 1})
    rows = [{"user": user, "input_ids": [A, MASK], "labels": [-100, B], "history": [A]} for user in ("u2", "new", "u1")]
    batch = collator(rows)
    assert batch["users"].tolist() == [1, -1, 0]
    assert batch["labels"].tolist() == [[-100, B]] * 3


def test_the_collator_names_the_option_that_removes_the_users(tokenizer):
    rows = [{"input_ids": [A, MASK], "labels": [-100, B], "history": [A]}]
    with pytest.raises(ValueError, match=r"needs the column `user`\. Pass `remove_unused_columns=False` to the"):
        DataCollatorWithUsers(tokenizer, {"u1": 0})(rows)


def test_bpr_without_users_raises():
    bpr, batch = BprMf(two_groups(), VOCAB, factors=4), labeled([B], [A])
    with pytest.raises(ValueError, match=r"`DataCollatorWithUsers\(tokenizer, model\.users\)`"):
        bpr(**{name: value for name, value in batch.items() if name != "users"})


def test_an_unknown_user_of_bpr_has_the_mean_factors():
    bpr = BprMf(two_groups(), VOCAB, factors=4)
    scores = bpr.scores(query([A], users=[-1]))
    torch.testing.assert_close(scores[0], bpr.item_factors @ bpr.user_factors.mean(dim=0))


@pytest.mark.parametrize("name", BASELINES)
def test_windows_instead_of_whole_histories_raise(name):
    train = Dataset.from_dict({"user": ["u", "u"], "input_ids": [[A], [B]]})
    with pytest.raises(ValueError, match="one row per user"):
        BASELINES[name](train, VOCAB)


@pytest.mark.parametrize("name", BASELINES)
def test_rows_without_items_and_a_wrong_vocab_size_raise(people, name):
    with pytest.raises(ValueError, match=r"^Expected training rows with items, found none\.$"):
        BASELINES[name](people.select([]), VOCAB)
    last = max(map(max, people["input_ids"][:]))
    with pytest.raises(ValueError, match=rf"found {last}, but the training rows have the token ID {last}\.$"):
        BASELINES[name](people, last)


def test_without_implicit_the_error_names_the_install_command(monkeypatch, people):
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-bert4rec\[baselines\]'"):
        Als(people, VOCAB)


def test_a_damaged_implicit_keeps_its_own_error(monkeypatch, people):
    def fail(name):
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr("hf_bert4rec.evaluation.baselines.import_module", fail)
    with pytest.raises(ImportError, match=r"^libgomp"):
        Als(people, VOCAB)


@pytest.mark.parametrize("kind", [Popularity, MarkovChain])
def test_histories_of_equal_length_are_counted_alike(kind):
    even = Dataset.from_dict({"user": list("xyz"), "input_ids": [[A, B], [B, C], [A, C]]})
    uneven = Dataset.from_dict({"user": list("wxyz"), "input_ids": [[A, B], [B, C], [A, C], [D]]})
    one, other = (kind(train, VOCAB).scores(query([A], [B])) for train in (even, uneven))
    torch.testing.assert_close(one[:, [A, B, C, E]], other[:, [A, B, C, E]])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; the meta device has no values")
def test_the_output_is_on_the_device_of_the_inputs(people):
    batch = {name: values.cuda() for name, values in labeled([A], [B]).items()}
    outputs = Popularity(people, VOCAB)(**batch)
    assert {outputs.loss.device.type, outputs.logits.device.type, outputs.ranking["history"].device.type} == {"cuda"}


def test_without_exclusion_nothing_is_excluded_and_no_history_is_needed(people):
    baseline = Ease(people, VOCAB)
    batch = labeled([A], [B, C])
    expected = baseline(**batch).logits
    del batch["history"]
    assert baseline(**batch).ranking is None
    baseline.exclude_history = False
    outputs = baseline(**batch)
    assert outputs.ranking["history"].shape == (1, 0)
    assert torch.equal(outputs.logits, expected)


def test_several_splits_are_refused_with_the_split_to_pass(people):
    with pytest.raises(ValueError, match=r"user and input_ids, found DatasetDict\. .* such as `data\['train'\]`\.$"):
        Popularity(DatasetDict(train=people), VOCAB)
