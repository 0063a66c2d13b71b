"""The command `hf-bert4rec`. Each command is imported only when it runs, which keeps `--help` fast."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError

COMMANDS = {
    "train": ("hf_bert4rec.cli.commands:train", "Train a recommender on a log and save it with its model card."),
    "evaluate": ("hf_bert4rec.cli.commands:evaluate", "Evaluate a checkpoint again by full ranking."),
    "compare": ("hf_bert4rec.cli.commands:compare", "Train and evaluate several models on one data set."),
    "recommend": ("hf_bert4rec.cli.commands:recommend", "Recommend items for a history of item ids."),
    "push": ("hf_bert4rec.cli.commands:push", "Push a checkpoint to the Hugging Face Hub."),
    "push-data": ("hf_bert4rec.cli.commands:push_data", "Push histories and their tokenizer to the Hugging Face Hub."),
}
"""Name of a command → `module:function`, called with the arguments after the name, and one line for the help.

The module must not import torch or transformers at its top: its functions import them when they run.
"""

EXTRAS = {"implicit": "baselines", "gradio": "space"}
"""Module → the optional extra of this package that installs it."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run `hf-bert4rec COMMAND …`.

    Args:
        argv: The command and its arguments; those of the process if not given.

    Raises:
        SystemExit: The command failed; the message is one sentence.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads slow down small models
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        lines = "\n".join(f"  {command:<10} {summary}" for command, (_, summary) in COMMANDS.items())
        print(f"usage: hf-bert4rec COMMAND …\n\n{lines}\n\nhf-bert4rec COMMAND --help shows its options.")
        return
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Choose from {', '.join(COMMANDS)}."
        sys.exit(f"hf-bert4rec: error: Unknown command {name}. {hint}")
    module, function = COMMANDS[name][0].split(":")
    logger = logging.getLogger("hf_bert4rec")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)  # once, by the first process
    with plain_errors(f"hf-bert4rec {name}"):
        run: Callable[[list[str]], None] = getattr(import_module(module), function)
        run(rest)


@contextmanager
def plain_errors(program: str | None = None) -> Iterator[None]:
    """Turn errors that the user can fix into one sentence on standard error, without a traceback."""
    program = program or Path(sys.argv[0]).name
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(f"{program}: interrupted")
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
            reason = f"{error.name} is not installed. Run pip install 'hf-bert4rec[{EXTRAS[error.name]}]'."
        elif isinstance(error, StrictDataclassError):  # which check of a configuration has failed is of no help
            reason = str(error.__cause__ or error)
        elif isinstance(error, (ValueError, OSError, MemoryError)):
            reason = str(error)
        else:
            raise
        sys.exit(f"{program}: error: {reason}")


if __name__ == "__main__":
    main()
