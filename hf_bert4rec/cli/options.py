"""The options of a run, and how a command line or a file sets them.

Options of a run are fields of `RunArguments`. All other options are parameters of functions and classes of the package,
with the same types, defaults and texts. So a new parameter of `load_interactions` is an option too.
"""

import argparse
import dataclasses
import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser, PreTrainedConfig
from transformers.hf_argparser import HfArg
from transformers.utils.chat_template_utils import parse_google_format_docstring

from ..data.data_collator import DataCollatorForCloze
from ..data.formats import FORMATS
from ..data.histories import build_histories
from ..data.interactions import load_interactions
from ..data.splits import SPLITS
from ..models.item_loss import LOSSES
from ..models.registry import ARCHITECTURES
from ..training.arguments import RecommendationTrainingArguments
from .own_code import OWN_CODE, find_configuration, find_split

REGISTRIES: dict[str, Any] = {"format": FORMATS, "split": SPLITS, "architecture": ARCHITECTURES, "loss": LOSSES}
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
    item_ids: str | None = _option(None, "Table to rename items: one column with the old IDs, one with the new IDs.")
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


def format_help(usage: str) -> str:
    """Return the help of all options. That of an option in `REGISTRIES` lists the names in its registry."""
    parser = HfArgumentParser(option_sections({}).values(), usage=usage, add_help=False)
    for action in parser._actions:
        if action.dest in REGISTRIES:
            action.help = f"{action.help} Names: {', '.join(REGISTRIES[action.dest])}."
        if action.nargs == 0:  # such as `--no_exclude_history`, with the text and the default of its opposite
            action.help, action.default = f"The same as --{action.dest} false.", argparse.SUPPRESS
    return parser.format_help()


def option_sections(run: Mapping[str, Any]) -> dict[str, type]:
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


def option_parser(sections: Iterable[Any]) -> HfArgumentParser:
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


def parse_file(options: Mapping[str, Any], parser: HfArgumentParser, place: str) -> dict[str, Any]:
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
        read = [parse_words(parser, [f"--{name}={text}"], place)[0][name] for text in texts]
        given[name] = [it for of in read for it in of] if several else read[0]
    return given


def parse_words(parser: HfArgumentParser, words: list[str], place: str = "") -> tuple[dict[str, Any], list[str]]:
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


def unexpected(word: str, parser: HfArgumentParser) -> str:
    """Return the message for a word of the command line that is no option of the parser and no value."""
    if word.startswith("--"):
        return _unknown(word.split("=")[0], [f"--{action.dest}" for action in parser._actions])
    if word.startswith(("-", "–", "—")):
        return f"Unexpected argument {word!r}. Options begin with two hyphens, such as `--data`."
    advice = "Name one checkpoint or YAML file, before all options. Put texts with spaces in quotation marks."
    return f"Unexpected argument {word!r}. {advice}"
