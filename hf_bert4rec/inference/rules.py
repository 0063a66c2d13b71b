"""Rules that rerank the best items of a user: at most n per category, diversity, and boosts."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from numbers import Real
from typing import Any

import numpy as np

from .arguments import check_option
from .attributes import CatalogAttributes


@dataclass(frozen=True)
class Candidates:
    """The best items for one user, best first, as a rule gets them.

    Args:
        items: Raw IDs.
        logits: (items,) float32: logarithms of the probabilities, plus the same number for all items.
        vectors: (items, hidden) float32 vectors of length 1.
        rows: (items,) int64 rows of the item table.
        attributes: Their attributes; None without a table.
    """

    items: list[str]
    logits: np.ndarray
    vectors: np.ndarray
    rows: np.ndarray
    attributes: CatalogAttributes | None

    def __post_init__(self) -> None:
        for array in (self.logits, self.vectors, self.rows):
            array.setflags(write=False)  # a rule chooses, and changes nothing

    def values(self, name: str) -> list[list[Any]]:
        """Return a list of the values of an attribute for each item; it is empty for an item without values."""
        return needed(self.attributes).values(name, self.rows)

    def matches(self, where: Mapping[str, Any]) -> np.ndarray:
        """Return which items fulfill all conditions, (items,) bool; see `CatalogAttributes.matches`."""
        return np.all(needed(self.attributes).matches(where)[:, self.rows], axis=0)

    def take(self, indices: Sequence[int] | np.ndarray) -> "Candidates":
        """Return the items at some indices, in this order.

        Logits stay in descending order: the item at the first index gets the largest one. So a rule that follows sees
        the new order.
        """
        chosen = np.asarray(indices, np.int64)
        return replace(
            self,
            items=[self.items[index] for index in chosen],
            logits=np.sort(self.logits[chosen])[::-1],
            vectors=self.vectors[chosen],
            rows=self.rows[chosen],
        )


Rule = Callable[[Candidates], Sequence[int] | np.ndarray | Candidates]
"""Function of candidates that returns the indices of those to recommend, best first, or the `Candidates` themselves."""


def at_most(number: int, attribute: str) -> Rule:
    """Return a rule that keeps at most `number` items with the same value of an attribute, the best ones.

    An item with several values is dropped if one of them has been used up. An item without a value is never dropped.
    """
    check_option("number", number)

    def rule(candidates: Candidates) -> list[int]:
        counts: Counter[Any] = Counter()
        kept = []
        for index, values in enumerate(candidates.values(attribute)):
            if all(counts[value] < number for value in values):
                counts.update(values)
                kept.append(index)
        return kept

    return rule


def diversify(weight: float) -> Rule:
    """Return a rule that prefers items that differ from those above them (maximal marginal relevance).

    The next item is always the one with the largest (1 - weight) * relevance - weight * similarity. Relevance is the
    logit, scaled to 0 for the last of the candidates and 1 for the first. Similarity is the largest cosine between the
    vector of the item and the vector of an item above it. Source: Carbonell and Goldstein, SIGIR 1998.

    Args:
        weight: 0 keeps the order, 1 ignores the scores.
    """
    if not isinstance(weight, Real) or not 0 <= weight <= 1:
        raise ValueError(f"`weight` must be a number from 0 to 1, found {weight!r:.100}.")

    def rule(candidates: Candidates) -> list[int]:
        relevance = candidates.logits - candidates.logits.min(initial=np.inf)
        relevance = relevance / max(relevance.max(initial=0), 1e-12)
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
    """Return a rule that multiplies the probability of items that fulfill conditions; see `CatalogAttributes.matches`.

    Only the order changes: the score in the answer stays the probability of the model. Items that are not among the
    candidates cannot be moved up; raise `candidates` for large factors.

    Args:
        where: Conditions, such as `{"new": True}`.
        factor: Above 1 moves them up, below 1 down.
    """
    if not isinstance(factor, Real) or not factor > 0:
        raise ValueError(f"`factor` must be a number above 0, found {factor!r:.100}.")

    @lru_cache(maxsize=1)  # a rule is called for each user
    def matching(attributes: CatalogAttributes) -> np.ndarray:
        return attributes.matches(where).all(axis=0)

    def rule(candidates: Candidates) -> Candidates:
        boosted = matching(needed(candidates.attributes))[candidates.rows]
        logits = candidates.logits + np.where(boosted, np.log(factor), 0)
        return replace(candidates, logits=logits).take(np.argsort(-logits, kind="stable"))

    return rule


def as_rules(rules: Any) -> list[Any]:
    """Return a rule, or several, as a list; ValueError for something else."""
    listed = list(rules) if isinstance(rules, list | tuple) else [rules]
    if not all(map(callable, listed)):
        raise ValueError(f"`rerank` must be a rule or a list of rules, found {rules!r:.100}.")
    return listed


def rerank(candidates: Candidates, rules: Sequence[Any]) -> Candidates:
    """Return candidates in the order of several rules, each of which gets what the one before it returned.

    Raises:
        ValueError: A rule does not return different indices of candidates.
    """
    for rule in rules:
        found = rule(candidates)
        if not isinstance(found, Candidates):
            indices, number = np.asarray(found), len(candidates.items)
            whole = indices.ndim == 1 and (indices.dtype.kind in "iu" or not indices.size)
            if not whole or len(np.unique(indices)) < len(indices) or not np.isin(indices, np.arange(number)).all():
                advice = " For a mask use np.flatnonzero." if indices.dtype == bool else ""
                expected = f"different indices from 0 to {number - 1}"
                raise ValueError(f"A rule must return {expected}, found {found!r:.200}.{advice}")
            found = candidates.take(indices)
        candidates = found
    return candidates


def needed(attributes: CatalogAttributes | None) -> CatalogAttributes:
    """Return the attributes; ValueError if there are none."""
    if attributes is None:
        raise ValueError("Attributes are missing: pass a table with one row per item as `attributes=`.")
    return attributes
