"""The stock Trainer with the card of a recommender and without pickles; nothing of training is changed."""

import dataclasses
import hashlib
import json
import logging
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import TrainOutput

from ..data.tokenization import ItemTokenizer
from ..evaluation.ranking import how_sampled
from ..evaluation.trainer_evaluation import ranks_of_logits
from ..hub.checkpoint import check_sizes, last_complete_checkpoint
from ..hub.errors import hub_errors
from ..hub.model_card import CARD, model_card
from ..hub.push import push_checkpoint
from ..hub.run_facts import FACTS_FILE, DataFacts, MachineFacts, RunFacts
from ..models.registry import architecture_of
from .arguments import RecommendationTrainingArguments
from .callbacks import EarlyStopping, with_package_callbacks
from .optimizer import muon

logger = logging.getLogger(__name__)


class RecommendationTrainer(Trainer):
    """The stock `Trainer`, whose model goes to the Hub as a recommender: everything that is said of `Trainer` holds.

    What differs: `save_model` leaves a card beside the model, and no `training_args.bin`, which is a pickle; the card
    is that of a recommender, written with `run_facts.json` from what the Trainer knows; and `push_to_hub` uploads what
    belongs to a checkpoint, checked, in one commit. Training and evaluation are the stock ones.
    """

    card_arguments: dict[str, Any] = {}  # what `create_model_card` was given; replaced, never changed

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: TrainingArguments | None = None,
        *,
        callbacks: Sequence[TrainerCallback] = (),
        **options: Any,
    ) -> None:
        if not isinstance(options.get("processing_class"), ItemTokenizer):
            raise ValueError(
                "`RecommendationTrainer` needs `processing_class=tokenizer`; `cloze_training(tokenizer)` passes it for "
                "you."
            )
        args = RecommendationTrainingArguments("runs") if args is None else args
        callbacks = with_package_callbacks(callbacks)
        if isinstance(args, RecommendationTrainingArguments):
            own_optimizer = options.get("optimizers", (None, None))[0] or options.get("optimizer_cls_and_kwargs")
            if args.muon_learning_rate is not None and not own_optimizer:
                options |= muon(args, args.muon_learning_rate)
            if args.early_stopping_patience and args.eval_strategy != "no" and args.metric_for_best_model:
                callbacks.append(EarlyStopping(args.early_stopping_patience))
        super().__init__(model, args, callbacks=callbacks, **options)
        check_sizes(self.model, self.processing_class)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as the stock Trainer does.

        Args:
            resume_from_checkpoint: True for the newest complete checkpoint in the output folder, or the path of one.
            *args: As for the stock `Trainer.train`.
            **kwargs: As for the stock `Trainer.train`.

        Raises:
            ValueError: There is no complete checkpoint to resume from.
        """
        if resume_from_checkpoint is True:
            newest = last_complete_checkpoint(self.args.output_dir or "")
            if newest is None:
                raise ValueError(f"Found no complete checkpoint to resume from in {self.args.output_dir}.")
            resume_from_checkpoint = str(newest)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            Path(output_dir or self.args.output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save model, tokenizer, card and facts; also to the Hub with `push_to_hub=True`, as the stock one does.

        A README.md that somebody has written, or changed, is left as it is.
        """
        super().save_model(output_dir, _internal_call)
        if not _internal_call:
            self._write_card(Path(output_dir or self.args.output_dir), overwrite=False)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,  # noqa: A002
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write `README.md` and `run_facts.json` into the output folder.

        What is given here is kept for the cards that are written later.

        Args:
            language: Of the titles, for instance.
            license: Of the model.
            tags: More of them.
            model_name: The name of the repository, else of the output folder, if not given.
            finetuned_from: Hub id of the model that it started from.
            tasks: Further tags.
            dataset_tags: Hub ids of the data.
            dataset: What the interactions are called.
            dataset_args: Which part of them.
        """
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.card_arguments = self.card_arguments | {name: value for name, value in given.items() if value is not None}
        self._write_card(Path(self.args.output_dir))

    def _write_card(self, folder: Path, overwrite: bool = True) -> None:
        if not self.is_world_process_zero():
            return
        given = {
            name: [value] if isinstance(value, str) else list(value) for name, value in self.card_arguments.items()
        }
        data = " ".join(given.get("dataset", []) + given.get("dataset_args", []))
        facts = self.facts(self.card_arguments.get("model_name"), data or None)
        card = model_card(facts)
        for name, field in (("language", "language"), ("license", "license"), ("finetuned_from", "base_model")):
            if name in given:
                setattr(card.data, field, given[name][0])
        card.data.datasets = given.get("dataset_tags")
        more = (*given.get("tags", ()), *given.get("tasks", ()), *(self.model.model_tags or ()))
        card.data.tags = list(dict.fromkeys((*card.data.tags, *more)))
        file, older = folder / CARD, _card_of(folder)
        if not overwrite and file.exists() and _checksum(file.read_bytes()) != older:
            logger.warning("%s is kept: it was not written here. create_model_card() replaces it.", file)
        else:
            card.save(file)
            older = _checksum(file.read_bytes())
        dataclasses.replace(facts, card=older).save(folder)

    def facts(self, model_name: str | None = None, dataset: str | None = None) -> RunFacts:
        """What the Trainer knows of its run; test results it cannot tell from others."""
        items, log = self.processing_class.items, self.state.log_history
        ranked: Any = self.preprocess_logits_for_metrics
        ours = ranked is ranks_of_logits
        excluded = self.model.config.exclude_history
        history = "excluded" if excluded else "not excluded"
        metrics = self._validation_metrics() if ours else {}
        sampled, model = how_sampled(metrics), architecture_of(self.model.config).name
        drawn = "uniformly" if sampled == "uniform_sampled" else "by their popularity"
        held_out = "the item held out for each user of the validation split"
        return RunFacts(
            model=model,
            name=model_name or Path(self.args.hub_model_id or self.args.output_dir).absolute().name,
            data=DataFacts(name=dataset or "interactions of its author", items=len(items)),
            protocol=f"{held_out}, ranked among all {len(items):,} items, history {history}",
            sampled_protocol=f"{held_out}, ranked among candidates drawn for each user {drawn}" if sampled else None,
            exclude_history=excluded,
            results={"validation": {model: metrics}} if metrics else {},
            example=items[:3].to_pylist(),
            titles=self.processing_class.titles is not None,
            recipe={
                "seed": self.args.seed,
                "max_length": self.processing_class.model_max_length,
                "exclude_history": excluded,
                "mask_probability": getattr(self.data_collator, "mask_probability", None),
                **{
                    name: getattr(self.args, name)
                    for name in ("num_train_epochs", "per_device_train_batch_size", "learning_rate")
                },
            },
            seconds=next((entry["train_runtime"] for entry in reversed(log) if "train_runtime" in entry), None),
            **chosen_checkpoint(self),
            machine=machine(self.args),
            versions=versions(),
            log=log,
        )

    def _validation_metrics(self) -> dict[str, float]:
        """Those of the model that is in the Trainer now, as they were logged during training.

        What was evaluated after it has the same names in the log, and may be any split.
        """
        log = self.state.log_history
        end = max((i for i, entry in enumerate(log) if "train_runtime" in entry), default=0)
        evaluated = [entry for entry in log[:end] if "eval_ndcg@10" in entry]
        if self.args.load_best_model_at_end:
            evaluated = [entry for entry in evaluated if entry["step"] == self.state.best_global_step]
        last = {name.removeprefix("eval_"): value for name, value in (evaluated or [{}])[-1].items()}
        return {name: value for name, value in last.items() if "@" in name or name.startswith("mrr_")}

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Create the repository, before training where `push_to_hub=True`.

        Raises:
            OSError: The Hub refuses it or cannot be reached.
        """
        with hub_errors(self.args.hub_model_id or Path(self.args.output_dir).name):
            super().init_hf_repo(*args, **kwargs)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> CommitInfo | None:
        """Save, and put the checkpoint on the Hub in one commit (`push_checkpoint`), with its card.

        Args:
            commit_message: Of the commit.
            blocking: There is no other way: the upload is over when this returns.
            token: With write access; `hub_token` if not given.
            revision: Branch; `hub_revision`, then `main`, if not given.
            private: Whether to create the repository private; `hub_private_repo` if not given.
            **card: Arguments of `create_model_card`.

        Returns:
            The commit; None in all processes but the first.

        Raises:
            OSError: The Hub refuses it or cannot be reached, see `push_checkpoint`.
            ValueError: Model and tokenizer are of different catalogues.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**card)
        return push_checkpoint(
            self.args.output_dir,
            self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).absolute().name,
            private=self.args.hub_private_repo if private is None else private,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            commit_message=commit_message,
        )


def _card_of(folder: Path) -> str | None:
    """Checksum of the card that was last written into a folder."""
    facts = folder / FACTS_FILE
    return json.loads(facts.read_text(encoding="utf-8")).get("card") if facts.exists() else None


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def chosen_checkpoint(trainer: Trainer) -> dict[str, Any]:
    """Which of a run's checkpoints its model is, "" for the last one, and what it was chosen by on validation."""
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    metric = str(trainer.args.metric_for_best_model).removeprefix("eval_")
    return {"best_checkpoint": Path(best or "").name, "chosen_by": metric.upper() if "@" in metric else metric}


def machine(args: TrainingArguments) -> MachineFacts:
    """The machine of a run."""
    return MachineFacts(
        processes=args.world_size,
        threads=torch.get_num_threads(),
        processor=platform.machine(),
        device=str(args.device),
    )


def versions() -> dict[str, str]:
    """Package → version, of those that decide what a run computes."""
    return {name: version(name) for name in ("hf-bert4rec", "transformers", "torch", "datasets")}
