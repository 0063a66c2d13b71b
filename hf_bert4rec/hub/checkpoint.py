"""Checkpoints: weights, config, tokenizer, titles, card and run facts, saved together and checked before they are used.

No pickle is written or read, and no code of a checkpoint is executed.
"""

import ctypes
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.utils import WeakFileLock
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel

from ..data.features import FEATURES_FILE
from ..data.tokenization import TITLES_FILE, ItemTokenizer, check_tokenizer
from ..models.registry import ARCHITECTURES, architecture_of
from .errors import damage_error, disk_errors, hub_errors, is_repository, read_json
from .model_card import CARD, model_card
from .run_facts import FACTS_FILE, RunFacts

logger = logging.getLogger(__name__)

NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
LOADED = (*NEEDED, "*.safetensors", WEIGHTS[1], TITLES_FILE, FEATURES_FILE, FACTS_FILE)
REPLACED = ".replaced"  # suffix of the old folder while a new one takes its place
RENAME_EXCHANGE, WORKING_FOLDER = 2, -100  # constants of the system call `renameat2` of Linux
CURVE = "learning_curve.png"
FLOATS = ("F64", "F32", "F16", "BF16")
FOLLOWERS = "transition_head.followers"
COUNTED = (FOLLOWERS, "transition_head.counts", "transition_head.totals")  # tensors of integers

REDIRECTING_OPTIONS = (
    "transformers_weights", "quantization_config", "attn_implementation", "_attn_implementation",
    "experts_implementation", "_experts_implementation", "per_layer_config", "fusion_config", "distributed_config",
    "custom_pipelines",
)  # fmt: skip
REDIRECTING_FILES = ("adapter_config.json", "shard-*.safetensors")
"""Options of config.json, and files, that make transformers load other weights or code than the checked ones."""


def is_folder(model: str | PathLike) -> bool:
    """Return True for a checkpoint folder, False for a Hub ID (org/name); FileNotFoundError if `model` is neither."""
    if not isinstance(model, str | PathLike):
        raise ValueError(f"Expected the path of a checkpoint folder or a Hub ID (org/name), found {model!r:.100}.")
    folder = open_folder(model).is_dir()
    if not folder and not is_repository(model):
        raise FileNotFoundError(f"{model}: found no such folder. Pass a checkpoint folder or a Hub ID (org/name).")
    return folder


def fetch_checkpoint(model: str | PathLike, revision: str | None = None, token: str | bool | None = None) -> Path:
    """Return the folder of a checkpoint, downloaded if it is named by a Hub ID (org/name) and not in the cache.

    An existing folder takes precedence over a Hub ID of the same name. All files are from the same commit, by default
    the newest of `main`, and are checked (`check_folder`) before a model is built. Code is not downloaded. OSError if
    the checkpoint is not found, cannot be downloaded or is incomplete; ValueError if its parts do not belong together.
    """
    options: Any = {"allow_patterns": LOADED, "ignore_patterns": "*/*"}
    if not is_folder(folder := model):
        with hub_errors(str(model)):
            folder = snapshot_download(str(model), revision=revision, token=token, **options)
    check_folder(folder, str(model))
    return Path(folder)


