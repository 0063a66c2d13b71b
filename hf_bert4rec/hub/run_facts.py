"""Run facts: what is recorded about the training of a checkpoint, as a dataclass and as `run_facts.json`."""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Self

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError

from .errors import damage_error, read_json

FACTS_FILE = "run_facts.json"
FORMAT_VERSION = 4

UNPUBLISHED_OPTIONS = (
    "output_dir", "hub_", "push_to_hub", "resume_from_checkpoint", "report_to", "trackio_", "run_name", "project",
    "deepspeed", "accelerator_config", "parallelism_config", "fsdp", "local_rank",
)  # fmt: skip
"""Prefixes of options that determine where a run is computed, logged or uploaded, and may contain a token.

Run facts are written and read without these options, so that a downloaded checkpoint cannot upload anything.
"""

ADDED_PARTS = ("num_followers", "repeat_head")
"""Options of parts that score some items in addition to the encoder: a Markov chain, and a head for repeats."""

Number = float | int

OLD_DEFAULTS: dict[int, dict[str, dict[str, Any]]] = {
    1: {
        "": {
            "max_length": 200, "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2,
            "initializer_range": 0.02, "learning_rate": 0.003, "muon_learning_rate": None,
            "early_stopping_patience": None,
        },
        "bert4rec": {"rope_theta": None, "conv_kernel_size": None, "prediction_head": True},
        "sasrec": {"rope_theta": None},
    },
    2: {
        "": {
            "recommended_settings": False, "initialize_items": False, "identity_attention": False,
            "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.1,
            "learning_rate": 0.006, "muon_learning_rate": 0.01, "num_train_epochs": 50,
        },
    },
    3: {"": {"learned_positions": True}},
}  # fmt: skip
"""Defaults that differ from the next format version, by format version and architecture ("": all architectures)."""

WITH_START_FROM = ("recommended_settings", "learning_rate", "muon_learning_rate", "num_train_epochs",
                   "early_stopping_patience")  # fmt: skip
"""Options whose old defaults also apply to a model that starts from a checkpoint."""


@strict
@dataclass(kw_only=True)
class DataFacts:
    """The interactions of a run after filtering, which the model card describes. None stands for unknown."""

    name: str  # of the log
    items: int  # number of items
    users: int | None = None
    interactions: int | None = None
    sha256: str | None = None  # of the `user,item,timestamp` lines
    last_time: Number | None = None  # timestamp of the last interaction, in the unit of the log
    terms: str | None = None


@strict
@dataclass
class MachineFacts:
    """The machine of a run: number of processes, threads of each process, processor architecture and torch device."""

    processes: int
    threads: int
    processor: str
    device: str

    def __str__(self) -> str:
        return f"{self.processes} × {self.threads} threads of {self.processor}, {self.device}"


