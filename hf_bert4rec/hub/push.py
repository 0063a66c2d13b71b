"""Push checkpoints, data and Spaces to the Hub, each in one commit."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from transformers.dynamic_module_utils import get_relative_import_files

from ..data.features import FEATURES_FILE, PROJECTION_FILE
from ..data.tokenization import TITLES_FILE
from .checkpoint import CURVE, LOADED, NEEDED, WEIGHTS, check_checkpoint, weight_files
from .errors import hub_errors, read_json
from .model_card import CARD
from .run_facts import FACTS_FILE, RunFacts

logger = logging.getLogger(__name__)

HANDLER: dict[str, Path | bytes] = {
    "handler.py": b'"""Answers requests of a Hugging Face Inference Endpoint."""\n\n'
    b"from hf_bert4rec.inference.handler import EndpointHandler\n\n"
    b'__all__ = ["EndpointHandler"]\n'
}
"""File with which a repository can be deployed as an Inference Endpoint."""

PLAIN = (".gitattributes", CARD, "LICENSE")  # a repository without other files counts as empty


def create_repository(repository: str, *, token: str | bool | None = None, **options: Any) -> str:
    """Create a repository with the options of `HfApi.create_repo` if it does not exist; return its name (org/name)."""
    with hub_errors(repository):
        return HfApi(token=token).create_repo(repository, exist_ok=True, **options).repo_id


def files_in(folder: Path) -> dict[str, Path]:
    """Return all files of a folder and its subfolders: path in the folder -> path."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def push_files(
    repository: str,
    files: Mapping[str, Path | bytes],
    *,
    marker: str,
    replaced: Sequence[str],
    commit_message: str,
    repo_type: str = "model",
    token: str | bool | None = None,
    revision: str | None = None,
) -> CommitInfo:
    """Push files to an existing repository in one commit, and return the commit.

    FileExistsError if the repository has other files but not `marker`, which every repository of this kind contains, or
    a model of another `model_type`. Files that fit the patterns `replaced` (without "/": at the top level) and are not
    among `files` (name in the repository -> path or content) are deleted. `revision` is an existing branch. After
    another OSError the repository is unchanged or, if only the answer of the Hub was lost, contains the whole commit.
    """
    api = HfApi(token=token)
    with hub_errors(repository), warnings.catch_warnings():
        current = api.repo_info(repository, repo_type=repo_type, revision=revision)
        existing = sorted(file.rfilename for file in current.siblings or ())
        others = [name for name in existing if name not in PLAIN]
        taken = None
        if others and marker not in others:
            taken = f"other files, such as {others[0]}, and no {marker}"
        elif others and repo_type == "model":
            config = api.hf_hub_download(repository, marker, revision=current.sha)
            found, ours = (read_json(Path(file), repository).get("model_type") for file in (config, str(files[marker])))
            taken = None if found == ours else f"a model of type {found!r}, not {ours!r}"
        if taken:
            raise FileExistsError(f"{repository} is taken: the repository contains {taken}. Push to another name.")
        operations: list[Any] = [CommitOperationAdd(name, content) for name, content in files.items()]
        for name in existing:
            stale = any(fnmatch(name, pattern) and ("/" in pattern or "/" not in name) for pattern in replaced)
            if stale and name not in files:
                operations.append(CommitOperationDelete(name))
        warnings.filterwarnings("ignore", message=".*data file.*")  # items.parquet belongs to the tokenizer
        # With the parent commit, simultaneous pushes are never mixed.
        options = {"repo_type": repo_type, "revision": revision, "parent_commit": current.sha}
        return api.create_commit(repository, operations, commit_message=commit_message, **options)


def push_checkpoint(
    folder: str | PathLike,
    repository: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """Push a checkpoint to the Hub in one commit: its own files without pickles, and nothing else of the folder.

    `handler.py` is added, so that the repository can be deployed as an Inference Endpoint. An older checkpoint stays in
    the git history. Paths in the run facts are reduced to names (`RunFacts.published`). The repository is created if it
    does not exist, in your account if the name has no owner; `private=None` is the default of the owner. `revision` is
    an existing branch. Returns the commit; `str(commit)` is its URL.

    Raises:
        OSError: The checkpoint is incomplete, the repository contains something else, or the Hub cannot be reached.
        ValueError: The parts of the checkpoint do not belong together, or the Hub refuses the name or card.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: found no such folder. Pass the folder of a checkpoint.")
    check_checkpoint(folder)
    files = published_files(folder) | HANDLER
    if CARD not in files:
        logger.warning("%s has no README.md, so the repository will have no model card. Add this file.", folder)
    return push_files(
        create_repository(repository, private=private, token=token),
        files,
        marker=NEEDED[0],
        replaced=(*LOADED, CARD, CURVE, "*.bin"),
        commit_message=commit_message or f"Upload {folder.name}",
        token=token,
        revision=revision,
    )


def published_files(folder: Path) -> dict[str, Path | bytes]:
    """Return the files of a checkpoint that a push uploads: name -> path or content."""
    index = () if WEIGHTS[0] in (weights := weight_files(folder)) else WEIGHTS[1:]
    names = (*NEEDED, *weights, *index, TITLES_FILE, FEATURES_FILE, PROJECTION_FILE, *_code_files(folder), CARD, CURVE)
    files: dict[str, Path | bytes] = {name: folder / name for name in names if (folder / name).exists()}
    if (folder / FACTS_FILE).exists():
        files[FACTS_FILE] = RunFacts.load(folder).published().to_json()
    return files


def _code_files(folder: Path) -> list[str]:
    """Return the names of the files in the `auto_map` of config.json, and of the files that these import."""
    auto_map = read_json(folder / NEEDED[0], folder).get("auto_map") or {}
    modules = {str(reference).rpartition("--")[2].partition(".")[0] for reference in auto_map.values()}
    files = {folder / f"{module}.py" for module in modules if module.isidentifier()}
    files |= {Path(needed) for file in files if file.exists() for needed in get_relative_import_files(file)}
    return sorted(file.name for file in files if file.parent == folder)
