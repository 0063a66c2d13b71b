"""Counts of transitions, from an item to the item right after it, and how well they predict the next item."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

STEPS = 50  # of expectation maximization


@dataclass(frozen=True)
class Transitions:
    """Pairs of an item and the item right after it in a history. A pair counts once per user."""

    items: np.ndarray  # (pairs,) number of the earlier item, such as its token ID, ascending
    followers: np.ndarray  # (pairs,) number of the later item; for each earlier item, those with the most users first
    counts: np.ndarray  # (pairs,) number of users

    @classmethod
    def count(cls, users: np.ndarray, rows: np.ndarray, items: np.ndarray, counted: np.ndarray | None = None) -> Self:
        """Count the transitions in rows: user, row and item of each interaction, (interactions,), oldest first per row.

        Pairs with a negative (unknown) item are not counted. `counted`, (interactions,) bool, marks the interactions
        that may be the later one of a pair. Default: all.
        """
        found = (rows[1:] == rows[:-1]) & (items[1:] >= 0) & (items[:-1] >= 0)
        if counted is not None:
            found &= counted[1:]
        table = np.stack([users[1:][found], items[:-1][found], items[1:][found]]).astype(np.int64)
        table = table[:, np.lexsort(table)]
        table = table[:, np.diff(table, axis=1, prepend=-1).any(axis=0)]  # once per user
        return cls._summed(table[1], table[2], np.ones(table.shape[1], np.int64))

    @classmethod
    def _summed(cls, items: np.ndarray, followers: np.ndarray, counts: np.ndarray) -> Self:
        """Replace equal pairs by one pair with the sum of their counts."""
        width = followers.max(initial=0) + 1
        pairs, place = np.unique(items.astype(np.int64) * width + followers, return_inverse=True)
        total = np.bincount(place, counts, len(pairs)).astype(np.int64)
        order = np.lexsort((-total, pairs // width))
        return cls(pairs[order] // width, pairs[order] % width, total[order])

    def mixture(self) -> tuple[float, float]:
        """Return the weight of a Markov chain in its best mixture with popularity, and the gain over popularity alone.

        Chain and popularity predict the later item of each pair, the chain without the count of the pair's own user.
        The weight maximizes the likelihood of the pairs (Jelinek and Mercer, 1980; by expectation maximization). The
        gain is the probability of a pair by the mixture, divided by its probability by popularity alone (geometric mean
        over pairs). Without pairs, the result is (0.0, 1.0).
        """
        if not len(self.counts):
            return 0.0, 1.0
        totals = np.bincount(self.items, self.counts)[self.items]
        popularity = np.bincount(self.followers, self.counts)[self.followers] / self.counts.sum()
        chain, weight = (self.counts - 1) / np.maximum(totals - 1, 1), 0.5
        for _ in range(STEPS):
            mixture = weight * chain + (1 - weight) * popularity
            weight = float(np.average(weight * chain / mixture, weights=self.counts))
        ratios = np.log(weight * chain / popularity + 1 - weight)
        return weight, float(np.exp(np.average(ratios, weights=self.counts)))

    def add_to(self, head: Any) -> None:
        """Add the counts to those of a `Bert4RecTransitionHead`, which keeps the followers with the most users."""
        old, places = (head.counts > 0).nonzero(as_tuple=True)
        known = old, head.followers[old, places], head.counts[old, places]
        pairs = zip(known, (self.items, self.followers, self.counts), strict=True)
        merged = self._summed(*(np.r_[before.cpu().numpy(), new] for before, new in pairs))
        place = np.arange(len(merged.items)) - np.searchsorted(merged.items, merged.items)
        kept = place < head.followers.shape[1]
        where = torch.from_numpy(merged.items[kept]), torch.from_numpy(place[kept])
        for buffer, values in ((head.followers, merged.followers), (head.counts, merged.counts)):
            buffer.zero_()[where] = torch.from_numpy(values[kept]).to(buffer)
        head.totals += torch.from_numpy(np.bincount(self.items, self.counts, len(head.totals))).to(head.totals)
