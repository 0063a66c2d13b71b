"""Evaluation of models and baselines by the protocol of a recipe."""

import copy
import tempfile
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForMaskedLM, AutoTokenizer, EvalPrediction, PrinterCallback, Trainer

from ..data.tokenization import ItemTokenizer
from ..evaluation.ranking import bootstrap_interval, ndcg_gains
from ..evaluation.trainer_evaluation import rank_rows
from ..hub.checkpoint import check_sizes
from .build import objective_arguments
from .prepare import prepare, protocol
from .recipe import Recipe


def evaluate(recipe: Recipe) -> tuple[tuple[str, str | None], dict[str, dict[str, float]], dict[str, tuple]]:
    """Evaluate the checkpoint folder of a recipe again; options that are not given are those of its own recipe.

    Return the protocols, as from `protocol`; split → metric → value; and split → 95 % interval of NDCG@10 over users.
    """
    if recipe.source is None:
        raise ValueError("Name the checkpoint to evaluate, a folder or a Hub ID, before all options.")
    model, tokenizer = (auto.from_pretrained(recipe.source) for auto in (AutoModelForMaskedLM, AutoTokenizer))
    _, _, _, histories = prepare(recipe, tokenizer)
    trainer = evaluator(model, recipe, tokenizer)
    found = {split: evaluate_rows(trainer, rows) for split, rows in histories.items() if split != "train"}
    if not found:
        raise ValueError(f"The split {recipe.run.split} holds nothing out to evaluate on. Choose another `--split`.")
    return (
        protocol(recipe, len(tokenizer.items), model.config.exclude_history),
        {split: metrics for split, (metrics, _) in found.items()},
        {split: bootstrap_interval(gains) for split, (_, gains) in found.items()},
    )


def evaluator(model: torch.nn.Module, recipe: Recipe, tokenizer: ItemTokenizer) -> Trainer:
    """Return a stock Trainer that evaluates a model or baseline as a run does, without progress bars.

    A given `exclude_history` overrides that of the model. Raises ValueError if the tokenizer has another catalog.
    """
    settings: Any = getattr(model, "config", model)
    settings.exclude_history = recipe.given.get("exclude_history", settings.exclude_history)
    if settings is not model:
        check_sizes(model, tokenizer)
    args = copy.copy(recipe.training)
    args.output_dir, args.disable_tqdm, args.torch_compile = tempfile.gettempdir(), True, False  # nothing is written
    args.eval_strategy, args.load_best_model_at_end, args.push_to_hub = "no", False, False
    trainer = Trainer(model, args, **objective_arguments(recipe, tokenizer))
    trainer.remove_callback(PrinterCallback)
    return trainer


def evaluate_rows(trainer: Trainer, rows: Dataset) -> tuple[dict[str, float], np.ndarray]:
    """Return the ranking metrics of a split, and NDCG@10 of each user."""
    ranks = rank_rows(trainer, rows)
    assert trainer.compute_metrics is not None
    metrics = trainer.compute_metrics(EvalPrediction(predictions=ranks, label_ids=None))
    return metrics, ndcg_gains(ranks if ranks.ndim == 1 else ranks[:, 0], 10)
