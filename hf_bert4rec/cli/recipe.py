"""A recipe: all options of a run, from one YAML file and the command line.

Every option is a parameter of the function or a field of the class that reads it, with its default and its words; none
is written down a second time here.
"""

import argparse
import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from transformers import HfArgumentParser

from ..data.data_collator import DataCollatorForCloze
from ..data.interactions import load_interactions
from ..data.splits import SPLITS, split_at_time
from ..hub.run_facts import FACTS_FILE, RunFacts
from ..models.configuration_bert4rec import Bert4RecConfig
from ..models.registry import ARCHITECTURES
from ..training.arguments import RecommendationTrainingArguments


@dataclass
class RunArguments:
    """What a recipe says besides the options of the functions that it calls."""

    architecture: str = field(
        default="bert4rec", metadata={"help": f"Architecture to train: {', '.join(ARCHITECTURES)}."}
    )
    data: str = field(default="ml-latest-small", metadata={"help": "Log to read, as for load_interactions."})
    titles: str | None = field(default=None, metadata={"help": "Titles of the items, as for load_titles."})
    split: str = field(default="leave_one_out", metadata={"help": "How to split the data.", "choices": SPLITS})
    max_length: int = field(default=200, metadata={"help": "Longest input N, the [MASK] of the query included."})
    popularity_candidates: int = field(
        default=0,
        metadata={"help": "Rank also among so many popular items that the user has not had; 100 in the paper."},
    )
    uniform_candidates: int = field(
        default=0, metadata={"help": "Rank also among so many items that the user has not had, all as likely."}
    )
    item_ids: str | None = field(
        default=None,
        metadata={
            "help": "Table whose second column renames the log's ids, in its first; `titles` has the log's ids too."
        },
    )
    start_from: str | None = field(
        default=None,
        metadata={"help": "Checkpoint of another catalogue to start from: its encoder, its sizes, the items of both."},
    )
    match_items: Literal["id", "title"] = field(
        default="id", metadata={"help": "By what items of `start_from` are the same."}
    )
    terms: str | None = field(default=None, metadata={"help": "Terms of the data, for the card."})
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
            kind, kinds = parameter.annotation, get_args(parameter.annotation)
            if get_origin(kind) in (Union, UnionType):
                kind = next(kind for kind in kinds if kind is not type(None))
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

    source: str  # the YAML file or checkpoint folder
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

    CONFIG is a YAML file, or a checkpoint folder, whose run facts hold its recipe. The value `none` takes an option of
    CONFIG back that is None by default.

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
        "config",
        help="YAML file, a line an option; or a checkpoint folder, for the recipe that made it. The value `none` "
        "takes an option of it back.",
    )
    argv = list(sys.argv[1:] if argv is None else argv)
    flags = (parser._option_string_actions.get(word.split("=")[0]) for word in argv)
    typed = [flag.dest for flag in flags if flag]  # these have the last word
    argv = _without_none(argv, {f"--{action.dest}" for action in parser._actions if action.default is None})
    folder = parser.parse_known_args(argv)[0].config
    try:
        given = _read_options(Path(folder))
    except (OSError, yaml.YAMLError) as error:
        parser.error(f"Expected a YAML file of options or a checkpoint folder, found {folder}: {error}")
    if not isinstance(given, dict):
        parser.error(f"{folder}: expected lines of 'option: value', found a {type(given).__name__}.")
    for name, value in given.items():
        if name not in typed and value is not None:
            argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    try:
        *sections, _, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    except ValueError as error:
        parser.error(f"{folder}: {error}")
    if unknown:
        options = [action.dest for action in parser._actions]
        name = unknown[0].lstrip("-").split("=")[0]
        near = get_close_matches(name, options, n=3, cutoff=0.5)
        parser.error(f"Nobody reads the option {name!r}." + (f" Did you mean {' or '.join(near)}?" if near else ""))
    values = vars(parser.parse_args(argv))
    for name in (name for name, value in given.items() if value is None and name not in typed):
        for section in sections:
            if name in vars(section):
                setattr(section, name, None)
        values[name] = None
    as_given = {name: values[name] for name in ("seed", *given, *typed)}
    return Recipe(source=folder, **dict(zip(SECTIONS, sections, strict=True)), options=as_given)


def _without_none(argv: list[str], optional: set[str]) -> list[str]:
    """A command line without `--option none` and `--option=none` (or null) where None is the option's default."""
    empty = ("none", "null")
    split = [word.partition("=") for word in argv]
    left = ["".join(parts) for parts in split if not (parts[0] in optional and parts[2].lower() in empty)]
    pairs = enumerate(pairwise(left))
    nones = [place for place, (flag, value) in pairs if flag in optional and value.lower() in empty]
    return [word for place, word in enumerate(left) if place not in nones and place - 1 not in nones]


def _read_options(config: Path) -> Any:
    if not config.is_dir():
        return yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    return RunFacts.load(config).recipe if (config / FACTS_FILE).exists() else {}
