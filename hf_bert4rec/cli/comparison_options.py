"""The options of the models of a comparison: what they are, whether they differ, and checks before a training."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer

from ..data.tokenization import ItemTokenizer
from ..evaluation.baselines import BASELINES
from ..hub.checkpoint import fetch_checkpoint, stored_exclude_history, weight_files
from ..hub.run_facts import FACTS_FILE, UNPUBLISHED_OPTIONS, DataFacts, RunFacts
from ..models.configuration_bert4rec import SPECIAL_TOKENS
from .comparison_file import Comparison
from .comparison_report import result_file
from .prepare import excludes_history
from .recipe import Recipe, parse_recipe
from .run import check_source

WITHOUT_EFFECT = (*UNPUBLISHED_OPTIONS, "disable_tqdm", "use_cpu")
"""Prefixes of the options of a recipe that do not affect the weights."""


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
    others = "(and the folders of the same name, if training options changed)"
    advice = f"Delete these files {others}, or change `--output_dir`."
    lines = [f"{folder} contains results with other settings. {advice}"]
    for name in comparison.models:
        if (file := result_file(folder, name)).exists():
            found = json.loads(file.read_text(encoding="utf-8")).get("settings", {})
            if changes := describe_changes(found, describe_settings(comparison, name, split, sha256, folder)):
                lines.append(f"{file}: {', '.join(changes)}")
    if len(lines) > 1:
        raise ValueError("\n".join(lines))


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