def check_folder(folder: str | PathLike, name: str | None = None) -> PreTrainedModel:
    """Check that a checkpoint is complete and that its weights and config match; return its model on the meta device.

    Of the weights, only headers and the followers of items are read. Error messages contain `name`, by default the
    path. FileNotFoundError if files are missing; ValueError if a file is damaged, or does not belong to the others.
    """
    folder, name = Path(folder), name or str(folder)
    options = {file: read_json(folder / file, name) for file in (*NEEDED, FACTS_FILE) if (folder / file).exists()}
    files = weight_files(folder)
    if missing := [file for file in (*NEEDED, *files) if not (folder / file).exists()]:
        onnx, near = (folder / "model.onnx").exists(), (folder / "model" / NEEDED[0]).exists()
        advice = "Save or push model and tokenizer together, or copy the whole checkpoint again."
        advice = "This is an export. Pass the original checkpoint, or use `OnnxRecommender`." if onnx else advice
        advice = f"Did you mean {folder / 'model'}?" if near else advice
        if WEIGHTS[0] in missing:
            advice += " A pytorch_model.bin is not read, because a pickle can run code. Convert it to safetensors."
        raise FileNotFoundError(f"{name}: the checkpoint is incomplete, found no {', no '.join(missing)}. {advice}")
    found = {key: shape for file in files for key, shape in _shapes(folder / file, name).items()}
    kind = options["config.json"].get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise ValueError(
            f"{name}: `model_type` in config.json must be one of {', '.join(ARCHITECTURES)}, found {kind!r}. For a "
            "model of your own, first import the module that registers the model (command line: `--import MODULE`)."
        )
    _check_options(folder, options["config.json"], options["tokenizer_config.json"], len(found), name)
    try:
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            architecture_of(config)
            model = AutoModelForMaskedLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # whatever transformers and torch raise for values that no model can have
        reason = str(error.__cause__ or error).rstrip(".")
        raise damage_error(name, f"config.json does not describe a model of hf-bert4rec ({reason})") from error
    tied = model._keys_to_ignore_on_save or ()  # not saved, because they are the item table
    if repeated := found.keys() & {*tied}:  # transformers would load them in place of the item table
        raise ValueError(
            f"{name}: the weights contain {min(repeated)}, but `tie_word_embeddings: true` in config.json "
            "replaces it with the input embeddings. If the model was trained with untied embeddings, set this option "
            "to false. Otherwise save the model again with `save_pretrained`."
        )
    expected = {key: list(weight.shape) for key, weight in model.state_dict().items()}
    for key in sorted((expected.keys() - set(tied)) | found.keys()):
        if expected.get(key) != found.get(key):
            shapes = [f"the shape {it[key]}" if key in it else "no such weight" for it in (expected, found)]
            raise ValueError(
                f"{name}: config.json and weights do not belong together: for the weight {key}, config.json needs "
                f"{shapes[0]}, but the weight files contain {shapes[1]}. Take both from the same checkpoint."
            )
    for file in files if FOLLOWERS in found else ():
        with safe_open(folder / file, framework="pt") as weights:
            followers = weights.get_tensor(FOLLOWERS) if FOLLOWERS in weights.keys() else None  # noqa: SIM118
        if followers is not None and not 0 <= followers.min() <= followers.max() < config.vocab_size:
            raise damage_error(name, f"{FOLLOWERS} in {file} must be token IDs from 0 to {config.vocab_size - 1}")
    return model


def _check_options(folder: Path, config: dict[str, Any], tokenizer: dict[str, Any], weights: int, name: str) -> None:
    """Check sizes, and the options by which transformers chooses files and classes, before transformers reads them."""
    redirecting = [f"the option `{option}` in config.json" for option in REDIRECTING_OPTIONS if config.get(option)]
    redirecting += [f"the file {file.name}" for pattern in REDIRECTING_FILES for file in folder.glob(pattern)]
    if redirecting:
        raise ValueError(f"{name}: {redirecting[0]} makes transformers load unchecked weights or code. Remove it.")
    if (kind := tokenizer.get("tokenizer_class")) != ItemTokenizer.__name__:
        found = f"expected ItemTokenizer as `tokenizer_class` in tokenizer_config.json, found {kind!r}"
        raise ValueError(f"{name}: {found}. Save the `ItemTokenizer` of the model in this folder again.")
    for option, value in config.items():
        limit = max(weights, 2) if option in ("num_hidden_layers", "num_labels") else 2**63
        if isinstance(value, int) and abs(value) > limit:  # each layer has weights, and no model has labels
            raise damage_error(name, f"`{option}` in config.json is {value}, which does not fit the weights")
    for file, values in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        names, code = values.get("architectures") or [], values.get("auto_map", {})
        if not isinstance(names, list) or not all(isinstance(it, str) for it in names) or not isinstance(code, dict):
            raise damage_error(name, f"in {file}, `architectures` must be a list of names, and `auto_map` an object")


def weight_files(folder: Path) -> list[str]:
    """Return the names of the weight files: `model.safetensors`, or those in a valid index of a sharded checkpoint."""
    if (folder / WEIGHTS[0]).exists() or not (folder / WEIGHTS[1]).exists():
        return [WEIGHTS[0]]
    index = read_json(folder / WEIGHTS[1], folder)
    weight_map, metadata = index.get("weight_map"), index.get("metadata")
    files = list(weight_map.values()) if isinstance(weight_map, dict) and isinstance(metadata, dict) else []
    if not files or not all(isinstance(file, str) and re.fullmatch(r"[\w-]+\.safetensors", file) for file in files):
        expected = "`metadata` and a `weight_map` to safetensors files in this folder"
        raise damage_error(folder, f"{WEIGHTS[1]} must contain {expected}")
    return sorted(set(files))


