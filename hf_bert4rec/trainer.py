"""The stock Trainer with the card of a recommender and without pickles; nothing of training is changed."""

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from .checkpoint import FACTS_FILE, NAMES, facts_text, hub_errors, model_card, push_checkpoint
from .ranking import how_sampled
from .tokenization import ItemTokenizer
from .training import ranks_of_logits


class RecommendationTrainer(Trainer):
    """The stock `Trainer`, whose model goes to the Hub as a recommender: everything that is said of `Trainer` holds.

    What differs: `save_model` leaves a card beside the model, and no `training_args.bin`, which is a pickle; the card
    is that of a recommender, written with `run_facts.json` from what the Trainer knows; and `push_to_hub` uploads what
    belongs to a checkpoint, checked, in one commit. Training and evaluation are the stock ones.
    """

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            Path(output_dir or self.args.output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save model, tokenizer, card and facts; also to the Hub with `push_to_hub=True`, as the stock one does."""
        super().save_model(output_dir, _internal_call)
        if not _internal_call:
            self._write_card(Path(output_dir or self.args.output_dir))

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,  # noqa: A002
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        dataset: str | None = None,
    ) -> None:
        """Write `README.md` and `run_facts.json` into the output folder.

        Args:
            language: Of the titles, for instance.
            license: Of the model.
            tags: More of them.
            model_name: The name of the repository, else of the output folder, if not given.
            dataset: What the interactions are called.
        """
        self._write_card(Path(self.args.output_dir), language, license, tags, model_name, dataset)

    def _write_card(
        self,
        folder: Path,
        language: str | None = None,
        license: str | None = None,  # noqa: A002
        tags: str | Sequence[str] | None = None,
        model_name: str | None = None,
        dataset: str | None = None,
    ) -> None:
        if not self.is_world_process_zero():
            return
        if not isinstance(self.processing_class, ItemTokenizer):
            raise ValueError("A recommender is saved with its items: pass processing_class, as `cloze_training` does.")
        facts = self.facts(model_name, dataset)
        card = model_card(facts)
        card.data.language, card.data.license = language, license
        card.data.tags += [tags] if isinstance(tags, str) else list(tags or ())
        (folder / FACTS_FILE).write_text(facts_text(facts), encoding="utf-8")
        card.save(folder / "README.md")

    def facts(self, model_name: str | None = None, dataset: str | None = None) -> dict[str, Any]:
        """What the Trainer knows of its run, in the form of `run.run`; test results it cannot tell from others."""
        items, log = self.processing_class.items, self.state.log_history
        ranked: Any = self.preprocess_logits_for_metrics
        ours = getattr(ranked, "func", None) is ranks_of_logits
        excluded = ours and ranked.keywords["exclude_history"]
        history = "excluded" if excluded else "not excluded"
        chosen = self.args.load_best_model_at_end and self.state.best_model_checkpoint
        metrics = self._validation_metrics() if ours else {}
        drawn = "uniformly" if how_sampled(metrics) == "uniform_sampled" else "by their popularity"
        held_out = "the item held out for each user of the validation split"
        return {
            "model": NAMES[self.model.config.model_type],
            "name": model_name or Path(self.args.hub_model_id or self.args.output_dir).name,
            "data": {"name": dataset or "interactions of its author", "items": len(items)},
            "protocol": f"{held_out}, ranked among all {len(items):,} items, history {history}",
            "sampled_protocol": f"{held_out}, ranked among candidates drawn for each user {drawn}",
            **({"validation": {NAMES[self.model.config.model_type]: metrics}} if metrics else {}),
            "example": ", ".join(json.dumps(item, ensure_ascii=False) for item in items[:3].to_pylist()),
            "titles": self.processing_class.titles is not None,
            "recipe": {
                "seed": self.args.seed,
                "max_length": self.processing_class.model_max_length,
                **({"exclude_history": excluded} if ours else {}),
                "mask_probability": getattr(self.data_collator, "mask_probability", None),
                **{
                    name: getattr(self.args, name)
                    for name in ("num_train_epochs", "per_device_train_batch_size", "learning_rate")
                },
            },
            "seconds": next((entry["train_runtime"] for entry in reversed(log) if "train_runtime" in entry), None),
            "best_checkpoint": Path(chosen or "").name,
            "machine": machine(self.args),
            "versions": versions(),
            "log": log,
        }

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
    ) -> str | None:
        """Save, and put the checkpoint on the Hub in one commit (`push_checkpoint`), with its card.

        Args:
            commit_message: Of the commit.
            blocking: There is no other way: the upload is over when this returns.
            token: With write access; `hub_token` if not given.
            revision: Branch; `hub_revision`, then `main`, if not given.
            private: Whether to create the repository private; `hub_private_repo` if not given.
            **card: Arguments of `create_model_card`.

        Returns:
            The address of the commit; None in all processes but the first.

        Raises:
            OSError: The Hub refuses it or cannot be reached: then no file of the repository has changed.
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


def machine(args: TrainingArguments) -> str:
    """What a run was made on: processes, threads of each, processor, device."""
    return f"{args.world_size} × {torch.get_num_threads()} threads of {platform.machine()}, {args.device}"


def versions() -> dict[str, str]:
    """Package → version, of those that decide what a run computes."""
    return {name: version(name) for name in ("hf-bert4rec", "transformers", "torch", "datasets")}
