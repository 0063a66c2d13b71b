"""Trainers of a recipe: one to train the model of the recipe, and one to evaluate a model or baseline."""

import copy
import logging
import tempfile
from collections.abc import Iterable
from inspect import Parameter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    EvalPrediction,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    set_seed,
)

from ..data.tokenization import ItemTokenizer
from ..data.values import as_seconds
from ..evaluation.ranking import bootstrap_interval, ndcg_gains, ranking_metrics, sampled_metrics
from ..evaluation.trainer_evaluation import rank_rows
from ..hub.checkpoint import check_sizes, fetch_checkpoint
from ..hub.run_facts import FACTS_FILE, RunFacts
from ..models.item_loss import check_loss
from ..models.registry import architecture_of
from ..training.catalog import append_items
from ..training.initialization import count_transitions, initialize_items, initialize_new_items
from ..training.item_features import load_projection
from ..training.objectives import cloze_training, next_item_training
from ..training.resources import check_memory, estimate_memory
from ..training.trainer import RecommendationTrainer
from ..training.transfer import transfer
from .own_code import find_configuration, find_split
from .prepare import ROWS, describe_data, prepare, protocol, sampled_by
from .recipe import Recipe
from .report import EpochLines, EpochLinesWithBar

logger = logging.getLogger(__name__)

NEGATIVES = ("num_negatives", "share_negatives", "gbce_calibration")
WITHOUT_WEIGHTS = (*NEGATIVES, "hidden_dropout_prob", "attention_probs_dropout_prob", "loss", "loss_chunk_size",
                   "exclude_history")  # fmt: skip
"""Options that may change when a model starts from a checkpoint."""
NEEDED = {
    "tolerance": ("continue_from",),
    "allow_earlier": ("continue_from",),
    "match_items": ("start_from",),
    "title_column": ("titles",),
    "title_item": ("titles", "item_features"),
    "feature_text": ("item_features", "continue_from"),
    "encoder": ("item_features", "continue_from"),
    "id_dropout": ("item_features", "continue_from"),
}
"""For each option of a run, the options without which it has no effect. One of them is enough."""


def build_trainer(recipe: Recipe, tokenizer: ItemTokenizer, histories: DatasetDict) -> RecommendationTrainer:
    """Return a Trainer with the model that the recipe describes, ready to train."""
    args = copy.copy(recipe.training)
    if args.fp16 and args.device.type == "cpu":
        raise ValueError("`--fp16` needs a GPU, found the device cpu. Set `--fp16 false` to train in float32.")
    if "validation" not in histories:  # no metric could choose a checkpoint
        if recipe.run.continue_from is not None:
            expected = "a split with validation targets, which decide whether the new model is used"
            raise ValueError(f"`--continue_from` needs {expected}, found `--split {recipe.run.split}`. Omit `--split`.")
        args.eval_strategy, args.load_best_model_at_end = "no", False
    _check_options(recipe, args)
    set_seed(args.seed)  # before the model is built
    trainer = RecommendationTrainer(
        _build_model(recipe, tokenizer, args, histories["train"]),
        args,
        train_dataset=histories["train"],
        eval_dataset=histories.get("validation"),
        **objective_arguments(recipe, tokenizer),
    )
    if recipe.run.start_from is not None:
        trainer.projection = load_projection(fetch_checkpoint(recipe.run.start_from))
    trainer.remove_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
    trainer.add_callback(EpochLines if args.disable_tqdm else EpochLinesWithBar)
    return trainer


def _check_options(recipe: Recipe, args: Any) -> None:
    """Raise ValueError for an unknown metric, and warn about options without the option that they need."""
    known = ["loss", *ranking_metrics(np.ones(1))]
    if recipe.run.popularity_candidates or recipe.run.uniform_candidates:
        known += sampled_metrics(np.ones(1), sampled_by(recipe))
    metric = args.metric_for_best_model if args.eval_strategy != "no" else None
    if metric and metric.removeprefix("eval_") not in known:
        raise ValueError(f"Unknown metric `--metric_for_best_model {metric}`. Choose from {', '.join(known)}.")
    for name, others in NEEDED.items():
        if recipe.given.get(name) and not any(recipe.given.get(other) for other in others):
            named = others[:1] if "continue_from" in others else others
            needed = " or ".join(f"`--{other}`" for other in named)
            logger.warning("`--%s` has no effect without %s.", name, needed)


def _build_model(recipe: Recipe, tokenizer: ItemTokenizer, args: Any, train: Dataset) -> PreTrainedModel:
    source = None if recipe.run.start_from is None else fetch_checkpoint(recipe.run.start_from)
    changes = {name: value for name, value in recipe.options("model").items() if name in WITHOUT_WEIGHTS}
    if source is not None:
        config = AutoConfig.from_pretrained(source, vocab_size=len(tokenizer), **changes)
    else:
        sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
        config = find_configuration(recipe.run.architecture)(**sizes, **recipe.options("model"))
    check_loss(config.loss)
    if architecture_of(config).objective == "next_item":
        _warn_unused(recipe, recipe.options("masking"), f"The architecture {recipe.run.architecture}")
    if source is None and config.num_followers and not recipe.run.initialize_items:
        raise ValueError("`--num_followers` needs `--initialize_items true`, which counts the followers of each item.")
    if config.loss == "softmax":
        _warn_unused(recipe, NEGATIVES, "The loss softmax")
    with torch.device("meta"):  # nothing is allocated
        shapes = AutoModelForMaskedLM.from_config(config)
    check_memory(estimate_memory(shapes, args.per_device_train_batch_size, 1))
    if source is not None:
        model = _start_from(recipe, source, tokenizer, train, changes)
        if config.num_followers:
            since = recipe.options("splitting").get("since")  # text, if it is from a command line or file
            count_transitions(model, train, None if since is None else as_seconds(since, "since"))
        return model
    model = AutoModelForMaskedLM.from_config(config)
    if recipe.run.initialize_items:
        initialize_items(model, train)
    return model


