"""A recipe: all options of a run, from a YAML file or a checkpoint folder and from the command line.

As with TRL's `TrlParser`, dataclasses define the options, the file sets them, and the command line overrides the file.
Values in the file are converted like words of the command line: `eval_strategy: no` and `1e-3` need no quotes. A value
that is empty, `null` or `none` means None for an option that can be None.
"""

import copy
import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from ..data.splits import SPLITS
from ..hub.checkpoint import fetch_checkpoint, open_folder
from ..hub.run_facts import FACTS_FILE, RunFacts
from ..models.configuration_bert4rec import Bert4RecConfig
from ..models.registry import architecture_of
from ..training.arguments import RecommendationTrainingArguments
from .options import RunArguments, option_parser, option_sections, parse_file, parse_words, unexpected
from .own_code import OWN_CODE, find_split, imported
from .yaml_files import read_yaml

logger = logging.getLogger(__name__)

OF_ONE_RUN = (
    "data", "history", "titles", "item_features", "example", "split", "since", "allow_earlier", "tolerance",
    "validation_time", "test_time", "validation_in_train", "min_user_interactions", "min_item_interactions",
    "max_steps", "name", "seed", "resume_from_checkpoint",
)  # fmt: skip
"""Options that a run does not take over from the run that it continues."""
CONTINUED: dict[str, Any] = {
    "split": "new_interactions",
    "recommended_settings": False,
    "num_train_epochs": 2,
    "warmup_steps": 0.0,
    "load_best_model_at_end": False,  # the held-out users decide whether the model is used, so they choose nothing else
    "early_stopping_patience": None,
}


@dataclass(frozen=True)
class Recipe:
    """All options of a run, grouped by the function or class that gets them. They are not changed after parsing."""

    source: str | None  # the YAML file or checkpoint folder
    run: RunArguments
    reading: Any  # options of `load_interactions`
    splitting: Any  # options of all splits in `SPLITS`, and of the split of this run
    model: Any  # options of the model's configuration
    masking: Any  # options of `DataCollatorForCloze`
    training: RecommendationTrainingArguments
    given: dict[str, Any]  # the options that were given, and the seed: a file of these makes the same run again

    def options(self, section: str) -> dict[str, Any]:
        """Return the given options of a section. Other options keep the defaults of the function or class."""
        return {name: self.given[name] for name in vars(getattr(self, section)) if name in self.given}

    def split_options(self) -> dict[str, Any]:
        """Return all options of the split, as given or by default; ValueError if one of them is missing."""
        return find_split(self.run.split).resolve(self.options("splitting"))

    def model_options(self, config: Bert4RecConfig) -> dict[str, Any]:
        """Return the options of the model, of its training rows and of its masks; `config` is that of the model."""
        options = {"architecture": config.model_type, **{name: getattr(config, name) for name in vars(self.model)}}
        cloze = architecture_of(config).objective == "cloze"
        return options | self.split_options() | (vars(self.masking) if cloze else {})

    def fill(self, options: Mapping[str, Mapping[str, Any]]) -> Self:
        """Return a recipe with more given options (section -> name -> value). Options that are given do not change."""
        given: dict[str, Any] = {}
        sections: dict[str, Any] = {section: copy.copy(getattr(self, section)) for section in options}
        for section, values in options.items():
            for name, value in values.items():
                if name not in self.given:
                    object.__setattr__(sections[section], name, value)  # replace() would prepare the devices once more
                    given[name] = value
        return dataclasses.replace(self, **sections, given=self.given | given)


def parse_recipe(argv: Sequence[str]) -> Recipe:
    """Parse `[CONFIG] [--option value …]`.

    CONFIG is a YAML file, or a checkpoint folder, whose run facts contain its recipe. ValueError if CONFIG cannot be
    read, an option is unknown, or a value has the wrong type.
    """
    words = list(argv)
    source = words.pop(0) if words and not words[0].startswith("-") else None
    chosen, _ = parse_words(option_parser([RunArguments]), words)
    from_file = {} if source is None else _read_options(open_folder(source))
    stored = {} if source is None or not Path(source).is_dir() else from_file  # may be downloaded
    if (parent := chosen.get("continue_from", None if stored else from_file.get("continue_from"))) is not None:
        if "start_from" in {**from_file, **chosen}:
            place = "the command" if "start_from" in chosen else source
            raise ValueError(f"Use `--start_from` or `--continue_from`, not both. Found `start_from` in {place}.")
        stored = _options_to_continue(str(parent))
        from_file = stored | from_file
    if (split := chosen.get("split")) not in (None, from_file.get("split", RunArguments.split)):
        unread = {name for it in SPLITS.values() for name in it.options} - {*find_split(split).options}
        from_file = {name: value for name, value in from_file.items() if name not in unread}
    for name in OWN_CODE if stored else ():  # a downloaded recipe must not choose what is imported
        module, colon, _ = str(from_file.get(name)).partition(":")
        if colon and module not in imported and name not in chosen:
            found = f"the recipe of {parent or source} would import {from_file[name]}"
            raise ValueError(f"{found}. If you trust this code, add `--import {module}`.")
    sections, place = option_sections({**from_file, **chosen}), f"{source or parent}: "
    parser = option_parser(sections.values())
    given = parse_file(from_file, parser, place)
    typed, others = parse_words(parser, words)
    if others:
        raise ValueError(unexpected(others[0], parser))
    given |= typed
    names = {name: {it.name for it in dataclasses.fields(section)} & given.keys() for name, section in sections.items()}
    try:
        values = {name: section(**{it: given[it] for it in names[name]}) for name, section in sections.items()}
    except json.JSONDecodeError as error:
        option = next((f"`--{name}`" for name, value in given.items() if value == error.doc), "An option")
        raise ValueError(f"{option} must be JSON, found {error.doc!r:.80} ({error}). Fix this value.") from None
    return Recipe(source=source, given={"seed": values["training"].seed, **given}, **values)


def _read_options(config: Path) -> dict[str, Any]:
    if config.is_dir():
        return RunFacts.load(config).recipe if (config / FACTS_FILE).exists() else {}
    advice = f"Fix this file. If it is a log, pass `--data {config}`."
    return read_yaml(config, "a YAML file of options or a checkpoint folder", advice, yaml.BaseLoader)  # only text


def _options_to_continue(parent: str) -> dict[str, Any]:
    """Return the options of a run that continues a checkpoint: its recipe without `OF_ONE_RUN`, with `CONTINUED`."""
    folder = fetch_checkpoint(parent)
    recipe = _read_options(folder)
    kept = {name: value for name, value in recipe.items() if name not in OF_ONE_RUN}
    source = str(Path(parent).resolve()) if Path(parent).is_dir() else parent  # a link may lead elsewhere tomorrow
    if "last_item_probability" in recipe and not RunFacts.load(folder).reproducible:
        # With so few targets per row, most items of a window would not be predicted.
        share = recipe["last_item_probability"]  # any JSON value; parsing refuses what is no number
        mostly_last = isinstance(share, int | float) and share >= 0.5
        kept["prefixes"] = mostly_last or recipe.get("max_predictions") == 1
        text = "%s was trained in Python, so its run facts lack `--prefixes`. The default is `--prefixes %s`."
        logger.warning(text, parent, str(kept["prefixes"]).lower())
    return kept | CONTINUED | {"start_from": source}
