"""Inputs of a model: their checks, the positions of a history that are scored, and the token IDs for a ranking."""

from typing import Any, TypeAlias

import torch
from transformers.utils.import_utils import is_tracing

from .configuration_bert4rec import Bert4RecConfig

Input: TypeAlias = torch.Tensor | None


def check_inputs(config: Bert4RecConfig, input_ids: Any, inputs_embeds: Any, attention_mask: Any, causal: bool) -> None:
    """Raise ValueError unless the inputs of an encoder have the right dimensions and values.

    Token IDs and most values of the mask are checked on a CPU only, because a GPU would have to wait for the result.
    The first column of the mask is checked on every device if `causal`, which is that of the encoder. Under
    torch.compile and torch.export, only the number of inputs is checked.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Pass exactly one of `input_ids` and `inputs_embeds`.")
    inputs = input_ids if inputs_embeds is None else inputs_embeds
    if is_tracing(inputs):
        return
    if inputs_embeds is None:
        check_tensor("input_ids", inputs, "(batch, length)")
        _check_range("input_ids", inputs, config.vocab_size)
    else:
        check_tensor("inputs_embeds", inputs, "(batch, length, hidden)")
    if not inputs.numel():
        raise ValueError(f"The input is empty, found {_describe(inputs)}. Pass at least one token, such as [MASK].")
    if attention_mask is not None:
        _check_values("attention_mask", attention_mask, inputs)
        if inputs.device.type == "cpu" and not ((attention_mask == 0) | (attention_mask == 1)).all():
            raise ValueError("`attention_mask` must be 1 for items and 0 for padding, found other values.")
        if causal and not attention_mask[:, 0].all():
            advice = "Set `tokenizer.padding_side='right'`. If a row is empty, pass [MASK]."
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
        _check_values("labels", labels, inputs)
        _check_range("labels", labels.masked_fill(labels == -100, 0), vocab_size, "-100 or ")
    if torch.is_tensor(logits_to_keep) or logits_to_keep != 0:
        if kept_positions is not None:
            raise ValueError("Pass at most one of `logits_to_keep` and `kept_positions`.")
        return shared_positions(logits_to_keep, inputs)
    if kept_positions is None:
        return None if labels is None or torch.compiler.is_compiling() else scored_positions(labels)
    if not is_tracing(kept_positions):
        check_tensor("kept_positions", kept_positions, "(batch, kept)")
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
        if kept < 0:
            raise ValueError(f"`logits_to_keep` must be at least 0, found {kept}.")
        kept = slice(-kept, None)
    elif kept.ndim != 1:
        found = f"found shape {tuple(kept.shape)}. Pass positions of each row, (batch, kept), as `kept_positions`."
        raise ValueError(f"`logits_to_keep` must be an integer or positions of shape (kept,), {found}")
    return torch.arange(length, device=inputs.device)[kept].expand(batch, -1)


def keep(hidden_states: torch.Tensor, kept_positions: torch.Tensor | None) -> torch.Tensor:
    """Return the states (batch, kept, hidden) at the `kept_positions` (batch, kept). If these are None, return all."""
    if kept_positions is None:
        return hidden_states
    # Not by `take_along_dim`, with which torch.export would fix the size of the batch.
    places = kept_positions[..., None].expand(hidden_states.shape[0], -1, hidden_states.shape[-1])
    return hidden_states.gather(1, places)


def ranking_of(
    exclude_history: bool, history: torch.Tensor | None, candidates: torch.Tensor | None, rows: torch.Tensor
) -> dict[str, torch.Tensor] | None:
    """Return `MaskedItemOutput.ranking`. Of the token IDs `rows` (batch, ...), only the size of the batch is used."""
    given = {"history": history if exclude_history else rows[:, :0], "candidates": candidates}
    return {name: ids for name, ids in given.items() if ids is not None} or None


def check_tensor(name: str, value: Any, shape: str) -> None:
    """Raise ValueError unless a value is a tensor with the dimensions of `shape`, such as "(batch, kept)"."""
    if not torch.is_tensor(value) or value.ndim != len(shape.strip(",)").split(",")):
        raise ValueError(f"`{name}` must be a tensor of shape {shape}, found {_describe(value)}.")


def _check_values(name: str, values: Any, inputs: torch.Tensor) -> None:
    if not torch.is_tensor(values) or values.shape != inputs.shape[:2]:
        expected = f"a tensor of shape {tuple(inputs.shape[:2])}, one value per position"
        raise ValueError(f"`{name}` must be {expected}, found {_describe(values)}.")


def _check_range(name: str, values: torch.Tensor, end: int, other: str = "") -> None:
    if values.device.type == "cpu" and (wrong := values[(values < 0) | (values >= end)]).numel():
        found = f"found {wrong[0].item()}. Encode items with the tokenizer of the model."
        raise ValueError(f"`{name}` must be {other}from 0 to {end - 1}, {found}")


def _describe(value: Any) -> str:
    return f"shape {tuple(value.shape)} of {value.dtype}" if torch.is_tensor(value) else type(value).__name__