def _start_from(
    recipe: Recipe, source: Path, tokenizer: ItemTokenizer, train: Dataset, changes: dict[str, Any]
) -> PreTrainedModel:
    """Load a model, and give it the catalog of `tokenizer`. `changes` are options, such as dropout, to override."""
    model = AutoModelForMaskedLM.from_pretrained(source, **changes)
    its_tokenizer = AutoTokenizer.from_pretrained(source)
    check_sizes(model, its_tokenizer)
    config, wanted = model.config, find_configuration(recipe.run.architecture).model_type
    if config.model_type != wanted:
        found = f"{source} is a {config.model_type} model, but `--architecture` is {wanted}"
        raise ValueError(f"{found}. Set `--architecture {config.model_type}`.")
    _warn_overridden(recipe, config, source)
    if recipe.run.continue_from is not None:
        starts = append_items(model, its_tokenizer, tokenizer, load_projection(source))
        logger.info("New items: %d. Vectors from features: %d.", len(starts), starts.count("features"))
        if len(places := np.flatnonzero([start == "mean" for start in starts])):
            initialize_new_items(model, train, torch.from_numpy(places + len(its_tokenizer)))
        return model
    options: dict[str, Any] = {"rows": train, "projection": load_projection(source)}
    return transfer(model, its_tokenizer, tokenizer, recipe.run.match_items, **options)


def _warn_overridden(recipe: Recipe, config: Any, source: str | Path) -> None:
    """Warn about options of the model that do not have the values of its configuration, which is that of `source`."""
    given = recipe.options("model").items()
    if overridden := sorted(name for name, value in given if value != getattr(config, name)):
        values = ", ".join(f"`--{name} {getattr(config, name)}`" for name in overridden)
        logger.warning("Your values of these options are not used, because %s has %s.", source, values)


def objective_arguments(recipe: Recipe, tokenizer: ItemTokenizer) -> dict[str, Any]:
    """Return the arguments of a Trainer for the objective of the architecture."""
    if architecture_of(find_configuration(recipe.run.architecture)()).objective == "next_item":
        return next_item_training(tokenizer, sampled=sampled_by(recipe))
    return cloze_training(tokenizer, sampled=sampled_by(recipe), **recipe.options("masking"))


def _warn_unused(recipe: Recipe, names: Iterable[str], reader: str) -> None:
    if unused := [name for name in names if name in recipe.given]:
        logger.warning("%s does not use %s.", reader, ", ".join(f"`--{name}`" for name in unused))


def evaluate(recipe: Recipe) -> tuple[tuple[str, str | None], dict[str, dict[str, float]], dict[str, tuple]]:
    """Evaluate the checkpoint of a recipe again. Options that are not given come from the recipe in the checkpoint.

    Return the protocols, as from `protocol`; the metrics of each split; and the 95 % interval of NDCG@10 of each split.
    Raises ValueError if the recipe has no checkpoint, or its split holds no items out.
    """
    if recipe.source is None:
        raise ValueError("The checkpoint is missing. Name a checkpoint folder or a Hub ID before all options.")
    model, tokenizer = (auto.from_pretrained(recipe.source) for auto in (AutoModelForMaskedLM, AutoTokenizer))
    _, interactions, _, histories = prepare(recipe, tokenizer)
    _warn_about_other_targets(recipe, interactions)
    trainer = evaluator(model, recipe, tokenizer)
    _warn_overridden(recipe, model.config, recipe.source)
    found = {split: evaluate_rows(trainer, rows) for split, rows in histories.items() if split != "train"}
    if not found:
        advice = "If the model was trained with it, train again with another split. Otherwise omit `--split`."
        raise ValueError(f"The split {recipe.run.split} holds no items out. {advice}")
    return (
        protocol(recipe, len(tokenizer.items), model.config.exclude_history),
        {split: metrics for split, (metrics, _) in found.items()},
        {split: bootstrap_interval(gains) for split, (_, gains) in found.items()},
    )


def _warn_about_other_targets(recipe: Recipe, interactions: Dataset) -> None:
    """Warn if log or split are not those of the training, because the model may have been trained on the targets."""
    folder = Path(str(recipe.source))  # the command has fetched it
    if not (folder / FACTS_FILE).exists():
        return
    facts = RunFacts.load(folder)
    options = find_split(recipe.run.split).options.items()
    defaults = {"split": type(recipe.run).split} | {name: it.default for name, it in options if name not in ROWS}
    before = {name: facts.recipe.get(name, value) for name, value in defaults.items()}
    changed = [name for name, value in before.items() if str(recipe.given.get(name, defaults[name])) != str(value)]
    other = [f"`--{name} {before[name]}`" for name in changed if before[name] is not Parameter.empty]
    found = f"The model was trained with {' and '.join(other)}" if other else ""
    if facts.data.sha256 and describe_data(recipe, interactions).sha256 != facts.data.sha256:
        found = "The log differs from that of the training"
    if found:
        logger.warning("%s. If the model was trained on targets of this evaluation, the results are too high.", found)


def evaluator(model: torch.nn.Module, recipe: Recipe, tokenizer: ItemTokenizer) -> Trainer:
    """Return a `Trainer` of transformers that evaluates a model or baseline as a run does, without progress bars.

    An `exclude_history` in the recipe replaces that of the model. Raises ValueError if the sizes of model and tokenizer
    differ.
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
