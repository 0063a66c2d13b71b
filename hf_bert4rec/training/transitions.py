"""Transitions: an item that came right after another one of a user. Their counts, and how much they predict."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

STEPS = 50  # of expectation maximization


@dataclass(frozen=True)
class Transitions:
    """Pairs of items, one of which came right after the other one in histories. A pair counts once per user.

    Args:
        items: (pairs,) the earlier item, ascending.
        followers: (pairs,) the later item; of an item, those with the most users first.
        counts: (pairs,) number of users.
    """

    items: np.ndarray
    followers: np.ndarray
    counts: np.ndarray

    @classmethod
    def count(cls, users: np.ndarray, rows: np.ndarray, items: np.ndarray) -> Self:
        """Count the transitions in rows, all (interactions,): the user, the row, and the item, oldest first per row.

        Negative items are unknown.
        """
        found = (rows[1:] == rows[:-1]) & (items[1:] >= 0) & (items[:-1] >= 0)
        of_users = users[1:][found].astype(np.int64), items[:-1][found].astype(np.int64), items[1:][found]
        table = np.stack([of[np.lexsort(of_users)] for of in of_users])
        table = table[:, np.diff(table, axis=1, prepend=-1).any(axis=0)]  # once per user
        return cls._summed(table[1], table[2], np.ones(table.shape[1], np.int64))

    @classmethod
    def _summed(cls, items: np.ndarray, followers: np.ndarray, counts: np.ndarray, largest: bool = False) -> Self:
        """Return one pair for equal ones, with the sum or the largest of their counts."""
        width = followers.max(initial=0) + 1
        pairs, place = np.unique(items.astype(np.int64) * width + followers, return_inverse=True)
        total = np.zeros(len(pairs), np.int64)
        (np.maximum if largest else np.add).at(total, place, counts)
        order = np.lexsort((-total, pairs // width))
        return cls(pairs[order] // width, pairs[order] % width, total[order])

    def mixture(self, probabilities: np.ndarray) -> tuple[float, float]:
        """Mix a Markov chain with `probabilities` (items,) of the next item; return the weight of the chain and a gain.

        The weight makes the transitions most likely (Jelinek and Mercer, 1980; by expectation maximization). The gain
        tells how many times as likely as by the probabilities alone they are then, as a geometric mean. Each transition
        is predicted from those of the other users.
        """
        if not len(self.counts):
            return 0.0, 1.0
        users = np.bincount(self.items, self.counts)[self.items]
        chain, simple, weight = (self.counts - 1) / np.maximum(users - 1, 1), probabilities[self.followers], 0.5
        for _ in range(STEPS):
            mixture = weight * chain + (1 - weight) * simple
            weight = float(np.average(weight * chain / mixture, weights=self.counts))
        ratios = np.log(weight * chain / simple + 1 - weight)
        return weight, float(np.exp(np.average(ratios, weights=self.counts)))

    def store(self, head: Any) -> None:
        """Store the followers with the most users in a `Bert4RecTransitionHead`, next to those that it has.

        Of two counts of a pair the larger one is kept, since training that is continued replays older rows.
        """
        old, places = (head.counts > 0).nonzero(as_tuple=True)
        known = old, head.followers[old, places], head.counts[old, places]
        pairs = zip(known, (self.items, self.followers, self.counts), strict=True)
        items, followers, counts = (np.r_[before.cpu().numpy(), new] for before, new in pairs)
        merged = self._summed(items, followers, counts, largest=True)
        place = np.arange(len(merged.items)) - np.searchsorted(merged.items, merged.items)
        kept = place < head.followers.shape[1]
        where = torch.from_numpy(merged.items[kept]), torch.from_numpy(place[kept])
        for buffer, values in ((head.followers, merged.followers), (head.counts, merged.counts)):
            buffer.zero_()[where] = torch.from_numpy(values[kept]).to(buffer)
        users = np.bincount(merged.items, merged.counts, len(head.users))
        head.users.copy_(torch.maximum(head.users, torch.from_numpy(users).to(head.users)))
