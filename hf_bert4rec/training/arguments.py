"""Training arguments with the recommended defaults for recommendation models."""

import math
from dataclasses import dataclass

import torch
from transformers import TrainingArguments
from transformers.hf_argparser import HfArg

from .optimizer import muon

ID_DROPOUT = 0.2
LABEL_SMOOTHING = "`label_smoothing_factor` must be 0: label smoothing would also give probability to [PAD] and [MASK]."


@dataclass
class RecommendationTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of recommendation models, and three new fields.

    The new fields are `muon_learning_rate`, `early_stopping_patience` and `id_dropout`; `RecommendationTrainer` applies
    them. The model is evaluated and saved after each epoch, and with early stopping also after the first step and after
    a third of the first epoch. The checkpoint with the highest validation NDCG@10 is restored at the end of training.
    Without a validation split pass `eval_strategy="no", load_best_model_at_end=False`.

    Raises:
        ValueError: An option is out of range, or does not work with recommendation models.
    """

    learning_rate: float = HfArg(default=2e-3, help="Peak learning rate of AdamW.")
    muon_learning_rate: float | None = HfArg(
        default=None, help="Peak learning rate of Muon for the matrices of the layers; none: AdamW for all weights."
    )
    lr_scheduler_type: str = HfArg(default="linear", help="Learning rate schedule after the warm-up.")
    warmup_steps: float = HfArg(default=0.05, help="Warm-up steps; below 1: share of all steps.")
    weight_decay: float = HfArg(default=0.01, help="Weight decay; not applied to biases and normalization layers.")
    max_grad_norm: float = HfArg(default=5.0, help="Largest gradient norm; larger gradients are clipped.")
    adam_epsilon: float = HfArg(default=1e-6, help="Epsilon of AdamW.")
    num_train_epochs: float = HfArg(default=30, help="Number of passes over the training rows.")
    early_stopping_patience: int | None = HfArg(
        default=10, help="Stop after this number of evaluations without improvement; none: never."
    )
    id_dropout: float = HfArg(
        default=ID_DROPOUT,
        help="With item features: share of the items that a step represents by their features alone.",
    )
    per_device_train_batch_size: int = HfArg(default=64, help="Training rows per step and device.")
    per_device_eval_batch_size: int = HfArg(default=256, help="Evaluated users per step and device.")
    eval_strategy: str = HfArg(default="epoch", help="When to evaluate: no, steps or epoch.")
    save_strategy: str = HfArg(default="epoch", help="When to save a checkpoint: no, steps or epoch.")
    save_total_limit: int | None = HfArg(default=2, help="Number of checkpoints to keep.")
    logging_strategy: str = HfArg(default="epoch", help="When to log the loss: no, steps or epoch.")
    load_best_model_at_end: bool = HfArg(default=True, help="Restore the best checkpoint at the end.")
    metric_for_best_model: str | None = HfArg(default="ndcg@10", help="Metric of the best checkpoint.")
    greater_is_better: bool | None = HfArg(default=True, help="Whether a larger metric is better.")
    train_sampling_strategy: str = HfArg(
        default="group_by_length", help="How to draw batches; group_by_length reduces padding."
    )
    dataloader_pin_memory: bool = HfArg(
        default_factory=torch.cuda.is_available, help="Pin batches in memory; false without a GPU."
    )
    use_cpu: bool = HfArg(
        default_factory=lambda: not torch.accelerator.is_available(),
        help="Train on the CPU, which also allows bf16 there; true without an accelerator.",
    )
    ddp_find_unused_parameters: bool | None = HfArg(default=False, help="Not needed: each step uses every parameter.")
    resume_from_checkpoint: str | None = HfArg(
        default=None, help="true: resume from the newest complete checkpoint; or the path of a checkpoint."
    )
    hub_strategy: str = HfArg(default="end", help="Must be end: intermediate checkpoints contain pickles.")
    remove_unused_columns: bool = HfArg(default=False, help="Must be false: the collator reads all columns.")

    def __post_init__(self) -> None:
        if getattr(self, "report_to", None) is None:
            self.report_to = "none"  # a recipe reads this word as None
        for name in ("gradient_accumulation_steps", "per_device_train_batch_size", "per_device_eval_batch_size"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        trained = self.max_steps > 0 or 0 < self.num_train_epochs < math.inf
        self._check("num_train_epochs", trained, "above 0 and finite")
        self._check("learning_rate", self.learning_rate >= 0, "at least 0")
        patience = self.early_stopping_patience
        self._check("early_stopping_patience", patience is None or patience >= 1, "at least 1, or None")
        self._check("id_dropout", 0 <= self.id_dropout < 1, "at least 0 and below 1")
        loss = self.eval_strategy == "no" or str(self.metric_for_best_model).endswith("loss")
        self._check("prediction_loss_only", loss or not self.prediction_loss_only, "False, as the metric needs scores")
        super().__post_init__()
        if self.muon_learning_rate is not None:
            muon(self, self.muon_learning_rate)  # checks what Muon cannot be combined with
        if self.label_smoothing_factor:
            raise ValueError(LABEL_SMOOTHING)
        if self.dataloader_persistent_workers:
            reason = "persistent workers would repeat the masks of the first epoch"
            raise ValueError(f"`dataloader_persistent_workers` must be False, found True: {reason}.")
        if self.push_to_hub and self.hub_strategy != "end":
            raise ValueError(f"`hub_strategy` must be 'end', found {self.hub_strategy!r}: others upload pickles.")

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"`{name}` must be {expected}, found {getattr(self, name)}.")
