"""Training arguments with the recommended defaults for recommendation models."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from .optimizer import muon

LABEL_SMOOTHING = (
    "`label_smoothing_factor` is not supported: it would also give probability to padding and [MASK]. Leave it at 0."
)


@dataclass
class RecommendationTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of recommendation models, and two new fields.

    The new fields are `muon_learning_rate` and `early_stopping_patience`; `RecommendationTrainer` applies them. The
    model is evaluated and saved after each epoch, and the checkpoint with the highest validation NDCG@10 is restored
    at the end of training. Without a validation split pass `eval_strategy="no", load_best_model_at_end=False`.

    Raises:
        ValueError: An option is out of range, or it does not work with recommendation models.
    """

    learning_rate: float = field(default=6e-3, metadata={"help": "Peak learning rate of AdamW."})
    muon_learning_rate: float | None = field(
        default=1e-2, metadata={"help": "Peak learning rate of Muon for the matrices; none: AdamW for all weights."}
    )
    lr_scheduler_type: str = field(default="linear", metadata={"help": "Learning rate schedule after the warm-up."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up steps; below 1: share of all steps."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay; 0 for biases and normalizations."})
    max_grad_norm: float = field(default=5.0, metadata={"help": "Largest gradient norm; larger ones are clipped."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "Epsilon of AdamW."})
    num_train_epochs: float = field(default=50, metadata={"help": "Number of passes over the training rows."})
    early_stopping_patience: int | None = field(
        default=10, metadata={"help": "Stop after this number of evaluations without improvement; none: never."}
    )
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Training rows per step and device."})
    per_device_eval_batch_size: int = field(default=256, metadata={"help": "Evaluated users per step and device."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint: no, steps or epoch."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Number of checkpoints to keep."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log the loss: no, steps or epoch."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Restore the best checkpoint at the end."})
    metric_for_best_model: str | None = field(default="ndcg@10", metadata={"help": "Metric of the best checkpoint."})
    greater_is_better: bool | None = field(default=True, metadata={"help": "Whether a larger metric is better."})
    train_sampling_strategy: str = field(
        default="group_by_length", metadata={"help": "How to draw batches; group_by_length reduces padding."}
    )
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin batches in memory (default: with a GPU)."}
    )
    use_cpu: bool = field(
        default_factory=lambda: not torch.accelerator.is_available(),
        metadata={"help": "Train on the CPU (default: without an accelerator), which also allows bf16 there."},
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: each step uses every parameter."}
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "true: resume from the newest complete checkpoint; or its path."}
    )
    hub_strategy: str = field(
        default="end", metadata={"help": "Must be end: intermediate checkpoints contain pickles."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must be false: the collator reads them."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.learning_rate >= 0:
            raise ValueError(f"`learning_rate` must be at least 0, found {self.learning_rate}.")
        if self.muon_learning_rate is not None:
            muon(self, self.muon_learning_rate)  # checks what Muon cannot be combined with
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise ValueError(
                f"`early_stopping_patience` must be at least 1, or none, found {self.early_stopping_patience}."
            )
        if self.label_smoothing_factor:
            raise ValueError(LABEL_SMOOTHING)
        if self.dataloader_persistent_workers:
            raise ValueError(
                "`dataloader_persistent_workers` is not supported: persistent workers would repeat the masks of the "
                "first epoch. Leave it off."
            )
        if self.push_to_hub and self.hub_strategy != "end":
            raise ValueError(
                "`hub_strategy` must be 'end': the others would upload the state of the optimizer, which is a pickle."
            )
