"""Training arguments with the recommended defaults for recommendation models."""

import math
from dataclasses import dataclass

import torch
from transformers import TrainingArguments
from transformers.hf_argparser import HfArg

from ..data.arguments import check_number
from .optimizer import muon

ID_DROPOUT = 0.2
UNSUPPORTED = {  # options of transformers that would give wrong results
    "label_smoothing_factor": "must be 0, found {!r}: smoothing would also make [PAD] and [MASK] targets",
    "dataloader_persistent_workers": "must be False, found {!r}: such workers would keep the masks of the first epoch",
    "dataloader_drop_last": "must be False, found {!r}: evaluation would also drop users",
}


@dataclass
class RecommendationTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of recommendation models, and three new fields for `RecommendationTrainer`.

    The model is evaluated and saved after each epoch, and with early stopping also after the first step and after a
    third of the first epoch. The checkpoint with the highest validation NDCG@10 is restored at the end of training.
    Without a validation split pass `eval_strategy="no"`.

    Args:
        muon_learning_rate: Peak learning rate of Muon (`muon`), above 0. None: AdamW trains all weights.
        early_stopping_patience: Stop after this number of evaluations without improvement. None: train all epochs.
        id_dropout: With item features, the share of the items that a step scores by their features alone.

    Raises:
        ValueError: An option is out of range, or does not work with recommendation models.
    """

    output_dir: str | None = HfArg(default=None, help="Folder of the checkpoints. None: trainer_output.")
    learning_rate: float = HfArg(default=2e-3, help="Peak learning rate of AdamW.")
    muon_learning_rate: float | None = HfArg(
        default=None, help="Peak learning rate of Muon for the matrices of the layers. None: AdamW trains all weights."
    )
    lr_scheduler_type: str = HfArg(default="linear", help="Learning rate schedule, such as linear or cosine.")
    warmup_steps: float = HfArg(default=0.05, help="Number of warm-up steps. A number below 1 is a share of all steps.")
    weight_decay: float = HfArg(default=0.01, help="Weight decay of AdamW, except for biases and normalization layers.")
    max_grad_norm: float = HfArg(default=5.0, help="Gradients with a larger norm are scaled down. 0: no limit.")
    adam_epsilon: float = HfArg(default=1e-6, help="Epsilon of AdamW.")
    num_train_epochs: float = HfArg(default=30, help="Number of passes over the training rows.")
    early_stopping_patience: int | None = HfArg(
        default=10, help="Stop after this number of evaluations without a better metric_for_best_model. None: never."
    )
    id_dropout: float = HfArg(
        default=ID_DROPOUT,
        help="With item features, the share of the items that a step scores by their features alone.",
    )
    per_device_train_batch_size: int = HfArg(default=64, help="Training rows per step and device.")
    per_device_eval_batch_size: int = HfArg(default=256, help="Evaluated users per step and device.")
    eval_strategy: str = HfArg(default="epoch", help="When to evaluate: no (never), steps or epoch.")
    save_strategy: str = HfArg(default="epoch", help="When to save a checkpoint: no (never), steps, epoch or best.")
    save_total_limit: int | None = HfArg(default=2, help="Largest number of checkpoints to keep. None: keep all.")
    logging_strategy: str = HfArg(default="epoch", help="When to log the loss: no (never), steps or epoch.")
    load_best_model_at_end: bool | None = HfArg(
        default=None, help="Whether to restore the best checkpoint at the end. None: true, unless eval_strategy is no."
    )
    metric_for_best_model: str | None = HfArg(default="ndcg@10", help="Metric that chooses the best checkpoint.")
    greater_is_better: bool | None = HfArg(
        default=None, help="Whether a larger metric_for_best_model is better. None: true, but false for a loss."
    )
    train_sampling_strategy: str = HfArg(
        default="group_by_length", help="How to draw batches: random, sequential or group_by_length (less padding)."
    )
    dataloader_pin_memory: bool = HfArg(
        default_factory=torch.cuda.is_available, help="Whether to pin batches in memory. Default: only with a GPU."
    )
    use_cpu: bool = HfArg(
        default_factory=lambda: not torch.accelerator.is_available(),
        help="Whether to train on the CPU. Default: only without an accelerator. bf16 on a CPU needs true.",
    )
    ddp_find_unused_parameters: bool | None = HfArg(default=False, help="Not needed, as each step uses all parameters.")
    resume_from_checkpoint: str | None = HfArg(
        default=None, help="Checkpoint to resume from: true (the newest complete one in output_dir) or a path."
    )
    hub_strategy: str = HfArg(default="end", help="Must be end, because other strategies upload pickles.")
    remove_unused_columns: bool = HfArg(default=False, help="Must be false, because the collator reads all columns.")

    def __post_init__(self) -> None:
        if getattr(self, "report_to", None) is None:
            self.report_to = "none"  # the word "none" in a recipe is read as None
        if self.load_best_model_at_end is None:
            self.load_best_model_at_end = self.eval_strategy != "no"
        for name in ("gradient_accumulation_steps", "per_device_train_batch_size", "per_device_eval_batch_size"):
            check_number(name, getattr(self, name), "at least 1", lambda number: number >= 1)
        if self.max_steps <= 0:
            check_number("num_train_epochs", self.num_train_epochs, "above 0 and finite", lambda n: 0 < n < math.inf)
        check_number("learning_rate", self.learning_rate, "at least 0", lambda rate: rate >= 0)
        if (patience := self.early_stopping_patience) is not None:
            check_number("early_stopping_patience", patience, "at least 1, or None", lambda number: number >= 1)
        check_number("id_dropout", self.id_dropout, "at least 0 and below 1", lambda share: 0 <= share < 1)
        metric = "loss" if self.eval_strategy == "no" else self.metric_for_best_model or "loss"
        if self.prediction_loss_only and not metric.endswith("loss"):
            reason = f"`metric_for_best_model={metric!r}` needs the scores of the items"
            raise ValueError(f"`prediction_loss_only` must be False, found True: {reason}.")
        if self.push_to_hub and self.hub_strategy != "end":
            raise ValueError(f"`hub_strategy` must be 'end', found {self.hub_strategy!r}. Others upload pickles.")
        super().__post_init__()
        if self.muon_learning_rate is not None:
            muon(self, self.muon_learning_rate)  # raises ValueError for options that exclude Muon
        check_supported(self)


def check_supported(args: TrainingArguments) -> None:
    """Raise ValueError if an option of `UNSUPPORTED` is set."""
    for name, expected in UNSUPPORTED.items():
        if value := getattr(args, name):
            raise ValueError(f"`{name}` {expected.format(value)}.")
