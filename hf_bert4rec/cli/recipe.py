"""A recipe: all options of a run, from a YAML file or a checkpoint folder and from the command line.

As with TRL's `TrlParser`, dataclasses define the options, the file sets them, and the command line overrides the file.
Values in the file are converted like words of the command line: `eval_strategy: no` and `1e-3` need no quotes.
"""

import argparse
import dataclasses
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser, PreTrainedConfig

from ..data.data_collator import DataCollatorForCloze
from ..data.interactions import load_interactions
from ..data.splits import SPLITS, Split, split_at_time
from ..hub.run_facts import FACTS_FILE, RunFacts
from ..models.configuration_bert4rec import Bert4RecConfig
from ..models.registry import ARCHITECTURES
from ..training.arguments import RecommendationTrainingArguments
from .arguments import MaskingArguments, ModelArguments, ReadingArguments, RunArguments, SplittingArguments, option

FROM_DATA = ("vocab_size", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")
"""Fields of a configuration that the tokenizer determines."""

OWN_CODE = ("split", "architecture")
"""Options that can name code to import, `package.module:name`."""


@dataclass(frozen=True)
class Recipe:
    """All options of a run, by what they are passed to. Nothing changes them after parsing."""

    source: str | None  # the YAML file or checkpoint folder
    run: RunArguments
    reading: ReadingArguments
    splitting: SplittingArguments
    model: ModelArguments
    masking: MaskingArguments
    training: RecommendationTrainingArguments
    given: dict[str, Any]  # the options that were given, and the seed: a file of these makes the same run again

    def options(self, section: str) -> dict[str, Any]:
        """Return the given options of a section, to pass on. The others keep the defaults of what reads them."""
        names = [field.name for field in dataclasses.fields(getattr(self, section))]
        return {name: self.given[name] for name in names if name in self.given}


def parse_recipe(argv: Sequence[str]) -> Recipe:
    """Parse `[CONFIG] [--option value …]`.

    CONFIG is a YAML file, or a checkpoint folder, whose run facts contain its recipe. The value `none` unsets an option
    that can be None.

    Raises:
        ValueError: CONFIG cannot be read, an option is unknown, or a value has the wrong type.
    """
    words = list(argv)
    source = words.pop(0) if words and not words[0].startswith("-") else None
    from_file = {} if source is None else _read_options(Path(source))
    chosen, _ = _parse(_parser([RunArguments]), words)
    if source is not None and Path(source).is_dir():  # it may be downloaded, and must not choose what is imported
        for name in OWN_CODE:
            if ":" in str(from_file.get(name)) and name not in chosen:
                raise ValueError(f"{source} needs code of its own. Add --{name} {from_file[name]} to import it.")
    sections = _sections({**from_file, **chosen})
    parser = _parser(sections.values())
    given, _ = _parse(parser, _words(from_file, parser, f"{source}: "), f"{source}: ")
    typed, others = _parse(parser, words)
    if others and others[0].startswith("--"):
        raise ValueError(_unknown(others[0].split("=")[0], [f"--{action.dest}" for action in parser._actions]))
    if others:
        raise ValueError(f"Unexpected argument {others[0]!r}. CONFIG is one file or folder, before all options.")
    given |= typed
    values = {
        section: fields(**{f.name: given[f.name] for f in dataclasses.fields(fields) if f.name in given})
        for section, fields in sections.items()
    }
    return Recipe(source=source, given={"seed": values["training"].seed, **given}, **values)


def format_help(usage: str) -> str:
    """Return the help of all options."""
    parser = HfArgumentParser(_sections({}).values(), usage=usage, add_help=False)
    for reader in (load_interactions, split_at_time, Bert4RecConfig, DataCollatorForCloze):
        for name, parameter in inspect.signature(reader).parameters.items():
            if parser.get_default(name) is None and parameter.default is not parameter.empty:
                parser.set_defaults(**{name: parameter.default})
    return parser.format_help()


def find_split(name: str) -> Split:
    """Return an entry of `SPLITS`, or a split of the user's own, `package.module:function`."""
    found = _find("split", name, SPLITS)
    return found if isinstance(found, Split) else Split(found, protocol=name)


def find_configuration(name: str) -> type[PreTrainedConfig]:
    """Return the configuration class of a registered architecture, or `package.module:ConfigClass`."""
    return _find("architecture", name, {key: row.config_class for key, row in ARCHITECTURES.items()})


def _find(kind: str, name: str, registry: Mapping[str, Any]) -> Any:
    if ":" not in name:
        if name not in registry:
            known = ", ".join(registry)
            raise ValueError(f"Unknown {kind} {name}. Choose from {known}, or name package.module:object.")
        return registry[name]
    if "" not in sys.path:
        sys.path.append("")  # the working directory, which an installed command lacks
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--{kind} {name} cannot be imported: {error}.") from error


class _TextLoader(yaml.SafeLoader):
    """Read every scalar as text, except null."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _read_options(config: Path) -> dict[str, Any]:
    if config.is_dir():
        return RunFacts.load(config).recipe if (config / FACTS_FILE).exists() else {}
    try:
        text = config.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ValueError("aliases (*name) are not supported")
        options = yaml.load(text, _TextLoader) or {}
        node = yaml.compose(text)
        names = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        if len(names) > len(options):
            raise ValueError(f"{max(names, key=names.count)} is given twice")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{config}: expected a YAML file of options or a checkpoint folder: {reason}") from None
    if not isinstance(options, dict):
        raise ValueError(f"{config}: expected lines of `option: value`, found a {type(options).__name__}.")
    return options


def _sections(run: Mapping[str, Any]) -> dict[str, type]:
    """Return section → dataclass, for the split and architecture of a run."""
    split, architecture = (str(run.get(name, getattr(RunArguments, name))) for name in OWN_CODE)
    configuration = find_configuration(architecture)
    own = {field.name for field in dataclasses.fields(configuration)} - {*FROM_DATA}
    own -= {field.name for field in dataclasses.fields(PreTrainedConfig)}
    annotations: dict[str, Any] = {}
    for kind in configuration.__mro__[: configuration.__mro__.index(PreTrainedConfig)]:
        annotations |= {k: v for k, v in inspect.get_annotations(kind, eval_str=True).items() if k in own}
    parameters = {name: parameter.annotation for name, parameter in find_split(split).options.items()}
    return {
        "run": RunArguments,
        "reading": ReadingArguments,
        "splitting": _extend(SplittingArguments, parameters, split),
        "model": _extend(ModelArguments, annotations, architecture),
        "masking": MaskingArguments,
        "training": RecommendationTrainingArguments,
    }


def _extend(section: type, parameters: Mapping[str, Any], reader: str) -> type:
    """Return a section with the parameters (name → annotation) of its reader that it lacks."""
    known, more = {field.name for field in dataclasses.fields(section)}, []
    for name, annotation in parameters.items():
        if name not in known:
            union = get_origin(annotation) in (Union, UnionType)
            kinds = [kind for kind in (get_args(annotation) if union else [annotation]) if kind is not type(None)]
            kind: Any = str if {str, inspect.Parameter.empty} & {*kinds} else kinds[0]  # argparse takes one type
            more.append((name, kind | None, option(f"Option of {reader}.")))
    return dataclasses.make_dataclass(section.__name__, more, bases=(section,), frozen=True) if more else section


def _parser(sections: Iterable[Any]) -> HfArgumentParser:
    """Return a parser whose result contains only what was given: defaults are left to the dataclasses."""
    parser = HfArgumentParser(sections, add_help=False, allow_abbrev=False, exit_on_error=False)
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
        return None if text.lower() in ("none", "null") else convert(text)

    convert_or_none.__name__ = getattr(convert, "__name__", "value")  # for the message of argparse
    return convert_or_none


def _words(options: Mapping[str, Any], parser: HfArgumentParser, place: str) -> list[str]:
    """Return the options of a file as words of a command line."""
    words, actions = [], {action.dest: action for action in parser._actions}
    for name, value in options.items():
        if name not in actions:
            raise ValueError(place + _unknown(str(name), actions))
        if isinstance(value, list):
            if actions[name].nargs != "*":
                raise ValueError(f"{place}{name}: expected one value, found a list.")
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return words


def _parse(parser: HfArgumentParser, words: list[str], place: str = "") -> tuple[dict[str, Any], list[str]]:
    """Return option → value for the words of a command line, and the words that belong to no option."""
    try:
        given, others = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise ValueError(f"{place}{str(error.argument_name).split('/')[0]}: {error.message}") from None
    return vars(given), others


def _unknown(name: str, actions: Iterable[str]) -> str:
    near = get_close_matches(name, actions, n=3, cutoff=0.6)
    return f"Unknown option {name}." + (f" Did you mean {' or '.join(near)}?" if near else "")
