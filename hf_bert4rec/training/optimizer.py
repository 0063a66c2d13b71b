"""The optimiser: Muon for the matrices between the layers, AdamW for the item table and all the rest.

With AdamW alone a masked-item model spends its first epochs near the popularity of items, until attention has learnt
where to look. Muon gets it over that in a fraction of the steps (EXPERIMENTS.md has the numbers).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from transformers import PreTrainedModel, TrainingArguments


class MuonAdamW(Optimizer):
    """torch's Muon and AdamW as one optimiser, which the Trainer schedules, saves and resumes as any other.

    Args:
        muon: Parameter groups of matrices.
        adamw: Parameter groups of everything else.
    """

    def __init__(self, muon: list[dict[str, Any]], adamw: list[dict[str, Any]]) -> None:
        parts = (AdamW(adamw, fused=True), Muon(muon))  # the Trainer logs the learning rate of the first group
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts: tuple[Optimizer, ...] = parts
        self._share()

    def __getstate__(self) -> dict[str, Any]:  # for copies and pickles; torch's leaves out what it does not know
        return {**super().__getstate__(), "_parts": self._parts}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch while it is made; refused afterwards, since neither part would step the new parameters."""
        if hasattr(self, "_parts"):
            raise ValueError("Parameters cannot be added to MuonAdamW once it is made: make another.")
        super().add_param_group(param_group)

    def _share(self) -> None:
        """Let both work on the groups and the state of this one, which are what is scheduled and saved."""
        first = 0
        for part in self._parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:last], self.state
            first = last

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch; it puts new groups and a new state in place."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss


def muon(args: TrainingArguments, learning_rate: float = 1e-2) -> dict[str, Any]:
    """The argument of the stock `Trainer` that makes it train by Muon and AdamW.

        Trainer(model, args, …, **cloze_training(tokenizer), **muon(args))

    Args:
        args: `learning_rate`, `weight_decay` (none on biases and normalisations), `adam_beta1`, `adam_beta2` and
            `adam_epsilon` are AdamW's; the schedule is that of both.
        learning_rate: Peak learning rate of Muon (Jordan et al., 2024), which the weights of all linear layers but the
            output get; no decay there.

    Raises:
        ValueError: `learning_rate` is not above 0, or `args.optim` asks for another optimiser.
    """
    if args.optim != TrainingArguments.default_optim:
        raise ValueError(f"Expected the default `optim` beside Muon, which replaces it, found {args.optim.value}.")
    if not learning_rate > 0:
        raise ValueError(f"Expected Muon's learning_rate above 0, found {learning_rate}.")

    def make(model: PreTrainedModel) -> MuonAdamW:
        output = getattr(model, "module", model).get_output_embeddings()
        linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not output]
        matrices = [module.weight for module in linear if module.weight.requires_grad]
        taken = set(matrices)  # lists keep the order of the model, by which a saved state finds its parameters again
        others = [weight for weight in model.parameters() if weight.requires_grad and weight not in taken]
        common = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
        return MuonAdamW(
            [{"params": matrices, "lr": learning_rate, "weight_decay": 0.0}],
            [
                {"params": [w for w in others if w.ndim > 1], "weight_decay": args.weight_decay, **common},
                {"params": [w for w in others if w.ndim < 2], "weight_decay": 0.0, **common},
            ],
        )

    return {"optimizer_cls_and_kwargs": (lambda: make, {})}  # the Trainer calls what a factory returns with the model
