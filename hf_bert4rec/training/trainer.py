"""The stock Trainer with the defaults, the checks and the card of a recommender."""

import dataclasses
import logging
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub import CommitInfo
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PredictionOutput, TrainOutput

from ..data.data_collator import DataCollatorForCloze, DataCollatorForNextItem
from ..data.features import PROJECTION_FILE
from ..data.histories import warn_about_repeats
from ..data.tokenization import ItemTokenizer
from ..evaluation.ranking import check_cutoffs, how_sampled
from ..evaluation.trainer_evaluation import ranks_of_logits
from ..hub.checkpoint import check_sizes, is_complete, last_complete_checkpoint
from ..hub.errors import hub_errors
from ..hub.model_card import CARD, card_checksum, model_card
from ..hub.push import push_checkpoint
from ..hub.run_facts import ADDED_PARTS, FACTS_FILE, DataFacts, MachineFacts, RunFacts
from ..models.item_loss import check_loss
from ..models.registry import architecture_of
from .arguments import ID_DROPOUT, RecommendationTrainingArguments, check_supported
from .callbacks import ClozeCallback, EarlyStopping, ResourceCallback, with_package_callbacks
from .item_features import FeatureProjection, items_in, load_projection, projection_file
from .optimizer import muon

logger = logging.getLogger(__name__)


