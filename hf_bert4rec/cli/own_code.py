"""Code of the user: its import, and the splits and architectures that options name."""

import inspect
import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from ..data.splits import SPLITS, Split
from ..models.configuration_bert4rec import Bert4RecConfig
from ..models.registry import ARCHITECTURES

OWN_CODE = {"split": "package.module:function", "architecture": "package.module:ConfigClass"}
"""Options that can name code to import, and the form of such a name."""
imported: list[str] = []  # modules that the user has named. Recipes of checkpoints may name no others.


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
