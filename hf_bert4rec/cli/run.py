"""A run: prepare the data, train, save the model, evaluate the model and baselines, save the results."""

import dataclasses
import hashlib
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, Trainer

from ..data.arguments import check_number
from ..data.audit import audit
from ..data.histories import are_repeats, target_items
from ..data.splits import leave_one_out
from ..data.tokenization import ItemTokenizer
from ..evaluation.baselines import MarkovChain, OwnItems, Popularity
from ..evaluation.ranking import bootstrap_interval
from ..hub.checkpoint import CURVE, fetch_checkpoint, save_checkpoint
from ..hub.push import push_checkpoint
from ..hub.run_facts import ADDED_PARTS, FACTS_FILE, DataFacts, RunFacts
from ..models.item_loss import check_loss
from ..training.item_features import items_in, projection_file
from .own_code import find_split, imported
from .prepare import describe_data, prepare, protocol, validation_histories, whole_histories
from .recipe import Recipe
from .report import draw_curve
from .resume import REJECTED, finish, start_or_resume
from .trainers import build_trainer, evaluate_rows, evaluator

logger = logging.getLogger(__name__)

RUN_BASELINES: dict[str, type[Popularity]] = {"Popularity": Popularity, "Markov chain, first order": MarkovChain}
FIXED = (
    "seed", "optim", "learning_rate", "muon_learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    "max_grad_norm", "lr_scheduler_type",
)  # fmt: skip
"""Training arguments that a resumed run cannot change: the optimizer state contains them, or rows depend on them."""
FEW_USERS = 100  # held-out users; with fewer, the standard error of NDCG@10 is about 0.02 or more


def run(recipe: Recipe) -> Path | None:
    """Train with a recipe and save a complete checkpoint with its learning curve in the folder `model` or `rejected`.

    The model is saved before it is evaluated, and checkpoints are removed when everything is saved. A run that was
    killed can be resumed from its last checkpoint. Return the folder of the model; None in processes after the first.
    """
    check_source(recipe)
    check_loss(recipe.model.loss)  # before the log is read
    check_number("tolerance", recipe.run.tolerance, "a number", lambda fall: fall == fall)  # not NaN
    recipe, interactions, tokenizer, histories = prepare(recipe)
    _check_targets(recipe, tokenizer, histories)
    trainer = build_trainer(recipe, tokenizer, histories)
    data = describe_data(recipe, interactions)
    fixed = {"split": recipe.run.split, "max_length": tokenizer.model_max_length}
    fixed |= recipe.model_options(trainer.model.config) | {name: getattr(trainer.args, name) for name in FIXED}
    checkpoint = start_or_resume(trainer.args, _checksum(data, tokenizer), fixed)
    old_score = None if recipe.run.continue_from is None else _score_of_parent(recipe, interactions)
    trainer.train(resume_from_checkpoint=checkpoint)

    output = Path(trainer.args.output_dir)
    folder = output / "model"
    if old_score is not None:
        rows = histories["validation"]
        new_score = _validation_score(trainer.model, tokenizer, recipe, rows)
        text = "Validation NDCG@10 (held-out users: %d): old model %.4f, new model %.4f."
        logger.info(text, len(rows), old_score, new_score)
        if new_score < old_score - recipe.run.tolerance:
            folder = output / REJECTED
            text = "Validation NDCG@10 fell by more than `--tolerance` (%g), so the new model is saved in %s."
            logger.warning(text, recipe.run.tolerance, folder)
    config = trainer.model.config
    whole, sampled = protocol(recipe, len(tokenizer.items), config.exclude_history)
    facts = trainer.run_facts(recipe.run.name or output.absolute().name)
    parts = {name: facts.recipe[name] for name in ADDED_PARTS if name in facts.recipe}  # also those of `start_from`
    facts = dataclasses.replace(
        facts,
        data=data,
        protocol=whole,
        sampled_protocol=sampled,
        results={},
        evaluated={},
        recipe={**recipe.given, **parts, **{name: getattr(config, name) for name in recipe.options("model")}},
        reproducible=True,
        example=recipe.run.example or tokenizer.items[:3].to_pylist(),
    )
    first = trainer.is_world_process_zero()
    if first:  # before anything else can fail
        save_checkpoint(folder, trainer.model, tokenizer, facts, projection_file(trainer.projection), imported)
    trainers = {}
    if set(histories) != {"train"}:
        train = whole_histories(recipe, interactions, tokenizer)
        repeats = {} if config.exclude_history else {"Own items": OwnItems}
        for name, kind in (RUN_BASELINES | repeats).items():
            baseline = kind(train, len(tokenizer))
            baseline.exclude_history = config.exclude_history
            trainers[name] = evaluator(baseline, recipe, tokenizer)
    facts = _with_results(facts, {**trainers, facts.model: trainer}, histories)
    if not first:
        return None
    files = {**projection_file(trainer.projection), CURVE: draw_curve(facts)}
    save_checkpoint(folder, trainer.model, tokenizer, facts, files, imported)
    finish(output)
    if (args := trainer.args).push_to_hub and folder.name != REJECTED:
        where = {"private": args.hub_private_repo, "token": args.hub_token, "revision": args.hub_revision}
        logger.info("Pushed the model: %s", push_checkpoint(folder, trainer.hub_model_id, **where))
    return folder


