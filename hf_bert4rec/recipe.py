"""A recipe: all options of a run, from one YAML file and the command line.

Every option is a parameter of the function or a field of the class that reads it, with its default and its words; none
is written down a second time here.
"""

import argparse
import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from transformers import HfArgumentParser

from .checkpoint import FACTS_FILE
from .configuration_bert4rec import Bert4RecConfig
from .data_collator import DataCollatorForCloze
from .histories import SPLITS, split_at_time
from .interactions import load_interactions
from .training import RecommendationTrainingArguments


@dataclass
class RunArguments:
    """What a recipe says besides the options of the functions that it calls."""

    data: str = field(default="ml-latest-small", metadata={"help": "Log to read, as for load_interactions."})
    titles: str | None = field(default=None, metadata={"help": "Titles of the items, as for load_titles."})
    split: str = field(default="leave_one_out", metadata={"help": f"How to hold out: {' or '.join(SPLITS)}."})
    max_length: int = field(default=200, metadata={"help": "Longest input N, the [MASK] of the query included."})
    exclude_history: bool = field(default=True, metadata={"help": "Rank among the items not in the history."})
    name: str | None = field(
        default=None, metadata={"help": "Name of the checkpoint; the output folder's if not given."}
    )
    example: list[str] | None = field(
        default=None, metadata={"help": "History of item ids to recommend for at the end."}
    )


# --------------------------------------------------------------------------------------------- options of a recipe


def _words(documented: Any) -> dict[str, str]:
    """Parameter → its words, from the Args of a docstring."""
    section = re.split(r"\n\s*(?:Args|Returns|Raises):\n", inspect.getdoc(documented) or "")
    words = re.findall(r"^ {4}(\w+): (.+(?:\n {6,}.+)*)", section[1] if len(section) > 1 else "", re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text).replace("%", "%%") for name, text in words}


def _options(name: str, documented: Callable, skip: Sequence[str]) -> type:
    """A dataclass of the parameters of a function or the fields of a class, for HfArgumentParser."""
    words = _words(documented)
    fields: list[tuple] = []
    for parameter in inspect.signature(documented).parameters.values():
        if parameter.name in words and parameter.name not in skip:
            # argparse takes one type an option: the first of several, which can hold what the others can
            kinds = [kind for kind in get_args(parameter.annotation) if kind is not type(None)]
            kind = kinds[0] if kinds and get_origin(parameter.annotation) is not list else parameter.annotation
            default = None if parameter.default is inspect.Parameter.empty else parameter.default
            optional = default is None or type(None) in get_args(parameter.annotation)
            fields.append(
                (
                    parameter.name,
                    Union[kind, None] if optional else kind,  # noqa: UP007
                    field(default=default, metadata={"help": words[parameter.name]}),
                )
            )
    return dataclasses.make_dataclass(name, fields)


SECTIONS: dict[str, type] = {
    "run": RunArguments,
    "reading": _options("ReadingArguments", load_interactions, skip=["source"]),
    "splitting": _options("SplittingArguments", split_at_time, skip=["interactions", "tokenizer", "max_length"]),
    "model": _options(
        "ModelArguments",
        Bert4RecConfig,
        skip=["vocab_size", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id"],
    ),
    "masking": _options("MaskingArguments", DataCollatorForCloze, skip=["tokenizer", "seed", "epoch"]),
    "training": RecommendationTrainingArguments,
}


@dataclass
class Recipe:
    """All options of a run, by what reads them: `SECTIONS`."""

    run: RunArguments
    reading: Any
    splitting: Any
    model: Any
    masking: Any
    training: RecommendationTrainingArguments
    options: dict[str, Any]  # as they were given: a YAML file that makes this run again


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside the options, and a script's docstring as it is written."""


def parse_recipe(argv: Sequence[str] | None = None, description: str | None = None, config: str = "CONFIG") -> Recipe:
    """`CONFIG [--option value …]` → the recipe of CONFIG with these options put in their place.

    CONFIG is a YAML file, or a checkpoint folder, whose run facts hold its recipe.

    Raises:
        SystemExit: There is no such file, or an option that nobody reads, in the file or on the command line; the
            message lists the near names.
    """
    parser = HfArgumentParser(
        list(SECTIONS.values()),
        usage=f"%(prog)s {config} [--option value …]",
        description=description,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.add_argument(
        "config", help="YAML file, a line an option; or a checkpoint folder, for the recipe that made it."
    )
    options = {action.dest for action in parser._actions} - {"help", "config"}
    argv = list(sys.argv[1:] if argv is None else argv)
    known, unknown = parser.parse_known_args(argv)
    for word in unknown:
        if word.startswith("--"):
            parser.error(_unread(word[2:].split("=")[0], options, "on the command line"))
        parser.error(f"Expected --option value, found {word!r}.")
    try:
        given = _read_options(Path(known.config))
    except (OSError, yaml.YAMLError) as error:
        parser.error(f"Expected a YAML file of options or a checkpoint folder, found {known.config}: {error}")
    if not isinstance(given, dict):
        parser.error(f"{known.config}: expected lines of 'option: value', found a {type(given).__name__}.")
    for name in given:
        if name not in options:
            parser.error(_unread(str(name), options, f"in {known.config}"))
    # Strings so that argparse gives each its type: YAML takes 1e-3 for a word.
    parser.set_defaults(**{name: str(v) if isinstance(v, int | float) else v for name, v in given.items()})
    try:
        *sections, _ = parser.parse_args_into_dataclasses(args=argv)
    except ValueError as error:
        parser.error(f"{known.config}: {error}")
    typed = [parser._option_string_actions[word.split("=")[0]].dest for word in argv if word.startswith("--")]
    values = parser.parse_args(argv)
    as_given = {"seed": values.seed, **given, **{name: getattr(values, name) for name in typed}}
    return Recipe(**dict(zip(SECTIONS, sections, strict=True)), options=as_given)


def _read_options(config: Path) -> Any:
    if not config.is_dir():
        return yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    facts = config / FACTS_FILE
    return json.loads(facts.read_text(encoding="utf-8"))["recipe"] if facts.exists() else {}


def _unread(name: str, options: set[str], where: str) -> str:
    near = get_close_matches(name, options, n=3, cutoff=0.5)
    return f"Nobody reads the option {name!r} {where}." + (f" Did you mean {' or '.join(near)}?" if near else "")
