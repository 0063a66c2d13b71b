"""Training arguments with the recommended defaults for recommendation models."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from .optimizer import muon

ID_DROPOUT = 0.2
LABEL_SMOOTHING = (
    "`label_smoothing_factor` is not supported: it would also give probability to padding and [MASK]. Leave it at 0."
)


def option(default: Any, help: str) -> Any:  # noqa: A002
    """Return a dataclass field with a default, or a function that computes it, and a text for the help."""
    value = {"default_factory": default} if callable(default) else {"default": default}
    return field(metadata={"help": help}, **value)


@dataclass
class RecommendationTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of recommendation models, and three new fields.

    The new fields are `muon_learning_rate`, `early_stopping_patience` and `id_dropout`; `RecommendationTrainer` applies
    them. The model is evaluated and saved after each epoch, with early stopping also once before. The checkpoint with
    the highest validation NDCG@10 is restored at the end of training. Without a validation split pass
    `eval_strategy="no", load_best_model_at_end=False`.

    Raises:
        ValueError: An option is out of range, or it does not work with recommendation models.
    """

    learning_rate: float = option(2e-3, "Peak learning rate of AdamW.")
    muon_learning_rate: float | None = option(
        None, "Peak learning rate of Muon for the matrices; none: AdamW for all weights."
    )
    lr_scheduler_type: str = option("linear", "Learning rate schedule after the warm-up.")
    warmup_steps: float = option(0.05, "Warm-up steps; below 1: share of all steps.")
    weight_decay: float = option(0.01, "Weight decay; 0 for biases and normalizations.")
    max_grad_norm: float = option(5.0, "Largest gradient norm; larger ones are clipped.")
    adam_epsilon: float = option(1e-6, "Epsilon of AdamW.")
    num_train_epochs: float = option(30, "Number of passes over the training rows.")
    early_stopping_patience: int | None = option(
        10, "Stop after this number of evaluations without improvement; none: never."
    )
    id_dropout: float = option(
        ID_DROPOUT, "With item features: share of the items that a step represents by their features alone."
    )
    per_device_train_batch_size: int = option(64, "Training rows per step and device.")
    per_device_eval_batch_size: int = option(256, "Evaluated users per step and device.")
    eval_strategy: str = option("epoch", "When to evaluate: no, steps or epoch.")
    save_strategy: str = option("epoch", "When to save a checkpoint: no, steps or epoch.")
    save_total_limit: int | None = option(2, "Number of checkpoints to keep.")
    logging_strategy: str = option("epoch", "When to log the loss: no, steps or epoch.")
    load_best_model_at_end: bool = option(True, "Restore the best checkpoint at the end.")
    metric_for_best_model: str | None = option("ndcg@10", "Metric of the best checkpoint.")
    greater_is_better: bool | None = option(True, "Whether a larger metric is better.")
    train_sampling_strategy: str = option("group_by_length", "How to draw batches; group_by_length reduces padding.")
    dataloader_pin_memory: bool = option(torch.cuda.is_available, "Pin batches in memory (default: with a GPU).")
    use_cpu: bool = option(
        lambda: not torch.accelerator.is_available(),
        "Train on the CPU (default: without an accelerator), which also allows bf16 there.",
    )
    ddp_find_unused_parameters: bool | None = option(False, "Not needed: each step uses every parameter.")
    resume_from_checkpoint: str | None = option(None, "true: resume from the newest complete checkpoint; or its path.")
    hub_strategy: str = option("end", "Must be end: intermediate checkpoints contain pickles.")
    remove_unused_columns: bool = option(False, "Must be false: the collator reads them.")

    def __post_init__(self) -> None:
        super().__post_init__()
        patience = self.early_stopping_patience
        if not self.learning_rate >= 0:
            raise ValueError(f"`learning_rate` must be at least 0, found {self.learning_rate}.")
        if self.muon_learning_rate is not None:
            muon(self, self.muon_learning_rate)  # checks what Muon cannot be combined with
        if patience is not None and patience < 1:
            raise ValueError(f"`early_stopping_patience` must be at least 1, or None, found {patience}.")
        if not 0 <= self.id_dropout < 1:
            raise ValueError(f"`id_dropout` must be at least 0 and below 1, found {self.id_dropout}.")
        if self.label_smoothing_factor:
            raise ValueError(LABEL_SMOOTHING)
        if self.dataloader_persistent_workers:
            raise ValueError(
                "`dataloader_persistent_workers` would repeat the masks of the first epoch in all epochs. "
                "Set it to False."
            )
        if self.push_to_hub and self.hub_strategy != "end":
            raise ValueError(f"`hub_strategy` must be 'end', found {self.hub_strategy!r}. Others would upload pickles.")
