"""Errors of the Hub, of full disks and of damaged files, each with a solution."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import errors as hub
from huggingface_hub.utils import validate_repo_id

JSON_BYTES = 2**24
# JSON file -> limit in bytes, instead of `JSON_BYTES`. All but config.json grow with the items or the training log.
LIMITS = {"config.json": 2**17, "tokenizer.json": inf, "trainer_state.json": inf, "run_facts.json": 2**26}
JSON_DEPTH = 20
JSON_PARTS = 1_000_000  # lists and objects, which need much more time and memory than text of the same length
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
REPAIR = "Download or save the checkpoint again."

HUB_ERRORS = {
    hub.RevisionNotFoundError: (
        FileNotFoundError,
        "found no such revision. Pass an existing branch (to load, also a tag or commit)",
    ),
    hub.GatedRepoError: (PermissionError, "the repository is gated. Get access on its page, then run `hf auth login`"),
    hub.RepositoryNotFoundError: (
        FileNotFoundError,
        "found no such folder, and no such repository on the Hub. Check the name. If the repository is private, log in "
        "with `hf auth login`, or pass a token that can read it (`token=` or HF_TOKEN)",
    ),
    hub.OfflineModeIsEnabled: (ConnectionError, "offline mode is on. Unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE"),
    hub.LocalEntryNotFoundError: (
        ConnectionError,
        "found neither such a folder nor a complete copy in the cache, and the Hub cannot be reached. Check the name "
        "and the network, and unset HF_HUB_OFFLINE if it is set",
    ),
}
"""For each error of the client, a built-in error and a text. The first match is used."""

STATUSES = {
    401: (PermissionError, "received no valid token. Run `hf auth login`, or correct `token=` or HF_TOKEN"),
    403: (
        PermissionError,
        "denies access. To load, use a token that may read the repository. To push, use a name under your own account, "
        "or a token with write access",
    ),
    412: (OSError, "received another commit in the meantime. Check this commit, then push again to replace it"),
}


@contextmanager
def hub_errors(repository: str) -> Iterator[None]:
    """Raise every error of the Hub or of its connection as an OSError with a solution."""
    try:
        with disk_errors(repository):
            yield
    except Exception as caught:
        answered = isinstance(caught, hub.LocalEntryNotFoundError) and isinstance(caught.__cause__, hub.HfHubHTTPError)
        error: Any = caught.__cause__ if answered else caught
        for kind, (builtin, text) in HUB_ERRORS.items():
            if isinstance(error, kind):
                raise builtin(f"{repository}: {text}.") from error
        if isinstance(error, hub.HfHubHTTPError):
            status = error.response.status_code
            reason = " ".join((error.server_message or "").split()).rstrip(".!")
            text = f"answered {status}{f' ({reason})' if reason else ''}. "
            text += "Try again later" if not reason or status == 429 or status >= 500 else "Fix this, then try again"
            builtin, text = STATUSES.get(status, (OSError, text))
            raise builtin(f"{repository}: the Hub {text}.") from error
        cause = error.__cause__ if isinstance(error, RuntimeError) else error  # after a failed upload
        if isinstance(cause, hub.HTTPError) or (cause is not error and isinstance(cause, OSError)):
            raise ConnectionError(
                f"{repository}: the connection to the Hub failed ({cause}). Incomplete downloads are not used, and a "
                "commit is made as a whole or not at all. Check the network, then try again."
            ) from error
        raise


@contextmanager
def disk_errors(path: str | PathLike) -> Iterator[None]:
    """Raise the error of a full disk as an OSError with a solution, whichever library wrote the file."""
    try:
        yield
    except Exception as error:  # safetensors and tokenizers write errno into the text, torch.save does not
        numbers = {getattr(reason, "errno", None) for reason in (error, error.__cause__, error.__context__)}
        full = any(f"os error {number}" in str(error) for number in FULL_DISK)
        cut_off = "inline_container" in str(error) and "open file failed" not in str(error)  # of torch.save
        if numbers.intersection(FULL_DISK) or full or cut_off:
            raise OSError(f"{path}: the disk is full. Free some space, then try again.") from error
        raise


def is_repository(name: str | PathLike) -> bool:
    """Return whether `name` has the form of a Hub ID (org/name)."""
    try:
        validate_repo_id(str(name))
    except hub.HFValidationError:
        return False
    return str(name).count("/") == 1


def damage_error(name: str | PathLike, problem: str, advice: str = REPAIR) -> ValueError:
    """Return the ValueError for a folder with damaged files. `problem` says what is wrong."""
    return ValueError(f"{name}: {problem}. {advice}")


def read_json(file: Path, name: str | PathLike, advice: str = REPAIR) -> dict[str, Any]:
    """Return the JSON object in a file of the folder `name`; ValueError if it is damaged, too large or too deep."""
    try:
        limit = LIMITS.get(file.name, JSON_BYTES)
        if file.stat().st_size > limit:
            raise ValueError(f"larger than {limit:,} bytes")
        text = file.read_text(encoding="utf-8")
        if limit < inf and text.count("{") + text.count("[") > JSON_PARTS:
            raise ValueError(f"more than {JSON_PARTS:,} lists and objects")
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"expected a JSON object, found {type(found).__name__}")
        if _depth(found) > JSON_DEPTH:
            raise ValueError(f"nested more than {JSON_DEPTH} levels deep")
    except (ValueError, RecursionError) as error:
        raise damage_error(name, f"{file.name} is not valid ({error})", advice) from error
    return found


def _depth(value: dict | list) -> int:
    parts = value.values() if isinstance(value, dict) else value
    return 1 + max((_depth(part) for part in parts if isinstance(part, dict | list)), default=0)
