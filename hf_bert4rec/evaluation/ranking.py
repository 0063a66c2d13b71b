"""Metrics of next-item recommendation: one rank a user, and what follows from ranks.

A rank is the place of the held-out item, counted from 1, among all items of the catalogue that the user has not had
before. Items with the same score share their places: the rank is the expected one, as if ties were broken by lot, so a
model that scores everything the same gains nothing from it.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import torch

from ..models.configuration_bert4rec import SPECIAL_TOKENS

Sampled = Literal["popularity_sampled", "uniform_sampled"]
"""Ends the names of the metrics among candidates, so that nobody takes them for those of the whole catalogue."""

SAMPLED_METRICS = ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10", "mrr")
"""Those of the paper's Table 2, in its order."""

IN_CACHE = 2**19
"""Scores that are compared at a time."""

Ranks = np.ndarray | Sequence[float]


def target_places(
    scores: torch.Tensor, targets: torch.Tensor, history: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """How many items of the catalogue stand above each user's target, and how many are level with it.

    Args:
        scores: (users, rows) a score for every row of the item table; the special rows are passed over.
        targets: (users,) rows of the item table. A target that is a special row, [UNK] for an item that the model
            does not know, comes last.
        history: (users, longest) rows to leave out of the ranking, filled up with -100. The target itself stays in,
            should the user have had it before. Nothing is left out if not given.

    Returns:
        Two of (users,) int64.

    Raises:
        ValueError: A score of an item is NaN; a target or an item of the history has no score; or there is not one
            target a user.
    """
    if len({len(rows) for rows in (scores, targets, *(() if history is None else (history,)))}) > 1:
        raise ValueError(f"Expected a target a user, found {len(targets)} for scores of {len(scores)} users.")
    specials = len(SPECIAL_TOKENS)
    items = scores[:, specials:]
    if items.sum(dim=1).isnan().any() and items.isnan().any():  # the sum takes a sixth of the time
        raise ValueError("Expected a score for every item, found NaN: the model has diverged, lower the learning rate.")
    last = max([int(rows.max()) for rows in (targets, history) if rows is not None and rows.numel()], default=0)
    if last >= scores.shape[1]:
        raise ValueError(
            f"Row {last} is to be ranked, and there are scores of {scores.shape[1]} rows: history, targets and model "
            "are of different catalogues. Make the histories with the model's own tokenizer."
        )
    known = targets >= specials
    of_target = items.gather(1, (targets - specials).clamp(min=0)[:, None])
    of_target = torch.where(known[:, None], of_target, -torch.inf)
    # Items are counted, then the history's share is taken back, rather than a copy of the scores made with holes in it.
    # An item that stands in the history twice is taken back once: its repetition in a sorted row is passed over.
    # A few users at a time, so that what is compared stays in the processor's cache: 4 times faster at 50,000 items.
    users = max(1, IN_CACHE // items.shape[1])
    blocks = list(zip(items.split(users), of_target.split(users), strict=True))
    above = torch.cat([(scored > level).sum(1) for scored, level in blocks])
    level = torch.cat([(scored == level).sum(1) for scored, level in blocks])
    if history is not None:
        history = history.sort(dim=1).values
        repeated = torch.zeros_like(history, dtype=torch.bool)
        repeated[:, 1:] = history[:, 1:] == history[:, :-1]
        excluded = (history >= specials) & ~repeated & (history != targets[:, None])
        of_history = items.gather(1, (history - specials).clamp(min=0))
        above = above - (excluded & (of_history > of_target)).sum(1)
        level = level - (excluded & (of_history == of_target)).sum(1)
    return above, torch.where(known, level - 1, 2 * level)  # the target is level with itself


def target_ranks(scores: torch.Tensor, targets: torch.Tensor, history: torch.Tensor | None = None) -> torch.Tensor:
    """Rank of each user's target over the whole catalogue.

    Args:
        scores: As for `target_places`, like the next two.
        targets: (users,).
        history: (users, longest), or None.

    Returns:
        (users,) float32 from 1, exact up to 8 million items; half a place is a tie.

    Raises:
        ValueError: As for `target_places`.
    """
    above, level = target_places(scores, targets, history)
    return above.float() + level.float() / 2 + 1


def candidate_ranks(scores: torch.Tensor, targets: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Rank of each user's target among a few candidates, as in the paper (section 4.2).

    Args:
        scores: As for `target_ranks`, like `targets`.
        targets: (users,).
        candidates: (users, number) rows of items, the target not among them; filled up with -100.

    Returns:
        (users,) float32 from 1; half a place is a tie. An unknown target comes last.
    """
    of_candidates = scores.gather(1, candidates.clamp(min=0)).masked_fill(candidates < 0, torch.nan)  # nan: no rival
    of_target = torch.where(targets >= len(SPECIAL_TOKENS), scores.gather(1, targets[:, None])[:, 0], -torch.inf)[
        :, None
    ]
    return 1 + (of_candidates > of_target).sum(1).float() + (of_candidates == of_target).sum(1).float() / 2


def stable_top_k(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row and their places, largest first; of equal ones the first place first.

    `torch.topk` leaves open which of equal scores it takes, so where others equal the smallest that it took, all of
    them are compared.
    """
    values, places = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    for row in (values[:, -1] == values[:, k - 1]).nonzero()[:, 0].tolist() if values.shape[1] > k else []:
        equal = (scores[row] == values[row, k - 1]).nonzero()[:, 0]
        larger = places[row, : k + 1][values[row] > values[row, k - 1]]
        places[row, :k] = torch.cat([larger, equal])[:k]
    places = places[:, :k].sort(dim=1).values
    values, order = scores.gather(1, places).sort(dim=1, descending=True, stable=True)
    return values, places.gather(1, order)


def hit_rate(ranks: Ranks, k: int) -> float:
    """HR@k: the share of users whose target is among the first k. With one target a user, recall@k is the same."""
    return float(np.mean(np.asarray(ranks) <= k))


def ndcg(ranks: Ranks, k: int) -> float:
    """NDCG@k with one target a user: mean of 1 / log2(rank + 1) for targets among the first k, 0 for the others."""
    return float(np.mean(ndcg_gains(ranks, k)))


def ndcg_gains(ranks: Ranks, k: int) -> np.ndarray:
    """(users,) what each adds to NDCG@k."""
    ranks = np.asarray(ranks, float)
    return np.where(ranks <= k, 1 / np.log2(ranks + 1), 0.0)


def mrr(ranks: Ranks, k: int) -> float:
    """MRR@k: mean of 1 / rank for targets among the first k, 0 for the others."""
    ranks = np.asarray(ranks, float)
    return float(np.mean(np.where(ranks <= k, 1 / ranks, 0.0)))


def bootstrap_interval(gains: np.ndarray) -> tuple[float, float]:
    """95 % interval of a mean over users: between which values it falls when they are drawn anew, 1,000 times.

    Args:
        gains: (users,) what each adds, such as `ndcg_gains`.
    """
    generator = np.random.default_rng(0)
    means = [gains[generator.integers(len(gains), size=len(gains))].mean() for _ in range(1000)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def ranking_metrics(ranks: Ranks, k: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """All metrics at all cut-offs: `hr@10`, `ndcg@10`, `mrr@10` and so on.

    Raises:
        ValueError: There is no rank, one is not a number from 1, or a cut-off is below 1.
    """
    ranks = np.asarray(ranks, float)
    if not ranks.size or not (ranks >= 1).all():
        wrong = ranks[~(ranks >= 1)]
        raise ValueError(
            f"Expected at least one rank, each a number from 1, found {wrong[0] if wrong.size else 'none'}."
        )
    if min(k) < 1:
        raise ValueError(f"Expected cut-offs of at least 1, found {min(k)}.")
    metrics = {"hr": hit_rate, "ndcg": ndcg, "mrr": mrr}
    return {f"{name}@{cutoff}": metric(ranks, cutoff) for cutoff in k for name, metric in metrics.items()}


def sampled_metrics(ranks: Ranks, sampled: Sampled) -> dict[str, float]:
    """As `ranking_metrics`, for ranks among candidates, with the paper's MRR, which has no cut-off: `ndcg@10_…`.

    Args:
        ranks: (users,) from 1.
        sampled: How the candidates were drawn.

    Raises:
        ValueError: As for `ranking_metrics`.
    """
    metrics = ranking_metrics(ranks) | {"mrr": mrr(ranks, sys.maxsize)}
    return {f"{name}_{sampled}": value for name, value in metrics.items()}


def how_sampled(metrics: Mapping[str, float]) -> Sampled | None:
    """How the candidates were drawn that metrics are among, beside the whole catalogue; None where there are none."""
    return next((sampled for sampled in get_args(Sampled) if f"mrr_{sampled}" in metrics), None)
