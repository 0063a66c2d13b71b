"""Inputs of a model: their checks, the positions of a history that are scored, and the token IDs for a ranking."""

from numbers import Integral
from typing import Any

import torch
from transformers.utils.import_utils import is_tracing

from .configuration_bert4rec import Bert4RecConfig


def check_inputs(config: Bert4RecConfig, input_ids: Any, inputs_embeds: Any, attention_mask: Any, causal: bool) -> None:
    """Raise ValueError unless the inputs of an encoder have the right shapes and values.

    Token IDs and the values of the mask are checked on a CPU only, because a GPU would have to wait for the result.
    Under torch.compile and torch.export, only the number of inputs is checked. `causal` is that of the encoder.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Pass exactly one of `input_ids` and `inputs_embeds`.")
    inputs = input_ids if inputs_embeds is None else inputs_embeds
    if is_tracing(inputs):
        return
    if inputs_embeds is None:
        valid = torch.is_tensor(inputs) and inputs.ndim == 2 and not inputs.is_floating_point()
        name, expected = "input_ids", "tensor of integers of shape (batch, length)"
    else:
        valid = torch.is_tensor(inputs) and inputs.ndim == 3 and inputs.shape[-1] == config.hidden_size
        name, expected = "inputs_embeds", f"tensor of shape (batch, length, {config.hidden_size})"
    if not valid or not inputs.numel():
        raise ValueError(f"`{name}` must be a non-empty {expected}, found {describe(inputs)}.")
    if inputs_embeds is None:
        _check_range("input_ids", inputs, config.vocab_size)
    if attention_mask is None:
        return
    _check_shape("attention_mask", attention_mask, inputs)
    if inputs.device.type == "cpu" and not ((attention_mask == 0) | (attention_mask == 1)).all():
        raise ValueError("`attention_mask` must be 1 for items and 0 for padding, found other values.")
    if causal and not attention_mask[:, 0].all():
        advice = "Set `tokenizer.padding_side='right'`. Give empty histories a [MASK]."
        raise ValueError(f"A row of `attention_mask` begins with 0, so it is empty or padded on the left. {advice}")


def choose_positions(
    inputs: Any, labels: Any, logits_to_keep: Any, kept_positions: torch.Tensor | None, vocab_size: int
) -> torch.Tensor | None:
    """Return the positions to score, (batch, kept), or None for all positions.

    Arguments and errors are those of `Bert4RecForMaskedLM.forward`. `inputs` are `input_ids` or `inputs_embeds`.
    """
    if not torch.is_tensor(inputs) or inputs.ndim < 2:  # the encoder raises an error
        return None
    if labels is not None and not is_tracing(labels):
        _check_shape("labels", labels, inputs)
        _check_range("labels", labels.clamp(min=0), vocab_size, "-100 or ")
    if torch.is_tensor(logits_to_keep) or logits_to_keep != 0:
        if kept_positions is not None:
            raise ValueError("Pass at most one of `logits_to_keep` and `kept_positions`.")
        return shared_positions(logits_to_keep, inputs)
    if kept_positions is None:
        return None if labels is None or torch.compiler.is_compiling() else scored_positions(labels)
    if not is_tracing(kept_positions):
        if not torch.is_tensor(kept_positions) or kept_positions.ndim != 2:
            found = describe(kept_positions)
            raise ValueError(f"`kept_positions` must be a tensor of shape (batch, kept), found {found}.")
        _check_range("kept_positions", kept_positions, inputs.shape[1])
    return kept_positions


def scored_positions(labels: torch.Tensor) -> torch.Tensor:
    """Return the positions with a label, (batch, kept). `kept` is the largest number of labels in a row.

    Rows with fewer labels are padded with other positions, whose label stays -100, so each label counts once.
    """
    unscored = labels == -100
    kept = max(1, int((~unscored).sum(dim=-1).max()))
    return unscored.int().argsort(dim=-1, stable=True)[:, :kept]


def shared_positions(logits_to_keep: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Return transformers' `logits_to_keep` as positions (batch, kept) of inputs (batch, length, ...)."""
    batch, length = inputs.shape[:2]
    kept = logits_to_keep
    if not torch.is_tensor(kept):
        if not isinstance(kept, Integral | torch.SymInt) or kept < 0:
            expected = "an integer of at least 0, or a tensor of positions"
            raise ValueError(f"`logits_to_keep` must be {expected}, found {kept!r:.100}.")
        kept = slice(-kept, None)
    elif kept.ndim != 1:
        raise ValueError(
            f"`logits_to_keep` must be an integer or positions of shape (kept,), found shape {tuple(kept.shape)}. "
            "Pass positions of each row, (batch, kept), as `kept_positions`."
        )
    return torch.arange(length, device=inputs.device)[kept].expand(batch, -1)


def keep(hidden_states: torch.Tensor, kept_positions: torch.Tensor | None) -> torch.Tensor:
    """Return the states (batch, kept, hidden) at the `kept_positions` (batch, kept). If these are None, return all."""
    if kept_positions is None:
        return hidden_states
    # Not by `take_along_dim`, with which torch.export would fix the size of the batch.
    return hidden_states.gather(
        1, kept_positions[..., None].expand(hidden_states.shape[0], -1, hidden_states.shape[-1])
    )


def ranking_of(
    exclude_history: bool, history: torch.Tensor | None, candidates: torch.Tensor | None, rows: torch.Tensor
) -> dict[str, torch.Tensor] | None:
    """Return `MaskedItemOutput.ranking`. `rows` (batch, ...) are any token IDs, of which none is used."""
    given = {"history": history if exclude_history else rows[:, :0], "candidates": candidates}
    return {name: ids for name, ids in given.items() if ids is not None} or None


def _check_shape(name: str, values: Any, inputs: torch.Tensor) -> None:
    if not torch.is_tensor(values) or values.shape != inputs.shape[:2]:
        expected = f"a tensor of shape {tuple(inputs.shape[:2])}, one value per position"
        raise ValueError(f"`{name}` must be {expected}, found {describe(values)}.")


def _check_range(name: str, values: torch.Tensor, end: int, other: str = "") -> None:
    if values.device.type == "cpu" and (wrong := values[(values < 0) | (values >= end)]).numel():
        advice = "" if name == "kept_positions" else " Encode items with the tokenizer of the model."
        raise ValueError(f"`{name}` must be {other}from 0 to {end - 1}, found {wrong[0].item()}.{advice}")


def describe(value: Any) -> str:
    """Return the shape and the type of a tensor, or the type of another value, for an error."""
    return f"shape {tuple(value.shape)} of {value.dtype}" if torch.is_tensor(value) else type(value).__name__
