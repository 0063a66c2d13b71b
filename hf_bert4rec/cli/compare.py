"""Train and evaluate any number of models on one dataset, each in its own process, and save their results."""

import json
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForMaskedLM

from ..data.audit import audit
from ..data.histories import count_items, target_items
from ..evaluation.baselines import BASELINES, DataCollatorWithUsers
from ..evaluation.comparison import evaluate_users, split_metrics, user_groups
from ..hub.checkpoint import fetch_checkpoint, last_complete_checkpoint
from ..hub.run_facts import RunFacts
from ..training.resources import peak_memory
from .comparison_file import Comparison
from .comparison_options import (
    check_data,
    check_model,
    check_results,
    describe_settings,
    differing_options,
    recipe_words,
    trained_options,
    weight_options,
)
from .comparison_report import PARTS_DIFFER, ModelResult, differing_parts, format_report, result_file, summarize
from .own_code import import_own_code, imported
from .prepare import describe_data, excludes_history, prepare, protocol, sampled_by, whole_histories
from .recipe import parse_recipe
from .run import run
from .trainers import evaluator

logger = logging.getLogger(__name__)


def compare(path: str, split: str, folder: str) -> str:
    """Train and evaluate the models of a comparison that have no result in `folder` yet, and report on all of them.

    `folder` receives one result per model, the trained models, the returned report as `comparison.md`,
    and its numbers as `comparison.json`. ValueError if the comparison or one of its models is invalid, or a result in
    `folder` has other options, data or weights. All of this is checked before a model is trained. ValueError also if
    `folder` has a trained model with other options and without a result; this is found when its turn comes.
    """
    comparison = Comparison.load(path)
    logging.getLogger("hf_bert4rec.cli.prepare").setLevel(logging.WARNING)  # each training logs its own settings
    recipe, interactions, tokenizer, histories = prepare(comparison.parse_recipe())
    if split not in histories:
        others = [f"Pass `--split {name}`." for name in histories if name != "train"]
        solution = f"Set `split` in {comparison.recipe} to one that holds items out, such as leave_one_out."
        advice, found = others[0] if others else solution, " and ".join(histories)
        raise ValueError(f"{comparison.recipe} has no {split} split, found only {found}. {advice}")
    if comparison.published and "candidates" not in histories[split].column_names:
        advice = f"Set `popularity_candidates` or `uniform_candidates` in {comparison.recipe} as in the publication."
        raise ValueError(f"{path}: `published` needs metrics among sampled candidates. {advice}")
    data = describe_data(recipe, interactions)
    for name, options in comparison.models.items():
        check_model(comparison, name, recipe, folder)
        if "checkpoint" in options:
            facts, _ = check_data(fetch_checkpoint(options["checkpoint"]), data, tokenizer.items, comparison.recipe)
            if facts.data.sha256 is None:
                text = "%s: the training data is unknown. If it contains targets of this comparison, %s."
                logger.warning(text, options["checkpoint"], "the results of this model are too high")
    check_results(comparison, split, str(data.sha256), folder)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, options in comparison.models.items():
        if (file := result_file(folder, name)).exists():
            trained = f" To train this model again, delete {file.with_suffix('')} too." if "recipe" in options else ""
            print(f"{name}: its earlier result is used. To evaluate it again, delete {file}.{trained}", flush=True)
        else:
            print(f"Running {name} …", flush=True)
            level = logging.getLogger("hf_bert4rec").getEffectiveLevel()
            with ProcessPoolExecutor(1, get_context("spawn"), _start_process, (level, imported)) as process:
                process.submit(evaluate_model, comparison, name, split, folder).result()
    results = {name: ModelResult.load(folder, name) for name in comparison.models}
    counts = count_items(whole_histories(recipe, interactions, tokenizer), len(tokenizer))
    groups, differing = user_groups(histories[split], counts), differing_options(trained_options(comparison, folder))
    summary = summarize(split, results, groups, comparison.published, audit(histories), differing)
    if different := differing_parts(summary):
        logger.warning(PARTS_DIFFER, different)
    Path(folder, "comparison.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False), encoding="utf-8")
    report = format_report(summary)
    Path(folder, "comparison.md").write_text(report, encoding="utf-8")
    return report


def evaluate_model(comparison: Comparison, name: str, split: str, folder: str) -> None:
    """Evaluate one model, which is fitted or trained first if necessary, and save its `ModelResult`."""
    transformers.logging.disable_progress_bar()
    logging.getLogger("hf_bert4rec.data").setLevel(logging.ERROR)  # the main process has warned about the data
    options = dict(comparison.models[name])
    if "recipe" in options:
        options = {"checkpoint": train_model(options, str(result_file(folder, name).with_suffix("")))}
    logging.getLogger("hf_bert4rec").setLevel(logging.WARNING)  # the main process has logged what follows
    recipe, interactions, tokenizer, histories = prepare(comparison.parse_recipe())
    data, train = describe_data(recipe, interactions), whole_histories(recipe, interactions, tokenizer)
    if baseline := options.pop("baseline", None):
        started = time.perf_counter()
        model = BASELINES[baseline](train, len(tokenizer), **options)
        seconds, processes, threads = time.perf_counter() - started, 1, torch.get_num_threads()
        model.exclude_history = excludes_history(recipe)
    else:
        checkpoint = fetch_checkpoint(options["checkpoint"])
        facts, tokenizer = check_data(checkpoint, data, tokenizer.items, comparison.recipe)
        model = AutoModelForMaskedLM.from_pretrained(checkpoint)
        seconds, processes, threads = facts.seconds or 0, facts.machine.processes, facts.machine.threads
        _, _, _, histories = prepare(recipe, tokenizer)  # inputs as long as the model reads
    rows, trainer = histories[split], evaluator(model, recipe, tokenizer)
    if baseline:
        trainer.data_collator = DataCollatorWithUsers(tokenizer, model.users)
    started = time.perf_counter()
    users = evaluate_users(trainer, rows)
    evaluation_seconds = time.perf_counter() - started
    whole, sampled = protocol(recipe, len(tokenizer.items))
    ModelResult(
        settings=describe_settings(comparison, name, split, str(data.sha256), folder),
        protocol=whole,
        sampled_protocol=sampled,
        metrics=split_metrics(users, target_items(rows), count_items(train, len(tokenizer)), sampled_by(recipe)),
        training_seconds=round(seconds, 1),
        processes=processes,
        threads=threads,
        users_per_second=round(rows.num_rows / evaluation_seconds, 1),
        peak_gb=round(peak_memory(), 2),
        users=users,
    ).save(folder, name)


def train_model(options: dict[str, Any], folder: str) -> Path:
    """Return the checkpoint of a recipe with options; train it if it does not exist, or resume an interrupted run."""
    words = recipe_words(options, folder)
    recipe, checkpoint = parse_recipe(words), Path(folder, "model")
    if not checkpoint.exists():
        interrupted = last_complete_checkpoint(folder) is not None
        run(parse_recipe([*words, "--resume_from_checkpoint=true"]) if interrupted else recipe)
    elif weight_options(prepare(recipe)[0].given) != weight_options(RunFacts.load(checkpoint).recipe):
        raise ValueError(f"{checkpoint} was trained with other options. Delete this folder, or use it as `checkpoint`.")
    return checkpoint


def _start_process(level: int, modules: Sequence[str]) -> None:
    """Log as the main process does, and import the modules that it has imported for the user."""
    for module in modules:
        import_own_code(module)
    log = logging.getLogger("hf_bert4rec")
    log.addHandler(logging.StreamHandler())
    log.setLevel(level)
