"""A checkpoint: weights, config, tokenizer, titles, card and run facts, saved, pushed and loaded as one or not at all.

No pickle is written to a repository or read from one, and nothing that a repository holds is executed.
"""

import json
import logging
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files

from ..data.tokenization import TITLES_FILE, ItemTokenizer
from ..evaluation.ranking import SAMPLED_METRICS, how_sampled
from .run_facts import FACTS_FILE, RunFacts

logger = logging.getLogger(__name__)

NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
CARD, CURVE = "README.md", "learning_curve.png"
LOADED = [*NEEDED, "*.safetensors", WEIGHTS[1], TITLES_FILE]
REPLACED = [*LOADED, FACTS_FILE, CARD, CURVE, "*.bin"]
"""What an older checkpoint had and a new one has not is taken out of a repository, and pickles with it."""

PLAIN = (".gitattributes", CARD, "LICENSE")  # a repository that holds nothing else is free to be taken
SUBFOLDERS = "*/*"  # such as the Trainer's checkpoints, whose files have the same names
TEMPLATE = Path(__file__).parent / "model_card_template.md"


@contextmanager
def hub_errors(repository: str) -> Iterator[None]:
    """Say what the Hub, or the way to it, refused in one sentence with the cure, always as an OSError."""
    try:
        yield
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{repository} has no such revision: name a branch, a tag or a whole commit."
        ) from error
    except GatedRepoError as error:
        raise PermissionError(f"{repository} is gated: ask for access on its page, then log in.") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{repository}: found no such repository on the Hub. Check the name; if it is private, log in with "
            "`hf auth login`, or pass a token that may read it."
        ) from error
    except OfflineModeIsEnabled as error:
        raise ConnectionError(f"{repository}: the client is set to be offline. Unset HF_HUB_OFFLINE.") from error
    except LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"{repository}: the Hub cannot be reached, and the cache does not hold all of it. Check the network, and "
            "that HF_HUB_OFFLINE is not set."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        causes = {
            401: "does not know the token: log in again with `hf auth login`, or mend HF_TOKEN",
            403: "does not let you write there: take a name of your own, or a token that may write",
            412: "has got another commit there meanwhile: look at it, then push again if yours is to replace it",
        }
        cause = causes.get(status, f"answered {status}: {error.server_message or 'try again later'}")
        raise (PermissionError if status in causes else OSError)(f"{repository}: the Hub {cause}.") from error
    except (HTTPError, RuntimeError) as error:  # the client turns what breaks an upload into a RuntimeError
        reason = error if isinstance(error, HTTPError) else error.__cause__
        if not isinstance(reason, (HTTPError, OSError)):
            raise
        raise ConnectionError(
            f"{repository}: the connection to the Hub failed ({reason}). No commit is half made there, and no file is "
            "half loaded: check the network, then run the same again."
        ) from error


def _is_repository(model: str | PathLike) -> bool:
    """Whether it can be a Hub id, org/name, and is no folder here."""
    folder = Path(model)
    return len(folder.parts) == 2 and not folder.is_absolute() and not folder.is_dir()


def is_folder(model: str | PathLike) -> bool:
    """Whether a checkpoint is named by its folder; else it is by a Hub id, org/name.

    Raises:
        FileNotFoundError: It is named like a folder, and there is none.
    """
    folder = Path(model)
    if not folder.is_dir() and (not _is_repository(model) or folder.parent.is_dir()):
        raise FileNotFoundError(f"{model}: expected a checkpoint folder or a Hub id, found no such folder.")
    return folder.is_dir()


def fetch_checkpoint(model: str | PathLike, revision: str | None = None, token: str | bool | None = None) -> Path:
    """The folder of a checkpoint: itself, or one commit of a Hub repository, downloaded or out of the cache.

    Weights, tokenizer and titles are then of the same commit, and are checked before anything is built from them. The
    code of the repository is not even downloaded.

    Raises:
        OSError: It is not there, cannot be reached, or lacks a file of a checkpoint.
        ValueError: Its parts disagree, see `check_folder`.
    """
    folder = Path(model)
    if not is_folder(model):
        with hub_errors(str(model)):
            where = {"revision": revision, "token": token, "allow_patterns": LOADED, "ignore_patterns": SUBFOLDERS}
            folder = Path(snapshot_download(str(model), **where))
    check_folder(folder, str(model))
    return folder


