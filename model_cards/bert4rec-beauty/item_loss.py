"""The loss over items, one function for every model: full softmax in bounded memory, or one of three sampled losses."""

import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy, embedding, linear, softplus
from torch.utils.checkpoint import checkpoint

from .configuration_bert4rec import LOSSES, SPECIAL_TOKENS, Bert4RecConfig

try:
    from torch.nn.functional import linear_cross_entropy
except ImportError:  # torch before 2.13
    linear_cross_entropy = None  # type: ignore[assignment]


def item_loss(
    config: Bert4RecConfig,
    hidden_states: torch.Tensor,
    item_table: torch.Tensor,
    item_bias: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    loss: str | None = None,
) -> torch.Tensor:
    """Return the mean loss of the masked items.

    - `softmax`: negative log-likelihood over the whole catalog (paper, equation 8), in chunks of
      `config.loss_chunk_size` positions, so that the logits of one chunk exist at a time.
    - `sampled_softmax`: the same over the target and `config.num_negatives` other items, whose share of the sum is
      scaled up to that of all other items (logQ correction of uniform sampling; Bengio and Senécal, 2008). With all
      other items as shared negatives it is the full softmax.
    - `gbce`: binary cross-entropy on target and negatives, with the likelihood of the target raised to the power
      β = 1 - t (1 - α). α is the share of the other items that is drawn, t is `config.gbce_calibration`. It corrects
      the overconfidence that negative sampling causes (gSASRec; Petrov and Macdonald, RecSys 2023).
    - `bce`: binary cross-entropy on target and negatives, averaged over them: `gbce` with t = 0.

    Negatives are drawn uniformly from all items other than the target of the position. Negatives that are not shared
    may repeat. The special rows take no part in any loss.

    Args:
        config: Names the loss, see `Bert4RecConfig`.
        hidden_states: (..., hidden) at the scored positions.
        item_table: (rows, hidden), the special rows first.
        item_bias: (rows,).
        labels: (...) rows of the item table; -100 and the special rows are not scored.
        num_items_in_batch: Number of scored positions in the whole batch (gradient accumulation, several processes).
            Counted here if not given.
        loss: Another loss than `config.loss`.

    Returns:
        A scalar in nats, at least in single precision; 0 if nothing is scored.

    Raises:
        ValueError: The loss is unknown, or there are fewer other items than negatives.
    """
    labels, loss = labels.flatten().long(), loss or config.loss
    scored = labels >= len(SPECIAL_TOKENS)
    others = len(item_table) - len(SPECIAL_TOKENS) - 1
    if loss not in LOSSES:
        raise ValueError(f"`loss` must be one of {', '.join(LOSSES)}, found {loss!r}.")
    if loss != "softmax" and not 0 < config.num_negatives <= others:
        raise ValueError(
            f"`num_negatives` must be from 1 to {others}, the number of other items, found {config.num_negatives}."
        )
    # In half precision a sum over a catalog or a batch is wrong by a percent, or infinite.
    precision = torch.promote_types(item_table.dtype, torch.float32)
    hidden_states = hidden_states.flatten(0, -2).to(precision)
    item_table, item_bias = item_table.to(precision), item_bias.to(precision)
    with torch.autocast(hidden_states.device.type, enabled=False):
        if loss == "softmax":
            total = _softmax_loss(config, hidden_states, item_table, item_bias, torch.where(scored, labels, -100))
        else:
            targets = torch.where(scored, labels, len(SPECIAL_TOKENS))  # any item where nothing is scored
            scores = sampled_scores(config, hidden_states, item_table, item_bias, targets)
            losses = _sampled_losses(config, loss, config.num_negatives / others, *scores)
            total = torch.where(scored, losses, 0).sum()
    count = scored.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
    return total / count.clamp(min=1)


def _softmax_loss(
    config: Bert4RecConfig,
    hidden_states: torch.Tensor,
    item_table: torch.Tensor,
    item_bias: torch.Tensor,
    targets: torch.Tensor,
) -> torch.Tensor:
    special = torch.arange(len(item_bias), device=item_bias.device) < len(SPECIAL_TOKENS)
    bias = item_bias.masked_fill(special, torch.finfo(item_bias.dtype).min)
    if linear_cross_entropy is None:
        chunks = zip(*(tensor.split(config.loss_chunk_size) for tensor in (hidden_states, targets)), strict=True)
        return sum(
            (checkpoint(_chunk_loss, states, item_table, bias, rows, use_reentrant=False) for states, rows in chunks),
            start=hidden_states.new_zeros(()),
        )
    return linear_cross_entropy(
        hidden_states,
        item_table,
        targets,
        linear_bias=bias,
        reduction="sum",
        ignore_index=-100,
        options=nn.LinearCrossEntropyOptions(
            batch_chunk_size=config.loss_chunk_size,  # torch's automatic choice takes 10 times as long for 1M items
            chunking_method=None,
            allow_retain_graph=True,  # without it torch.compile cannot trace the loss in one graph
        ),
    )


def _chunk_loss(
    states: torch.Tensor, item_table: torch.Tensor, bias: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    return cross_entropy(linear(states, item_table, bias), targets, ignore_index=-100, reduction="sum")


def _sampled_losses(
    config: Bert4RecConfig, loss: str, drawn: float, positive: torch.Tensor, negative: torch.Tensor
) -> torch.Tensor:
    """Return the loss of each position, (positions,). `drawn` is the share of the other items that are negatives."""
    if loss == "sampled_softmax":
        every = torch.cat([positive[:, None], negative - math.log(drawn)], dim=1)
        return every.logsumexp(dim=1) - positive
    beta = 1 - {"gbce": config.gbce_calibration, "bce": 0}[loss] * (1 - drawn)
    return (beta * softplus(-positive) + softplus(negative).sum(dim=1)) / (1 + config.num_negatives)


def sampled_scores(
    config: Bert4RecConfig,
    hidden_states: torch.Tensor,
    item_table: torch.Tensor,
    item_bias: torch.Tensor,
    targets: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scores of the targets, (positions,), and of negatives, (positions, drawn). -inf is not a negative.

    Args:
        config: `num_negatives` and `share_negatives`.
        hidden_states: (positions, hidden).
        item_table: (rows, hidden), the special rows first.
        item_bias: (rows,).
        targets: (positions,) rows of items.
    """
    specials, negatives = len(SPECIAL_TOKENS), config.num_negatives
    items = len(item_table) - specials
    if config.share_negatives:  # one more than needed, all different
        rows = torch.randperm(items, device=targets.device)[: negatives + 1] + specials
    else:
        rows = torch.randint(items - 1, (len(targets), negatives), device=targets.device) + specials
        rows = rows + (rows >= targets[:, None])  # skips the target
    # One lookup for targets and negatives, since the backward pass of each creates a whole table: 1.9 times faster with
    # a million items.
    drawn = torch.cat([targets, rows.flatten()])
    (target_vectors, vectors), (target_bias, bias) = (
        looked_up.split([len(targets), rows.numel()]) for looked_up in (embedding(drawn, item_table), item_bias[drawn])
    )
    positive = (hidden_states * target_vectors).sum(dim=-1) + target_bias
    if not config.share_negatives:
        negative = torch.einsum("pd,pnd->pn", hidden_states, vectors.unflatten(0, rows.shape))
        return positive, negative + bias.view_as(rows)
    # Each position drops its own target, or the last negative if the target was not drawn. The others are uniform.
    own = rows == targets[:, None]
    own[:, -1] |= ~own.any(dim=1)
    return positive, (hidden_states @ vectors.T + bias).masked_fill(own, -torch.inf)
