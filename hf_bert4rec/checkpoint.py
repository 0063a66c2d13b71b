"""A checkpoint folder: weights, config, tokenizer, titles, card and run facts, saved together or not at all."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from torch import nn
from transformers import PreTrainedModel

from .ranking import SAMPLED
from .tokenization import TITLES_FILE, ItemTokenizer

FACTS_FILE = "run_facts.json"
NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
SHARED = [*NEEDED, "*.safetensors", "model.safetensors.index.json", TITLES_FILE, FACTS_FILE, "README.md", "*.png"]
TEMPLATE = Path(__file__).parent / "model_card_template.md"


def check_folder(model: str | PathLike) -> None:
    """Refuse a local folder that lacks a file of a checkpoint; anything that is no folder may be a Hub id.

    Raises:
        FileNotFoundError: Names what is missing.
    """
    folder = Path(model)
    if not folder.is_dir():
        if len(folder.parts) != 2 or folder.is_absolute() or folder.parent.is_dir():  # org/name is a Hub id
            raise FileNotFoundError(f"{model}: expected a checkpoint folder or a Hub id, found no such folder.")
        return
    missing = [name for name in NEEDED if not (folder / name).exists()]
    if not any((folder / name).exists() for name in WEIGHTS):
        missing.append(WEIGHTS[0])
    if missing:
        raise FileNotFoundError(
            f"{folder}: expected a complete checkpoint, found no {', no '.join(missing)}. Copy the missing files from "
            "where the checkpoint was saved, or save it again."
        )


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
    facts: Mapping[str, Any],
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
        (new / FACTS_FILE).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        model_card(facts).save(new / "README.md")
        for name, content in others.items():
            (new / name).write_bytes(content)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def judged_model(facts: Mapping[str, Any]) -> str:
    """Which row of a run's results is the checkpoint's; before there were others it was not written down."""
    return facts.get("model", "BERT4Rec")


def model_card(facts: Mapping[str, Any]) -> ModelCard:
    """The card, with the test results as model-index, from the run's facts alone."""
    results = [
        EvalResult(
            task_type="fill-mask",
            task_name="Next-item recommendation",
            dataset_type=facts["data"]["name"],
            dataset_name=f"{facts['data']['name']} ({facts['sampled_protocol' if SAMPLED in name else 'protocol']})",
            dataset_config="popularity-sampled" if SAMPLED in name else "whole-catalogue",  # else the card merges them
            dataset_split="test",
            metric_type=name,
            metric_name=name.upper(),
            metric_value=round(value, 4),
        )
        for name, value in facts["test"][judged_model(facts)].items()
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=["bert4rec", "recommender-system", "sequential-recommendation"],
        model_name=facts["name"],
        eval_results=results,
        license="other" if facts["data"].get("terms") else None,
        license_name="terms-of-the-data" if facts["data"].get("terms") else None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        **{
            **facts,
            "model": judged_model(facts),
            "results": results_table(facts["test"]),
            "sampled_results": sampled_table(facts["test"]),
            "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        },
    )


def results_table(
    metrics: Mapping[str, Mapping[str, float]], columns: Sequence[str] = ("hr@10", "ndcg@10", "mrr@10")
) -> str:
    """A Markdown table, a row a model."""
    titles = [name.upper() for name in columns]
    lines = [f"| | {' | '.join(titles)} |", f"|---|{'---:|' * len(columns)}"]
    lines += [f"| {model} | {' | '.join(f'{row[name]:.4f}' for name in columns)} |" for model, row in metrics.items()]
    return "\n".join(lines)


def sampled_table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """The same for popularity-sampled metrics, by the columns of the paper's Table 2; empty where there are none."""
    if not all(f"mrr_{SAMPLED}" in row for row in metrics.values()):
        return ""
    names = ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10", "mrr")
    plain = {model: {name: row[f"{name}_{SAMPLED}"] for name in names} for model, row in metrics.items()}
    return results_table(plain, names)


def push_checkpoint(folder: str | PathLike, repository: str, *, private: bool = False) -> str:
    """Put a checkpoint on the Hub in one commit: its own files only, none of the Trainer's, no pickle.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: The folder lacks a file of a checkpoint.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: expected a checkpoint folder, found none.")
    check_folder(folder)
    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repository,
        folder_path=Path(folder),
        allow_patterns=SHARED,
        commit_message=f"Upload {Path(folder).name}",
    )
    return str(commit.commit_url)