def _shapes(file: Path, name: str) -> dict[str, list[int]]:
    """Return the shape of each tensor, from the header of a file of floating-point weights."""
    try:
        with safe_open(file, framework="pt") as weights:
            tensors = {key: weights.get_slice(key) for key in weights.keys()}  # noqa: SIM118
            kinds = {key: ("I32",) if key in COUNTED else FLOATS for key in tensors}
            if others := [key for key, tensor in tensors.items() if tensor.get_dtype() not in kinds[key]]:
                expected = f"expected the type {' or '.join(kinds[others[0]])} for {others[0]} in {file.name}"
                found = f"found {tensors[others[0]].get_dtype()}. Save the model again, without quantization."
                raise ValueError(f"{name}: {expected}, {found}")
            return {key: tensor.get_shape() for key, tensor in tensors.items()}
    except SafetensorError as error:
        raise damage_error(name, f"{file.name} is damaged or cut off ({error})") from error


def stored_exclude_history(folder: str | PathLike) -> bool:
    """Return whether a checkpoint that passed `check_folder` excludes items of the history from its recommendations.

    Old config files do not contain this setting. Then the recipe in the run facts is read, and the default is True.
    """
    stored = read_json(Path(folder, NEEDED[0]), folder).get("exclude_history")
    return bool(stored_recipe(folder).get("exclude_history", True) if stored is None else stored)


def stored_recipe(folder: str | PathLike) -> dict[str, Any]:
    """Return the options of the training of a checkpoint that passed `check_folder`; {} without run facts."""
    file = Path(folder, FACTS_FILE)
    recipe = read_json(file, folder).get("recipe") if file.exists() else None
    return recipe if isinstance(recipe, dict) else {}


def check_checkpoint(folder: str | PathLike) -> None:
    """Check a checkpoint as `check_folder` does, and raise ValueError if its tokenizer or titles do not fit."""
    check_sizes(check_folder(folder), ItemTokenizer.from_pretrained(folder))


def check_sizes(model: nn.Module, tokenizer: ItemTokenizer) -> None:
    """Raise ValueError unless model and tokenizer have the same number of items, and compatible input lengths."""
    check_tokenizer(tokenizer)
    config: Any = model.config
    if config.vocab_size != len(tokenizer):
        raise ValueError(
            f"The model has {config.vocab_size} rows in its item table, the tokenizer has {len(tokenizer)} tokens. For "
            "a new model, set `vocab_size=len(tokenizer)`. After `extend_item_tokenizer`, call "
            "`model.resize_token_embeddings(len(tokenizer))`. Otherwise take both from the same checkpoint."
        )
    length, longest = tokenizer.model_max_length, config.max_position_embeddings
    if not 2 <= length <= longest:
        expected = f"from 2 to {longest} (`max_position_embeddings` of the model), found {length}"
        advice = f"Set it to {longest}. Longer histories need a new model with more positions."
        raise ValueError(f"`tokenizer.model_max_length` must be {expected}. {advice}")


def last_complete_checkpoint(output_dir: str | PathLike) -> Path | None:
    """Return the newest complete checkpoint of a Trainer's output folder, or None."""
    return next(filter(is_complete, trainer_checkpoints(output_dir)), None)


