"""A recipe: all options of a run, from a YAML file or a checkpoint folder and from the command line.

As with TRL's `TrlParser`, dataclasses define the options, the file sets them, and the command line overrides the file.
Values in the file are converted like words of the command line: `eval_strategy: no` and `1e-3` need no quotes. A value
that is empty, `null` or `none` means None for an option that can be None.

Options of a run are fields of `RunArguments`. All other options are parameters of functions and classes of the package,
with the same types, defaults and texts. So a new parameter of `load_interactions` is an option too.
"""

import argparse
import copy
import dataclasses
import inspect
import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser, PreTrainedConfig
from transformers.hf_argparser import HfArg
from transformers.utils.chat_template_utils import parse_google_format_docstring

from ..data.data_collator import DataCollatorForCloze
from ..data.formats import FORMATS
from ..data.histories import build_histories
from ..data.interactions import load_interactions
from ..data.splits import SPLITS, Split
from ..hub.checkpoint import fetch_checkpoint, open_folder
from ..hub.run_facts import FACTS_FILE, RunFacts
from ..models.configuration_bert4rec import Bert4RecConfig
from ..models.item_loss import LOSSES
from ..models.registry import ARCHITECTURES, architecture_of
from ..training.arguments import RecommendationTrainingArguments

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

REGISTRIES: dict[str, Any] = {"format": FORMATS, "split": SPLITS, "architecture": ARCHITECTURES, "loss": LOSSES}
OWN_CODE = {"split": "package.module:function", "architecture": "package.module:ConfigClass"}
"""Options that can name code to import, and the form of such a name."""
imported: list[str] = []  # modules that the user has named. Recipes of checkpoints may name no others.

ARGUMENT_ERRORS = {  # pattern of a message of argparse or `HfArgumentParser` -> text
    "^expected one argument": "needs a value, found none",
    "^invalid int value:": "must be a whole number, found",
    "^invalid float value:": "must be a number, found",
    r"^invalid choice: (.*) \(choose from (.*)\)": r"must be one of \2, found \1",
    "^Truthy value expected: got (.*) but expected.*": r"must be true or false, found '\1'",
}


def _option(default: Any, text: str) -> Any:
    return HfArg(default=default, help=text)


