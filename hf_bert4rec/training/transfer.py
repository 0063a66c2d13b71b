"""Start a model for one catalog from a model of another: the encoder and the shared items are kept."""

import copy
import logging
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from ..data.tokenization import ItemTokenizer
from ..models.configuration_bert4rec import SPECIAL_TOKENS

logger = logging.getLogger(__name__)


def transfer(
    model: PreTrainedModel,
    tokenizer: ItemTokenizer,
    new_tokenizer: ItemTokenizer,
    match: Literal["id", "title"] = "id",
    **changes: Any,
) -> PreTrainedModel:
    """Return a model for the catalog of `new_tokenizer` that starts from the weights of `model`.

    The encoder and the special rows are copied. An item of both catalogs keeps its row and its bias. A new item starts
    at the mean of the old items plus the noise of an initialized row; its bias is the smallest of the old ones, since
    it has no interactions yet.

    Args:
        model: `Bert4RecForMaskedLM` or another model of the package.
        tokenizer: Tokenizer of `model`.
        new_tokenizer: Tokenizer of the other catalog; its `model_max_length` is at most the number of positions of the
            model.
        match: Whether items are matched by ID, or by title if the IDs of the catalogs are unrelated.
        **changes: Other values of the configuration, such as `hidden_dropout_prob`.

    Returns:
        A new model; `model` is not changed.

    Raises:
        ValueError: The catalogs share no item, titles are missing, or a changed size has no weights.
    """
    if len(tokenizer) != model.config.vocab_size:
        raise ValueError(
            f"The model has {model.config.vocab_size} rows in its item table, its tokenizer {len(tokenizer)} tokens. "
            "Take both from the same checkpoint."
        )
    places, rows = shared_items(tokenizer, new_tokenizer, match)
    if not len(rows):
        raise ValueError(
            f"The two catalogs share no item by {match}. Match by {'title' if match == 'id' else 'id'}, or train a new "
            "model."
        )
    settings = {**changes, "vocab_size": len(new_tokenizer), "max_position_embeddings": new_tokenizer.model_max_length}
    config = copy.deepcopy(model.config)
    new = type(model)(type(config)(**{**config.to_dict(), **settings})).to(model.dtype)
    input_weight = model.get_input_embeddings().weight
    table = input_weight.detach()
    specials = len(SPECIAL_TOKENS)
    with torch.no_grad():
        item_weights = {name for name, weight in model.state_dict(keep_vars=True).items() if weight is input_weight}
        _copy_encoder(model.state_dict(), new.state_dict(), {*item_weights, "lm_head.weight", "lm_head.bias"})
        new_table, bias = new.get_input_embeddings().weight, new.lm_head.bias
        new_table[specials:] += table[specials:].mean(dim=0)
        bias[specials:] = model.lm_head.bias[specials:].min()
        for values, old in ((new_table, table), (bias, model.lm_head.bias)):
            values[:specials] = old[:specials]
            values[places] = old[rows]
        if not config.tie_word_embeddings:
            output, old = new.lm_head.weight, model.lm_head.weight
            output[specials:] += old[specials:].mean(dim=0)
            output[:specials], output[places] = old[:specials], old[rows]
    total = len(new_tokenizer.items)
    logger.info("%d of %d items keep their weights, %d are new.", len(rows), total, total - len(rows))
    return new


def shared_items(
    tokenizer: ItemTokenizer, new_tokenizer: ItemTokenizer, match: Literal["id", "title"]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of shared items in the new and in the old item table, (shared,) each.

    A title that two items of a catalog have matches neither of them.
    """
    if match not in ("id", "title"):
        raise ValueError(f"`match` must be 'id' or 'title', found {match!r}.")
    if match == "id":
        rows = tokenizer.encode_items(new_tokenizer.items)
        known = np.flatnonzero(rows != tokenizer.unk_token_id)
        return torch.from_numpy(known + len(SPECIAL_TOKENS)), torch.from_numpy(rows[known]).long()
    if tokenizer.titles is None or new_tokenizer.titles is None:
        raise ValueError(
            "Matching by title needs the titles of both catalogs. Pass `titles` to `item_tokenizer`, or match by id."
        )
    old, new = (_unique(titles) for titles in (tokenizer.titles, new_tokenizer.titles))
    pairs = [(place, old[title]) for title, place in new.items() if title in old]
    places, rows = np.array(pairs, np.int64).reshape(-1, 2).T + len(SPECIAL_TOKENS)
    return torch.from_numpy(places), torch.from_numpy(rows)


def _unique(titles: list[str | None]) -> dict[str, int]:
    """Title -> place of its item, for titles of a single item."""
    places: dict[str, int] = {}
    repeated: set[str] = set()
    for place, title in enumerate(titles):
        if title is not None:
            repeated.update({title} & places.keys())
            places[title] = place
    return {title: place for title, place in places.items() if title not in repeated}


def _copy_encoder(old: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor], item_weights: set[str]) -> None:
    """Copy all weights except those with one row per item; of positions the first ones, those of the oldest items."""
    for name, weight in new.items():
        if name in item_weights:
            continue
        if name not in old or old[name].shape[1:] != weight.shape[1:] or len(old[name]) < len(weight):
            found = "none" if name not in old else list(old[name].shape)
            raise ValueError(
                f"The model to start from has no weights for {name} of shape {list(weight.shape)}, found {found}. "
                "Do not change its sizes, and use a `max_length` of at most its number of positions."
            )
        if "position_embeddings" not in name and len(old[name]) != len(weight):
            raise ValueError(f"Expected {name} of shape {list(weight.shape)}, found {list(old[name].shape)}.")
        weight.copy_(old[name][: len(weight)])
