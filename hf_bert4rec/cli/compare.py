"""Train and evaluate any number of models on one dataset, each in its own process, and save their results."""

import hashlib
import inspect
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import transformers
from datasets import Dataset
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

from ..data.audit import audit
from ..data.histories import flatten, target_items
from ..data.tokenization import ItemTokenizer
from ..evaluation.baselines import BASELINES, DataCollatorWithUsers
from ..evaluation.comparison import evaluate_users, split_metrics, user_groups
from ..evaluation.ranking import SAMPLED_METRICS
from ..hub.checkpoint import fetch_checkpoint, last_complete_checkpoint, stored_exclude_history, weight_files
from ..hub.run_facts import FACTS_FILE, UNPUBLISHED_OPTIONS, DataFacts, RunFacts
from ..models.configuration_bert4rec import SPECIAL_TOKENS
from ..training.resources import peak_memory
from .comparison_report import PARTS_DIFFER, ModelResult, differing_parts, format_report, result_file, summarize
from .prepare import describe_data, excludes_history, prepare, protocol, sampled_by, whole_histories
from .recipe import Recipe, import_own_code, imported, parse_recipe, read_yaml
from .run import check_source, run
from .trainers import evaluator

logger = logging.getLogger(__name__)

KINDS = ("baseline", "recipe", "checkpoint")
EXAMPLE = "`hf-bert4rec compare --help` shows an example."
WITHOUT_EFFECT = (*UNPUBLISHED_OPTIONS, "disable_tqdm", "use_cpu")
"""Prefixes of the options of a recipe that do not affect the weights."""


@strict
@dataclass
class Comparison:
    """A comparison file, as described by `hf-bert4rec compare --help`."""

    path: str
    recipe: str  # its data, split and protocol hold for all models
    models: dict[str, dict[str, Any]]  # name → one of KINDS, and options of that baseline or recipe
    published: dict[str, dict[str, dict[str, float | int]]] = field(default_factory=dict)
    """Published values of metrics among sampled candidates, by model, source and metric."""

    @classmethod
    def load(cls, path: str) -> Self:
        """Read and check a comparison file."""
        content = read_yaml(path, "a YAML file of a comparison", EXAMPLE)
        given = {name: value for name, value in content.items() if value is not None}
        if not {"recipe", "models"} <= {*given} <= {"recipe", "models", "published"}:
            found = ", ".join(f"`{name}`" for name in given) or "none"
            expected = "expected values for the keys `recipe` and `models`, and optionally `published`"
            raise ValueError(f"{path}: {expected}, found {found:.200}. {EXAMPLE}")
        try:
            return cls(path, **given)
        except StrictDataclassError as error:
            cause: BaseException = error
            while cause.__cause__ is not None:  # the innermost error names the value
                cause = cause.__cause__
            example = f". {EXAMPLE}" if isinstance(cause, TypeError) else ""  # of the wrong type
            reason = re.sub(r" doesn't match any type.*", " must be a number", str(cause), flags=re.DOTALL)
            raise ValueError(f"{path}: {reason}{example}") from error

    def validate_models(self) -> None:
        """Check that each model is one of `KINDS`, and that names are valid for tables and files."""
        if not self.models:
            raise ValueError("`models` is empty. Name at least one model.")
        files = {"comparison.json": "the report"}
        for name, options in self.models.items():
            other = files.setdefault(file := result_file("", name).name, name)
            if sum(kind in options for kind in KINDS) != 1:
                raise ValueError(f"{name!r}: expected one of {', '.join(KINDS)}, found {options}. Give exactly one.")
            if not isinstance(path := options.get("recipe", ""), str):
                raise ValueError(f"{name!r}: `recipe` must be the path of a recipe, found {path!r}. {EXAMPLE}")
            if (baseline := str(options.get("baseline", "popularity"))) not in BASELINES:
                raise ValueError(f"{name!r}: unknown baseline {baseline!r}. Choose from {', '.join(BASELINES)}.")
            if "checkpoint" in options and len(options) > 1:
                others = ", ".join(sorted(options.keys() - {"checkpoint"}))
                raise ValueError(f"{name!r}: `checkpoint` cannot be combined with {others}. Remove these options.")
            if "|" in name:
                raise ValueError(f"{name!r}: a name with | breaks the tables. Rename this model.")
            if other != name:
                raise ValueError(f"{name!r}: {file} is already the file of {other!r}. Rename this model.")

    def validate_published(self) -> None:
        """Check that all published metrics are columns of the table of sampled metrics."""
        names = {name for sources in self.published.values() for metrics in sources.values() for name in metrics}
        if unknown := names - {*SAMPLED_METRICS}:
            known = ", ".join(SAMPLED_METRICS)
            raise ValueError(f"Unknown metric {min(unknown)!r} in `published`. Choose from {known}.")

    def parse_recipe(self) -> Recipe:
        """Parse `recipe`, whose data, split and protocol hold for all models."""
        try:
            return parse_recipe([self.recipe, "--disable_tqdm=true"])
        except ValueError as error:
            raise ValueError(f"{self.path}: `recipe`: {error}") from error