@dataclass(frozen=True)
class RunArguments:
    """Options of the run itself."""

    _argument_group_name = "data and protocol"

    data: str = _option("", "Log to read: a file, a folder, a Hub dataset, or ml-latest-small (in this package).")
    titles: str | None = _option(None, "Table with columns for item ID and title, such as movies.csv.")
    title_item: str | None = _option(None, "Column of the IDs in `titles` and `item_features`. Default: a usual name.")
    title_column: str | None = _option(None, "Column of the title in `titles`. Default: a usual name.")
    item_features: str | None = _option(None, "Table with features of items, such as price and text (docs/items.md).")
    feature_text: list[str] | None = _option(None, "Columns of `item_features` that `encoder` reads.")  # noqa: RUF009
    encoder: str | None = _option(None, "Model of sentence-transformers, Hub ID or folder, for `feature_text`.")
    item_ids: str | None = _option(
        None, "Table to rename items: one column with the old IDs, then one with the new IDs."
    )
    split: str = _option(
        "leave_one_out",
        "How to hold items out: one of the names, or package.module:function. at_time needs `validation_time` and "
        "`test_time`. new_interactions has the options `since`, `held_out` and `replay`.",
    )
    max_length: int | None = _option(None, "Longest input, including the [MASK] of the query. None: 50.")
    popularity_candidates: int = _option(0, "Also rank among this number of items, drawn by popularity. 0: no.")
    uniform_candidates: int = _option(0, "Also rank among this number of items, drawn uniformly. 0: no.")
    architecture: str = _option("bert4rec", "Model: one of the names, or package.module:ConfigClass.")
    recommended_settings: bool = _option(True, "From the log, choose options that are not given (docs/training.md).")
    initialize_items: bool = _option(True, "Initialize item vectors and biases from the training histories.")
    start_from: str | None = _option(None, "Checkpoint whose encoder and shared items a new model starts from.")
    continue_from: str | None = _option(None, "Checkpoint to train further on `data`, with its recipe (docs/items.md).")
    history: str | None = _option(None, "With `continue_from`, log of the interactions before those in `data`.")
    allow_earlier: bool = _option(False, "With `continue_from`, accept `data` that begins before the earlier log ends.")
    tolerance: float = _option(0.002, "With `continue_from`, largest fall of validation NDCG@10 that is accepted.")
    match_items: Literal["id", "title"] = _option("id", "How items of `start_from` are found: by ID or by title.")
    name: str | None = _option(None, "Name of the checkpoint on its card. None: name of the output folder.")
    terms: str | None = _option(None, "Terms of use of the data, which the card shows.")
    example: list[str] | None = _option(None, "History (item IDs) that summary and card use as example.")  # noqa: RUF009


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
        """Return all options of a model with this configuration, of its rows and of its masks."""
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

    CONFIG is a YAML file, or a checkpoint folder, whose run facts contain its recipe.

    Raises:
        ValueError: CONFIG cannot be read, an option is unknown, or a value has the wrong type.
    """
    words = list(argv)
    source = words.pop(0) if words and not words[0].startswith("-") else None
    chosen, _ = _parse(_parser([RunArguments]), words)
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
    sections, place = _sections({**from_file, **chosen}), f"{source or parent}: "
    parser = _parser(sections.values())
    given = _parse_file(from_file, parser, place)
    typed, others = _parse(parser, words)
    if others:
        raise ValueError(_unexpected(others[0], parser))
    given |= typed
    names = {name: {it.name for it in dataclasses.fields(section)} & given.keys() for name, section in sections.items()}
    try:
        values = {name: section(**{it: given[it] for it in names[name]}) for name, section in sections.items()}
    except json.JSONDecodeError as error:
        option = next((f"`--{name}`" for name, value in given.items() if value == error.doc), "An option")
        raise ValueError(f"{option} must be JSON, found {error.doc!r:.80} ({error}). Fix this value.") from None
    return Recipe(source=source, given={"seed": values["training"].seed, **given}, **values)


def _unexpected(word: str, parser: HfArgumentParser) -> str:
    """Return the message for a word of the command line that is no option of the parser and no value."""
    if word.startswith("--"):
        return _unknown(word.split("=")[0], [f"--{action.dest}" for action in parser._actions])
    if word.startswith(("-", "–", "—")):
        return f"Unexpected argument {word!r}. Options begin with two hyphens, such as `--data`."
    advice = "Name one checkpoint or YAML file, before all options. Put texts with spaces in quotation marks."
    return f"Unexpected argument {word!r}. {advice}"


def format_help(usage: str) -> str:
    """Return the help of all options. That of an option in `REGISTRIES` lists the names in its registry."""
    parser = HfArgumentParser(_sections({}).values(), usage=usage, add_help=False)
    for action in parser._actions:
        if action.dest in REGISTRIES:
            action.help = f"{action.help} Names: {', '.join(REGISTRIES[action.dest])}."
        if action.nargs == 0:  # such as `--no_exclude_history`, with the text and the default of its opposite
            action.help, action.default = f"The same as --{action.dest} false.", argparse.SUPPRESS
    return parser.format_help()


def find_split(name: str) -> Split:
    """Return an entry of `SPLITS`, or import the user's own split, `package.module:function`."""
    found = _find("split", name, SPLITS)
    if not isinstance(found, Split) and not callable(found):
        kind = type(found).__name__
        raise ValueError(f"`--split {name}` names an object of type {kind}. Name a function or a `Split`.")
    return found if isinstance(found, Split) else Split(found, protocol=name)


def find_configuration(name: str) -> type[Bert4RecConfig]:
    """Return the configuration class of an architecture, or import the user's `package.module:ConfigClass`."""
    found = _find("architecture", name, {key: row.config_class for key, row in ARCHITECTURES.items()})
    if not (inspect.isclass(found) and issubclass(found, Bert4RecConfig)):
        kind = f"the class {found.__name__}" if inspect.isclass(found) else f"an object of type {type(found).__name__}"
        advice = "Name a configuration class that inherits from `Bert4RecConfig`."
        raise ValueError(f"`--architecture {name}` names {kind}. {advice}")
    return found


def import_own_code(module: str) -> ModuleType:
    """Import a module that the user has named, and add it to `imported`.

    The module may also be in the working directory, where an installed command does not search. Raises ValueError
    for a relative name, and the errors of an import.
    """
    if module.startswith("."):
        raise ValueError(f"{module!r} is a relative name. Write the whole name")
    if "" not in sys.path:
        sys.path.append("")
    found = import_module(module)
    if module not in imported:
        imported.append(module)
    return found


