"""Models beside one another, user by user: what each recommends, for whom it works, and which differences are real."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import Trainer

from ..data.histories import target_items
from ..models.configuration_bert4rec import SPECIAL_TOKENS
from .ranking import (
    Sampled,
    bootstrap_interval,
    candidate_ranks,
    ndcg_gains,
    ranking_metrics,
    sampled_metrics,
    stable_top_k,
    target_places,
)
from .trainer_evaluation import rank_rows, ranking_inputs

K = 10
HEAD = 0.2
DRAWS = 10_000
LEAST = 1 / (1 + DRAWS)  # no smaller p can be told by so many


@dataclass
class Judgement:
    """What a model did for each user of a split, in the order of its rows.

    Attributes:
        ranks: (users,) ranks of the targets over the catalogue, from 1; half a place is a tie.
        ties: (users,) items whose score equals the target's; 0 for targets that the model does not know.
        recommended: (users, K) rows of the best items, best first, without any of the history where the ranking leaves
            it out; -1 where fewer are left.
        sampled_ranks: (users,) ranks among the candidates, where the rows have them.
    """

    ranks: np.ndarray
    ties: np.ndarray
    recommended: np.ndarray
    sampled_ranks: np.ndarray | None = None


def judge(trainer: Trainer, rows: Dataset) -> Judgement:
    """Let a Trainer that evaluates, as `run.evaluator` makes it, judge its model on a split.

    Raises:
        ValueError: The catalogue has fewer than K items, a score is NaN, or rows and model are of different catalogues.
    """
    usual = trainer.preprocess_logits_for_metrics, trainer.compute_metrics
    trainer.preprocess_logits_for_metrics = _judge_logits
    trainer.compute_metrics = None
    try:
        columns = rank_rows(trainer, rows)
    finally:
        trainer.preprocess_logits_for_metrics, trainer.compute_metrics = usual
    ranks, ties, *sampled = columns[:, K:].T
    return Judgement(ranks, ties.astype(int), columns[:, :K].astype(int), sampled[0] if sampled else None)


def _judge_logits(logits: tuple[Any, ...], labels: torch.Tensor) -> torch.Tensor:
    """(users, K + 2 or 3): the best rows, the target's rank, its ties, and its rank among candidates. Exact to 2^24."""
    scores, targets, history, candidates = ranking_inputs(logits, labels)
    specials = len(SPECIAL_TOKENS)
    if scores.shape[1] - specials < K:
        raise ValueError(f"Metrics at {K} need as many items, the catalogue has {scores.shape[1] - specials}.")
    above, level = target_places(scores, targets, history)
    columns = [above.float() + level.float() / 2 + 1, torch.where(targets >= specials, level, 0).float()]
    if candidates is not None:
        columns.append(candidate_ranks(scores, targets, candidates))
    left = scores.clone()
    left[:, :specials] = -torch.inf
    left.scatter_(1, history.clamp(min=0), -torch.inf)  # the filling lands on a special row
    values, best = stable_top_k(left, K)
    return torch.cat([torch.where(values > -torch.inf, best, -1), torch.stack(columns, dim=1)], dim=1)


def figures(
    judgement: Judgement, targets: np.ndarray, counts: np.ndarray, sampled: Sampled = "popularity_sampled"
) -> dict[str, float]:
    """All figures of a model on a split.

    - `hr@k`, `ndcg@k`, `mrr@k`, over the catalogue, and with candidates under names that say so;
    - `coverage@10`: the share of the catalogue that anybody is recommended;
    - `popularity@10`: how often a recommended item occurs in training, as a multiple of how often a target does,
      those that the tokenizer knows. Above 1, the model recommends more popular items than people take;
    - `ties`: the share of users whose target has the score of another item.

    Args:
        judgement: Of the split.
        targets: (users,) rows of the item table.
        counts: (rows,) how often each item occurs in training.
        sampled: How the candidates were drawn, where there are any.
    """
    recommended, known = judgement.recommended[judgement.recommended >= 0], targets[targets >= len(SPECIAL_TOKENS)]
    taken = counts[known].mean() if len(known) else 0
    items = len(counts) - len(SPECIAL_TOKENS)
    return {
        **ranking_metrics(judgement.ranks),
        **({} if judgement.sampled_ranks is None else sampled_metrics(judgement.sampled_ranks, sampled)),
        "coverage@10": len(np.unique(recommended)) / items,
        "popularity@10": float(counts[recommended].mean() / taken) if taken else np.nan,
        "ties": float((judgement.ties > 0).mean()),
    }