def check_folder(folder: str | PathLike, name: str | None = None) -> PreTrainedModel:
    """Refuse a folder that lacks a file of a checkpoint, or whose weights are not those of its config.

    Args:
        folder: A checkpoint.
        name: What it is called in errors, where not its path.

    Returns:
        The model on the meta device, without its weights.

    Raises:
        FileNotFoundError: Names what is missing.
        ValueError: Names the first weights that disagree with the config.
    """
    folder, name = Path(folder), name or str(folder)
    missing = [needed for needed in NEEDED if not (folder / needed).exists()]
    for file in (*NEEDED, WEIGHTS[1], FACTS_FILE):
        if (folder / file).exists():
            _check_json(folder / file, name)
    files = weight_files(folder)
    missing += [file for file in files if not (folder / file).exists()]
    if missing:
        raise FileNotFoundError(
            f"{name}: expected a complete checkpoint, found no {', no '.join(missing)}. "
            + (
                f"Did you mean {folder / 'model'}?"
                if (folder / "model" / NEEDED[0]).exists()
                else "Copy the missing files from where the checkpoint was saved, or save it again."
            )
            + " A pytorch_model.bin is never read: it is a pickle, which can run code." * (WEIGHTS[0] in missing)
        )
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForMaskedLM.from_config(config, trust_remote_code=False)
    unsaved = model._keys_to_ignore_on_save or ()  # tied to the item table
    expected = {name: list(weight.shape) for name, weight in model.state_dict().items() if name not in unsaved}
    found: dict[str, list[int]] = {}
    for file in files:
        try:
            with safe_open(folder / file, framework="pt") as weights:  # reads the header alone
                found |= {key: weights.get_slice(key).get_shape() for key in weights.keys() if key not in unsaved}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{name}: {file} is damaged or cut off ({error}). Load it again.") from error
    for key in sorted(expected.keys() | found):
        if expected.get(key) != found.get(key):
            shapes = (shapes.get(key, "none") for shapes in (expected, found))
            raise ValueError(
                "{}: config.json and weights disagree: expected for {} the shape {}, found {}. Take both from the same "
                "checkpoint.".format(name, key, *shapes)
            )
    return model


def _check_json(file: Path, name: str) -> None:
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{name}: {file.name} is damaged or cut off ({error}). Load it again.") from error


def weight_files(folder: Path) -> list[str]:
    """Names of the files that hold the weights of a checkpoint: one, or those that an index lists."""
    if (folder / WEIGHTS[0]).exists() or not (folder / WEIGHTS[1]).exists():
        return [WEIGHTS[0]]
    return sorted(set(json.loads((folder / WEIGHTS[1]).read_text(encoding="utf-8"))["weight_map"].values()))


def check_checkpoint(folder: str | PathLike) -> None:
    """`check_folder`, and the tokenizer and its titles against the model, as the pipeline does once it has them."""
    check_sizes(check_folder(folder), AutoTokenizer.from_pretrained(folder, trust_remote_code=False))


def check_sizes(model: nn.Module, tokenizer: ItemTokenizer) -> None:
    """Refuse a tokenizer and a model of different catalogues.

    Raises:
        ValueError: Item table and tokenizer differ in size, or the tokenizer makes inputs longer than the model takes.
    """
    config: Any = model.config
    if config.vocab_size != len(tokenizer):
        raise ValueError(
            f"The model has {config.vocab_size} rows in its item table and the tokenizer {len(tokenizer)} tokens: they "
            "belong to different catalogues. Take both from the same checkpoint, or resize_token_embeddings after "
            "extend_item_tokenizer."
        )
    if config.max_position_embeddings < tokenizer.model_max_length:
        raise ValueError(
            f"The tokenizer keeps {tokenizer.model_max_length} items (`model_max_length`), the model has "
            f"{config.max_position_embeddings} positions: set max_position_embeddings=tokenizer.model_max_length."
        )


