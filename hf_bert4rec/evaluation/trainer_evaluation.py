"""Evaluation with the Trainer: one rank per user instead of a row of scores, and metrics from the ranks."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from transformers import EvalPrediction, ProgressCallback, Trainer

from ..data.arguments import read_rows
from .ranking import (
    SPECIALS,
    Sampled,
    candidate_ranks,
    check_cutoffs,
    count_better_and_tied,
    expected_ranks,
    ranking_metrics,
    sampled_metrics,
    stable_top_k,
    target_ranks,
    warn_about_few_candidates,
)

TOP_K = 10
FEW_BATCHES = 50  # evaluations of fewer batches show no progress bar


def ranks_of_logits(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return one rank per user, (users,) from 1, as `preprocess_logits_for_metrics` of the Trainer.

    With candidates, the result is (users, 2) with the rank among candidates in the second column. `logits` are the
    output of the model without the loss: first the logits (users, 1 or length, vocab_size), and after them the mapping
    `ranking` of `MaskedItemOutput`. `labels` (users, length) are the target at the [MASK], -100 elsewhere. ValueError
    if a row has no `history` or several targets, the catalog has at most 10 items, or a score is NaN.
    """
    scores, targets, history, candidates = _unpack(logits, labels)
    ranks = target_ranks(scores, targets, history)
    return ranks if candidates is None else torch.stack([ranks, candidate_ranks(scores, targets, candidates)], dim=1)


def results_of_logits(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return the columns of `UserResults`, as `preprocess_logits_for_metrics` of the Trainer.

    The result is (users, TOP_K + 2) float32: TOP_K recommended items, rank and ties. With candidates, the rank among
    the candidates is one more column. Items are token IDs, exact up to 2^24, and -1 where fewer items are left.
    Arguments and errors are those of `ranks_of_logits`.
    """
    scores, targets, history, candidates = _unpack(logits, labels)
    better, tied = count_better_and_tied(scores, targets, history)
    columns = [expected_ranks(better, tied), torch.where(targets >= SPECIALS, tied, 0).float()]
    columns += [] if candidates is None else [candidate_ranks(scores, targets, candidates)]
    remaining = scores.clone()
    remaining[:, :SPECIALS] = -torch.inf
    remaining.scatter_(1, history.clamp(min=0), -torch.inf)  # padding becomes a special row
    values, best = stable_top_k(remaining, TOP_K)
    return torch.cat([torch.where(values > -torch.inf, best, -1), torch.stack(columns, dim=1)], dim=1)


def _unpack(logits: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return scores (users, vocab_size), targets (users,), history and candidates from what the Trainer passes on."""
    outputs = (logits,) if torch.is_tensor(logits) else tuple(logits)
    ranking: Mapping[str, torch.Tensor] = next((part for part in outputs if isinstance(part, Mapping)), {})
    if "history" not in ranking:
        raise ValueError(
            "The batch has no `history` to exclude from the ranking. Evaluate rows of validation or test, as from "
            "`leave_one_out`. Other rows need a column `history`, unless the model has `exclude_history=False`."
        )
    scores, labeled = outputs[0], labels != -100
    if scores.shape[1] == labels.shape[1]:  # every position is scored, for instance by a compiled model
        scores = scores.take_along_dim(labeled.int().argmax(dim=1)[:, None, None], dim=1)
    if (number := max(scores.shape[1], int(labeled.sum(dim=1).max()))) > 1:
        raise ValueError(f"Expected one target per user, found {number}. Evaluate rows of validation or test.")
    check_cutoffs(scores.shape[2] - SPECIALS)
    if (candidates := ranking.get("candidates")) is not None:
        warn_about_few_candidates(candidates.shape[1])
    return scores[:, 0], labels.amax(dim=1), ranking["history"], candidates


def metrics_of_ranks(prediction: EvalPrediction, sampled: Sampled = "popularity_sampled") -> dict[str, float]:
    """Return HR, NDCG and MRR at 1, 5 and 10 from `ranks_of_logits`, as `compute_metrics` of the Trainer.

    `sampled` says how candidates were drawn; metrics among candidates are named `ndcg@10_popularity_sampled` and so on.
    """
    found: Any = prediction.predictions
    parts = [np.asarray(part) for part in (found if isinstance(found, (list, tuple)) else [found])]
    if any(part.ndim not in (1, 2) for part in parts):
        advice = "Pass `preprocess_logits_for_metrics=ranks_of_logits` to the Trainer, as `cloze_training` does."
        raise ValueError(f"`metrics_of_ranks` needs one rank per user, found other outputs. {advice}")
    ranks = np.concatenate(parts)
    if ranks.ndim == 1:
        return ranking_metrics(ranks)
    return ranking_metrics(ranks[:, 0]) | sampled_metrics(ranks[:, 1], sampled)


def rank_rows(trainer: Trainer, rows: Dataset, results: Callable | None = None) -> np.ndarray:
    """Return `results` of the logits (default: `preprocess_logits_for_metrics`) for each row, in the order of the rows.

    The array is (rows,) or (rows, columns). With `train_sampling_strategy="group_by_length"`, the default of
    `RecommendationTrainingArguments`, `Trainer.predict` alone returns another order. ValueError if there are no rows.
    """
    lengths = pc.list_value_length(read_rows(rows, "input_ids")["input_ids"]).to_numpy()
    if not len(lengths):
        raise ValueError("Expected one or more rows to evaluate, found none.")
    order = np.argsort(lengths, kind="stable")  # reduces padding
    trainer = copy.copy(trainer)
    trainer.args, trainer.callback_handler = copy.copy(trainer.args), copy.copy(trainer.callback_handler)
    trainer.preprocess_logits_for_metrics = results or trainer.preprocess_logits_for_metrics
    trainer.compute_metrics, args, handler = None, trainer.args, trainer.callback_handler
    # All rows in the given order, as one array
    args.train_sampling_strategy, args.dataloader_drop_last, args.eval_do_concat_batches = "random", False, True
    if len(order) <= FEW_BATCHES * args.eval_batch_size * args.world_size:
        handler.callbacks = [it for it in handler.callbacks if not isinstance(it, ProgressCallback)]
    drawn = trainer.predict(rows.select(order)).predictions
    ranks = np.empty_like(drawn)
    ranks[order] = drawn
    return ranks
