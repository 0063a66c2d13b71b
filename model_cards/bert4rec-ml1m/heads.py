"""The heads of BERT4Rec: predictions, and scores for repeated interactions and for transitions between two items."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .configuration_bert4rec import SPECIAL_TOKENS, Bert4RecConfig


class Bert4RecPredictionHead(nn.Module):
    """Dense layer, activation and layer normalization, as in the published code; equation 7 has no normalization."""

    def __init__(self, config: Bert4RecConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.norm(self.act(self.dense(hidden_states)))


class Bert4RecRepeatHead(nn.Module):
    """Scores for repeated interactions with items of the history (repeat mode of RepeatNet; Ren et al., AAAI 2019).

    An attention over the history gives each position a share a, and a gate g determines their total weight.
    With the scores s of the catalog, the probability of an item is

        (exp(s of the item) + exp(g) · sum of a over its positions) / (sum of exp(s) over all items + exp(g))

    An inner product of short vectors cannot distinguish the items of a user from thousands of others. This head can.
    """

    def __init__(self, config: Bert4RecConfig) -> None:
        super().__init__()
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.distance = nn.Embedding(config.max_position_embeddings, 1)
        self.gate = nn.Linear(config.hidden_size, 1)
        # For `_init_weights`: with small random weights, catalog and history are about equally likely at first.
        self.gate.starts_at = math.log(config.vocab_size)  # type: ignore[assignment]

    def forward(
        self,
        hidden_states: Tensor,  # (batch, kept, hidden) at the scored positions
        items: Tensor,  # (batch, length, hidden) vectors of the items of the history
        input_ids: Tensor,  # (batch, length) token IDs of these items; padding is [PAD]
        kept: Tensor,  # (batch, kept) scored positions
        causal: bool,  # whether only items before a scored position count
    ) -> Tensor:
        """Return g + log a, (batch, kept, length), at least in single precision.

        Special tokens, and items that do not count, get the lowest finite value.
        """
        distances = kept.unsqueeze(-1) - torch.arange(input_ids.shape[1], device=kept.device)
        real = (input_ids >= len(SPECIAL_TOKENS)).unsqueeze(1) & ((distances > 0) | (not causal))
        near = distances.abs().clamp(max=self.distance.num_embeddings - 1)  # a GRU may read more positions
        weights = self.query(hidden_states) @ items.transpose(1, 2) + self.distance(near).squeeze(-1)
        weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
        lowest = torch.finfo(weights.dtype).min
        shares = weights.masked_fill(~real, lowest).log_softmax(dim=-1)
        return (self.gate(hidden_states) + shares).masked_fill(~real, lowest)


def add_scores(logits: Tensor, rows: Tensor, scores: Tensor, parts: Tensor | int = 1) -> Tensor:
    """Return log(exp(logits) + exp(scores)), (batch, kept, vocab_size), except for special tokens.

    `scores` and their token IDs `rows` are (batch, kept, number). `parts` is how often a token ID is in its row.
    """
    old = logits.gather(-1, rows)
    added = (torch.logaddexp(old, scores.to(old)) - old).masked_fill(rows < len(SPECIAL_TOKENS), 0) / parts
    return logits.scatter_add(-1, rows, added.to(logits))


def add_repeats(logits: Tensor, rows: Tensor, repeats: Tensor) -> Tensor:
    """Return log(exp(logits) + exp(repeats)), (batch, kept, vocab_size), with the sum over the repeats of an item.

    `repeats`, the output of `Bert4RecRepeatHead`, and `rows` are (batch, kept, length). `rows` are the token IDs of the
    history, once per kept position.
    """
    input_ids = rows[:, 0]
    same = (input_ids.unsqueeze(-1) == input_ids.unsqueeze(1)).to(repeats)  # whether two positions have one item
    largest = repeats.amax(dim=-1, keepdim=True)
    sums, tiny = (repeats - largest).exp() @ same, torch.finfo(repeats.dtype).tiny
    together = torch.where(sums > tiny, sums.clamp(min=tiny).log() + largest, repeats)
    return add_scores(logits, rows, together, same.sum(dim=1, keepdim=True))  # equal parts per position


class Bert4RecTransitionHead(nn.Module):
    """Head that adds a first-order Markov chain: items that often followed the previous item get higher scores.

    The previous item is the item right before the position, and s are the scores of the catalog. c is the number of
    users in whose training history an item came right after the previous item, and n is the sum of c over all items.
    The probability of an item is

        (exp(s of the item) + exp(g) · c^a / n^b) / (sum of exp(s) over all items + exp(g) · sum of c^a / n^b)

    g is a gate that depends on the hidden state; a and b are trained and start at 1. In training, the transition to the
    target counts once less, because the count includes this user and would reveal the target. The head is needed
    because an inner product of short vectors cannot store single transitions.

    `count_transitions` fills the buffers: `followers` (rows, number) are the token IDs with the most users, 0 for none,
    `counts` (rows, number) their c, and `totals` (rows,) the n of each item.
    """

    def __init__(self, config: Bert4RecConfig) -> None:
        super().__init__()
        rows, number = config.vocab_size, config.num_followers
        self.followers: Tensor
        self.counts: Tensor
        self.totals: Tensor
        for name, shape in (("followers", (rows, number)), ("counts", (rows, number)), ("totals", (rows,))):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.int32))
        self.gate = nn.Linear(config.hidden_size, 1)
        self.powers = nn.Parameter(torch.zeros(2))  # a - 1 and b - 1, since weight decay draws them to 0

    def forward(
        self,
        hidden_states: Tensor,  # (batch, kept, hidden) at the scored positions
        input_ids: Tensor,  # (batch, length) token IDs
        kept: Tensor,  # (batch, kept) scored positions
        labels: Tensor | None = None,  # (batch, kept) true items, whose transitions count once less
    ) -> tuple[Tensor, Tensor]:
        """Return token IDs of followers and g + a log c - b log n, both (batch, kept, number).

        A missing follower gets the lowest finite value.
        """
        kept = kept.expand(input_ids.shape[0], -1)
        before = input_ids.gather(1, (kept - 1).clamp(min=0)).masked_fill(kept == 0, 0)
        before = before.masked_fill(before < len(SPECIAL_TOKENS), 0)
        followers, counts, totals = self.followers[before].long(), self.counts[before], self.totals[before]
        if labels is not None:
            counts, totals = counts - (followers == labels.unsqueeze(-1)).to(counts), totals - 1
        precision = torch.promote_types(self.powers.dtype, torch.float32)  # a count may exceed float16
        c, n = (number.clamp(min=1).to(precision).log() for number in (counts, totals.unsqueeze(-1)))
        a, b = self.powers.to(precision) + 1.0  # torch 2.9 cannot export the sum with 1
        scores = self.gate(hidden_states).to(precision) + a * c - b * n
        return followers, scores.masked_fill(counts < 1, torch.finfo(scores.dtype).min)

    def resize(self, rows: int) -> None:
        """Change the number of token IDs to `rows`. New items have no followers, and removed ones follow no item."""
        for name, old in [*self.named_buffers()]:
            new = old.new_zeros(rows, *old.shape[1:])
            new[: len(old)] = old[:rows]
            setattr(self, name, new)
        gone = self.followers >= rows
        self.followers[gone] = self.counts[gone] = 0


AddedScores = list[tuple[Callable, Tensor, Tensor]]
"""For each additional head: a function that adds scores to logits; token IDs and scores, (batch, kept, number) each."""


def added_sums(added: AddedScores, labels: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the log-sums (batch, kept) of the exponentials of added scores, over all items and over the true item."""
    if not added:
        return None
    _, *tensors = zip(*added, strict=True)
    rows, scores = (torch.cat(of, dim=-1) for of in tensors)
    of_labels = scores.masked_fill(rows != labels.unsqueeze(-1), torch.finfo(scores.dtype).min)
    return scores.logsumexp(dim=-1), of_labels.logsumexp(dim=-1)