def _find(kind: str, name: str, registry: Mapping[str, Any]) -> Any:
    module, colon, attribute = name.partition(":")
    if not colon:
        if name not in registry:
            advice = f"Name your own code as `{OWN_CODE[kind]}`, or pass its module to `--import`."
            raise ValueError(f"`--{kind} {name}` is unknown. Choose from {', '.join(registry)}. {advice}")
        return registry[name]
    try:
        return getattr(import_own_code(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:  # ValueError: an empty or relative name
        reason = str(error).rstrip(".")
        advice = f"Write `{OWN_CODE[kind]}`, with a module that is installed or in the current folder. Check its code."
        raise ValueError(f"`--{kind} {name}` cannot be imported: {reason}. {advice}") from error


def _read_options(config: Path) -> dict[str, Any]:
    if config.is_dir():
        return RunFacts.load(config).recipe if (config / FACTS_FILE).exists() else {}
    advice = f"Fix this file. If it is a log, pass `--data {config}`."
    return read_yaml(config, "a YAML file of options or a checkpoint folder", advice, yaml.BaseLoader)  # only text


def read_yaml(file: str | Path, expected: str, advice: str, loader: Any = yaml.SafeLoader) -> dict[str, Any]:
    """Return the keys and values of a YAML file; ValueError if it cannot be read, or is not what is `expected`."""
    if not Path(file).exists():
        raise ValueError(f"{Path(file).absolute()}: found no such file. Pass {expected}.")
    try:
        found = _load_yaml(Path(file).read_text(encoding="utf-8"), loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{file}: expected {expected}, but it cannot be read ({reason}). {advice}") from error
    if not isinstance(found, dict | None):
        raise ValueError(f"{file}: expected {expected}, found {found!r:.80}. {advice}")
    return found or {}


def _load_yaml(text: str, loader: Any) -> Any:
    """Return the content of YAML; raise YAMLError for aliases, and for a key that is given more than once."""
    nodes = [yaml.compose(text)]  # first, because compose refuses deep nesting, for which the other calls need minutes
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
        raise yaml.YAMLError("YAML aliases (*name) are not supported. Replace each alias by its value.")
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.MappingNode):
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(names) > len(set(names)):
                raise yaml.YAMLError(f"`{max(names, key=names.count)}` is given more than once. Keep one line.")
            nodes += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
    return yaml.load(text, loader)


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


def _sections(run: Mapping[str, Any]) -> dict[str, type]:
    """Return a dataclass for each section of options, for the split and architecture of a run."""
    split, architecture = (str(run.get(name, getattr(RunArguments, name))) for name in OWN_CODE)
    splits, configuration = [*SPLITS.values(), find_split(split)], find_configuration(architecture)
    splitting = {name: parameter for it in splits for name, parameter in it.options.items()}
    classes = configuration.__mro__[: configuration.__mro__.index(PreTrainedConfig)]
    hints = {name: it for kind in classes[::-1] for name, it in inspect.get_annotations(kind, eval_str=True).items()}
    fields = inspect.signature(configuration).parameters
    model = {name: it.replace(annotation=hints[name]) for name, it in fields.items() if name in hints}
    from_data = ("vocab_size", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")
    reading = inspect.signature(load_interactions, eval_str=True).parameters
    masking = inspect.signature(DataCollatorForCloze, eval_str=True).parameters
    return {
        "run": RunArguments,
        "reading": _section("reading the log", reading, [load_interactions], without=("source",)),
        "splitting": _section("splitting", splitting, [build_histories, *(it.function for it in splits)]),
        "model": _section("model", model, classes, without=from_data),
        "masking": _section("cloze masking", masking, [DataCollatorForCloze], without=("tokenizer", "seed", "epoch")),
        "training": RecommendationTrainingArguments,
    }


def _section(
    title: str, parameters: Mapping[str, inspect.Parameter], readers: Sequence[Any], without: Sequence[str] = ()
) -> type:
    """Return a dataclass with parameters as fields. Their help is from the first docstring that describes them."""
    texts: dict[str, str] = {}
    for reader in readers:
        texts = (parse_google_format_docstring(f"\n{inspect.getdoc(reader) or ''}")[1] or {}) | texts
    fields: list[Any] = []
    for name in (name for name in parameters if name not in without):
        default = parameters[name].default
        if default is inspect.Parameter.empty or default.__hash__ is None:  # a list cannot be the default of a field
            default = None
        kind = _option_type(parameters[name].annotation, default)
        fields.append((name, kind, HfArg(default=default, help=texts.get(name, "").replace("%", "%%"))))
    return dataclasses.make_dataclass(title, fields, frozen=True, namespace={"_argument_group_name": title})


def _option_type(annotation: Any, default: Any) -> Any:
    """Return the type of an option: `str` if the annotation contains it, otherwise the first type of the annotation.

    Without an annotation, the type is that of a bool or number as default, otherwise `str`. A default None adds None.
    """
    if annotation is inspect.Parameter.empty and isinstance(default, bool | int | float):
        annotation = type(default)
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    kind = str if {str, inspect.Parameter.empty} & {*kinds} else next(it for it in kinds if it is not type(None))
    return kind | None if default is None or type(None) in kinds else kind


def _parser(sections: Iterable[Any]) -> HfArgumentParser:
    """Return a parser whose result contains only the given options: the dataclasses have the defaults."""
    try:
        parser = HfArgumentParser(sections, add_help=False, allow_abbrev=False, exit_on_error=False)
    except argparse.ArgumentError as error:
        advice = "Rename this parameter of your split, or field of your configuration."
        name = str(error.argument_name).split("/")[0]
        raise ValueError(f"`{name}` is already an option of the package. {advice}") from None
    hints = {name: hint for section in sections for name, hint in get_type_hints(section).items()}
    for action in parser._actions:
        action.default = argparse.SUPPRESS
        if action.nargs == "+":
            action.nargs = "*"
        elif type(None) in get_args(hints[action.dest]):
            action.type = _or_none(action.type or str)
        if hints[action.dest] in (bool, bool | None) and action.nargs is None:
            action.nargs, action.const = "?", True  # `--bf16` alone is true
    return parser


def _or_none(convert: Any) -> Callable[[str], Any]:
    def convert_or_none(text: str) -> Any:
        return None if text.lower() in ("", "none", "null") else convert(text)

    convert_or_none.__name__ = getattr(convert, "__name__", "value")  # for the message of argparse
    return convert_or_none


def _parse_file(options: Mapping[str, Any], parser: HfArgumentParser, place: str) -> dict[str, Any]:
    """Return a dict from option to value for the options of a file."""
    given: dict[str, Any] = {}
    actions = {action.dest: action for action in parser._actions}
    for name, value in options.items():
        if name not in actions:
            raise ValueError(place + _unknown(str(name), actions))
        several = isinstance(value, list)
        if several and actions[name].nargs != "*":
            raise ValueError(f"{place}`{name}` must be one value, found a list. Write a single value.")
        # One value at a time and after "=": whatever it contains, it is not taken for an option.
        texts = [json.dumps(it) if isinstance(it, dict) else it for it in (value if several else [value])]
        read = [_parse(parser, [f"--{name}={text}"], place)[0][name] for text in texts]
        given[name] = [it for of in read for it in of] if several else read[0]
    return given


def _parse(parser: HfArgumentParser, words: list[str], place: str = "") -> tuple[dict[str, Any], list[str]]:
    """Return a dict from option to value for the words of a command line, and the words that belong to no option."""
    counts = Counter(word.partition("=")[0] for word in words)
    lists = [action.option_strings for action in parser._actions if action.nargs == "*"]
    if twice := [names[0] for names in lists if sum(map(counts.get, names, [0] * len(names))) > 1]:
        raise ValueError(f"`{twice[0]}` is given more than once. Write all values after one `{twice[0]}`.")
    try:
        given, others = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        name, reason = str(error.argument_name).split("/")[0], error.message
        for pattern, text in ARGUMENT_ERRORS.items():
            reason = re.sub(pattern, text, reason)
        raise ValueError(f"{place}`{name.removeprefix('--') if place else name}` {reason}.") from None
    return vars(given), others


def _unknown(name: str, actions: Iterable[str]) -> str:
    near = [f"`{it}`" for it in get_close_matches(name, dict.fromkeys(actions), n=3, cutoff=0.6)]
    advice = f"Did you mean {' or '.join(near)}?" if near else "`hf-bert4rec train --help-all` lists all options."
    return f"Unknown option `{name}`. {advice}"
