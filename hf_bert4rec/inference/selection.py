"""Choose the items to return for each user: exclusions, filters, candidates from an index, and rules."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import normalize, pad
from transformers import PreTrainedModel

from ..evaluation.ranking import stable_top_k
from ..models.configuration_bert4rec import SPECIAL_TOKENS
from .answers import ItemCatalog, Recommendations, check_scores
from .attributes import ItemAttributes
from .index import search_index
from .rules import Candidates
from .rules import rerank as order_by_rules

SEARCHED = 4  # items that an index is asked for, per item to return

LISTS = {"history": "in the history", "deny": "in `deny`", "allow": "not in `allow`"}  # why an item is excluded

Outputs = dict[str, torch.Tensor]
Ranking = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@torch.no_grad()
def best_items(
    catalog: ItemCatalog,
    model: PreTrainedModel,
    outputs: Outputs,
    *,
    exclude_history: bool,
    closed: torch.Tensor,
    top_k: int = 10,
    index: Any = None,
    attributes: ItemAttributes | None = None,
    rerank: Sequence[Any] | None = None,
    candidates: int = 100,
) -> list[Recommendations]:
    """Return the `top_k` best items for each user; raise ValueError if scores are not finite.

    Args:
        catalog: The items.
        model: The model, for the vectors of its items.
        outputs: `logits` (users, rows), which are overwritten, or with an index `queries` (users, hidden + 1);
            `history` (users, longest) rows; and optionally `allow` and `deny` (users or 1, longest) rows. Rows are
            padded with [PAD].
        exclude_history: Whether to exclude the items of the history.
        closed: (rows,) bool: rows that are never returned.
        top_k: Number of items per user.
        index: An index of item vectors, see `search_index`.
        attributes: Attributes of the items, for `rerank`.
        rerank: Rules, see `Rule`.
        candidates: Number of items that the rules get, at least `top_k`.
    """
    if not exclude_history:
        outputs["history"] = outputs["history"][:, :0]
    lists = {name: outputs[name].expand(len(outputs["history"]), -1) for name in LISTS if name in outputs}
    excluded = torch.cat([rows for name, rows in lists.items() if name != "allow"], dim=1)
    number = top_k if rerank is None else max(top_k, candidates)
    if index is None:
        rows, scores, values = _rank_all(outputs, number, excluded, closed)
    else:
        rows, scores, values = _rank_found(catalog, model, outputs, number, excluded, closed, index, lists.get("allow"))
    found = values.isfinite().sum(dim=1)
    counts, weight = found.clone(), model._item_weights()[0]
    for user, count in enumerate(found.tolist() if rerank else ()):
        of = rows[user, :count].clone()
        best = Candidates(
            items=catalog.tokenizer.decode_items(of.numpy()),
            logits=values[user, :count].numpy(),
            vectors=normalize(weight[of.to(weight.device)].float()).cpu().numpy(),
            attributes=attributes,
        )
        order = torch.from_numpy(order_by_rules(best, rerank or ()))
        counts[user] = len(order)
        rows[user, : len(order)], scores[user, : len(order)] = of[order], scores[user, order]
    limit = min(top_k, rows.shape[1])
    answers = catalog.describe(rows[:, :limit].numpy(), scores[:, :limit].numpy(), counts.clamp(max=limit).tolist())
    for user in [user for user, count in enumerate(counts.tolist()) if count < top_k]:
        masks = {
            LISTS[name]: torch.zeros_like(closed).index_fill(0, of[user], True) ^ (name == "allow")
            for name, of in lists.items()
        }
        masks["excluded by `where` or `where_not`"] = closed
        missed = "not found by the index" if rerank is None else f"not among the best {number:,} (`candidates`)"
        answers[user].reason = _why_short(~catalog.closed, masks, missed, int(found[user]), int(counts[user]))
    return answers


def _why_short(left: torch.Tensor, excluded: dict[str, torch.Tensor], missed: str, found: int, returned: int) -> str:
    """Return why a user gets so few items of those that are `left`; one counts for the first rule that excludes it."""
    items, reasons = int(left.sum()), {}
    for reason, rows in excluded.items():
        reasons[reason] = int((left & rows).sum())
        left = left & ~rows
    reasons |= {missed: int(left.sum()) - found, "dropped by `rerank`": found - returned}
    shown = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)
    return f"{returned:,} of {items:,} items: {shown or 'the catalog has no more'}."


def _rank_all(outputs: Outputs, number: int, excluded: torch.Tensor, closed: torch.Tensor) -> Ranking:
    """Return rows, probabilities and logits (users, number) of the best items."""
    logits = outputs["logits"]
    normalizer = logits.logsumexp(dim=1, keepdim=True)
    check_scores(normalizer)
    logits.scatter_(1, excluded, -torch.inf)
    logits[:, closed] = -torch.inf
    if "allow" in outputs:
        allowed = torch.zeros(len(outputs["allow"]), logits.shape[1], dtype=torch.bool)
        logits.masked_fill_(~allowed.scatter_(1, outputs["allow"], True), -torch.inf)
    values, rows = stable_top_k(logits, min(number, logits.shape[1]))
    return rows, (values - normalizer).exp(), values


def _rank_found(
    catalog: ItemCatalog,
    model: PreTrainedModel,
    outputs: Outputs,
    number: int,
    excluded: torch.Tensor,
    closed: torch.Tensor,
    index: Any,
    allowed: torch.Tensor | None,
) -> Ranking:
    """Rank the items that the index finds, or those of `allow`. Search for more if too few are not excluded."""
    queries, items = outputs["queries"], len(catalog.tokenizer.items)
    check_scores(queries)
    excluded = pad(excluded, (1, 0)).sort(dim=1).values  # [PAD] is row 0
    possible = (~closed).nonzero()[:, 0]
    count = SEARCHED * number
    while True:
        if allowed is not None:
            rows = allowed.sort(dim=1).values
        elif count < len(possible):
            found = search_index(index, queries.numpy(), count, items)
            rows = (torch.from_numpy(found) + len(SPECIAL_TOKENS)).sort(dim=1).values
        else:
            rows = possible.expand(len(queries), -1)
        left = ~closed[rows]  # a place that the index left empty is the last special row
        left[:, 1:] &= rows[:, 1:] != rows[:, :-1]  # an item that `allow` lists twice
        places = torch.searchsorted(excluded, rows.contiguous()).clamp(max=excluded.shape[1] - 1)
        left &= excluded.gather(1, places) != rows
        if allowed is not None or count >= len(possible) or left.sum(dim=1).min() >= number:
            break
        count *= SEARCHED
    weight, bias = model._item_weights()
    parts = [(weight[of.to(weight.device)].cpu(), bias[of.to(bias.device)].cpu()) for of in rows]
    scores = [added + of.float() @ query[:-1] for (of, added), query in zip(parts, queries, strict=True)]
    values, order = stable_top_k(torch.stack(scores).masked_fill(~left, -torch.inf), min(number, rows.shape[1]))
    return rows.gather(1, order), values, values