def compare(path: str, split: str, folder: str) -> str:
    """Train and evaluate the models of a comparison that have no result in `folder` yet, and report on all of them.

    `folder` receives one result per model, the trained models, the returned report as `comparison.md`,
    and its numbers as `comparison.json`.

    Raises:
        ValueError: The comparison or one of its models is invalid, or a result in `folder` has other options, data or
            weights. All of this is checked before a model is trained.
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


def trained_options(comparison: Comparison, folder: str) -> dict[str, dict[str, Any]]:
    """Return the resolved options of each trained model whose checkpoint has run facts, as JSON values."""
    found = {}
    for name, options in comparison.models.items():
        if "baseline" not in options:
            trained = result_file(folder, name).with_suffix("") / "model"
            checkpoint = fetch_checkpoint(options["checkpoint"]) if "checkpoint" in options else trained
            if (checkpoint / FACTS_FILE).exists():
                found[name] = json.loads(json.dumps(resolved_options(checkpoint), default=str))
    return found


def resolved_options(checkpoint: Path) -> dict[str, Any]:
    """Return the options of model, rows, masks and training of a checkpoint, as given or by default."""
    facts, config = RunFacts.load(checkpoint), AutoConfig.from_pretrained(checkpoint)
    recipe = parse_recipe([str(checkpoint)])
    options = recipe.model_options(config) | {"max_length": config.max_position_embeddings}
    options |= {name: getattr(recipe.run, name) for name in ("initialize_items", "start_from")}
    options |= weight_options(recipe.training.to_dict())
    if facts.reproducible:
        return options
    known = {"architecture", "max_length", *vars(recipe.model), *facts.recipe}
    return {name: value for name, value in options.items() if name in known}


def differing_options(trained: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return option → model → value for the options whose values are not equal for all models that have them."""
    names = dict.fromkeys(name for options in trained.values() for name in options)
    rows = {name: {model: of[name] for model, of in trained.items() if name in of} for name in names}
    return {name: row for name, row in rows.items() if len({json.dumps(value) for value in row.values()}) > 1}


def check_model(comparison: Comparison, name: str, recipe: Recipe, folder: str) -> None:
    """Check the options, the checkpoint and the packages of a model, and that its split is that of the comparison."""
    options = dict(comparison.models[name])
    try:
        if "baseline" in options:
            first = len(SPECIAL_TOKENS)
            rows = {"user": ["u", "v"], "input_ids": [[first, first + 1], [first + 1]], "timestamps": [[0, 2], [1]]}
            baseline = options.pop("baseline")
            try:
                BASELINES[baseline](Dataset.from_dict(rows), first + 2, **options)
            except TypeError as error:
                advice = f"`help(hf_bert4rec.BASELINES[{baseline!r}])` in Python lists its options."
                raise ValueError(f"the baseline {baseline} cannot use {options} ({error}). {advice}") from error
            return
        expected = split_options(recipe)
        if "checkpoint" in options:
            checkpoint = fetch_checkpoint(options["checkpoint"])
            found = split_options(parse_recipe([str(checkpoint)]))
            found["exclude_history"] = stored_exclude_history(checkpoint)
        else:
            check_source(own := parse_recipe(recipe_words(options, folder)))
            found = split_options(own)
            if _chooses_exclusion(own):
                if not _chooses_exclusion(comparison.parse_recipe()):
                    chosen = "`exclude_history` is chosen from the log for this model, but not for the comparison"
                    raise ValueError(f"{chosen}. Set the same value for this model and in {comparison.recipe}.")
                found["exclude_history"] = expected["exclude_history"]  # chosen from the same log
        for option in ("window_step", "prefixes"):  # they change the training rows, not the targets
            expected[option] = found[option] = None
        if changes := describe_changes(expected, found):
            raise ValueError(
                f"the split or ranking differs from {comparison.recipe} (recipe → model: {', '.join(changes)}). Set "
                "the same options. If the split differs, train again: the targets may be in the training data."
            )
    except (ImportError, TypeError, ValueError) as error:
        raise ValueError(f"{comparison.path}: {name!r}: {error}") from error