def _check_targets(recipe: Recipe, tokenizer: ItemTokenizer, histories: DatasetDict) -> None:
    """Log what makes results less reliable: few targets, targets without training rows, leaks of a custom split."""
    evaluated = {name: rows for name, rows in histories.items() if name != "train"}
    fewest = min(map(len, evaluated.values()), default=FEW_USERS)
    if fewest < FEW_USERS:
        advice = "See the 95 % intervals of the results."
        if "held_out" in recipe.split_options():
            advice = "Increase `--held_out`, or collect more days."
        text = "Held-out users: %d. With fewer than %d, chance decides which checkpoint or model is better. %s"
        logger.warning(text, fewest, FEW_USERS, advice)
    if find_split(recipe.run.split).function.__module__ != leave_one_out.__module__:
        _warn_about_leaks(recipe.run.split, histories)
    elif recipe.run.continue_from is None:  # otherwise an earlier training may have had the targets
        trained = items_in(histories["train"], len(tokenizer)).numpy()  # `audit` finds them too, but takes much longer
        counts = {name: (~trained[target_items(rows)]).sum() for name, rows in evaluated.items()}
        shown = [f"{name} {count:,} of {len(evaluated[name]):,}" for name, count in counts.items() if count]
        if shown:
            logger.info("Targets without an interaction in the training rows: %s.", ", ".join(shown))


def _warn_about_leaks(split: str, histories: DatasetDict) -> None:
    splits = {name: histories[name] for name in ("train", "validation", "test") if name in histories}
    with suppress(ValueError):  # rows of the user may lack columns that only the audit needs
        for leak in (finding for finding in audit(DatasetDict(splits)) if finding.leak and len(finding.rows)):
            logger.warning("The split %s may have a leak (docs/data.md, section Leaks). %s.", split, leak)


def check_source(recipe: Recipe) -> None:
    """Raise ValueError if a recipe is from a checkpoint whose run facts do not contain all options."""
    if recipe.source and Path(recipe.source).is_dir() and not RunFacts.load(recipe.source).reproducible:
        found = f"{recipe.source}: {FACTS_FILE} does not contain all options, because the model was trained in Python"
        advice = "To train a new model, write `data` and the options into a YAML file, and pass this file instead."
        more = f"To train this model further, pass `--continue_from {recipe.source}` instead of the folder."
        raise ValueError(f"{found}. {advice} {more}")


def _score_of_parent(recipe: Recipe, interactions: Dataset) -> float:
    """Return the validation NDCG@10 of the model of `continue_from`. Targets that it lacks count as missed."""
    folder = fetch_checkpoint(str(recipe.run.continue_from))
    model, tokenizer = (auto.from_pretrained(folder) for auto in (AutoModelForMaskedLM, AutoTokenizer))
    logger.info("Evaluating the old model. A message about items that its tokenizer lacks is about this model only.")
    return _validation_score(model, tokenizer, recipe, validation_histories(recipe, interactions, tokenizer))


def _validation_score(model: PreTrainedModel, tokenizer: ItemTokenizer, recipe: Recipe, rows: Dataset) -> float:
    return evaluate_rows(evaluator(model, recipe, tokenizer), rows)[0]["ndcg@10"]


def _with_results(facts: RunFacts, trainers: dict[str, Trainer], histories: DatasetDict) -> RunFacts:
    """Return run facts with the results of the model and the baselines on every split except train."""
    results, intervals, differences = {}, {}, {}
    for split, rows in histories.items():
        if split != "train":
            found = {name: evaluate_rows(trainer, rows) for name, trainer in trainers.items()}
            gains = {name: gain for name, (_, gain) in found.items()}
            ours = gains[facts.model]
            results[split] = {name: metrics for name, (metrics, _) in found.items()}
            intervals[split] = {name: bootstrap_interval(gain) for name, gain in gains.items()}
            differences[split] = {name: bootstrap_interval(ours - gains[name]) for name in gains if name != facts.model}
            if not facts.exclude_history and split == [*histories][-1]:  # test, if there is one
                _log_repeats(split, are_repeats(rows), ours > 0)
    evaluated = {split: len(histories[split]) for split in results}
    measured: dict[str, Any] = {"results": results, "intervals": intervals, "differences": differences}
    return dataclasses.replace(facts, evaluated=evaluated, **measured)


def _log_repeats(split: str, repeated: np.ndarray, hits: np.ndarray) -> None:
    """Log HR@10 for targets that the user had before, and for new ones; both arguments are (users,) bool."""
    if not repeated.any():
        return
    groups = {"these": repeated, "the others": ~repeated}
    rates = ", ".join(f"{hits[chosen].mean():.4f} for {name}" for name, chosen in groups.items() if chosen.any())
    text = "Targets of the %s split that are in the history of the user: %.0f %%. HR@10 of the model: %s."
    logger.info(text, split, 100 * repeated.mean(), rates)


def _checksum(data: DataFacts, tokenizer: ItemTokenizer) -> str | None:
    """Return a checksum of the interactions and, if the tokenizer has any, of the features of the items."""
    if tokenizer.features is None:
        return data.sha256
    vectors = tokenizer.features.vectors(tokenizer.items)
    return f"{data.sha256} {hashlib.sha256(vectors.tobytes()).hexdigest()}"
