"""The loss over items, one function for every model: the full softmax in bounded memory, or one of three on negatives.

It imports the configuration only, and travels with the weights and the model file as remote code.
"""

import math

import torch
from torch import nn
from torch.nn.functional import embedding, linear_cross_entropy, softplus

from .configuration_bert4rec import LOSSES, SPECIAL_TOKENS, Bert4RecConfig


def item_loss(
    config: Bert4RecConfig,
    hidden_states: torch.Tensor,
    item_table: torch.Tensor,
    item_bias: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    loss: str | None = None,
) -> torch.Tensor:
    """Mean loss of the masked items, by `config.loss`.

    - `softmax`: negative log-likelihood over the whole catalogue (paper, equation 8), in chunks of
      `config.loss_chunk_size` positions: logits of more than a chunk never exist.
    - `sampled_softmax`: the same over the target and `config.num_negatives` other items, whose share of the sum is
      scaled up to that of all others (the logQ correction of uniform sampling; Bengio and Senécal, 2008). With all
      others as shared negatives it is the full softmax.
    - `gbce`: binary cross-entropy on target and negatives with the target's likelihood raised to the power
      β = 1 - t (1 - α), α being the share of the others that is drawn, which cures the overconfidence that negatives
      bring (gSASRec, Petrov and Macdonald, RecSys 2023; t is `config.gbce_calibration`).
    - `bce`: binary cross-entropy on target and negatives, averaged over them: `gbce` with t = 0.

    Negatives are uniform over all items but the row's own target; unshared ones may repeat. The special rows take no
    part in any loss.

    Args:
        config: Names the loss, see `Bert4RecConfig`.
        hidden_states: (…, hidden) at the scored positions.
        item_table: (rows, hidden), the special rows first.
        item_bias: (rows,).
        labels: (…) rows of the item table; -100, or a special row, is not scored.
        num_items_in_batch: Scored positions of the whole batch, where that is larger than what is seen here (gradient
            accumulation, several processes). Counted if not given.
        loss: Another loss than `config.loss`.

    Returns:
        A scalar in nats, in single precision at least; 0 where nothing is scored.

    Raises:
        ValueError: There is no such loss, or there are fewer other items than negatives.
    """
    labels, loss = labels.flatten().long(), loss or config.loss
    scored = labels >= len(SPECIAL_TOKENS)
    others = len(item_table) - len(SPECIAL_TOKENS) - 1
    if loss not in LOSSES:
        raise ValueError(f"Expected a loss among {', '.join(LOSSES)}, found {loss!r}.")
    if loss != "softmax" and not 0 < config.num_negatives <= others:
        raise ValueError(f"Expected `num_negatives` from 1 to {others}, the other items, found {config.num_negatives}.")
    # In half precision a sum over a catalogue, or a batch, is off by a per cent or infinite.
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
    return linear_cross_entropy(
        hidden_states,
        item_table,
        targets,
        linear_bias=item_bias.masked_fill(special, torch.finfo(item_bias.dtype).min),
        reduction="sum",
        ignore_index=-100,
        options=nn.LinearCrossEntropyOptions(
            batch_chunk_size=config.loss_chunk_size,  # torch's automatic choice takes 10 times as long at 1M items
            chunking_method=None,
            allow_retain_graph=True,  # without it torch.compile cannot trace the loss in one graph
        ),
    )


def _sampled_losses(
    config: Bert4RecConfig, loss: str, drawn: float, positive: torch.Tensor, negative: torch.Tensor
) -> torch.Tensor:
    """Loss of each position, (positions,), where a share `drawn` of the other items are negatives."""
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
    """Scores of the targets, (positions,), and of negatives, (positions, drawn); -inf is no negative.

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
        rows = rows + (rows >= targets[:, None])  # the target itself is stepped over
    # One lookup for both, since the backward pass of each makes a whole table: 1.9 times faster with a million items.
    drawn = torch.cat([targets, rows.flatten()])
    (target_vectors, vectors), (target_bias, bias) = (
        looked_up.split([len(targets), rows.numel()]) for looked_up in (embedding(drawn, item_table), item_bias[drawn])
    )
    positive = (hidden_states * target_vectors).sum(dim=-1) + target_bias
    if not config.share_negatives:
        negative = torch.einsum("pd,pnd->pn", hidden_states, vectors.unflatten(0, rows.shape))
        return positive, negative + bias.view_as(rows)
    # Each position drops its own target, or the last one where that was not drawn: what is left is uniform over the
    # others.
    own = rows == targets[:, None]
    own[:, -1] |= ~own.any(dim=1)
    return positive, (hidden_states @ vectors.T + bias).masked_fill(own, -torch.inf)
