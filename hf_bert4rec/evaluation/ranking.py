"""Ranks of held-out items, and the metrics of next-item recommendation that follow from ranks.

A rank is the position of the held-out item, counted from 1, among the items of the catalog. With `exclude_history`, the
items of the user's history are not ranked. For items with the same score, the rank is the expected rank under random
tie-breaking: if all scores are equal, the target is in the middle. A target that is not ranked, because it is unknown
or excluded, counts as last.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..data.arguments import check_number
from ..models.configuration_bert4rec import SPECIAL_TOKENS
from ..models.inputs import check_tensor

logger = logging.getLogger(__name__)

Sampled = Literal["popularity_sampled", "uniform_sampled"]
"""Suffixes of metrics among sampled candidates, which cannot be compared with metrics over the catalog."""

CUTOFFS = (1, 5, 10)  # the k of HR@k, NDCG@k and MRR@k
SAMPLED_METRICS = ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10", "mrr")  # of the paper's Table 2, in its order
NOT_FINITE = "If the training diverged, lower the learning rate. If the weights are damaged, download the model again."
BLOCK_SIZE = 2**19  # scores that are compared at a time, so that they stay in the processor's cache
SPECIALS = len(SPECIAL_TOKENS)

Ranks = np.ndarray | Sequence[float]


def count_better_and_tied(scores: Tensor, targets: Tensor, history: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Count the items with a higher score than each user's target, and the other items with the same score.

    Arguments and errors are those of `target_ranks`. Returns two int64 tensors of shape (users,).
    """
    check_tensor("scores", scores, "(users, vocab_size)")
    check_tensor("targets", targets, "(users,)")
    if history is not None:
        check_tensor("history", history, "(users, longest)")
    sizes = [len(rows) for rows in (scores, targets, history) if rows is not None]
    if len({*sizes}) > 1:
        found = f"{' and '.join(map(str, sizes))} rows. Pass one row per user"
        raise ValueError(f"Expected scores, targets and history of the same users, found {found}.")
    items = scores[:, SPECIALS:]
    if items.sum(dim=1).isnan().any() and items.isnan().any():  # the check of sums alone is 6 times as fast
        raise ValueError(f"Expected a score for every item, found NaN. {NOT_FINITE}")
    last = max([int(rows.max()) for rows in (targets, history) if rows is not None and rows.numel()], default=0)
    if last >= scores.shape[1]:
        raise ValueError(
            f"A target or an item of a history has the token ID {last}, but the model scores {scores.shape[1]} tokens. "
            "Build the histories with the tokenizer of the model."
        )
    known = targets >= SPECIALS
    if history is not None:
        known &= (history != targets[:, None]).all(1)
    target_scores = items.gather(1, (targets - SPECIALS).clamp(min=0)[:, None])
    target_scores = torch.where(known[:, None], target_scores, -torch.inf)
    # All items are counted and the items of the history are subtracted, which avoids a copy of the scores. Repetitions
    # in a history, which follow each other in a sorted row, are subtracted once. Blocks of users that fit the cache
    # make this 4 times faster with 50,000 items.
    users = max(1, BLOCK_SIZE // items.shape[1])
    blocks = list(zip(items.split(users), target_scores.split(users), strict=True))
    better = torch.cat([(block > target).sum(1) for block, target in blocks])
    tied = torch.cat([(block == target).sum(1) for block, target in blocks])
    if history is not None:
        history = history.sort(dim=1).values
        repeated = torch.zeros_like(history, dtype=torch.bool)
        repeated[:, 1:] = history[:, 1:] == history[:, :-1]
        excluded = (history >= SPECIALS) & ~repeated
        history_scores = items.gather(1, (history - SPECIALS).clamp(min=0))
        better = better - (excluded & (history_scores > target_scores)).sum(1)
        tied = tied - (excluded & (history_scores == target_scores)).sum(1)
    return better, torch.where(known, tied - 1, 2 * tied)  # without the target itself; unknown targets rank last


def target_ranks(scores: Tensor, targets: Tensor, history: Tensor | None = None) -> Tensor:
    """Return the rank of each user's target over the whole catalog.

    Args:
        scores: (users, vocab_size) scores of all token IDs; scores of special tokens are ignored.
        targets: (users,) token IDs. Items of the history and special tokens, such as [UNK] (unknown items), rank last.
        history: (users, longest) token IDs to exclude from the ranking, padded with -100. None: nothing is excluded.

    Returns:
        (users,) float32 ranks from 1, exact for up to 8 million items. A tie with one other item adds half a rank.

    Raises:
        ValueError: A score is NaN, a target or an item of the history has no score, or the numbers of users differ.
    """
    return expected_ranks(*count_better_and_tied(scores, targets, history))


def expected_ranks(better: Tensor, tied: Tensor) -> Tensor:
    """Return ranks (users,) float32 from the numbers of items with a higher score and of other items with the same."""
    return better.float() + tied.float() / 2 + 1


def candidate_ranks(scores: Tensor, targets: Tensor, candidates: Tensor) -> Tensor:
    """Return the rank of each user's target among sampled candidates (paper, section 4.2), (users,) float32 from 1.

    `scores` and `targets` are as for `target_ranks`; `candidates` (users, number) are token IDs of items other than the
    target, padded with -100. Each tie adds half a rank. An unknown target ranks last.
    """
    candidate_scores = scores.gather(1, candidates.clamp(min=0)).masked_fill(candidates < 0, torch.nan)  # never counted
    target_scores = torch.where(targets >= SPECIALS, scores.gather(1, targets[:, None])[:, 0], -torch.inf)[:, None]
    return expected_ranks((candidate_scores > target_scores).sum(1), (candidate_scores == target_scores).sum(1))


def stable_top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest values of each row and their indices, largest first; equal values in the order of indices.

    `torch.topk` does not define which of equal values it returns. If more values equal the k-th one, those with the
    smallest indices are returned. A row with fewer than k values is returned whole.
    """
    values, places = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    for row in (values[:, -1] == values[:, k - 1]).nonzero()[:, 0].tolist() if values.shape[1] > k else []:
        equal = (scores[row] == values[row, k - 1]).nonzero()[:, 0]
        larger = places[row, : k + 1][values[row] > values[row, k - 1]]
        places[row, :k] = torch.cat([larger, equal])[:k]
    places = places[:, :k].sort(dim=1).values
    values, order = scores.gather(1, places).sort(dim=1, descending=True, stable=True)
    return values, places.gather(1, order)


def ndcg_gains(ranks: Ranks, k: int) -> np.ndarray:
    """Return the contribution to NDCG@k: 1 / log2(rank + 1), 0 for ranks above k; ValueError for invalid ranks."""
    ranks = np.asarray(ranks, float)
    if not ranks.size or not (ranks >= 1).all():
        wrong = ranks[~(ranks >= 1)]
        raise ValueError(f"Expected one or more ranks of at least 1, found {wrong[0] if wrong.size else 'no ranks'}.")
    return np.where(ranks <= k, 1 / np.log2(ranks + 1), 0.0)


def bootstrap_interval(gains: np.ndarray) -> tuple[float, float]:
    """Return the 95 % bootstrap interval (1,000 draws) of the mean of `gains` (users,), such as `ndcg_gains`."""
    generator = np.random.default_rng(0)
    means = [gains[generator.integers(len(gains), size=len(gains))].mean() for _ in range(1000)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def ranking_metrics(ranks: Ranks, k: int | Sequence[int] = CUTOFFS) -> dict[str, float]:
    """Return HR, NDCG and MRR at all cut-offs: `hr@10`, `ndcg@10`, `mrr@10` and so on.

    `ranks` (users,) count from 1; `k` is one cut-off or several. HR@k is the share of users whose target is among the
    first k. With one target per user it equals recall. NDCG@k is the mean of 1 / log2(rank + 1) and MRR@k the mean of
    1 / rank, both with 0 for ranks above k. A metric at k is meaningful only if more than k items are ranked.

    Raises:
        ValueError: There are no ranks, or a rank or a cut-off is below 1.
    """
    ranks = np.asarray(ranks, float)
    cutoffs: list[Any] = list(k) if isinstance(k, Iterable) else [k]
    for cutoff in cutoffs or [()]:
        check_number("k", cutoff, "at least one cut-off, each at least 1", lambda number: number >= 1)
    metrics: dict[str, float] = {}
    for cutoff in cutoffs:
        hits = ranks <= cutoff
        gains = {"hr": hits, "ndcg": ndcg_gains(ranks, cutoff), "mrr": np.where(hits, 1 / ranks, 0.0)}
        metrics |= {f"{name}@{cutoff}": float(np.mean(gain)) for name, gain in gains.items()}
    return metrics


def sampled_metrics(ranks: Ranks, sampled: Sampled) -> dict[str, float]:
    """Return `ranking_metrics` of ranks among candidates, and the paper's MRR without cut-off (`mrr`).

    `sampled`, which says how the candidates were drawn, is the suffix of all names, as in `ndcg@10_uniform_sampled`.
    """
    metrics = ranking_metrics(ranks) | {"mrr": float(np.mean(1 / np.asarray(ranks, float)))}
    return {f"{name}_{sampled}": value for name, value in metrics.items()}


def how_sampled(metrics: Mapping[str, float]) -> Sampled | None:
    """Return the suffix of the names of sampled metrics, such as "uniform_sampled"; None without sampled metrics."""
    return next((sampled for sampled in get_args(Sampled) if f"mrr_{sampled}" in metrics), None)


def check_cutoffs(items: int) -> None:
    """Raise ValueError if the catalog has no more items than the largest cut-off, so that every target is a hit."""
    if items <= max(CUTOFFS):
        needed = f"need a catalog of more than {max(CUTOFFS)} items, found {items}"
        options = "`eval_strategy='no'` (command line: `--split train_on_all`)"
        advice = f"Use a larger log. To train without metrics, pass {options}."
        raise ValueError(f"Metrics at {max(CUTOFFS)} {needed}. {advice}")


@cache
def warn_about_few_candidates(number: int) -> None:
    """Warn, once per number, if every target is a hit among so few sampled candidates."""
    if number < max(CUTOFFS):
        option = "(command line: `--popularity_candidates` or `--uniform_candidates`)"
        advice = f"Set `number` of `popularity_candidates` or `uniform_candidates` {option} to at least %d."
        logger.warning(f"With %d sampled candidates, HR@%d is always 1. {advice}", number, max(CUTOFFS), max(CUTOFFS))
