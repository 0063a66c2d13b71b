"""The file of a comparison: the models to compare, and the recipe of their data."""

import re
from dataclasses import dataclass, field
from typing import Any, Self

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError

from ..evaluation.baselines import BASELINES
from ..evaluation.ranking import SAMPLED_METRICS
from .comparison_report import result_file
from .recipe import Recipe, parse_recipe
from .yaml_files import read_yaml

KINDS = ("baseline", "recipe", "checkpoint")
EXAMPLE = "`hf-bert4rec compare --help` shows an example."


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
        """Parse `recipe`, which sets the data, split and protocol of all models."""
        try:
            return parse_recipe([self.recipe, "--disable_tqdm=true"])
        except ValueError as error:
            raise ValueError(f"{self.path}: `recipe`: {error}") from error
