"""What the stock Trainer needs to train and rank a recommender: defaults, two callbacks, three functions."""

import logging
import time
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import has_length

from ..data.data_collator import DataCollatorForCloze, DataCollatorForNextItem
from ..data.tokenization import ItemTokenizer
from ..evaluation.ranking import Sampled
from ..evaluation.trainer_evaluation import metrics_of_ranks, ranks_of_logits
from ..models.modeling_bert4rec import Bert4RecForMaskedLM
from .resources import MANY_ITEMS, check_memory, estimate_memory, free_memory, keep_freed_memory, shown

logger = logging.getLogger(__name__)


@dataclass
class RecommendationTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of recommendation, and nothing else: every field is the stock one.

    An epoch is evaluated and saved at its end, and the checkpoint with the best validation NDCG@10 is restored at the
    end of training. Without a validation split pass `eval_strategy="no", load_best_model_at_end=False`.

    Raises:
        ValueError: `dataloader_persistent_workers` is set: such workers would never see a new epoch, nor new masks. Or
            `push_to_hub` with another `hub_strategy` than `end`, which would upload pickles.
    """

    learning_rate: float = field(default=3e-3, metadata={"help": "Peak learning rate of AdamW."})
    lr_scheduler_type: str = field(default="linear", metadata={"help": "Schedule after the warm-up."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up: a share of all steps; from 1 on, steps."})
    weight_decay: float = field(default=0.01, metadata={"help": "Decay of weights; none on biases and normalisations."})
    max_grad_norm: float = field(default=5.0, metadata={"help": "Norm at which gradients are clipped."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "Epsilon of AdamW."})
    num_train_epochs: float = field(default=50, metadata={"help": "Passes over the training rows."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Training rows a step and device."})
    per_device_eval_batch_size: int = field(default=256, metadata={"help": "Users evaluated at a time and device."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint: no, steps or epoch."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept: the best and the newest."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log the loss: no, steps or epoch."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Restore the best checkpoint at the end."})
    metric_for_best_model: str | None = field(default="ndcg@10", metadata={"help": "Validation metric of the best."})
    greater_is_better: bool | None = field(default=True, metadata={"help": "Whether more of that metric is better."})
    train_sampling_strategy: str = field(
        default="group_by_length", metadata={"help": "How batches are drawn; by length there is little padding."}
    )
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin batches in memory; where there is a GPU."}
    )
    use_cpu: bool = field(
        default_factory=lambda: not torch.accelerator.is_available(),
        metadata={"help": "Train on the CPU; where there is nothing else, so that bf16 is allowed there."},
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Off: a step uses every parameter."}
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "true: go on from the newest complete checkpoint; or the path of one."}
    )
    hub_strategy: str = field(
        default="end", metadata={"help": "Must stay end: checkpoints on the way hold the optimiser's state in pickles."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: the collator reads them."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataloader_persistent_workers:
            raise ValueError(
                "dataloader_persistent_workers keeps the masks of the first epoch for ever: leave it off (masks are a "
                "function of the epoch, which is sent to new workers)."
            )
        if self.push_to_hub and self.hub_strategy != "end":
            raise ValueError(
                "This hub_strategy would upload the optimiser's state on the way, which is a pickle: leave it at 'end'."
            )


class ClozeCallback(TrainerCallback):
    """Tell collator and sampler the epoch, so that masks and order are fresh in each and the same after a resumption.

    The stock sampler by length takes its order from torch's global generator, which differs between processes and
    after a resumption: rows would be skipped and drawn twice. Here its order is a function of seed and epoch, and it
    groups what all processes draw in a step, so that their number changes nothing.
    """

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: DataLoader | None = None,
        **kwargs: Any,
    ) -> None:
        """Set the epoch before the first batch is drawn; workers start after this and inherit it."""
        assert train_dataloader is not None
        epoch = int((state.epoch or 0) + 1e-6)
        collator: Any = train_dataloader.collate_fn
        collator.epoch = epoch  # cloze masks are drawn from it
        batches: Any = train_dataloader.batch_sampler
        batches = getattr(batches, "batch_sampler", batches)  # accelerate's shard of it, with several processes
        seed = args.seed if args.data_seed is None else args.data_seed
        batches.sampler.generator = torch.Generator().manual_seed(seed + epoch)
        if isinstance(batches.sampler, LengthGroupedSampler):
            step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            batches.sampler.batch_size = step
            batches.sampler.lengths = list(batches.sampler.lengths[:])  # a lazy column is 100 times slower to sort by


class ResourceCallback(TrainerCallback):
    """Tell what a run needs before it goes on: memory at its start, and after two steps the time of an epoch.

    Also decides on a CPU what becomes of freed memory (`keep_freed_memory`).
    """

    steps = 0
    steps_an_epoch = 0
    started = 0.0
    sampling_pays = False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Say what memory a step needs, and what evaluating does.

        Raises:
            MemoryError: Gradients and optimiser state cannot fit beside the model.
        """
        if args.device.type == "cpu":
            keep_freed_memory(not args.gradient_checkpointing)
        batches = len(train_dataloader) if has_length(train_dataloader) else 0
        self.steps, self.steps_an_epoch = 0, -(-batches // args.gradient_accumulation_steps)
        collator = train_dataloader.collate_fn
        if not isinstance(model, Bert4RecForMaskedLM) or not isinstance(collator, DataCollatorForNextItem):
            return
        config = model.config
        self.sampling_pays = config.loss == "softmax" and config.vocab_size >= MANY_ITEMS
        rows, longest = train_dataloader.dataset, config.max_position_embeddings
        if "length" in (getattr(rows, "column_names", None) or ()) and has_length(rows):
            longest = max(rows["length"][:])
        estimate = estimate_memory(
            model, args.per_device_train_batch_size, longest, collator.scored_share, args.gradient_checkpointing
        )
        # The model is there already; of a run that goes on, so is the state of its optimiser.
        taken = estimate.parameters + (estimate.optimizer_state if state.global_step else 0)
        free = free_memory(args.device) + taken
        if state.is_world_process_zero:
            logger.info("Training takes about %s of memory, beside what the process holds already.", estimate)
            scores = 4e-9 * args.per_device_eval_batch_size * config.vocab_size
            if args.eval_strategy != "no" and 3 * scores > estimate.total:
                logger.info("Evaluating takes up to %s: see per_device_eval_batch_size.", shown(3 * scores))
            if estimate.total > free:
                logger.warning("That is more than the %s that are free: %s.", shown(free), estimate.advice)
        check_memory(estimate, free)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Time the second step; the first is slower."""
        self.steps += 1
        if self.steps == 1:
            self.started = time.perf_counter()
        elif self.steps == 2 and state.is_world_process_zero:
            seconds = time.perf_counter() - self.started
            an_epoch, left = seconds * self.steps_an_epoch, state.max_steps - state.global_step
            longest_first = args.train_sampling_strategy == "group_by_length"
            logger.info(
                "%.2f s a step: %sabout %s an epoch, %s to the end, without evaluations%s.",
                seconds,
                "at most " if longest_first else "",
                *(timedelta(seconds=round(it)) if it >= 60 else f"{it:.1f} s" for it in (an_epoch, seconds * left)),
                "; with so many items loss='sampled_softmax' takes less" if self.sampling_pays else "",
            )


def cloze_training(
    tokenizer: ItemTokenizer, *, sampled: Sampled = "popularity_sampled", **masking: Any
) -> dict[str, Any]:
    """The arguments of the stock `Trainer` that make it train by cloze and evaluate by ranking.

        Trainer(model, args, train_dataset=…, eval_dataset=…, **cloze_training(tokenizer, mask_probability=0.2))

    Args:
        tokenizer: Saved with every checkpoint.
        sampled: How the `candidates` of the rows were drawn, where there are any: the names of their metrics say it.
        **masking: Arguments of `DataCollatorForCloze`.
    """
    return {
        "processing_class": tokenizer,
        "data_collator": DataCollatorForCloze(tokenizer, **masking),
        "callbacks": [ClozeCallback(), ResourceCallback()],
        "compute_metrics": partial(metrics_of_ranks, sampled=sampled),
        "preprocess_logits_for_metrics": ranks_of_logits,
    }


def next_item_training(tokenizer: ItemTokenizer, **ranking: Any) -> dict[str, Any]:
    """As `cloze_training`, for the models that look back only: every item is predicted from those before it.

    Args:
        tokenizer: Saved with every checkpoint.
        **ranking: `sampled`, as for `cloze_training`.
    """
    arguments = cloze_training(tokenizer, **ranking)
    return {**arguments, "data_collator": DataCollatorForNextItem(tokenizer)}
