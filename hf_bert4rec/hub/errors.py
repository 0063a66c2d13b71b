"""Errors of the Hub, of full disks and of damaged files, each as one sentence with a solution."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

JSON_BYTES = 2**24  # of a file whose size does not grow with the number of items
JSON_DEPTH = 20

REFUSED = {
    401: "does not accept the token. Log in again with `hf auth login`, or correct HF_TOKEN",
    403: "does not allow you to write there. Choose a name under your own account, or a token with write access",
    412: "received another commit in the meantime. Look at it, then push again to replace it",
}


def is_repository(name: str | PathLike) -> bool:
    """Return whether `name` has the form of a Hub ID, org/name."""
    try:
        validate_repo_id(str(name))
    except HFValidationError:
        return False
    return str(name).count("/") == 1


@contextmanager
def hub_errors(repository: str) -> Iterator[None]:
    """Raise every error of the Hub, or of the connection to it, as an OSError of one sentence with a solution."""
    try:
        with disk_errors(repository):
            yield
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{repository} has no such revision. Name a branch, a tag or the full hash of a commit."
        ) from error
    except GatedRepoError as error:
        raise PermissionError(f"{repository} is gated. Ask for access on its page, then log in.") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{repository}: found no such folder, and no such repository on the Hub. Check the name. If the "
            "repository is private, log in with `hf auth login`, or pass a token that can read it."
        ) from error
    except OfflineModeIsEnabled as error:
        raise ConnectionError(f"{repository}: offline mode is enabled. Unset HF_HUB_OFFLINE.") from error
    except LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"{repository}: found no such folder, the Hub cannot be reached, and the cache does not contain all files. "
            "Check the name and the network, and unset HF_HUB_OFFLINE."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        answer = REFUSED.get(status, f"answered {status}: {error.server_message or 'try again later'}")
        raise (PermissionError if status in REFUSED else OSError)(f"{repository}: the Hub {answer}.") from error
    except (HTTPError, RuntimeError) as error:  # the client raises RuntimeError for a failed upload
        reason = error if isinstance(error, HTTPError) else error.__cause__
        if not isinstance(reason, (HTTPError, OSError)):
            raise
        raise ConnectionError(
            f"{repository}: the connection to the Hub failed ({reason}). Commits and files are transferred as a whole "
            "or not at all. Check the network, then try again."
        ) from error


@contextmanager
def disk_errors(path: str | PathLike) -> Iterator[None]:
    """Raise a full disk as an OSError of one sentence, whichever library wrote the file."""
    try:
        yield
    except Exception as error:  # safetensors and tokenizers raise classes of their own
        reasons = (error, error.__cause__, error.__context__)
        full = any(getattr(reason, "errno", None) in (errno.ENOSPC, errno.EDQUOT) for reason in reasons)
        if full or f"os error {errno.ENOSPC}" in str(error) or f"os error {errno.EDQUOT}" in str(error):
            raise OSError(f"{path}: the disk is full. Free some space, then try again.") from error
        raise


def read_json(file: Path, name: str | PathLike, limit: int | None = JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        file: The file.
        name: Name of the checkpoint, for errors.
        limit: Largest size in bytes, if any.

    Raises:
        ValueError: The file is damaged, too large or too deep, or it does not contain an object.
    """
    try:
        if limit is not None and file.stat().st_size > limit:
            raise ValueError(f"larger than {limit:,} bytes")
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"expected an object, found {type(found).__name__}")
        level: list[Any] = [found]
        for _ in range(JSON_DEPTH):
            level = [inner for value in level for inner in _contents(value)]
        if level:
            raise ValueError(f"more than {JSON_DEPTH} levels deep")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: {file.name} is damaged or cut off ({error}). Load or save it again.") from error
    return found


def _contents(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
