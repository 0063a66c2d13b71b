"""Ranks against a plain loop, metrics against hand-written tables and torchmetrics, and the module of evaluate."""

import math

import evaluate
import numpy as np
import pytest
import torch
import torchmetrics.retrieval as tm
from hypothesis import given
from hypothesis import strategies as st

from hf_bert4rec import NEXT_ITEM_METRIC, ranking_metrics, target_ranks
from hf_bert4rec.evaluation.ranking import bootstrap_interval, candidate_ranks, warn_about_few_candidates

SPECIALS, UNK = 3, 2


def rank_of(scores: list[float], target: int, history: list[int]) -> float:
    """The rank spelled out: candidates above, and half of those level, plus one."""
    candidates = set(range(SPECIALS, len(scores))) - set(history) - {target}
    if target < SPECIALS or target in history:  # never recommended
        return len(candidates) + 1
    above = sum(scores[item] > scores[target] for item in candidates)
    level = sum(scores[item] == scores[target] for item in candidates)
    return above + level / 2 + 1


@st.composite
def batches(draw):
    """Few distinct scores, so that ties are common; histories with repeats, special rows and the target."""
    rows, users = draw(st.integers(4, 12)), draw(st.integers(1, 4))
    score = st.sampled_from([-2.0, 0.0, 1.0, 2.0, 3.0])
    scores = draw(st.lists(st.lists(score, min_size=rows, max_size=rows), min_size=users, max_size=users))
    targets = draw(st.lists(st.integers(UNK, rows - 1), min_size=users, max_size=users))
    histories = draw(st.lists(st.lists(st.integers(UNK, rows - 1), max_size=8), min_size=users, max_size=users))
    return scores, targets, histories


def padded(histories: list[list[int]]) -> torch.Tensor:
    longest = max(map(len, histories))
    return torch.tensor([history + [-100] * (longest - len(history)) for history in histories], dtype=torch.int64)


@given(batches())
def test_ranks_are_those_of_a_plain_loop(batch):
    scores, targets, histories = batch
    ranks = target_ranks(torch.tensor(scores), torch.tensor(targets), padded(histories))
    assert ranks.dtype == torch.float32
    assert ranks.tolist() == [rank_of(*user) for user in zip(scores, targets, histories, strict=True)]


@given(batches())
def test_without_a_history_every_item_is_a_candidate(batch):
    scores, targets, _ = batch
    ranks = target_ranks(torch.tensor(scores), torch.tensor(targets))
    assert ranks.tolist() == [rank_of(*user, []) for user in zip(scores, targets, strict=True)]


#                       [PAD] [MASK] [UNK]  a    b    c    d    e
SCORES = torch.tensor([[9.0, 9.0, 9.0, 0.5, 0.4, 0.3, 0.3, 0.1]])


@pytest.mark.parametrize(
    ("target", "history", "rank"),
    [
        (3, [], 1),
        (4, [], 2),
        (5, [], 3.5),  # level with row 6
        (6, [], 3.5),
        (7, [], 5),
        (7, [3, 4], 3),
        (7, [3, 3, 3, 4], 3),
        (7, [7, 3], 4),  # bought again, which is not recommended
        (3, [3, 7], 4),
        (5, [6], 3),
        (5, [7], 3.5),
        (5, [0, 1, 2], 3.5),
        (2, [], 6),
        (2, [3, 4], 4),
    ],
)
def test_ranks_of_a_table(target, history, rank):
    assert target_ranks(SCORES, torch.tensor([target]), padded([history])).tolist() == [rank]


def test_a_constant_scorer_gets_the_middle():
    scores = torch.zeros(2, SPECIALS + 9)
    assert target_ranks(scores, torch.tensor([3, 11])).tolist() == [5.0, 5.0]
    assert target_ranks(scores, torch.tensor([3, 11]), torch.tensor([[4, 5], [4, -100]])).tolist() == [4.0, 4.5]


def test_scores_of_special_rows_are_ignored():
    with_infinities = SCORES.clone()
    with_infinities[:, :SPECIALS] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    assert target_ranks(with_infinities, torch.tensor([4])).tolist() == [2.0]


def test_an_unknown_target_comes_last_whatever_the_scores():
    scores = torch.tensor([[0.0, 0.0, 0.0, 1.0, -torch.inf, -torch.inf]])
    assert target_ranks(scores, torch.tensor([UNK])).tolist() == [4.0]


