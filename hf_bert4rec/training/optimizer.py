"""The optimizer: Muon for the matrices of the layers, AdamW for all other weights.

With AdamW alone a masked-item model spends its first epochs near the popularity of the items, until attention has found
the relevant positions. Muon shortens this phase to a fraction of the steps (docs/experiments.md has the numbers).
"""

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from transformers import PreTrainedModel, TrainingArguments

logger = logging.getLogger(__name__)
WITHOUT = "To train without Muon, set `muon_learning_rate` to None, or omit `muon(args)`."


class MuonAdamW(Optimizer):
    """Muon and AdamW of torch as one optimizer, which the Trainer schedules, saves and resumes like any other.

    `muon` and `adamw` are dicts of the arguments of `torch.optim.Muon` and `torch.optim.AdamW`, including `params`.
    """

    def __init__(self, muon: dict[str, Any], adamw: dict[str, Any]) -> None:
        parts = (AdamW(**adamw), Muon(**muon))  # the Trainer logs the learning rate of the first group
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts: tuple[Optimizer, ...] = parts

    def __getstate__(self) -> dict[str, Any]:  # for copies and pickles; torch omits `_parts`
        return {**super().__getstate__(), "_parts": self._parts}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group during construction. Afterwards raise ValueError: a new group would not be updated."""
        if hasattr(self, "_parts"):
            raise ValueError("MuonAdamW does not accept new parameters. Create a new optimizer with all parameters.")
        super().add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters with Muon and AdamW; return the loss of `closure`, if given."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        groups = iter(self.param_groups)
        for part in self._parts:  # they use the groups and the state of this optimizer, which are scheduled and saved
            part.param_groups, part.state = [next(groups) for _ in part.param_groups], self.state
            part.step()
        return loss


def muon(args: TrainingArguments, learning_rate: float = 1e-2) -> dict[str, Any]:
    """Return the argument of the stock `Trainer` that makes it train with Muon and AdamW.

        Trainer(model, args, ..., **cloze_training(tokenizer, callbacks=[]), **muon(args))

    `RecommendationTrainer` does this for `RecommendationTrainingArguments.muon_learning_rate`.

    Args:
        args: Training arguments. `learning_rate`, `weight_decay` (0 for biases and normalizations), `adam_beta1`,
            `adam_beta2` and `adam_epsilon` are those of AdamW. The schedule is that of both optimizers.
        learning_rate: Peak learning rate of Muon (Jordan et al., 2024) for the weights of linear layers, except the
            output and gates with one number. Muon has no weight decay.

    Raises:
        ValueError: `learning_rate` is not above 0, `args.optim` is another optimizer, or `args` or the launcher ask for
            FSDP, which cuts matrices into pieces that Muon cannot train.
    """
    if not learning_rate > 0:
        expected = "The learning rate of Muon (`muon_learning_rate`) must be above 0"
        raise ValueError(f"{expected}, found {learning_rate!r}. {WITHOUT}")
    if args.optim != TrainingArguments.default_optim:
        found = f"`optim={getattr(args.optim, 'value', args.optim)!r}` cannot be combined with Muon"
        raise ValueError(f"{found}. Omit `optim`. {WITHOUT}")
    if args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1"):
        raise ValueError(f"Muon needs whole matrices, but FSDP shards matrices. Train without FSDP. {WITHOUT}")

    def build(model: PreTrainedModel) -> Optimizer:
        model = getattr(model, "module", model)
        layers = [it for it in model.modules() if isinstance(it, nn.Linear) and it is not model.get_output_embeddings()]
        matrices = [layer.weight for layer in layers if layer.weight.requires_grad and layer.out_features > 1]
        if not matrices:
            text = "%s has no trainable linear layers except the output, so AdamW trains all weights. %s"
            logger.warning(text, type(model).__name__, WITHOUT)
        chosen = set(matrices)  # lists keep the order of the model, by which a saved state finds its parameters
        others = [weight for weight in model.parameters() if weight.requires_grad and weight not in chosen]
        adamw = {
            "params": [
                {"params": [weight for weight in others if weight.ndim > 1]},
                {"params": [weight for weight in others if weight.ndim < 2], "weight_decay": 0.0},
            ],
            "lr": args.learning_rate,
            "betas": (args.adam_beta1, args.adam_beta2),
            "eps": args.adam_epsilon,
            "weight_decay": args.weight_decay,
            "fused": True,
        }
        return MuonAdamW({"params": [{"params": matrices}], "lr": learning_rate, "weight_decay": 0.0}, adamw)

    return {"optimizer_cls_and_kwargs": (lambda: build, {})}  # the Trainer calls the result of a factory with the model