def trainer_checkpoints(output_dir: str | PathLike) -> list[Path]:
    """Return the folders `checkpoint-STEP` of a Trainer's output folder, newest first, without links."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    folders = [path for path in folders if path.is_dir() and not path.is_symlink()]
    return sorted(folders, key=lambda path: int(path.name.partition("-")[2]), reverse=True)


def is_complete(checkpoint: str | PathLike) -> bool:
    """Return whether a Trainer can resume from a checkpoint, because no file is missing or cut off."""
    folder = Path(checkpoint)
    distributed = any(folder.glob("*/"))  # FSDP and DeepSpeed save weights and optimizer in folders of their own
    try:
        read_json(folder / "trainer_state.json", folder)
        others = (file.name for file in folder.glob("*.safetensors"))  # such as the projection of item features
        for file in () if distributed else {*weight_files(folder), *others}:
            _shapes(folder / file, str(folder))
    except (OSError, ValueError):
        return False
    random_states = sorted(folder.glob("rng_state*.pth"))
    pickles = [folder / "scheduler.pt", *random_states, *([] if distributed else [folder / "optimizer.pt"])]
    return bool(random_states) and all(map(zipfile.is_zipfile, pickles))


def save_checkpoint(
    folder: str | PathLike,
    model: PreTrainedModel,
    tokenizer: ItemTokenizer,
    facts: RunFacts,
    others: dict[str, bytes],
    modules: Sequence[str] = (),
) -> None:
    """Save a checkpoint with its card, written from `facts` and `modules`, and `others` (file name -> content).

    An older checkpoint in `folder` is replaced after all files are written, and kept if writing fails.
    """
    check_sizes(model, tokenizer)
    with replaced_folder(folder) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        facts.save(new)
        model_card(facts, modules).save(new / CARD)
        for name, content in others.items():
            (new / name).write_bytes(content)


def open_folder(name: str | PathLike) -> Path:
    """Return a path. If a kill between two renames of `replaced_folder` left no such folder, it is restored."""
    # Another process may restore the folder first, and `name` may not be a path, or lead to a loop of links.
    with suppress(FileNotFoundError, RuntimeError, ValueError):
        folder = Path(name).resolve()
        if not folder.exists() and (old := _neighbors(folder)[1]).exists():
            old.rename(folder)
    return Path(name)


def _neighbors(folder: Path) -> tuple[Path, Path]:
    """Return the paths of the new and of the old folder while a folder is replaced."""
    return folder.with_name(f"{folder.name}.incomplete"), folder.with_name(f"{folder.name}{REPLACED}")


def check_output(
    output: str | PathLike,
    marker: str,
    source: Path | None = None,
    option: str = "`output=` (command line: `--output`)",
) -> None:
    """Raise ValueError if `output` is a file, or has files but no `marker`, or if writing it would remove `source`."""
    path = Path(output)
    if path.exists() and not (path / marker).exists() and (path.is_file() or any(path.iterdir())):
        found = f"{output} is not an earlier result (it has no {marker}), so it is not replaced"
        raise ValueError(f"{found}. Pass a new folder as {option}.")
    if source is not None and source.resolve() in _neighbors(path.resolve()):
        problem = f"Writing {output} would remove {source}, because its name is reserved"
        raise ValueError(f"{problem}. Rename {source} first.")


@contextmanager
def replaced_folder(folder: str | PathLike) -> Iterator[Path]:
    """Yield a path for a new folder, which replaces `folder` at the end, or is removed after an error."""
    folder = open_folder(folder).resolve()  # a link stays, and the folder that it leads to is replaced
    new, old = _neighbors(folder)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        with disk_errors(folder):
            yield new
            mode = new.stat().st_mode & 0o666
            for file in filter(Path.is_file, new.rglob("*")):
                with suppress(OSError):  # a file system without permissions
                    file.chmod(mode)  # safetensors writes weights that only their owner can read
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if folder.exists() and _exchange(new, folder):
        old = new
    else:
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step, and return whether this was possible: only on Linux, on most file systems."""
    with suppress(AttributeError, TypeError):  # TypeError: Windows
        paths = (WORKING_FOLDER, os.fsencode(first), WORKING_FOLDER, os.fsencode(second))
        return ctypes.CDLL(None).renameat2(*paths, RENAME_EXCHANGE) == 0
    return False


@contextmanager
def folder_lock(folder: str | PathLike) -> Iterator[None]:
    """Wait until no other process holds the lock of a folder, and hold it. A folder without a parent has no lock."""
    path = Path(folder).resolve()
    lock = path.with_name(f"{path.name}.lock")
    if not path.parent.is_dir():
        yield
        return
    if lock.exists():
        logger.warning("%s exists. If another command is changing this folder, this command waits until it ends.", lock)
    with WeakFileLock(lock):
        try:
            yield
        finally:
            with suppress(OSError):  # on Windows, open files cannot be removed
                lock.unlink()