class RecommendationTrainer(Trainer):
    """Subclass of `Trainer` for sequential recommenders.

    It applies the three new fields of `RecommendationTrainingArguments`, adds the callbacks of the package, checks that
    model and tokenizer fit, and resumes from complete checkpoints only.

    `save_model` also writes a model card and run facts. It writes no pickles. `push_to_hub` uploads the saved model in
    one commit, without the pickles in `checkpoint-*` folders, which are for resuming only.

    If the tokenizer has features of items, they are part of the item vectors (`FeatureProjection`).

    Attributes:
        projection: The projection of item features (width, hidden + 1), after training; None without features. To train
            a loaded model further, first set it to `hf_bert4rec.training.item_features.load_projection(folder)`.

    Args:
        model: `Bert4RecForMaskedLM` or another model of the package; None with `model_init`. For reproducible initial
            weights, call `transformers.set_seed` before you build the model, or pass `model_init`.
        args: `RecommendationTrainingArguments`. Default: those with the output folder `runs`.
        **options: Other arguments of the stock `Trainer`, most of which `cloze_training(tokenizer)` returns. Your own
            `callbacks` are added to those of the package.

    Raises:
        ValueError: The tokenizer is missing or does not match, the catalog is too small, or an argument is unsupported.
    """

    _card_arguments: Mapping[str, list[str]] = {}  # as passed to `create_model_card`
    _muon_learning_rate: float | None = None
    _features: FeatureProjection | None = None  # while the model trains with features
    projection: torch.Tensor | None = None
    _test: tuple[dict[str, float], int] = {}, 0  # metrics and rows of the last evaluation of a test split

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: TrainingArguments | None = None,
        *,
        callbacks: Sequence[TrainerCallback] | None = None,
        **options: Any,
    ) -> None:
        tokenizer = options.get("processing_class")
        if not isinstance(tokenizer, ItemTokenizer):
            expected = "`RecommendationTrainer` needs an `ItemTokenizer` as `processing_class`"
            advice = "Pass `**cloze_training(tokenizer)`, or `**next_item_training(tokenizer)` for SASRec and GRU4Rec."
            raise ValueError(f"{expected}, found {type(tokenizer).__name__}. {advice}")
        args = RecommendationTrainingArguments("runs") if args is None else args
        check_supported(args)
        if args.eval_strategy != "no" and options.get("preprocess_logits_for_metrics") is ranks_of_logits:
            check_cutoffs(len(tokenizer.items))
        callbacks = with_package_callbacks(callbacks or ())
        if isinstance(args, RecommendationTrainingArguments):
            own = options.get("optimizers", (None, None))[0] or options.get("optimizer_cls_and_kwargs")
            if args.muon_learning_rate is not None and not own:
                self._muon_learning_rate = args.muon_learning_rate
                options |= muon(args, args.muon_learning_rate)
            if args.early_stopping_patience is not None and args.eval_strategy != "no" and args.metric_for_best_model:
                callbacks.append(EarlyStopping(args.early_stopping_patience))
        super().__init__(model, args, callbacks=callbacks, **options)
        self._check_parts(tokenizer)

    def _check_parts(self, tokenizer: ItemTokenizer) -> None:
        """Check that model, tokenizer, rows and collator fit together."""
        architecture = architecture_of(self.model.config)  # first, because models of other packages have no `loss`
        check_sizes(self.model, tokenizer)
        check_loss(self.model.config.loss)
        rows = self.eval_dataset
        for name, part in {"train_dataset": self.train_dataset, "eval_dataset": rows}.items():
            if isinstance(part, Dataset) and not part.num_rows:
                raise ValueError(f"`{name}` must have at least one row, found none. Check split and filters.")
        optimized = self.optimizer and {weight for group in self.optimizer.param_groups for weight in group["params"]}
        if optimized and optimized.isdisjoint(self.model.parameters()):
            advice = "Create the optimizer from `model.parameters()`."
            raise ValueError(f"`optimizers` must train the weights of `model`, found other weights. {advice}")
        if isinstance(rows, Dataset) and {"history", "labels"} <= {*rows.column_names}:
            warn_about_repeats(rows, self.model.config.exclude_history)
        if self.model.config.num_followers and not self.model.transition_head.totals.any():
            text = "`num_followers` has no effect, because the model has no counts of transitions. %s"
            place = "before training" if self.model_init is None else "in `model_init`"
            logger.warning(text, f"Call `count_transitions(model, rows)` with the training rows {place}.")
        if architecture.objective == "cloze" and type(self.data_collator) is DataCollatorForNextItem:
            found = f"{architecture.name} with `next_item_training` would see the items that it has to predict"
            raise ValueError(f"{found}. Use `cloze_training(tokenizer)`.")
        if architecture.objective == "next_item" and type(self.data_collator) is DataCollatorForCloze:
            text = "%s predicts the next item at every position, but `cloze_training` trains masked positions only. %s"
            logger.warning(text, architecture.name, "Use `next_item_training(tokenizer)`.")

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as the stock Trainer does, but resume from complete checkpoints only.

        `resume_from_checkpoint` is the path of a checkpoint, or True for the newest complete one in the output folder.

        Raises:
            ValueError: There is no complete checkpoint to resume from.
        """
        checkpoint: Any = resume_from_checkpoint or None
        if checkpoint is True:
            checkpoint = last_complete_checkpoint(str(self.args.output_dir))
        if resume_from_checkpoint and not (checkpoint and is_complete(checkpoint)):
            found = f"Found no complete checkpoint to resume from: {checkpoint or self.args.output_dir}"
            advice = "Pass a complete folder `checkpoint-*`, or omit `resume_from_checkpoint` to train from the start."
            raise ValueError(f"{found}. {advice}")
        if checkpoint:
            self.projection = load_projection(checkpoint)
        elif self.model_init is not None:  # a new model, with a new projection
            self.projection = None
        try:
            return super().train(checkpoint and str(checkpoint), *args, **kwargs)
        finally:
            self._test = {}, 0  # a callback may have evaluated the test split with an earlier state of the model
            self._end_features()
            loader = self.callback_handler.train_dataloader
            for callback in self.callback_handler.callbacks:  # also after an error or an interruption
                if isinstance(callback, ClozeCallback | ResourceCallback):
                    callback.on_train_end(self.args, self.state, self.control, train_dataloader=loader)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Create the optimizer as the stock Trainer does. With item features, first attach them to the model."""
        tokenizer = self.processing_class
        if tokenizer.features is not None and self._features is None:
            if self.optimizer is not None:
                advice = "Pass `optimizer_cls_and_kwargs` instead of `optimizers`."
                raise ValueError(f"With item features, the Trainer creates the optimizer. {advice}")
            share, rows = getattr(self.args, "id_dropout", ID_DROPOUT), items_in(self.train_dataset, len(tokenizer))
            self._features = FeatureProjection(self.model, tokenizer, share, rows, self.projection)
            self._features.attach(self.model)
        return super().create_optimizer(*args, **kwargs)

    def _load_best_model(self) -> None:
        if self._features is not None:
            self._end_features()
            self.projection = load_projection(self.state.best_model_checkpoint)
        super()._load_best_model()

    def _end_features(self) -> None:
        """Make the model a stock model again, if it was trained with features."""
        if self._features is not None:
            self.projection, self._features = self._features.detach(self.model), None
            self.optimizer = self.lr_scheduler = None  # of parameters that no longer exist

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate as the stock Trainer does.

        If `eval_dataset` is a `Dataset` and `metric_key_prefix` is "test", cards that are written later contain the
        ranking metrics as test results. The names of the returned metrics begin with the prefix (default: "eval").
        """
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        ranked = self.preprocess_logits_for_metrics is ranks_of_logits and isinstance(eval_dataset, Dataset)
        if ranked and metric_key_prefix == "test":
            self._test = _ranking_metrics(metrics, "test_"), len(eval_dataset)
        return metrics

    def predict(self, *args: Any, **kwargs: Any) -> PredictionOutput:
        """Predict as the stock Trainer does, but return results in the order of the rows, not grouped by length."""
        strategy, self.args.train_sampling_strategy = self.args.train_sampling_strategy, "sequential"
        try:
            return super().predict(*args, **kwargs)
        finally:
            self.args.train_sampling_strategy = strategy

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder, projection = Path(output_dir or self.args.output_dir), self.projection
        if self._features is not None:  # the model is saved as a stock one
            projection = self._features.detach(self.model)
        try:
            super()._save(output_dir, state_dict)
        finally:
            if self._features is not None:
                self._features.attach(self.model)
        if self.args.should_save:
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            (folder / PROJECTION_FILE).unlink(missing_ok=True)  # of another model that was saved here before
            for name, content in projection_file(projection).items():
                (folder / name).write_bytes(content)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save model, tokenizer, card and run facts; with `push_to_hub=True` also to the Hub.

        A README.md that was edited, or was not written by this package, is kept.
        """
        super().save_model(output_dir, _internal_call)
        if not _internal_call:
            self._write_card(Path(output_dir or self.args.output_dir), overwrite=False)

    def create_model_card(self, *args: Any, **card: Any) -> None:
        """Write `README.md` and `run_facts.json` into the output folder. Cards written later use the same arguments.

        Args:
            *args: Values of the arguments below, in the same order.
            **card: Arguments of the stock Trainer: `language`, `license`, `tags`, `model_name` (default: name of the
                repository or output folder), `finetuned_from` (Hub ID), `tasks`, `dataset_tags` (Hub IDs),
                `dataset` and `dataset_args` (name and part of the interactions).
        """
        given = signature(Trainer.create_model_card).bind(self, *args, **card).arguments
        lists = {name: [it] if isinstance(it, str) else list(it) for name, it in given.items() if it and name != "self"}
        self._card_arguments = {**self._card_arguments, **lists}
        self._write_card(Path(self.args.output_dir))

    def _write_card(self, folder: Path, overwrite: bool = True) -> None:
        if not self.is_world_process_zero():
            return
        given: defaultdict[str, list[str]] = defaultdict(list, self._card_arguments)
        data = " ".join(given["dataset"] + given["dataset_args"])
        facts = self.run_facts(" ".join(given["model_name"]) or None, data or None)
        file, checksum = folder / CARD, RunFacts.load(folder).card if (folder / FACTS_FILE).exists() else None
        if not overwrite and file.exists() and card_checksum(file) != checksum:
            text = "%s was edited or not written by this package, so it is kept. %s"
            logger.warning(text, file, "`trainer.create_model_card()` replaces it.")
            dataclasses.replace(facts, card=checksum).save(folder)
            return
        module = type(self.model).__module__
        own = not module.startswith(("hf_bert4rec.", "transformers_modules.")) and module != "__main__"
        card = model_card(facts, [module] * own)
        for name, field in (("language", "language"), ("license", "license"), ("finetuned_from", "base_model")):
            if given[name]:
                setattr(card.data, field, given[name][0])
        card.data.datasets = given["dataset_tags"] or None
        tags = (*card.data.tags, *given["tags"], *given["tasks"], *(self.model.model_tags or ()))
        card.data.tags = list(dict.fromkeys(tags))
        card.save(file)
        dataclasses.replace(facts, card=card_checksum(file)).save(folder)

    def run_facts(self, name: str | None = None, data: str | None = None) -> RunFacts:
        """Return the facts of this training. `name` (default: repository or folder) and `data` are names for the card.

        The results are validation metrics of the best checkpoint, or of the last one if no checkpoint is restored.
        Test results are those of the last `evaluate(rows, metric_key_prefix="test")` after the training, if any.
        """
        args, config, tokenizer = self.args, self.model.config, self.processing_class
        metrics = self._validation_metrics() if self.preprocess_logits_for_metrics is ranks_of_logits else {}
        rows = len(self.eval_dataset) if isinstance(self.eval_dataset, Dataset) else None
        measured = {"validation": (metrics, rows), "test": self._test}
        sampled = how_sampled(self._test[0]) or how_sampled(metrics)
        model = architecture_of(config).name
        drawn = "uniformly" if sampled == "uniform_sampled" else "by their popularity"
        history = "excluded" if config.exclude_history else "not excluded"
        protocol = "the item held out for each user of the split, ranked among "
        best = self.state.best_model_checkpoint if args.load_best_model_at_end else None
        metric = str(args.metric_for_best_model).removeprefix("eval_")
        seconds = [it.seconds for it in self.callback_handler.callbacks if isinstance(it, ResourceCallback)]
        masking = ("mask_probability", "last_item_probability", "max_predictions")  # next-item training has none
        recorded = ("seed", "num_train_epochs", "per_device_train_batch_size", "learning_rate", "weight_decay")
        return RunFacts(
            name=name or Path(args.hub_model_id or args.output_dir).absolute().name,
            model=model,
            data=DataFacts(name=data or "interactions of its author", items=len(tokenizer.items)),
            protocol=f"{protocol}all {len(tokenizer.items):,} items, history {history}",
            sampled_protocol=f"{protocol}candidates drawn for each user {drawn}" if sampled else None,
            exclude_history=config.exclude_history,
            results={split: {model: found} for split, (found, _) in measured.items() if found},
            evaluated={split: number for split, (found, number) in measured.items() if found and number},
            recipe={
                "architecture": config.model_type,
                **{name: getattr(args, name) for name in recorded},
                "muon_learning_rate": self._muon_learning_rate,
                "max_length": tokenizer.model_max_length,
                "exclude_history": config.exclude_history,
                **{name: value for name in ADDED_PARTS if (value := getattr(config, name))},
                **{name: value for name in masking if (value := getattr(self.data_collator, name, None)) is not None},
            },
            seconds=round(sum(seconds), 1) or None,
            best_checkpoint=Path(best or "").name,
            chosen_by=metric.upper() if "@" in metric else metric,
            machine=MachineFacts(args.world_size, torch.get_num_threads(), platform.machine(), str(args.device)),
            versions={name: version(name) for name in ("hf-bert4rec", "transformers", "torch", "datasets")},
            log=list(self.state.log_history),
            example=tokenizer.items[:3].to_pylist(),
            titles=tokenizer.titles is not None,
            removed_items=len(tokenizer.removed),
        )

    def _validation_metrics(self) -> dict[str, float]:
        """Return the metrics that were logged during training, because a later evaluation may be of any split."""
        log = self.state.log_history
        end = max((i for i, entry in enumerate(log) if "train_runtime" in entry), default=0)
        evaluated = [entry for entry in log[:end] if "eval_ndcg@10" in entry]
        if self.args.load_best_model_at_end:
            evaluated = [entry for entry in evaluated if entry["step"] == self.state.best_global_step]
        return _ranking_metrics((evaluated or [{}])[-1], "eval_")

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Create the repository on the Hub. With `push_to_hub=True` the constructor does this. OSError if it fails."""
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
        """Save the checkpoint and upload it with its card in one commit; see `push_checkpoint` for errors.

        By default, token, branch and visibility are `hub_token`, `hub_revision` and `hub_private_repo` of the training
        arguments. `blocking` is not used: the upload is finished when this method returns. `card` are arguments of
        `create_model_card`. Returns the commit, and None in processes other than the first.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        if card:
            self.create_model_card(**card)
        else:
            self._write_card(Path(self.args.output_dir), overwrite=False)
        return push_checkpoint(
            self.args.output_dir,
            self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).absolute().name,
            private=self.args.hub_private_repo if private is None else private,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            commit_message=commit_message,
        )


def _ranking_metrics(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Return the ranking metrics without their prefix."""
    names = {name.removeprefix(prefix): value for name, value in metrics.items()}
    return {name: value for name, value in names.items() if "@" in name or name.startswith("mrr_")}
