"""Evaluate a model with the stock Trainer: one rank per user instead of a row of scores, and metrics from the ranks."""

import numpy as np
import torch
from datasets import Dataset
from transformers import EvalPrediction, Trainer

from .ranking import Sampled, candidate_ranks, ranking_metrics, sampled_metrics, target_ranks


def ranks_of_logits(
    logits: tuple[torch.Tensor, ...], labels: torch.Tensor, exclude_history: bool = True
) -> torch.Tensor:
    """`preprocess_logits_for_metrics`: keep one rank a user instead of a row of scores.

    Args:
        logits: What the model returned but the loss: logits (users, 1, rows) at the [MASK]; `history` (users, longest),
            filled up with -100; and `candidates` (users, number) where the rows have them.
        labels: (users, length), -100 but at the [MASK].
        exclude_history: See `cloze_training`.

    Returns:
        (users,) ranks from 1; with candidates (users, 2), the second among them.

    Raises:
        ValueError: The rows have no history, or not one target each; or as for `target_ranks`.
    """
    scores, targets, history, *candidates = judged(logits, labels)
    ranks = target_ranks(scores, targets, history if exclude_history else None)
    return torch.stack([ranks, candidate_ranks(scores, targets, candidates[0])], dim=1) if candidates else ranks


def judged(logits: tuple[torch.Tensor, ...], labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Scores (users, rows), targets (users,), history and perhaps candidates, from what `ranks_of_logits` is given."""
    if torch.is_tensor(logits):
        raise ValueError("Expected rows with a `history`, as leave_one_out makes them, found none.")
    scores, *others = logits
    if scores.shape[1] == labels.shape[1]:  # a compiled model scores every position
        scores = scores.take_along_dim((labels != -100).int().argmax(dim=1)[:, None, None], dim=1)
    if scores.shape[1] != 1:
        raise ValueError(f"Expected one target a user to rank, found {scores.shape[1]}.")
    return scores[:, 0], labels.amax(dim=1), *others


def metrics_of_ranks(prediction: EvalPrediction, sampled: Sampled) -> dict[str, float]:
    """`compute_metrics`: HR, NDCG and MRR at 1, 5 and 10, with candidates also as `ndcg@10_popularity_sampled`.

    Args:
        prediction: Ranks, as from `ranks_of_logits`.
        sampled: How the candidates were drawn.
    """
    ranks = np.asarray(prediction.predictions)
    if ranks.ndim == 1:
        return ranking_metrics(ranks)
    return ranking_metrics(ranks[:, 0]) | sampled_metrics(ranks[:, 1], sampled)


def ranks_on(judge: Trainer, rows: Dataset) -> np.ndarray:
    """What the Trainer's `preprocess_logits_for_metrics` makes of each row, in the order of the rows.

    The Trainer's own evaluation draws the rows grouped by length, in an order that it tells nobody.
    """
    lengths = rows["length"][:] if "length" in rows.column_names else list(map(len, rows["input_ids"][:]))
    order = np.argsort(lengths, kind="stable")  # little padding, as there
    args = judge.args
    usual = args.train_sampling_strategy, args.dataloader_drop_last
    args.train_sampling_strategy, args.dataloader_drop_last = "random", False  # evaluates in order, and everybody
    try:
        drawn = judge.predict(rows.select(order)).predictions
    finally:
        args.train_sampling_strategy, args.dataloader_drop_last = usual
    ranks = np.empty_like(drawn)
    ranks[order] = drawn
    return ranks
