"""Read YAML files of options."""

from pathlib import Path
from typing import Any

import yaml


def read_yaml(file: str | Path, expected: str, advice: str, loader: Any = yaml.SafeLoader) -> dict[str, Any]:
    """Return the keys and values of a YAML file ({} if it is empty); ValueError if it cannot be read or is no mapping.

    `expected` (what the file should be) and `advice` are parts of the message.
    """
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