def check_data(checkpoint: Path, data: DataFacts, items: Any, recipe: str) -> tuple[RunFacts, ItemTokenizer]:
    """Return run facts and tokenizer of a checkpoint; ValueError if its data or items are not those of the recipe."""
    facts = RunFacts.load(checkpoint)  # those of a `RecommendationTrainer` have no checksum
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    if facts.data.sha256 not in (None, data.sha256) or tokenizer.items != items:
        advice = f"Set `data`, filters and `item_features` in {recipe} as in its training, or omit this model."
        raise ValueError(f"{checkpoint} was not trained on the data and items of {recipe}. {advice}")
    return facts, tokenizer


def _chooses_exclusion(recipe: Recipe) -> bool:
    """Return whether statistics of the log decide if rankings exclude the history."""
    run = recipe.run
    return run.recommended_settings and run.start_from is None and "exclude_history" not in recipe.given


def split_options(recipe: Recipe) -> dict[str, Any]:
    """Return the options that determine targets and rankings."""
    return {"split": recipe.run.split, "exclude_history": excludes_history(recipe), **recipe.split_options()}


def recipe_words(options: dict[str, Any], folder: str) -> list[str]:
    """Return the recipe and options of a model as a command line."""
    words = [options["recipe"], f"--output_dir={folder}", "--disable_tqdm=true"]
    for name, value in options.items():
        if name != "recipe":
            words += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    return words


def weight_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a recipe that affect the weights."""
    return {name: value for name, value in options.items() if not name.startswith(WITHOUT_EFFECT)}


def describe_settings(comparison: Comparison, name: str, split: str, sha256: str, folder: str) -> dict[str, Any]:
    """Return all settings that determine the result of a model, as JSON values."""
    options, recipe = comparison.models[name], comparison.parse_recipe()
    names = ("max_length", "popularity_candidates", "uniform_candidates")
    protocol = {option: getattr(recipe.run, option) for option in names} | split_options(recipe)
    protocol.pop("prefixes", None)  # this option changes training rows only
    settings = {"model": options, "evaluated split": split, "data": sha256, "protocol": protocol}
    if "baseline" in options and not (kind := BASELINES[options["baseline"]]).__module__.startswith("hf_bert4rec."):
        settings["code"] = hashlib.sha256(Path(inspect.getfile(kind)).read_bytes()).hexdigest()
    if "recipe" in options:
        settings["recipe"] = weight_options(parse_recipe(recipe_words(options, folder)).given)
    if "checkpoint" in options:
        checkpoint = fetch_checkpoint(options["checkpoint"])
        files = [(checkpoint / file).read_bytes() for file in weight_files(checkpoint)]
        settings["weights"] = [hashlib.sha256(content).hexdigest() for content in files]
    return json.loads(json.dumps(settings, default=str))


def check_results(comparison: Comparison, split: str, sha256: str, folder: str) -> None:
    """Raise ValueError if `folder` has results of an earlier comparison with other settings."""
    advice = (
        "Delete these files (and the folders of the same name, if training options changed), or change `--output_dir`."
    )
    lines = [f"{folder} contains results with other settings. {advice}"]
    for name in comparison.models:
        if (file := result_file(folder, name)).exists():
            found = json.loads(file.read_text(encoding="utf-8")).get("settings", {})
            if changes := describe_changes(found, describe_settings(comparison, name, split, sha256, folder)):
                lines.append(f"{file}: {', '.join(changes)}")
    if len(lines) > 1:
        raise ValueError("\n".join(lines))


def _start_process(level: int, modules: Sequence[str]) -> None:
    """Log as the main process does, and import the modules that it has imported for the user."""
    for module in modules:
        import_own_code(module)
    log = logging.getLogger("hf_bert4rec")
    log.addHandler(logging.StreamHandler())
    log.setLevel(level)


def describe_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Describe the entries that differ between two nested dicts, as `name old → new`."""
    changes = []
    for name in {**new, **old}:
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            changes += describe_changes(before, after)
        elif before != after:
            changes.append(f"{name} {before} → {after}")
    return list(dict.fromkeys(changes))


def count_items(train: Dataset, vocab_size: int) -> np.ndarray:
    """Return the number of occurrences of each token ID in whole training histories, (vocab_size,)."""
    return np.bincount(flatten(train.with_format("arrow")[:]["input_ids"])[0], minlength=vocab_size)
