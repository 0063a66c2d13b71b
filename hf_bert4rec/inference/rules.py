"""Rules that rerank the best items of a user: at most n per category, diversity, and boosts."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from ..data.arguments import check_count, check_number
from .arguments import check_conditions, user_errors
from .attributes import ItemAttributes, require_attributes

LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True, repr=False)  # error messages would show all items and vectors
class Candidates:
    """The best items for one user, best first: the argument of a rule.

    Args:
        items: Raw IDs.
        logits: (items,) float32 logarithms of the probabilities plus a constant. After another rule, the logits that it
            returned.
        vectors: (items, hidden) float32 item vectors of length 1, without the bias.
        attributes: Attributes of items, or None if there is no table.
    """

    items: list[str]
    logits: np.ndarray
    vectors: np.ndarray
    attributes: ItemAttributes | None

    def values(self, name: str) -> list[list[Any]]:
        """Return a list of values for each item, [] without values; ValueError for an unknown attribute or no table."""
        found = require_attributes(self.attributes).values(name)
        return [list(found.get(item, ())) for item in self.items]


Rule = Callable[[Candidates], Sequence[float] | np.ndarray]
"""Function of candidates that returns their new logits, (items,) float, to sort by. -inf drops an item."""


def at_most(number: int, attribute: str) -> Rule:
    """Return a rule that keeps at most `number` items with the same value of an attribute, the best ones.

    An item with several values is dropped if one of them occurs in `number` kept items above it. Items without a value
    are kept. ValueError if `number` is not a whole number of at least 1.
    """
    check_count("number", number)

    def rule(candidates: Candidates) -> np.ndarray:
        counts: Counter[Any] = Counter()
        logits = candidates.logits.copy()
        for place, values in enumerate(candidates.values(attribute)):
            if any(counts[value] >= number for value in values):
                logits[place] = -np.inf
            else:
                counts.update(set(values))
        return logits

    return rule


def diversify(weight: float) -> Rule:
    """Return a rule that prefers items that differ from the items above them (maximal marginal relevance).

    The next item is always the one with the largest (1 - weight) * relevance - weight * similarity. Relevance is the
    logit, scaled to 0 for the last of the candidates and 1 for the first. Similarity is the largest cosine between the
    vector of the item and the vector of an item above it. Source: Carbonell and Goldstein, SIGIR 1998.

    An item with a far lower logit makes the relevance of the others almost equal. Drop it by a rule before this one.

    Args:
        weight: From 0 to 1; other values raise ValueError. 0 keeps the order, 1 ignores the scores.
    """
    check_number("weight", weight, "a number from 0 to 1, as in `diversify(0.3)`", lambda number: 0 <= number <= 1)

    def rule(candidates: Candidates) -> np.ndarray:
        logits = candidates.logits
        relevance = (1 - weight) * (logits - logits[-1]) / max(float(np.ptp(logits)), 1e-12)
        cosines = candidates.vectors @ candidates.vectors.T
        nearest, order = np.full(len(logits), -1.0), []
        for _ in logits:
            order.append(int((relevance - weight * nearest).argmax()))
            relevance[order[-1]] = -np.inf
            nearest = np.maximum(nearest, cosines[order[-1]])
        diverse = np.empty_like(logits)
        diverse[order] = logits  # the first of the new order gets the largest
        return diverse

    return rule


def boost(where: Mapping[str, Any], factor: float) -> Rule:
    """Return a rule that multiplies the probability of items that fulfill all conditions.

    Only the order changes: the score in the answer stays that of the model. Items that are not among the candidates
    cannot be moved up; use more `candidates` for large factors. ValueError if an argument is invalid.

    Args:
        where: Dict from attribute to condition, such as `{"new": True}`; see `ItemAttributes.matching`.
        factor: Finite and above 0. Above 1 it moves these items up, below 1 down.
    """
    check_conditions("where", where)
    # An iterator could be read once only, but a rule may be called with several tables.
    where = {name: list(it) if isinstance(it, Iterator) else it for name, it in where.items()}
    check_number("factor", factor, "a finite number above 0", lambda number: 0 < number < np.inf)

    @lru_cache(maxsize=1)  # a rule is called for each user
    def matching(attributes: ItemAttributes) -> list[set[str]]:
        return [set(attributes.matching(*condition).to_pylist()) for condition in where.items()]

    def rule(candidates: Candidates) -> np.ndarray:
        found = matching(require_attributes(candidates.attributes))
        boosted = [all(item in ids for ids in found) for item in candidates.items]
        return candidates.logits + np.log(factor) * np.array(boosted)

    return rule


def order_by_rules(candidates: Candidates, rules: Sequence[Rule]) -> np.ndarray:
    """Return the indices of the candidates that the rules keep, best first.

    Each rule gets the result of the rule before it. ValueError if a rule fails, or returns no logit for a candidate.
    """
    items, logits, order = np.array(candidates.items, object), candidates.logits, np.arange(len(candidates.items))
    for number, rule in enumerate(rules, 1):
        if not len(order):
            break
        names = items[order].tolist()
        # A rule may change what it gets, so each rule gets a copy.
        copy = Candidates(names[:], logits.copy(), candidates.vectors[order], candidates.attributes)
        advice = "Fix the rule or the call. Example of a rule: at_most(2, 'category')."
        with user_errors(f"Rule {number} of `rerank`", advice):
            found = rule(copy)
            returned = np.asarray(found)
        if isinstance(found, pd.Series) and list(found.index) not in ([*range(len(order))], names):
            advice = "Order the values as `candidates.items`, with these IDs or 0, 1, … as the index."
            raise ValueError(f"Rule {number} of `rerank` returned a Series with another index. {advice}")
        fits = returned.dtype.kind == "f" and returned.shape == order.shape
        if not fits or not np.all((np.abs(returned) < LARGEST) | (returned == -np.inf)):
            expected = f"one finite float for each of the {len(order)} candidates, or -inf to drop the item"
            shown = f"{returned.dtype} of shape {returned.shape}: {found!r:.150}. Use floats below {LARGEST:.1e}"
            raise ValueError(f"Rule {number} of `rerank` must return {expected}, found {shown}.")
        best = np.argsort(-returned, kind="stable")[: np.count_nonzero(returned > -np.inf)]
        logits, order = returned[best].astype(np.float32), order[best]
    return order
