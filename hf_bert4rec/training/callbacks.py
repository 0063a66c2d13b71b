"""Callbacks of training: fresh masks in each epoch, a report of memory and time, and early stopping."""

import logging
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import has_length

from ..data.data_collator import DataCollatorForNextItem
from ..models.item_loss import LOSSES
from ..models.modeling_bert4rec import Bert4RecForMaskedLM
from . import resources
from .arguments import check_supported
from .optimizer import MuonAdamW

logger = logging.getLogger(__name__)


class ClozeCallback(TrainerCallback):
    """Callback that sets the epoch of collator and sampler, so that masks and order differ between epochs.

    The stock length-grouped sampler takes its order from torch's global generator, which differs between processes and
    after a resumption, so that rows would be skipped or drawn twice. With this callback, masks and order depend on seed
    and epoch alone. Rows are grouped over all processes, so that a step has the same rows for any number of processes.
    """

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Raise ValueError if the Trainer would ignore item features, or an option would give wrong results.

        A `muon_learning_rate` that has no effect is a warning.
        """
        check_supported(args)
        features = getattr(kwargs.get("processing_class"), "features", None)
        if features is not None and not hasattr(kwargs.get("model"), "item_features"):
            advice = "Use `RecommendationTrainer`, or a tokenizer without features."
            raise ValueError(f"The stock `Trainer` does not train with item features. {advice}")
        optimizer: Any = kwargs.get("optimizer")
        while hasattr(optimizer, "optimizer"):  # accelerate wraps it
            optimizer = optimizer.optimizer
        if getattr(args, "muon_learning_rate", None) is not None and not isinstance(optimizer, MuonAdamW):
            advice = (
                "Use `RecommendationTrainer`, or pass `**muon(args, args.muon_learning_rate)` to the stock `Trainer`."
            )
            text = "`muon_learning_rate` is not used, because the optimizer is %s. %s"
            logger.warning(text, type(optimizer).__name__, advice)

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Set the epoch before the first batch is drawn; data loader workers start later and inherit the epoch."""
        loader, epoch = kwargs["train_dataloader"], int((state.epoch or 0) + 1e-6)
        collator = loader.collate_fn
        collator.epoch = epoch  # cloze masks depend on the epoch
        if getattr(collator, "seed", 0) is None:
            collator.seed = args.seed
        batches = getattr(loader.batch_sampler, "batch_sampler", loader.batch_sampler)  # accelerate wraps it
        seed = args.seed if args.data_seed is None else args.data_seed
        batches.sampler.generator = torch.Generator().manual_seed(seed + epoch)
        if isinstance(batches.sampler, LengthGroupedSampler):
            batches.sampler.batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            batches.sampler.lengths = list(batches.sampler.lengths[:])  # sorting a lazy column is 100 times slower

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Reset the epoch of the collator, so that it draws fresh masks after training."""
        collator: Any = getattr(kwargs.get("train_dataloader"), "collate_fn", None)
        if hasattr(collator, "epoch"):
            collator.epoch = None


class ResourceCallback(TrainerCallback, ExportableState):
    """Callback that logs the memory that training needs, and after two steps the time of an epoch.

    On a CPU the callback also sets whether freed memory is kept (`keep_freed_memory`), and warns about spinning
    threads. On a GPU, training does not use the attention of cuDNN: cuDNN compiles each new shape of a batch, which
    takes longer than ten steps, and most batches have a new shape. The count of training seconds is stored in
    checkpoints and continues after a resumption.
    """

    steps = 0
    second_step_started = 0.0
    earlier_seconds = 0.0
    started: float | None = None
    cudnn_attention = True

    @property
    def seconds(self) -> float:
        """Seconds of training so far, including the seconds before a resumption."""
        return self.earlier_seconds + (0 if self.started is None else time.perf_counter() - self.started)

    def state(self) -> dict[str, Any]:
        """Return the values that a checkpoint stores for this callback."""
        return {"args": {}, "attributes": {"earlier_seconds": self.seconds}}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Log the estimated memory of a training step and of evaluation, with advice if less memory is free."""
        self.earlier_seconds = _stored(state, self, "earlier_seconds")
        self.started = time.perf_counter()
        if args.device.type == "cpu":
            resources.keep_freed_memory(not args.gradient_checkpointing)
            resources.warn_about_spinning_threads()
        self.cudnn_attention = torch.backends.cuda.cudnn_sdp_enabled()
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.steps = 0
        model, loader = kwargs["model"], kwargs["train_dataloader"]
        ours = isinstance(model, Bert4RecForMaskedLM) and isinstance(loader.collate_fn, DataCollatorForNextItem)
        if ours and state.is_world_process_zero:
            _log_memory(args, model, loader, resumed=bool(state.global_step))

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Start the timer of the second step. The first step is slower, and an evaluation may follow it."""
        if self.steps == 1:
            self.second_step_started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Log the time of the second step."""
        self.steps += 1
        if self.steps == 2 and state.is_world_process_zero:
            seconds, model = time.perf_counter() - self.second_step_started, kwargs["model"]
            steps = _steps_per_epoch(args, kwargs["train_dataloader"]), state.max_steps - state.global_step
            times = [timedelta(seconds=round(it)) if it >= 60 else f"{it:.1f} s" for it in (seconds * n for n in steps)]
            # With rows grouped by length, the longest rows come first.
            limit = "at most" if args.train_sampling_strategy == "group_by_length" else "about"
            epoch = f"an epoch {limit} {times[0]}, " if steps[0] else ""  # unknown for rows without a length
            text = "A step takes %.2f s, %sand the rest of the training %s %s, not counting evaluations."
            logger.info(text, seconds, epoch, limit, times[1])
            config: Any = model.config if isinstance(model, Bert4RecForMaskedLM) else None
            many = config and config.vocab_size >= resources.MANY_ITEMS
            # The heads need the loss `softmax`.
            if many and not (config.repeat_head or config.num_followers or LOSSES[config.loss].samples_negatives):
                text = "For %d items, `%s(loss='sampled_softmax')` (`--loss sampled_softmax`) is faster than `%s`."
                logger.info(text, config.vocab_size, type(config).__name__, config.loss)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Stop the count of seconds, and allow the attention of cuDNN again if it was allowed."""
        if self.started is not None:
            torch.backends.cuda.enable_cudnn_sdp(self.cudnn_attention)
        self.earlier_seconds, self.started = self.seconds, None


def _log_memory(args: TrainingArguments, model: Bert4RecForMaskedLM, loader: Any, resumed: bool) -> None:
    rows, longest = loader.dataset, model.config.max_position_embeddings
    if "length" in (getattr(rows, "column_names", None) or ()) and has_length(rows):
        longest = int(max(rows["length"][:]))  # a tensor if the rows have the format torch
    batch, share = args.per_device_train_batch_size, loader.collate_fn.scored_share
    estimate = resources.estimate_memory(model, batch, longest, share, args.gradient_checkpointing)
    logger.info("Memory for training, without libraries and data: about %s.", estimate)
    scores = 3 * 4e-9 * args.per_device_eval_batch_size * model.config.vocab_size
    evaluation = scores + estimate.parameters + estimate.optimizer_state
    if args.eval_strategy != "no" and evaluation > estimate.total:
        text = "Evaluation needs up to %s of memory. A lower `per_device_eval_batch_size` reduces this amount."
        logger.info(text, resources.format_memory(evaluation))
    # The model is allocated already, and after a resumption so is the state of the optimizer.
    allocated = estimate.parameters + (estimate.optimizer_state if resumed else 0)
    free = resources.free_memory(args.device) + allocated
    if estimate.total > free:
        text = "Training may not fit into the free memory: it needs about %s, and %s are free. Use %s."
        logger.warning(text, *map(resources.format_memory, (estimate.total, free)), estimate.advice)


class EarlyStopping(EarlyStoppingCallback):
    """Early stopping of transformers that keeps its patience counter when training is resumed.

    If `eval_strategy` and `save_strategy` are epoch, and `eval_delay` is 0, the model is also evaluated and saved after
    the first step and after a third of the first epoch. With a warm-up, the first step does not change the initial
    model. If popularity explains most of a log, the best model is the initial model, or one from the first epoch.
    """

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Restore the patience counter."""
        super().on_train_begin(args, state, control, **kwargs)
        self.early_stopping_patience_counter = int(_stored(state, self, "early_stopping_patience_counter"))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Evaluate and save early in the first epoch."""
        step, steps = state.global_step, _steps_per_epoch(args, kwargs["train_dataloader"])
        by_epoch = args.eval_strategy == args.save_strategy == "epoch" and not args.eval_delay
        if by_epoch and step < steps and step in (1, steps // 3):
            control.should_evaluate = control.should_save = True

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: Any, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """Check the metric, unless its prefix is not "eval", as in the evaluation of a test split."""
        if any(name.startswith("eval_") for name in metrics):
            super().on_evaluate(args, state, control, metrics, **kwargs)


def _steps_per_epoch(args: TrainingArguments, loader: Any) -> int:
    return -(-len(loader) // args.gradient_accumulation_steps) if has_length(loader) else 0


def _stored(state: TrainerState, callback: TrainerCallback, attribute: str) -> float:
    """Return the number that the checkpoint of a resumed training stores for a callback; 0 in a new training."""
    stored: Any = (state.stateful_callbacks or {}).get(type(callback).__name__, {}) if state.global_step else {}
    stored = stored[0] if isinstance(stored, list) else stored
    return stored.get("attributes", {}).get(attribute, 0)


def with_package_callbacks(callbacks: Sequence[TrainerCallback]) -> list[TrainerCallback]:
    """Return the callbacks of the package that are missing among the given ones, followed by the given ones."""
    kinds = (ClozeCallback, ResourceCallback)
    return [*(kind() for kind in kinds if not any(isinstance(it, kind) for it in callbacks)), *callbacks]