def last_complete_checkpoint(output_dir: str | PathLike) -> Path | None:
    """The newest of the Trainer's checkpoints that was saved to its end, or None.

    The Trainer writes `trainer_state.json` last: a checkpoint without it, or with half of it, was cut off by a kill or
    a full disk and is passed over.
    """
    complete = {}
    for state in Path(output_dir).glob("checkpoint-*/trainer_state.json"):
        step = re.fullmatch(r"checkpoint-(\d+)", state.parent.name)
        try:
            json.loads(state.read_text())
        except ValueError:
            continue
        if step:
            complete[int(step[1])] = state.parent
    return complete[max(complete)] if complete else None


def save_checkpoint(
    folder: str | PathLike,
    model: PreTrainedModel,
    tokenizer: ItemTokenizer,
    facts: RunFacts,
    others: Mapping[str, bytes],
) -> None:
    """Save all that a recommender is made of into `folder`, which is replaced only when everything is written.

    Args:
        folder: Where to; an older checkpoint there is replaced.
        model: The weights and config.
        tokenizer: With its titles.
        facts: What `run.run` found out; the card is written from them.
        others: Name → content of further files, such as the curve.

    Raises:
        ValueError: Model and tokenizer are of different catalogues.
        OSError: The disk is full, for instance. The older checkpoint is still there.
    """
    check_sizes(model, tokenizer)
    folder = Path(folder)
    new, old = (folder.with_name(f"{folder.name}.{state}") for state in ("incomplete", "replaced"))
    if old.exists() and not folder.exists():  # a kill came between the two renames below
        old.rename(folder)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        facts.save(new)
        model_card(facts).save(new / CARD)
        for name, content in others.items():
            (new / name).write_bytes(content)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


"""Model type → what results call it."""


def model_card(facts: RunFacts) -> ModelCard:
    """The card, with the results as model-index: of the test split, else of validation."""
    split, facts = "test" if "test" in facts.results else "validation", facts.published()
    metrics = facts.results.get(split, {})
    ours = metrics.get(facts.model, {})
    source = facts.recipe.get("start_from")
    among = f"_{how_sampled(ours)}"
    results = [
        EvalResult(
            task_type="fill-mask",
            task_name="Next-item recommendation",
            dataset_type=facts.data.name,
            dataset_name=f"{facts.data.name} ({facts.sampled_protocol if name.endswith(among) else facts.protocol})",
            dataset_config=among[1:].replace("_", "-") if name.endswith(among) else "whole-catalogue",  # else one entry
            dataset_split=split,
            metric_type=name,
            metric_name=name.upper(),
            metric_value=round(value, 4),
        )
        for name, value in ours.items()
        if not name.startswith(("ndcg@1_", "mrr@1_")) and name not in ("ndcg@1", "mrr@1")  # these repeat hr@1
    ]
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=[facts.model.lower(), "recommender-system", "sequential-recommendation"],
        model_name=facts.name,
        base_model=source if source and _is_repository(source) else None,
        eval_results=results or None,
        license="other" if facts.data.terms else None,
        license_name="terms-of-the-data" if facts.data.terms else None,
    )
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        facts=facts,
        test=facts.results.get("test", {}),
        example=json.dumps(facts.example, ensure_ascii=False),
        results=results_table(metrics) if metrics else "",
        sampled_results=sampled_table(metrics),
        versions=", ".join(f"{name} {version}" for name, version in facts.versions.items()),
    )


def code_files(folder: Path) -> list[str]:
    """Return the names of the files that the `auto_map` of a checkpoint refers to, and of those that they import."""
    auto_map = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auto_map") or {}
    modules = {str(reference).rpartition("--")[2].partition(".")[0] for reference in auto_map.values()}
    files = {folder / f"{module}.py" for module in modules}
    files |= {Path(needed) for file in files if file.exists() for needed in get_relative_import_files(file)}
    return sorted(file.name for file in files if file.parent == folder)


