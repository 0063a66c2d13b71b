"""Choose the items to return for each user: exclusions, filters, candidates from an index, and rules."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from ..evaluation.ranking import stable_top_k
from ..models.configuration_bert4rec import SPECIAL_TOKENS
from .answers import ItemCatalog, Recommendations, check_scores
from .attributes import CatalogAttributes
from .index import search_index
from .rules import Candidates, rerank

SEARCHED = 4  # items that an index is asked for, per item to return

Outputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Selection:
    """How the items of a call are chosen.

    Args:
        catalog: The items.
        model: The model, for the vectors of its items.
        exclude_history: Whether to exclude the items of the history.
        closed: (rows,) bool: rows that are never returned.
        index: An index of item vectors, see `search_index`.
        attributes: Attributes of the items, for `rules`.
        rules: One rule or several, see `Rule`.
        candidates: Number of items that the rules get.
    """

    catalog: ItemCatalog
    model: PreTrainedModel
    exclude_history: bool
    closed: torch.Tensor
    index: Any = None
    attributes: CatalogAttributes | None = None
    rules: Any = None
    candidates: int = 100

    @torch.no_grad()
    def best_items(self, outputs: Outputs, top_k: int) -> list[Recommendations]:
        """Return the `top_k` best items for each user; see `NextItemRecommendationPipeline.postprocess`."""
        number = top_k if self.rules is None else max(top_k, self.candidates)
        find = self._rank_all if self.index is None else self._rank_found
        rows, scores, values = find(outputs, number)
        found = values.isfinite().sum(dim=1)
        counts = found if self.rules is None else self._apply_rules(rows, scores, values, found)
        limit = min(top_k, rows.shape[1])
        counts = counts.clamp(max=limit)
        answers = self.catalog.describe(rows[:, :limit].numpy(), scores[:, :limit].numpy(), counts.tolist())
        for user, answer in enumerate(answers):
            if len(answer) < top_k:
                answer.reason = self._why_short(outputs, user, int(found[user]), len(answer))
        return answers

    def _rank_all(self, outputs: Outputs, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return rows, probabilities and logits (users, number) of the best items."""
        logits = outputs["logits"]
        normalizer = logits.logsumexp(dim=1, keepdim=True)
        check_scores(normalizer)
        for excluded in self._excluded(outputs):
            logits.scatter_(1, excluded, -torch.inf)
        logits[:, self.closed] = -torch.inf
        if "allow" in outputs:
            allowed = torch.zeros(len(outputs["allow"]), logits.shape[1], dtype=torch.bool)
            logits.masked_fill_(~allowed.scatter_(1, outputs["allow"], True), -torch.inf)
        values, rows = stable_top_k(logits, min(number, logits.shape[1]))
        return rows, (values - normalizer).exp(), values

    def _rank_found(self, outputs: Outputs, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rank the items that the index finds, or those of `allow`. Search for more if too few are not excluded."""
        queries, items = outputs["queries"], len(self.catalog.tokenizer.items)
        check_scores(queries)
        nothing = torch.zeros(len(queries), 1, dtype=torch.int64)  # [PAD]
        excluded = torch.cat([nothing, *self._excluded(outputs)], dim=1).sort(dim=1).values
        possible = (~self.closed).nonzero()[:, 0]
        count = SEARCHED * number
        while True:
            if "allow" in outputs:
                rows = _expand(outputs, "allow").sort(dim=1).values
            elif count < len(possible):
                found = search_index(self.index, queries.numpy(), count, items)
                rows = (torch.from_numpy(found) + len(SPECIAL_TOKENS)).sort(dim=1).values
            else:
                rows = possible.expand(len(queries), -1)
            left = ~self.closed[rows]  # a place that the index left empty is the last special row
            left[:, 1:] &= rows[:, 1:] != rows[:, :-1]  # an item that `allow` lists twice
            places = torch.searchsorted(excluded, rows.contiguous()).clamp(max=excluded.shape[1] - 1)
            left &= excluded.gather(1, places) != rows
            if "allow" in outputs or count >= len(possible) or left.sum(dim=1).min() >= number:
                break
            count *= SEARCHED
        weight, bias = self.model._item_weights()
        parts = [(weight[of.to(weight.device)].cpu(), bias[of.to(bias.device)].cpu()) for of in rows]
        scores = [added + of.float() @ query[:-1] for (of, added), query in zip(parts, queries, strict=True)]
        values, order = stable_top_k(torch.stack(scores).masked_fill(~left, -torch.inf), min(number, rows.shape[1]))
        return rows.gather(1, order), values, values

    def _apply_rules(
        self, rows: torch.Tensor, scores: torch.Tensor, values: torch.Tensor, counts: torch.Tensor
    ) -> torch.Tensor:
        """Reorder rows and scores (users, candidates) in place, and return how many items are left (users,)."""
        weight, kept = self.model._item_weights()[0], []
        for user, count in enumerate(counts.tolist()):
            of = rows[user, :count].clone()
            given = Candidates(
                items=self.catalog.tokenizer.decode_items(of.numpy()),
                logits=values[user, :count].numpy(),
                vectors=normalize(weight[of.to(weight.device)].float()).cpu().numpy(),
                rows=of.numpy(),
                attributes=self.attributes,
            )
            chosen = torch.tensor(rerank(given, self.rules).rows.copy())
            order = (of == chosen[:, None]).int().argmax(dim=1) if count else chosen
            rows[user, : len(order)], scores[user, : len(order)] = chosen, scores[user, order]
            kept.append(len(order))
        return torch.tensor(kept)

    def _why_short(self, outputs: Outputs, user: int, found: int, returned: int) -> str:
        """Return why a user gets so few items. An item counts for the first rule that excludes it."""

        def listed(name: str) -> torch.Tensor:
            rows = torch.zeros_like(self.closed)
            rows[_expand(outputs, name)[user]] = True
            return rows

        rules = {"in the history": listed("history")} if self.exclude_history else {}
        if "deny" in outputs:
            rules["in `deny`"] = listed("deny")
        if "allow" in outputs:
            rules["not in `allow`"] = ~listed("allow")
        rules["excluded by `where` or `where_not`"] = self.closed
        left, counts = ~self.catalog.closed, {}
        items = int(left.sum())
        for rule, rows in rules.items():
            counts[rule] = int((left & rows).sum())
            left &= ~rows
        best = f"not among the best {max(self.candidates, returned):,} (`candidates`)"
        others = "not found by the index" if self.rules is None else best
        counts |= {others: int(left.sum()) - found, "dropped by `rerank`": found - returned}
        reasons = [f"{count:,} {rule}" for rule, count in counts.items() if count]
        return f"{returned:,} of {items:,} items: {', '.join(reasons) or 'the catalog has no more'}."

    def _excluded(self, outputs: Outputs) -> list[torch.Tensor]:
        """Return the rows (users, longest) of the lists that exclude items."""
        names = ["deny"] * ("deny" in outputs) + ["history"] * self.exclude_history
        return [_expand(outputs, name) for name in names]


def _expand(outputs: Outputs, name: str) -> torch.Tensor:
    """Return the rows of a list for each user, (users, longest)."""
    return outputs[name].expand(len(outputs["history"]), -1)