def test_a_score_that_is_nan_raises():
    scores = SCORES.clone()
    scores[0, 6] = torch.nan
    with pytest.raises(ValueError, match=r"found NaN\. If the training diverged, lower"):
        target_ranks(scores, torch.tensor([3]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_ranks_are_taken_in_any_precision(dtype):
    ranks = target_ranks(SCORES.to(dtype), torch.tensor([5]), torch.tensor([[3, -100]]))
    assert ranks.dtype == torch.float32
    assert ranks.tolist() == [2.5]


def test_inputs_are_left_as_they_were():
    scores, targets, history = SCORES.clone(), torch.tensor([5]), torch.tensor([[6, 3, -100]])
    target_ranks(scores, targets, history)
    assert torch.equal(scores, SCORES)
    assert targets.tolist() == [5]
    assert history.tolist() == [[6, 3, -100]]


# ---- metrics ---------------------------------------------------------------------------------------------------------

RANKS = [1, 2, 3.5, 10, 11]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hr@1", 1 / 5),
        ("hr@5", 3 / 5),
        ("hr@10", 4 / 5),
        ("ndcg@1", 1 / 5),
        ("ndcg@5", (1 + 0.63092975 + 0.46084542) / 5),
        ("ndcg@10", (1 + 0.63092975 + 0.46084542 + 0.28906483) / 5),
        ("mrr@1", 1 / 5),
        ("mrr@5", (1 + 1 / 2 + 1 / 3.5) / 5),
        ("mrr@10", (1 + 1 / 2 + 1 / 3.5 + 1 / 10) / 5),
    ],
)
def test_metrics_of_a_table(name, value):
    assert ranking_metrics(RANKS)[name] == pytest.approx(value, abs=1e-7)


def test_metrics_are_plain_floats_for_every_cutoff():
    metrics = ranking_metrics(np.array([1, 4]), k=[2, 4])
    assert list(metrics) == ["hr@2", "ndcg@2", "mrr@2", "hr@4", "ndcg@4", "mrr@4"]
    assert all(type(value) is float for value in metrics.values())
    assert metrics["hr@2"] == 0.5
    assert metrics["ndcg@4"] == pytest.approx((1 + 1 / math.log2(5)) / 2)
    assert metrics["mrr@4"] == 0.625


def test_a_tie_beyond_the_cutoff_is_not_a_hit():
    assert ranking_metrics([10.5], k=[10]) == {"hr@10": 0, "ndcg@10": 0, "mrr@10": 0}


@pytest.mark.parametrize("k", [1, 5, 10])
def test_metrics_are_those_of_torchmetrics(k):
    generator = torch.Generator().manual_seed(0)
    users, items = 60, 40
    scores = torch.stack([torch.randperm(items + SPECIALS, generator=generator) for _ in range(users)]).double()
    targets = torch.randint(SPECIALS, items + SPECIALS, (users,), generator=generator)
    ours = ranking_metrics(target_ranks(scores, targets), [k])
    relevant = torch.zeros_like(scores, dtype=torch.bool).scatter(1, targets[:, None], True)[:, SPECIALS:]
    user = torch.arange(users)[:, None].expand(-1, items)
    for name, theirs in (
        ("hr", tm.RetrievalHitRate(top_k=k)),
        ("ndcg", tm.RetrievalNormalizedDCG(top_k=k)),
        ("mrr", tm.RetrievalMRR(top_k=k)),
    ):
        value = theirs(scores[:, SPECIALS:].flatten().float(), relevant.flatten(), indexes=user.flatten()).item()
        assert 0 < value < 1
        assert ours[f"{name}@{k}"] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    ("ranks", "found"),
    [([], "no ranks"), ([3, 0.5], r"0\.5"), ([0], r"0\."), ([-1, 2], r"-1"), ([float("nan")], "nan")],
)
def test_invalid_ranks_raise(ranks, found):
    with pytest.raises(ValueError, match=f"one or more ranks of at least 1, found .*{found}"):
        ranking_metrics(ranks)


@pytest.mark.parametrize("k", [[10, 0], [], 0, None, "10", [5, "10"]])
def test_cutoffs_below_one_and_none_at_all_raise(k):
    with pytest.raises(ValueError, match="at least one cut-off, each at least 1, found"):
        ranking_metrics([1, 2], k=k)