def published_files(folder: Path) -> dict[str, Path | bytes]:
    """Return name → content of the files of a checkpoint that are published."""
    index = () if WEIGHTS[0] in (weights := weight_files(folder)) else WEIGHTS[1:]
    names = (*NEEDED, *weights, *index, TITLES_FILE, *code_files(folder), CARD, CURVE, FACTS_FILE)
    content: dict[str, Path | bytes] = {name: folder / name for name in names if (folder / name).exists()}
    if FACTS_FILE in content:
        content[FACTS_FILE] = RunFacts.load(folder).published().to_json()
    return content


def results_table(
    metrics: Mapping[str, Mapping[str, float]], columns: Sequence[str] = ("hr@10", "ndcg@10", "mrr@10")
) -> str:
    """A Markdown table, a row a model."""
    lines = [[model, *(f"{row[name]:.4f}" for name in columns)] for model, row in metrics.items()]
    return markdown_table(["", *map(str.upper, columns)], lines)


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table of names on the left and figures."""
    rule = f"|---|{'---:|' * (len(header) - 1)}"
    first, *others = (f"| {' | '.join(line)} |".replace("|  |", "| |") for line in (header, *lines))
    return "\n".join([first, rule, *others])


def sampled_table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """The same for metrics among candidates, by the columns of the paper's Table 2; empty where there are none."""
    kinds = {how_sampled(row) for row in metrics.values()}
    if len(kinds) != 1 or None in kinds:
        return ""
    sampled = kinds.pop()
    plain = {model: {name: row[f"{name}_{sampled}"] for name in SAMPLED_METRICS} for model, row in metrics.items()}
    return results_table(plain, SAMPLED_METRICS)


def push_checkpoint(
    folder: str | PathLike,
    repository: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """Put a checkpoint on the Hub in one commit: its own files only, none of the Trainer's, no pickle.

    The commit replaces an older checkpoint of the repository, whose files stay in the history; two that are pushed at
    once never mix. The run facts go up without the folders of this machine (`RunFacts.published`).

    Args:
        folder: A checkpoint.
        repository: Hub id; without an owner it is yours. Created if there is none.
        private: Whether to create it private; as its owner has set if not given.
        token: That of `hf auth login` or HF_TOKEN if not given.
        revision: Branch to push to; `main` if not given.
        commit_message: Names the folder if not given.

    Returns:
        The commit, a string too: its address.

    Raises:
        FileExistsError: The repository holds a model of another kind, or something else.
        OSError: The folder lacks a file of a checkpoint, or the Hub refuses it or cannot be reached: then the
            repository is as it was, or, if only the answer was lost, has the whole commit.
        ValueError: The parts of the checkpoint disagree, or the name is none that a repository can have.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a checkpoint folder, found none.")
    check_checkpoint(folder)
    content = published_files(folder)
    if CARD not in content:
        logger.warning("%s has no README.md: the repository gets no card.", folder)
    api = HfApi(token=token)
    with hub_errors(repository):
        repository = api.create_repo(repository, private=private, exist_ok=True).repo_id
        there = api.repo_info(repository, revision=revision)
        files = [file.rfilename for file in there.siblings or ()]
        _check_not_taken(api, repository, str(there.sha), files, folder)
        older = filter_repo_objects(files, allow_patterns=REPLACED, ignore_patterns=SUBFOLDERS)
        stale = [name for name in older if name not in content]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*data file.*")  # items.parquet belongs to the tokenizer
            return api.create_commit(
                repository,
                [
                    *(CommitOperationAdd(name, source) for name, source in content.items()),
                    *(CommitOperationDelete(name) for name in stale),
                ],
                revision=revision,
                parent_commit=there.sha,  # what was looked at: else two pushes at once could mix
                commit_message=commit_message or f"Upload {folder.name}",
            )


def _check_not_taken(api: HfApi, repository: str, revision: str, files: Sequence[str], folder: Path) -> None:
    if "config.json" in files:
        config = api.hf_hub_download(repository, "config.json", revision=revision)
        there = json.loads(Path(config).read_text(encoding="utf-8")).get("model_type")
        ours = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
        if there != ours:
            raise FileExistsError(
                f"{repository} is taken: it holds a model of type {there!r}, not {ours!r}. Push to another name."
            )
    elif others := sorted(set(files) - set(PLAIN)):
        raise FileExistsError(
            f"{repository} is taken: it holds other files, such as {others[0]}. Push to another name."
        )
