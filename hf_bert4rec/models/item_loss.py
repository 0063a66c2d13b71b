"""The losses over items: the full softmax in bounded memory, and three losses over sampled negatives.

A new loss is a function and an entry in `LOSSES`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding, linear, softplus
from torch.utils.checkpoint import checkpoint

from .special_tokens import SPECIAL_TOKENS

try:
    from torch.nn.functional import linear_cross_entropy
except ImportError:  # torch before 2.13
    linear_cross_entropy = None  # type: ignore[assignment]

SPECIALS = len(SPECIAL_TOKENS)
GPU_SCORES = 2**25  # 0.13 GB; with smaller chunks the GPU waits: a step on MovieLens-1M takes 1.7 times as long


def item_loss(
    config: Any,
    hidden_states: Tensor,
    item_table: Tensor,
    item_bias: Tensor,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    loss: str | None = None,
    added: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return the mean loss over the scored positions.

    Args:
        config: `Bert4RecConfig` with the name of the loss and its options.
        hidden_states: (..., hidden).
        item_table: (rows, hidden), special tokens first. Losses do not include the special tokens.
        item_bias: (rows,).
        labels: (...) token IDs; -100 and special tokens are not scored.
        num_items_in_batch: Number of scored positions in the whole batch (gradient accumulation, several processes).
            Default: the number in `labels`.
        loss: Another loss than `config.loss`, a key of `LOSSES`.
        added: For the loss `softmax` only: the scores that `repeat_head` and `num_followers` add, as two tensors (...).
            The first is the log-sum of their exponentials over all items, the second for the target only.

    Returns:
        A scalar in nats, at least in single precision; 0 if nothing is scored.

    Raises:
        ValueError: The loss is unknown or does not work with `added`, or there are more negatives than other items.
    """
    check_loss(loss := loss or config.loss)
    if added is not None and loss != "softmax":
        found = f"`repeat_head` and `num_followers` need the loss 'softmax', found {loss!r}"
        raise ValueError(f"{found}. Use 'softmax', or a model without these options.")
    labels = labels.flatten().long()
    scored = labels >= SPECIALS
    # In half precision a sum over a catalog or a batch is wrong by a percent, or infinite.
    precision = torch.promote_types(item_table.dtype, torch.float32)
    hidden_states = hidden_states.flatten(0, -2).to(precision)
    item_table, item_bias = item_table.to(precision), item_bias.to(precision)
    with torch.autocast(hidden_states.device.type, enabled=False):
        inputs = config, hidden_states, item_table, item_bias, torch.where(scored, labels, -100)
        total = LOSSES[loss].total(*inputs) if added is None else softmax_loss_with_added(*inputs, *added)
    count = scored.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
    return total / count.clamp(min=1)


