"""Rules that rerank the best items of a user: at most n per category, diversity, and boosts."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from .attributes import ItemAttributes


@dataclass(frozen=True)
class Candidates:
    """The best items for one user, best first, as a rule gets them.

    Args:
        items: Raw IDs.
        logits: (items,) float32 scores: log-probabilities plus a number that is the same for all items.
        vectors: (items, hidden) float32 vectors of length 1.
        rows: (items,) int64 rows of the item table.
        places: (items,) int64 places in the order of the model, 0 for its best item.
        attributes: Attributes of the catalog; None without a table.
    """

    items: list[str]
    logits: np.ndarray
    vectors: np.ndarray
    rows: np.ndarray
    places: np.ndarray
    attributes: ItemAttributes | None

    def values(self, name: str) -> list[list[Any]]:
        """Return the values of an attribute for each item, an empty list for an item without any."""
        return needed(self.attributes).values(name, self.rows)

    def matches(self, where: Mapping[str, Any]) -> np.ndarray:
        """Return which items fulfill conditions, (items,) bool; see `ItemAttributes.matches`."""
        return needed(self.attributes).matches(where)[self.rows]

    def take(self, places: Sequence[int] | np.ndarray) -> "Candidates":
        """Return the items at some places, in this order."""
        chosen = np.asarray(places, np.int64)
        arrays = {name: getattr(self, name)[chosen] for name in ("logits", "vectors", "rows", "places")}
        return replace(self, items=[self.items[place] for place in chosen], **arrays)


Rule = Callable[[Candidates], Sequence[int] | np.ndarray]
"""Function of candidates that returns the places of those to recommend, best first. It may drop some."""


def at_most(number: int, attribute: str) -> Rule:
    """Return a rule that keeps at most `number` items of each value of an attribute, in the order of the scores.

    An item with several values counts for each of them. An item without a value is not limited.
    """
    if number < 1:
        raise ValueError(f"`number` must be at least 1, found {number}.")

    def rule(candidates: Candidates) -> list[int]:
        counts: Counter[Any] = Counter()
        kept = []
        for place, values in enumerate(candidates.values(attribute)):
            if all(counts[value] < number for value in values):
                counts.update(values)
                kept.append(place)
        return kept

    return rule


def diversify(weight: float) -> Rule:
    """Return a rule that prefers items that differ from those above them (maximal marginal relevance).

    The next item is always the one with the largest (1 - weight) * relevance - weight * similarity. Relevance is the
    logit, scaled to 0 for the last candidate and 1 for the first; similarity is the largest cosine of its vector and
    the vector of an item above it. Source: Carbonell and Goldstein, SIGIR 1998.

    Args:
        weight: 0 keeps the order, 1 ignores the scores.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"`weight` must be from 0 to 1, found {weight}.")

    def rule(candidates: Candidates) -> list[int]:
        # By place, so that the order of a rule before this one counts.
        relevance = np.sort(candidates.logits)[::-1]
        relevance = (relevance - relevance[-1:]) / max(np.ptp(relevance), 1e-12) if len(relevance) else relevance
        cosines = candidates.vectors @ candidates.vectors.T
        nearest = np.full(len(relevance), -1.0)
        left = np.ones(len(relevance), bool)
        order = []
        for _ in relevance:
            best = int(np.where(left, (1 - weight) * relevance - weight * nearest, -np.inf).argmax())
            order.append(best)
            left[best] = False
            nearest = np.maximum(nearest, cosines[best])
        return order

    return rule


def boost(where: Mapping[str, Any], factor: float) -> Rule:
    """Return a rule that multiplies the probability of items that fulfill conditions; see `ItemAttributes.matches`.

    The order changes, the scores of the answer do not.

    Args:
        where: Conditions, such as `{"new": True}`.
        factor: Above 1 moves them up, below 1 down.
    """
    if not factor > 0:
        raise ValueError(f"`factor` must be above 0, found {factor}.")

    @lru_cache(maxsize=1)  # a rule is called for each user
    def matching(attributes: ItemAttributes) -> np.ndarray:
        return attributes.matches(where)

    def rule(candidates: Candidates) -> np.ndarray:
        matches = matching(needed(candidates.attributes))[candidates.rows]
        boosted = candidates.logits + np.where(matches, np.log(factor), 0)
        return np.argsort(-boosted, kind="stable")

    return rule


def rerank(candidates: Candidates, rules: Rule | Sequence[Rule]) -> Candidates:
    """Return candidates in the order of a rule, or of several, each of which gets what the one before it returned.

    Raises:
        ValueError: `rules` is something else, or a rule does not return different places of candidates.
    """
    listed: list[Any] = list(rules) if isinstance(rules, list | tuple) else [rules]
    if not all(map(callable, listed)):
        raise ValueError(f"`rerank` must be a rule or a list of rules, found {rules!r:.100}.")
    for rule in listed:
        places, number = list(rule(candidates)), len(candidates.items)
        if len(set(places)) < len(places) or not all(place in range(number) for place in places):
            raise ValueError(f"A rule must return different places from 0 to {number - 1}, found {places!r:.200}.")
        candidates = candidates.take(places)
    return candidates


def needed(attributes: ItemAttributes | None) -> ItemAttributes:
    """Return the attributes; ValueError if there are none."""
    if attributes is None:
        raise ValueError("Attributes are missing: pass a table with one row per item as `attributes=`.")
    return attributes
