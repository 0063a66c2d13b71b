"""Evaluate a model with the stock Trainer: one rank per user instead of a row of scores, and metrics from the ranks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import EvalPrediction, Trainer

from .ranking import Sampled, candidate_ranks, ranking_metrics, sampled_metrics, target_ranks


def ranks_of_logits(logits: tuple[Any, ...], labels: torch.Tensor) -> torch.Tensor:
    """`preprocess_logits_for_metrics`: keep one rank a user instead of a row of scores.

    Args:
        logits: Output of the model without the loss: logits (users, 1, rows) at the [MASK] first, and among the others
            the mapping `ranking` (`MaskedItemOutput`).
        labels: (users, length), -100 but at the [MASK].

    Returns:
        (users,) ranks from 1; with candidates (users, 2), the second among them.

    Raises:
        ValueError: The rows have no history, or not one target each; or as for `target_ranks`.
    """
    scores, targets, history, candidates = ranking_inputs(logits, labels)
    ranks = target_ranks(scores, targets, history)
    return ranks if candidates is None else torch.stack([ranks, candidate_ranks(scores, targets, candidates)], dim=1)


def ranking_inputs(
    logits: tuple[Any, ...], labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return scores (users, rows), targets (users,), history and candidates from the arguments of `ranks_of_logits`."""
    parts = (logits,) if torch.is_tensor(logits) else tuple(logits)
    ranking: Mapping[str, torch.Tensor] = next((part for part in parts if isinstance(part, Mapping)), {})
    if "history" not in ranking:
        raise ValueError(
            "Expected rows with a `history`, as leave_one_out makes them, found none. Add it, or evaluate a model with "
            "`exclude_history=False`."
        )
    scores: torch.Tensor = parts[0]
    if scores.shape[1] == labels.shape[1]:  # a compiled model scores every position
        scores = scores.take_along_dim((labels != -100).int().argmax(dim=1)[:, None, None], dim=1)
    if scores.shape[1] != 1:
        raise ValueError(f"Expected one target a user to rank, found {scores.shape[1]}.")
    return scores[:, 0], labels.amax(dim=1), ranking["history"], ranking.get("candidates")


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


def rank_rows(judge: Trainer, rows: Dataset) -> np.ndarray:
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
