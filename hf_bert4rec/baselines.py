"""Simple recommenders to beat, as modules that the stock Trainer evaluates like any model.

Each is fitted by counting, on the whole histories of the training split (`leave_one_out(..., max_length=…)["train"]`).
"""

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers.modeling_outputs import MaskedLMOutput

from .configuration_bert4rec import SPECIAL_TOKENS


class Popularity(nn.Module):
    """Every user gets the items with the most actions."""

    counts: torch.Tensor  # (rows,)

    def __init__(self, train: Dataset, vocab_size: int) -> None:
        super().__init__()
        counts = np.bincount(np.concatenate(train.with_format("numpy")["input_ids"][:]), minlength=vocab_size)
        self.register_buffer("counts", torch.from_numpy(counts).float())

    def scores(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(users, rows) for (users, length) histories that end in [MASK]."""
        return self.counts.expand(len(input_ids), -1)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        history: torch.Tensor,
        candidates: torch.Tensor | None = None,
    ) -> MaskedLMOutput:
        """As the models do: (users, 1, rows) logits, and the loss of the distribution that is proportional to them."""
        logits = self.scores(input_ids, attention_mask).clamp(min=1e-9).log()
        specials = len(SPECIAL_TOKENS)
        targets = labels.amax(dim=1) - specials
        known = targets >= 0
        loss = nn.functional.cross_entropy(
            logits[:, specials:], torch.where(known, targets, -100), reduction="sum"
        ) / known.sum().clamp(min=1)
        return MaskedLMOutput(loss=loss, logits=logits[:, None])


class MarkovChain(Popularity):
    """The next item given the last one (first order), items never seen to follow it by their popularity."""

    def __init__(self, train: Dataset, vocab_size: int) -> None:
        super().__init__(train, vocab_size)
        pairs = np.concatenate(
            [np.stack([history[:-1], history[1:]]) for history in train.with_format("numpy")["input_ids"][:]], axis=1
        )
        ones, shape = torch.ones(pairs.shape[1]), (vocab_size, vocab_size)
        followed = torch.sparse_coo_tensor(torch.from_numpy(pairs), ones, shape, check_invariants=False)
        self.followed = followed.coalesce()  # no buffer: not every device has sparse tensors

    def scores(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(users, rows): times that an item followed the last one, plus less than one for popularity."""
        before_mask = (attention_mask.sum(dim=1, keepdim=True) - 2).clamp(min=0)
        last = input_ids.take_along_dim(before_mask, dim=1)[:, 0]  # [MASK] itself for an empty history: follows nothing
        followed = self.followed.index_select(0, last.cpu()).to_dense().to(last.device)
        return followed + 0.9 * self.counts / self.counts.max()