@strict
@dataclass(kw_only=True)
class RunFacts:
    """Facts about the training and evaluation of a checkpoint, from which the model card is written."""

    name: str  # of the checkpoint
    model: str  # display name of the evaluated model in `results`, such as "BERT4Rec"
    data: DataFacts
    protocol: str  # how the model was evaluated, for metrics over the whole catalog
    sampled_protocol: str | None = None  # the same for metrics among sampled candidates; None if there are none
    exclude_history: bool = True  # whether items of the history are excluded from rankings and recommendations
    results: dict[str, dict[str, dict[str, Number]]] = field(default_factory=dict)  # split -> model -> metric -> value
    evaluated: dict[str, int] = field(default_factory=dict)  # split -> number of targets
    # Split -> model -> 95 % interval of NDCG@10 over users
    intervals: dict[str, dict[str, tuple[Number, Number]]] = field(default_factory=dict)
    # Split -> other model -> 95 % interval of the NDCG@10 of `model` minus that of the other
    differences: dict[str, dict[str, tuple[Number, Number]]] = field(default_factory=dict)
    # Split -> seed -> metric -> value, of other runs with the same options
    other_seeds: dict[str, dict[str, dict[str, Number]]] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)  # options as given, without `UNPUBLISHED_OPTIONS`
    reproducible: bool = False  # `recipe` holds all options, and the seed was set before the model was built
    seconds: Number | None = None  # duration of the training; None if unknown
    best_checkpoint: str = ""  # folder of the checkpoint with the best validation metric; "" if the last one was kept
    chosen_by: str = ""  # validation metric that chose `best_checkpoint`
    machine: MachineFacts
    versions: dict[str, str] = field(default_factory=dict)  # package -> version
    log: list[dict] = field(default_factory=list)  # entries of the Trainer's `log_history`
    example: list[str] = field(default_factory=list)  # a history of raw item IDs, for the card
    titles: bool = False  # whether the tokenizer has titles
    removed_items: int = 0  # items that the results rank, but the pipeline never recommends
    card: str | None = None  # SHA-256 of the card as written by this package; None if unknown
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        allowed = [it for it in self.recipe if it.isidentifier() and not it.startswith(UNPUBLISHED_OPTIONS)]
        self.recipe = {name: self.recipe[name] for name in allowed}

    @classmethod
    def load(cls, folder: str | PathLike) -> Self:
        """Read the run facts of a checkpoint folder; FileNotFoundError without them, ValueError if damaged or newer."""
        file = Path(folder, FACTS_FILE)
        if not file.exists():
            writers = "`hf-bert4rec train` or `RecommendationTrainer`"
            advice = f"Pass a checkpoint that {writers} saved. They write this file."
            if (near := Path(folder, "model")).joinpath(FACTS_FILE).exists():
                advice = f"Did you mean {near}?"
            raise FileNotFoundError(f"{folder}: found no {FACTS_FILE}. {advice}")
        values = read_json(file, folder)
        version = values.get("format_version", 1)
        if version not in range(1, FORMAT_VERSION + 1):
            hint = "Update hf-bert4rec if a newer version wrote this file. Otherwise copy or download the file again."
            raise ValueError(f"{file}: `format_version` must be from 1 to {FORMAT_VERSION}, found {version!r}. {hint}")
        try:
            values = _from_version_1(values) if version == 1 else values
            if values.get("reproducible"):
                for name, value in _old_defaults(version, values["recipe"]).items():
                    values["recipe"].setdefault(name, value)
            values["format_version"] = FORMAT_VERSION
            values |= {"data": _build(DataFacts, values["data"]), "machine": _build(MachineFacts, values["machine"])}
            for name in ("intervals", "differences"):
                splits = values.get(name, {}).items()
                values[name] = {split: {key: tuple(ends) for key, ends in row.items()} for split, row in splits}
            return _build(cls, values)
        except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
            reason: Any = f"found no {error}" if isinstance(error, KeyError) else "a value has the wrong form"
            reason = error.__cause__ if isinstance(error, StrictDataclassError) else reason
            raise damage_error(file, f"the content is not valid ({reason})") from error

    def save(self, folder: str | PathLike) -> None:
        """Write `run_facts.json` into a folder."""
        Path(folder, FACTS_FILE).write_bytes(self.to_json())

    def to_json(self) -> bytes:
        """Return the content of `run_facts.json`."""
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"
        return text.encode("utf-8", "backslashreplace")  # a lone surrogate of a file name becomes a JSON escape

    def published(self) -> Self:
        """Return the facts to publish: absolute paths and paths with `..` are reduced to their last part."""
        return dataclasses.replace(self, recipe={name: _public(value) for name, value in self.recipe.items()})


def _public(value: Any) -> Any:
    for path in (PurePosixPath(value), PureWindowsPath(value)) if isinstance(value, str) else ():
        if path.is_absolute() or ".." in path.parts:
            return path.name or value
    return value


def _build(kind: type, values: Mapping[str, Any]) -> Any:
    """Return an instance of a dataclass. Unknown values are ignored; KeyError if a field without default is missing."""
    required = {it.name for it in dataclasses.fields(kind) if it.default is it.default_factory}  # both are MISSING
    return kind(**{it.name: values[it.name] for it in dataclasses.fields(kind) if it.name in {*required, *values}})


def _old_defaults(version: int, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of an earlier version that differ from the current defaults."""
    defaults: dict[str, Any] = {}
    for changed in range(FORMAT_VERSION - 1, version - 1, -1):  # older defaults take precedence
        rows = OLD_DEFAULTS[changed]
        defaults |= rows[""] | rows.get(recipe.get("architecture", "bert4rec"), {})
    if "start_from" in recipe:  # the model has the options of that checkpoint
        defaults = {name: value for name, value in defaults.items() if name in WITH_START_FROM}
    return defaults


def _from_version_1(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert facts of version 1: splits at the top level, machine and example as text, options without defaults."""
    recipe, of_recipe = values["recipe"], "sha256" in values["data"]  # without this, a Trainer wrote them
    try:
        example = json.loads(f"[{values['example']}]")
    except ValueError:  # IDs with a quotation mark were not escaped
        example = recipe.get("example") or []
    results = {split: values[split] for split in ("validation", "test") if split in values}
    ((processes, threads, processor, device),) = re.findall(r"^(\d+) × (\d+) threads of (.+), (.+)$", values["machine"])
    return {
        "model": "BERT4Rec",  # not recorded before there were other architectures
        "chosen_by": "NDCG@10",  # not recorded before it was an option
        "titles": bool(recipe.get("titles")),
        **values,
        "reproducible": of_recipe,
        "sampled_protocol": values["sampled_protocol"] if "_sampled" in json.dumps(results) else None,
        "exclude_history": recipe.get("exclude_history", True),
        "results": results,
        "machine": {"processes": int(processes), "threads": int(threads), "processor": processor, "device": device},
        "example": example,
    }
