"""Comparison of models user by user: recommendations, metrics of groups of users, and paired tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from datasets import Dataset
from transformers import Trainer

from ..data.histories import target_items
from .ranking import SPECIALS, Ranks, Sampled, bootstrap_interval, ndcg_gains, ranking_metrics, sampled_metrics
from .trainer_evaluation import TOP_K, rank_rows, results_of_logits

HEAD_SHARE = 0.2
RANDOMIZATIONS = 10_000
SMALLEST_P = 1 / (1 + RANDOMIZATIONS)  # the smallest p-value that the test can return


@dataclass
class UserResults:
    """Results of a model for each user of a split, in the order of its rows.

    Attributes:
        ranks: (users,) ranks of the targets over the catalog, from 1; each tie adds half a rank.
        ties: (users,) number of other items with the score of the target; 0 for an unknown target.
        recommended: (users, 10) token IDs of the best items, best first; -1 where fewer items are left.
        sampled_ranks: (users,) ranks among the candidates. None without candidates.
    """

    ranks: np.ndarray
    ties: np.ndarray
    recommended: np.ndarray
    sampled_ranks: np.ndarray | None = None


def evaluate_users(trainer: Trainer, rows: Dataset) -> UserResults:
    """Evaluate the model of a Trainer on a split and return the ranks and recommendations of each user.

    Raises:
        ValueError: The rows are not those of validation or test, the catalog has at most 10 items, or a score is NaN.
    """
    columns = rank_rows(trainer, rows, results_of_logits)
    ranks, ties, *sampled = columns[:, TOP_K:].T
    return UserResults(ranks, ties.astype(int), columns[:, :TOP_K].astype(int), sampled[0] if sampled else None)


def split_metrics(
    results: UserResults, targets: np.ndarray, counts: np.ndarray, sampled: Sampled = "popularity_sampled"
) -> dict[str, float]:
    """Return all metrics of a model on a split.

    - `hr@k`, `ndcg@k`, `mrr@k` (k = 1, 5, 10) over the catalog; sampled metrics such as `ndcg@10_popularity_sampled`;
    - `coverage@10`: share of the catalog that is among the 10 recommendations of at least one user;
    - `popularity@10`: mean training count of recommended items, divided by that of the targets in the catalog; NaN if
      no target occurs in training;
    - `ties`: share of users whose target has the same score as another item.

    Args:
        results: Results of the model.
        targets: (users,) token IDs, as from `target_items`.
        counts: (vocab_size,) number of interactions of each item in training.
        sampled: How the candidates were drawn, if there are any.
    """
    recommended, known = results.recommended[results.recommended >= 0], targets[targets >= SPECIALS]
    target_count = counts[known].mean() if len(known) else 0
    return {
        **ranking_metrics(results.ranks),
        **({} if results.sampled_ranks is None else sampled_metrics(results.sampled_ranks, sampled)),
        "coverage@10": len(np.unique(recommended)) / (len(counts) - SPECIALS),
        "popularity@10": float(counts[recommended].mean() / target_count) if target_count else np.nan,
        "ties": float((results.ties > 0).mean()),
    }


def user_groups(rows: Dataset, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return groups of users by their targets and histories, each as a mask (users,) of bools; a group may be empty.

    Head items are the 20 % of the catalog with the most interactions in training. Tail items are the other items with
    interactions. Unseen items have none, or are [UNK]. Short histories have at most the median length, long histories
    more. New users have no history, so their histories are short as well. `counts` (vocab_size,) are the numbers of
    interactions of each item in training.
    """
    targets = target_items(rows)
    lengths = np.array([len(history) for history in rows.with_format("numpy")["history"]])
    counts = np.where(np.arange(len(counts)) < SPECIALS, 0, counts)
    most_popular = np.argsort(-counts, kind="stable")[: int(HEAD_SHARE * (len(counts) - SPECIALS))]
    seen, head = counts[targets] > 0, np.isin(targets, most_popular)
    return {
        "head items": seen & head,
        "tail items": seen & ~head,
        "unseen items": ~seen,
        "short histories": lengths <= np.median(lengths),
        "long histories": lengths > np.median(lengths),
        "new users": lengths == 0,
    }


@dataclass
class Difference:
    """Difference of NDCG@10 of two models over the same users: first minus second.

    Attributes:
        mean: Mean difference over users.
        low: Start of the 95 % interval of the mean (bootstrap over users).
        high: End of this interval.
        p: p-value of a two-sided paired randomization test over users, at least 1 / 10,001.
    """

    mean: float
    low: float
    high: float
    p: float


def paired_difference(first: Ranks | Sequence[Ranks], second: Ranks | Sequence[Ranks]) -> Difference:
    """Return the difference of NDCG@10, first minus second, with its interval and p-value (Smucker et al., 2007).

    For methods that were trained with several seeds, pass the ranks of all seeds. The NDCG@10 of each user is then the
    mean over the seeds.

    Args:
        first: Ranks (users,) of the targets by the first model, or (seeds, users) by the first method.
        second: Ranks of the same targets by the second model or method.

    Raises:
        ValueError: The numbers of users differ or are 0, or a rank is below 1 or NaN.
    """
    first, second = (np.atleast_2d(np.asarray(ranks, float)) for ranks in (first, second))
    users = [ranks.shape[1] for ranks in (first, second)]
    if users[0] != users[1] or not first.size or not second.size:
        found = f"found {users[0]} and {users[1]} users. Rank the same rows with both models."
        raise ValueError(f"Expected ranks of the same users, at least one, {found}")
    differences = ndcg_gains(first, TOP_K).mean(axis=0) - ndcg_gains(second, TOP_K).mean(axis=0)
    nonzero = differences[differences != 0].astype(np.float32)
    generator = np.random.default_rng(0)
    extreme = 0
    for _ in range(RANDOMIZATIONS // 100):
        signs = 2 * generator.integers(2, size=(100, len(nonzero)), dtype=np.int8) - 1
        # 1e-4 allows for the rounding of float32.
        extreme += int((np.abs(signs @ nonzero) >= np.abs(nonzero.sum()) - 1e-4).sum())
    low, high = bootstrap_interval(differences)
    return Difference(float(differences.mean()), low, high, (1 + extreme) / (1 + RANDOMIZATIONS))


def holm(p_values: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Return the p-values of pairs of models, corrected for the number of pairs (Holm, 1979)."""
    pairs = sorted(p_values, key=lambda pair: p_values[pair])
    corrected = [min(1.0, p_values[pair] * (len(pairs) - place)) for place, pair in enumerate(pairs)]
    largest = dict(zip(pairs, accumulate(corrected, max), strict=True))
    return {pair: largest[pair] for pair in p_values}
