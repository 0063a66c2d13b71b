"""Choose the items to return for each user: exclusions, filters, candidates from an index, and rules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad
from transformers import PreTrainedModel

from ..evaluation.ranking import stable_top_k
from ..models.configuration_bert4rec import SPECIAL_TOKENS
from .answers import ItemCatalog, Recommendations, check_scores
from .attributes import ItemAttributes, require_attributes
from .index import ItemIndex
from .rules import Candidates, Rule, order_by_rules

SEARCHED = 4  # items that an index is asked for, per item to return
COMPARED = 16  # items whose vectors in an index are compared with those of the model

LISTS = {"history": "in the history", "deny": "in `deny`", "allow": "not in `allow`"}  # why an item is excluded

Ranking = tuple[Tensor, Tensor, Tensor]


@dataclass
class Selection:
    """The options of a pipeline call that choose items, except `allow` and `deny`, and its model and catalog."""

    catalog: ItemCatalog
    model: PreTrainedModel
    exclude_history: bool
    top_k: int = 10
    where: Mapping[str, Any] = field(default_factory=dict)
    where_not: Mapping[str, Any] = field(default_factory=dict)
    attributes: ItemAttributes | None = None
    rerank: Sequence[Rule] = ()
    candidates: int = 100  # number of items that the rules get, at least `top_k`
    index: Any = None

    def __post_init__(self) -> None:
        if self.index is not None:
            items = len(self.catalog.tokenizer.items)
            self.index = ItemIndex(self.index, items, self.model.config.hidden_size + 1)
            keys, (weight, bias) = torch.linspace(0, items - 1, COMPARED).long().unique(), self.model._item_weights()
            own = [it[(keys + len(SPECIAL_TOKENS)).to(it.device)].detach().cpu().float() for it in (weight, bias)]
            self.index.compare(keys.numpy(), torch.cat([own[0], own[1][:, None]], dim=1).numpy())
            if self.model.repeat_head is not None and not self.exclude_history:
                solution = "Pass `exclude_history=True`, or remove `index` from the call or the pipeline."
                raise ValueError(f"An index does not contain the scores of the model's `repeat_head`. {solution}")
        self._number = max(self.top_k, self.candidates) if self.rerank else self.top_k
        self.closed = self.catalog.closed.clone()  # token IDs that are not recommended to anybody, (vocab_size,) bool
        self._closed_by = {"removed": self.catalog.closed}  # the same rows, by the reason
        for name, conditions in (("where", self.where), ("where_not", self.where_not)):
            rows = torch.zeros_like(self.closed)
            for condition in conditions.items():
                ids = require_attributes(self.attributes).matching(*condition)
                matches = np.asarray(pc.is_in(self.catalog.tokenizer.items, value_set=ids))
                rows[len(SPECIAL_TOKENS) :] |= torch.from_numpy(matches) == (name == "where_not")
            self._close(f"by `{name}`", rows)

    def restrict(self, name: str, items: list[Any]) -> None:
        """Apply one list of raw IDs, `allow` or `deny`, for all users, in addition to earlier lists."""
        (rows,) = self.catalog.read_rows([items], name)
        self._close(f"by `{name}` of the pipeline", self._excluded_by(name, torch.from_numpy(rows)))

    def _close(self, reason: str, rows: Tensor) -> None:
        self._closed_by[reason] = rows
        self.closed |= rows

    def _excluded_by(self, name: str, rows: Tensor) -> Tensor:
        """Return which token IDs a list excludes, (vocab_size,) bool; `name` is a key of `LISTS`."""
        return torch.zeros_like(self.closed).index_fill(0, rows, True) ^ (name == "allow")

    @torch.no_grad()
    def best(self, outputs: dict[str, Tensor]) -> list[Recommendations]:
        """Return the best items for each user; raise ValueError if scores are not finite.

        Args:
            outputs: `logits` (users, vocab_size), which are overwritten; with an index instead `queries` (users, hidden
                + 1) and, if the model has them, `followers` and `transitions` (users, number). Token IDs padded with
                [PAD]: `history` (users, longest), and optionally `allow` and `deny` (users or 1, longest).
        """
        lists = {name: outputs[name].expand(len(outputs["history"]), -1) for name in LISTS if name in outputs}
        if not self.exclude_history:
            lists["history"] = lists["history"][:, :0]
        excluded = torch.cat([rows for name, rows in lists.items() if name != "allow"], dim=1)
        if self.index is None:
            rows, scores, logits = self._rank_all(outputs, excluded)
        else:
            rows, scores, logits = self._rank_found(outputs, excluded, lists.get("allow"))
        found = logits.isfinite().sum(dim=1).tolist()
        counts = list(found)
        if self.rerank:
            for user, count in enumerate(found):
                order = self._apply_rules(rows[user, :count], logits[user, :count])
                counts[user] = len(order)
                rows[user, : len(order)] = rows[user, order]
                scores[user, : len(order)] = scores[user, order]
        shown = [min(count, self.top_k) for count in counts]
        answers = self.catalog.describe(rows[:, : self.top_k].numpy(), scores[:, : self.top_k].numpy(), shown)
        for user, answer in enumerate(answers):
            if len(answer) < self.top_k:
                own = {name: of[user] for name, of in lists.items()}
                answer.reason = self._reason(own, found[user], len(answer))
        return answers

    def _rank_all(self, outputs: dict[str, Tensor], excluded: Tensor) -> Ranking:
        """Return token IDs, probabilities and logits (users, number) of the best items."""
        logits = outputs["logits"]
        normalizer = logits.logsumexp(dim=1, keepdim=True)
        check_scores(normalizer)
        logits.scatter_(1, excluded, -torch.inf)
        logits[:, self.closed] = -torch.inf
        if "allow" in outputs:
            allowed = torch.zeros(len(outputs["allow"]), logits.shape[1], dtype=torch.bool)
            logits.masked_fill_(~allowed.scatter_(1, outputs["allow"], True), -torch.inf)
        values, rows = stable_top_k(logits, min(self._number, logits.shape[1]))
        return rows, (values - normalizer).exp(), values

    def _rank_found(self, outputs: dict[str, Tensor], excluded: Tensor, allowed: Tensor | None) -> Ranking:
        """Return token IDs and logits (users, number) of the best items from the index, or of those in `allow`.

        The logits are returned twice, because probabilities as from `_rank_all` would need the scores of all items.
        Followers from the transition head are ranked together with the items from the index. Users whose query vector
        is 0, because they have no items, get the items with the largest biases instead of those from the index.
        """
        check_scores(queries := outputs["queries"])
        possible = (~self.closed).nonzero()[:, 0]
        denied = pad(excluded, (1, 0)).sort(dim=1).values  # with [PAD], which is row 0
        weight, bias = self.model._item_weights()
        empty, by_bias = ~queries[:, :-1].any(dim=1), possible  # users without items, whose scores are the biases
        if empty.any():
            by_bias = possible[bias[possible.to(bias.device)].float().cpu().sort(descending=True, stable=True).indices]
        count = SEARCHED * self._number
        while True:
            all_possible = count >= len(possible)
            if allowed is not None:
                found = allowed
            elif all_possible:
                found = possible.expand(len(queries), -1)
            else:  # a place that the index left empty becomes the last special row, which is closed
                found = torch.from_numpy(self.index.search(queries.numpy(), count)) + len(SPECIAL_TOKENS)
                found[empty] = by_bias[:count]
            rows, left = self._possible(found, denied)
            if allowed is not None or all_possible or left.sum(dim=1).min() >= self._number:
                break
            count *= SEARCHED
        if "followers" in outputs and allowed is None and not all_possible:
            rows, left = self._possible(torch.cat([found, outputs["followers"]], dim=1), denied)
        scores = []
        for of, query in zip(rows, queries, strict=True):
            vectors, added = weight[of.to(weight.device)].cpu(), bias[of.to(bias.device)].cpu()
            scores.append(added + vectors.float() @ query[:-1])
        logits = torch.stack(scores)
        if "followers" in outputs:
            logits = _with_transitions(logits, rows, outputs["followers"], outputs["transitions"])
        logits = logits.masked_fill(~left, -torch.inf)
        values, order = stable_top_k(logits, min(self._number, logits.shape[1]))
        return rows.gather(1, order), values, values

    def _possible(self, found: Tensor, denied: Tensor) -> tuple[Tensor, Tensor]:
        """Return token IDs (users, number) in ascending order, and which of them may be recommended."""
        rows = found.sort(dim=1).values
        left = ~self.closed[rows]
        left[:, 1:] &= rows[:, 1:] != rows[:, :-1]  # an item that is listed twice
        nearest = torch.searchsorted(denied, rows).clamp(max=denied.shape[1] - 1)
        return rows, left & (denied.gather(1, nearest) != rows)

    def _apply_rules(self, rows: Tensor, logits: Tensor) -> Tensor:
        """Return the indices of the items that the rules keep, in the new order."""
        weight = self.model._item_weights()[0]
        candidates = Candidates(
            items=self.catalog.tokenizer.decode_items(rows.numpy()),
            logits=logits.numpy(),
            vectors=normalize(weight[rows.to(weight.device)].float()).cpu().numpy(),
            attributes=self.attributes,
        )
        return torch.from_numpy(order_by_rules(candidates, self.rerank))

    def _reason(self, lists: dict[str, Tensor], found: int, returned: int) -> str:
        """Return why a user gets fewer than `top_k` items. An item counts for the first reason that excludes it."""
        own = {LISTS[name]: self._excluded_by(name, rows) for name, rows in lists.items()}
        left = torch.arange(len(self.closed)) >= len(SPECIAL_TOKENS)
        items, reasons = int(left.sum()), {}
        for reason, rows in {"removed": self._closed_by["removed"], **own, **self._closed_by}.items():
            reasons[reason] = int((left & rows).sum())
            left &= ~rows
        reasons[f"not among the best {self._number:,} (`candidates`)"] = int(left.sum()) - found
        reasons["dropped by `rerank`"] = found - returned
        if shown := ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count):
            wanted = f"Found {returned:,} of {self.top_k:,} wanted items"
            return f"{wanted}. Excluded from the {items:,} items of the catalog: {shown}."
        return f"The catalog has only {items:,} items."


def _with_transitions(logits: Tensor, rows: Tensor, followers: Tensor, transitions: Tensor) -> Tensor:
    """Return the logits of the token IDs `rows`, ascending, with the scores of followers; all are (users, number)."""
    places = torch.searchsorted(rows, followers).clamp(max=rows.shape[1] - 1)
    transitions = transitions.masked_fill(rows.gather(1, places) != followers, torch.finfo(transitions.dtype).min)
    old = logits.gather(1, places)
    return logits.scatter_add(1, places, torch.logaddexp(old, transitions.to(old)) - old)