def softmax_loss(
    config: Any, hidden_states: Tensor, item_table: Tensor, item_bias: Tensor, targets: Tensor, reduction: str = "sum"
) -> Tensor:
    """Return the negative log-likelihood over the catalog (paper, equation 8).

    `reduction` is "sum", or "none" for one value per position; other arguments are those of `ItemLoss.total`. The loss
    is computed in chunks of `config.loss_chunk_size` positions, so that only the logits of one chunk exist at a time.
    On a GPU, chunks may be larger: they have about `GPU_SCORES` logits or more.
    """
    special = torch.arange(len(item_bias), device=item_bias.device) < SPECIALS
    bias = item_bias.masked_fill(special, torch.finfo(item_bias.dtype).min)
    chunk_size = config.loss_chunk_size
    if hidden_states.is_cuda:
        chunk_size = max(chunk_size, GPU_SCORES // len(item_table))
    if linear_cross_entropy is None:
        chunks = zip(*(tensor.split(chunk_size) for tensor in (hidden_states, targets)), strict=True)
        losses = [
            checkpoint(_chunk_losses, states, item_table, bias, rows, use_reentrant=False) for states, rows in chunks
        ]
        return torch.cat(losses) if reduction == "none" else torch.cat(losses).sum()
    return linear_cross_entropy(
        hidden_states,
        item_table,
        targets,
        linear_bias=bias,
        reduction=reduction,
        ignore_index=-100,
        options=nn.LinearCrossEntropyOptions(
            batch_chunk_size=chunk_size,  # torch's automatic choice takes 10 times as long for 1M items
            chunking_method=None,
            allow_retain_graph=True,  # without it torch.compile cannot trace the loss in one graph
        ),
    )


def _chunk_losses(states: Tensor, item_table: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(linear(states, item_table, bias), targets, ignore_index=-100, reduction="none")


def softmax_loss_with_added(
    config: Any,
    hidden_states: Tensor,
    item_table: Tensor,
    item_bias: Tensor,
    targets: Tensor,
    log_all: Tensor,
    log_target: Tensor,
) -> Tensor:
    """Return the summed negative log-likelihood of the targets under the scores of the catalog and the added scores.

    `log_all` and `log_target` are the two tensors that `item_loss` gets as `added`.
    """
    losses = softmax_loss(config, hidden_states, item_table, item_bias, targets, reduction="none")
    rows = targets.clamp(min=0)
    score = (hidden_states * embedding(rows, item_table)).sum(dim=-1) + item_bias[rows]
    # A loss plus the score of the target is the log-sum of the exponentials of all scores.
    losses = torch.logaddexp(losses + score, log_all.flatten()) - torch.logaddexp(score, log_target.flatten())
    return torch.where(targets >= SPECIALS, losses, 0).sum()


def sampled_softmax_loss(
    config: Any, hidden_states: Tensor, item_table: Tensor, item_bias: Tensor, targets: Tensor
) -> Tensor:
    """Return the summed cross-entropy over the target and `config.num_negatives` sampled items.

    The sampled items represent all other items: the sum of the exponentials of their scores is multiplied by the number
    of other items and divided by the number of sampled items (logQ correction of uniform sampling; Bengio and Senécal,
    2008). If all other items are sampled and shared (`share_negatives`), the loss is the full softmax.
    """
    positive, negative = sampled_scores(config, hidden_states, item_table, item_bias, targets)
    candidates = torch.cat([positive[:, None], negative - math.log(_share_drawn(config, item_table))], dim=1)
    return torch.where(targets >= SPECIALS, candidates.logsumexp(dim=1) - positive, 0).sum()


def binary_loss(
    config: Any, hidden_states: Tensor, item_table: Tensor, item_bias: Tensor, targets: Tensor, calibrated: bool
) -> Tensor:
    """Return the summed binary cross-entropy: per position the mean over target and `config.num_negatives` other items.

    Args:
        calibrated: Whether the likelihood of the target is raised to the power β = 1 - t (1 - α). α is the drawn
            share of the other items, t is `config.gbce_calibration`. This corrects the overconfidence from negative
            sampling (gSASRec; Petrov and Macdonald, RecSys 2023). Otherwise β is 1.
    """
    positive, negative = sampled_scores(config, hidden_states, item_table, item_bias, targets)
    beta = 1 - config.gbce_calibration * (1 - _share_drawn(config, item_table)) if calibrated else 1
    losses = (beta * softplus(-positive) + softplus(negative).sum(dim=1)) / (1 + config.num_negatives)
    return torch.where(targets >= SPECIALS, losses, 0).sum()


@dataclass(frozen=True)
class ItemLoss:
    """A training loss.

    Args:
        total: Function of config, hidden states (positions, hidden), item table (rows, hidden), item bias (rows,) and
            targets (positions,), which are token IDs of items, or -100 where nothing is scored. Returns the sum of
            the losses of the scored positions in nats.
        samples_negatives: Whether the loss draws `config.num_negatives` items.
    """

    total: Callable[[Any, Tensor, Tensor, Tensor, Tensor], Tensor]
    samples_negatives: bool = False


LOSSES: dict[str, ItemLoss] = {
    "softmax": ItemLoss(softmax_loss, samples_negatives=False),
    "sampled_softmax": ItemLoss(sampled_softmax_loss, samples_negatives=True),
    "gbce": ItemLoss(partial(binary_loss, calibrated=True), samples_negatives=True),
    "bce": ItemLoss(partial(binary_loss, calibrated=False), samples_negatives=True),
}
"""Loss of each name that `config.loss` can have."""


def check_loss(name: str) -> None:
    """Raise ValueError unless a loss is in `LOSSES`."""
    if name not in LOSSES:
        advice = "Correct the name, or add the loss to `hf_bert4rec.LOSSES` (command line: in a module for `--import`)."
        raise ValueError(f"`loss` must be one of {', '.join(LOSSES)}, found {name!r}. {advice}")


def _share_drawn(config: Any, item_table: Tensor) -> float:
    """Return the drawn share of the items other than the target."""
    return config.num_negatives / (len(item_table) - SPECIALS - 1)


def sampled_scores(
    config: Any, hidden_states: Tensor, item_table: Tensor, item_bias: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the scores of the targets (positions,) and of negatives (positions, drawn).

    Negatives are drawn uniformly from all items other than the target of the position. Negatives that are not shared
    may repeat. If negatives are shared, one more item is drawn, and each position has one score of -inf. Arguments are
    those of `ItemLoss.total`; scores at a target of -100 have no meaning. ValueError if there are more negatives than
    other items.
    """
    negatives, items = config.num_negatives, len(item_table) - SPECIALS
    if not 0 < negatives < items:
        expected = f"from 1 to {items - 1}, the number of items other than the target"
        advice = "Change this option, or use the loss `softmax`."
        raise ValueError(f"`num_negatives` must be {expected}, found {negatives}. {advice}")
    targets = targets.clamp(min=SPECIALS)
    if config.share_negatives:  # one more than needed, all different
        rows = torch.randperm(items, device=targets.device)[: negatives + 1] + SPECIALS
    else:
        rows = torch.randint(items - 1, (len(targets), negatives), device=targets.device) + SPECIALS
        rows = rows + (rows >= targets[:, None])  # skips the target
    # One lookup for targets and negatives, since the backward pass of a lookup creates a whole table: 1.9 times faster
    # with a million items.
    drawn = torch.cat([targets, rows.flatten()])
    (target_vectors, vectors), (target_bias, bias) = (
        looked_up.split([len(targets), rows.numel()]) for looked_up in (embedding(drawn, item_table), item_bias[drawn])
    )
    positive = (hidden_states * target_vectors).sum(dim=-1) + target_bias
    if not config.share_negatives:
        negative = torch.einsum("pd,pnd->pn", hidden_states, vectors.unflatten(0, rows.shape))
        return positive, negative + bias.view_as(rows)
    # Each position drops its own target, or the last negative if the target was not drawn. The rest is uniform.
    own = rows == targets[:, None]
    own[:, -1] |= ~own.any(dim=1)
    return positive, (hidden_states @ vectors.T + bias).masked_fill(own, -torch.inf)