def slices(rows: Dataset, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Users of a split by what their targets and histories are, (users,) bool each; a slice may be empty.

    Head items are the fifth of the catalogue that occurs most often in training, tail items the others that occur
    there; unseen targets never do, so that nothing is learnt of them. Short histories are those of at most the median
    length. New users have no history at all.

    Args:
        rows: The split.
        counts: (rows of the item table,) how often each item occurs in training; those of special rows are passed over.
    """
    targets = target_items(rows)
    lengths = np.array([len(history) for history in rows.with_format("numpy")["history"]])
    counts = np.where(np.arange(len(counts)) < len(SPECIAL_TOKENS), 0, counts)
    most = np.argsort(-counts, kind="stable")[: int(HEAD * (len(counts) - len(SPECIAL_TOKENS)))]
    seen, head = counts[targets] > 0, np.isin(targets, most)
    return {
        "head items": seen & head,
        "tail items": seen & ~head,
        "unseen items": ~seen,
        "short histories": lengths <= np.median(lengths),
        "long histories": lengths > np.median(lengths),
        "new users": lengths == 0,
    }


def slice_figures(judgement: Judgement, users: np.ndarray, name: str) -> dict[str, float]:
    """NDCG@10, HR@10 and the number of the users in a slice.

    Raises:
        ValueError: Nobody is in it: there is no such figure.
    """
    if not users.any():
        raise ValueError(f"Nobody is in the slice {name!r}: it has no figures.")
    metrics = ranking_metrics(judgement.ranks[users])
    return {"users": int(users.sum()), "ndcg@10": metrics["ndcg@10"], "hr@10": metrics["hr@10"]}


@dataclass
class Difference:
    """Of two models' NDCG@10 over the same users: first minus second.

    Attributes:
        mean: The difference.
        low: Lower end of its 95 % interval (bootstrap over users).
        high: Upper end.
        p: Two-sided probability of a difference as large, if for each user the two were exchanged by lot.
    """

    mean: float
    low: float
    high: float
    p: float


def paired_difference(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> Difference:
    """Compare the ranks (users,) that two models gave the same targets, by a randomisation test (Smucker et al., 2007).

    Raises:
        ValueError: They are not of the same users.
    """
    first, second = (np.asarray(ranks, float) for ranks in (first, second))
    if first.shape != second.shape or not first.size:
        raise ValueError(f"Expected ranks of the same users, found {first.size} and {second.size}.")
    gains = ndcg_gains(first, K) - ndcg_gains(second, K)
    differ = gains[gains != 0].astype(np.float32)
    generator = np.random.default_rng(0)
    extreme = 0
    for _ in range(DRAWS // 100):
        signs = 2 * generator.integers(2, size=(100, len(differ)), dtype=np.int8) - 1
        extreme += int((np.abs(signs @ differ) >= np.abs(differ.sum()) - 1e-4).sum())
    low, high = bootstrap_interval(gains)
    return Difference(float(gains.mean()), low, high, (1 + extreme) / (1 + DRAWS))


def holm(probabilities: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Probabilities of a number of tests, made larger by their number (Holm, 1979): below .05 any is a finding."""
    adjusted, so_far = {}, 0.0
    for place, (pair, p) in enumerate(sorted(probabilities.items(), key=lambda entry: entry[1])):
        so_far = max(so_far, min(1.0, p * (len(probabilities) - place)))
        adjusted[pair] = so_far
    return {pair: adjusted[pair] for pair in probabilities}