def test_a_single_cutoff_is_accepted():
    assert ranking_metrics([1, 2], k=1) == {"hr@1": 0.5, "ndcg@1": 0.5, "mrr@1": 0.5}


# ---- evaluate --------------------------------------------------------------------------------------------------------


def test_the_module_of_evaluate_gives_the_same_metrics(tmp_path):
    metric = evaluate.load(NEXT_ITEM_METRIC, cache_dir=str(tmp_path))
    assert metric.compute(predictions=RANKS) == ranking_metrics(RANKS)
    assert metric.compute(predictions=[1, 3], k=[2]) == {"hr@2": 0.5, "ndcg@2": 0.5, "mrr@2": 0.5}


def test_the_module_of_evaluate_takes_batches(tmp_path):
    metric = evaluate.load(NEXT_ITEM_METRIC, cache_dir=str(tmp_path))
    metric.add_batch(predictions=[1, 2])
    metric.add_batch(predictions=torch.tensor([3.5, 10, 11], dtype=torch.float64))
    assert metric.compute() == ranking_metrics(RANKS)


# ---- among candidates, and intervals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "candidates", "rank"),
    [
        (3, [4, 5, 6], 1.0),  # .9 before .5, .5, .1
        (6, [3, 4, 5], 4.0),
        (4, [3, 5, 6], 2.5),  # level with 5
        (4, [5, 5, 5], 2.5),
        (4, [3, 5, -100], 2.5),  # filling is no rival
        (2, [3, 4, 5], 4.0),  # an item that the model does not know comes last
    ],
)
def test_the_rank_among_candidates_is_counted_by_hand(target, candidates, rank):
    scores = torch.tensor([[7.0, 7.0, 7.0, 0.9, 0.5, 0.5, 0.1]])
    assert candidate_ranks(scores, torch.tensor([target]), torch.tensor([candidates])).tolist() == [rank]


def test_the_bootstrap_interval_is_that_of_the_standard_error():
    gains = np.where(np.random.default_rng(1).random(4000) < 0.3, 1.0, 0.0)
    share = float(np.mean(gains))
    low, high = bootstrap_interval(gains)
    error = np.sqrt(share * (1 - share) / 4000)
    assert low == pytest.approx(share - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(share + 1.96 * error, abs=0.2 * error)
    assert bootstrap_interval(gains) == (low, high)
    assert bootstrap_interval(np.ones(5)) == (1.0, 1.0)


@pytest.mark.parametrize(("target", "history"), [(9, [3]), (3, [9])])
def test_rows_without_a_score_raise(target, history):
    with pytest.raises(ValueError, match="has the token ID 9, but the model scores 7 tokens"):
        target_ranks(torch.zeros(1, 7), torch.tensor([target]), torch.tensor([history]))


def test_one_target_for_several_users_raises():
    with pytest.raises(ValueError, match="scores, targets and history of the same users, found 3 and 1 rows"):
        target_ranks(torch.rand(3, 9), torch.tensor([4]))
    with pytest.raises(ValueError, match=r"found 3 and 3 and 1 rows\. Pass one row per user"):
        target_ranks(torch.rand(3, 9), torch.tensor([4, 4, 5]), torch.tensor([[4]]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scores": [[0.0] * 7]}, r"`scores` must be a tensor of shape \(users, vocab_size\), found list"),
        ({"scores": np.zeros((1, 7))}, r"vocab_size\), found ndarray"),
        ({"targets": torch.tensor([[3]])}, r"`targets` must be a tensor of shape \(users,\), found shape \(1, 1\)"),
        ({"history": torch.tensor([3])}, r"`history` must be a tensor of shape \(users, longest\), found shape \(1,\)"),
    ],
)
def test_arguments_of_another_kind_raise(changed, message):
    with pytest.raises(ValueError, match=message):
        target_ranks(**{"scores": torch.zeros(1, 7), "targets": torch.tensor([3]), "history": None} | changed)


def test_few_candidates_are_reported_once(caplog):
    warn_about_few_candidates.cache_clear()
    for number in (10, 9, 9):
        warn_about_few_candidates(number)
    assert caplog.messages == [
        "With 9 sampled candidates, HR@10 is always 1. Set `number` of `popularity_candidates` or `uniform_candidates` "
        "(command line: `--popularity_candidates` or `--uniform_candidates`) to at least 10."
    ]
