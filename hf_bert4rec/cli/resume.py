"""Record of a run in its output folder, so that an interrupted run is resumed only with the same data and options."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ..hub.checkpoint import NEEDED, check_output, is_complete, last_complete_checkpoint, trainer_checkpoints

logger = logging.getLogger(__name__)

RECORD = "begun.json"
REJECTED = "rejected"
"""Name of the folder for a continued model that is worse than the model it continues."""


def start_or_resume(args: TrainingArguments, data: str | None, options: dict[str, Any]) -> str | None:
    """Return the checkpoint to resume from. For a new run, write its record and return None.

    `data` is a checksum of interactions and item features, `options` are values that a resumed run must not change.
    Raises ValueError if the run cannot be resumed, or if a new run would overwrite an interrupted one or other files.
    """
    folder = Path(args.output_dir or "")
    wanted = str(args.resume_from_checkpoint or False)  # false, true (the newest complete one) or a path
    options = json.loads(json.dumps(options, default=str))
    finished = _read(folder).get("finished", False)
    if finished and args.process_index == 0:
        _remove_checkpoints(folder)  # the run was killed before it had removed all of them
    newest = last_complete_checkpoint(folder)
    if wanted.lower() == "false":
        _check_folder(folder, newest, finished)
        _check_checkpoints(folder, trainer_checkpoints(folder) if _read(folder) and not finished else [])
        if args.process_index == 0:
            if (folder / "model").exists():
                logger.warning("%s exists and will be replaced at the end of this run.", folder / "model")
            _write(folder, {"data": data, "options": options, "finished": False})
        return None

    if finished:
        advice = "The model is in the folder `model` of the run, or in `rejected` if it is worse than the model of "
        advice += "`--continue_from`. To train again, choose another `--output_dir`."
        raise ValueError(f"{folder}: this run has finished, so there is nothing to resume. {advice}")
    _check_checkpoints(folder, trainer_checkpoints(folder))
    checkpoint = newest if wanted.lower() == "true" else Path(wanted)
    if checkpoint is None or not is_complete(checkpoint):
        found = f"{folder} contains no" if checkpoint is None else f"{checkpoint} is not a"
        advice = f"To resume {newest}, pass `--resume_from_checkpoint true`."
        if newest is None:
            advice = "To resume, pass `--resume_from_checkpoint true` and the `--output_dir` of the interrupted run. "
            advice += "To start a new run, omit `--resume_from_checkpoint`."
        raise ValueError(f"{found} complete checkpoint. {advice}")
    if problem := _find_problem(checkpoint, args.load_best_model_at_end, data, options):
        raise ValueError(f"{checkpoint}: {problem}, or start a new run in another `--output_dir`.")
    return str(checkpoint)


def _check_folder(folder: Path, newest: Path | None, finished: bool) -> None:
    """Raise ValueError if a new run would overwrite an interrupted run, or files that are not from a run."""
    if newest is not None and not finished:
        advice = "Resume with `--resume_from_checkpoint true`, delete the folder, or choose another `--output_dir`."
        raise ValueError(f"{folder} contains {newest.name} of an interrupted run. {advice}")
    for name in ("model", REJECTED):
        check_output(folder / name, NEEDED[0], option="`--output_dir`")


def _check_checkpoints(folder: Path, own: list[Path]) -> None:
    """Raise ValueError if the Trainer may remove folders that are not among the checkpoints `own` of the run."""
    others = [path.name for path in folder.glob("checkpoint-*") if path.is_dir() and path not in own]
    if others:
        found = f"{folder} contains {min(others)}, which is not from a run of this command"
        raise ValueError(f"{found}. Move {min(others)}, which training may delete, or choose another `--output_dir`.")


def _find_problem(checkpoint: Path, needs_best: bool, data: str | None, options: dict[str, Any]) -> str:
    """Return why a checkpoint cannot be resumed, and the solution; "" if it can."""
    record = _read(checkpoint.parent)
    if not record:
        return f"the file {RECORD}, which records data and options of the run, is missing. Restore this file"
    if record["data"] != data:
        problem = "the log, its filters or the item features have changed since the run began"
        return f"{problem}. Use the same log, filters and features"
    if changed := [name for name, value in record["options"].items() if options.get(name) != value]:
        changes = (f"`--{name}` was {record['options'][name]} and is {options.get(name)}" for name in changed)
        return f"{', '.join(changes)}. Use the same options"
    best = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["best_model_checkpoint"]
    if needs_best and best and not is_complete(best):
        return f"the best checkpoint of this run, {best}, is missing or incomplete. Restore this folder"
    return ""


def finish(folder: Path) -> None:
    """Record that the model is saved, then remove the checkpoints. In this order, a kill in between loses nothing."""
    checkpoints = [checkpoint.name for checkpoint in trainer_checkpoints(folder)]
    _write(folder, {**_read(folder), "finished": True, "checkpoints": checkpoints})
    _remove_checkpoints(folder)


def _remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a finished run. Those of a later run of another program stay."""
    names = _read(folder).get("checkpoints", [])
    for checkpoint in trainer_checkpoints(folder):
        if checkpoint.name in names:
            shutil.rmtree(checkpoint)


def _read(folder: Path) -> dict[str, Any]:
    file = folder / RECORD
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _write(folder: Path, record: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f"{RECORD}.new"
    new.write_text(json.dumps(record), encoding="utf-8")
    new.replace(folder / RECORD)  # after a kill, the old record is still complete
