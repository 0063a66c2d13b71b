"""Start a model for one catalog from a model of another catalog: the encoder and the shared items are kept."""

import logging
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from ..data.tokenization import ItemTokenizer
from ..hub.checkpoint import check_sizes
from ..models.configuration_bert4rec import SPECIAL_TOKENS
from .initialization import initialize_new_items
from .item_features import start_from_features

logger = logging.getLogger(__name__)


def transfer(
    model: PreTrainedModel,
    tokenizer: ItemTokenizer,
    new_tokenizer: ItemTokenizer,
    match: Literal["id", "title"] = "id",
    *,
    rows: Dataset | None = None,
    projection: torch.Tensor | None = None,
    **changes: Any,
) -> PreTrainedModel:
    """Return a new model for the catalog of `new_tokenizer` that starts from the weights of `model`.

    The encoder and the rows of special tokens are copied. An item of both catalogs keeps its vector and its bias. A new
    item starts from its features, if `projection` is given and the item has features, otherwise from the other items of
    its users in `rows`. A new item without both starts at the mean of the old items plus the noise of an initialized
    row, with the smallest of the old biases. With `num_followers`, call `count_transitions` for the new model.

    Args:
        model: `Bert4RecForMaskedLM` or another model of the package.
        tokenizer: Tokenizer of `model`.
        new_tokenizer: Tokenizer of the other catalog; its `model_max_length` must not exceed the model's positions.
        match: How to match items: by "id", or by "title" if the IDs of the catalogs are unrelated.
        rows: Training rows of the new catalog with `user` and `input_ids`, as from `leave_one_out(…)["train"]`.
        projection: Projection of item features that was saved with `model`, as from
            `hf_bert4rec.training.item_features.load_projection(folder)`.
        **changes: Changed values of the configuration, such as `hidden_dropout_prob`. `vocab_size` and
            `max_position_embeddings` have no effect: `new_tokenizer` determines both.

    Raises:
        StrictDataclassError: As for the configuration, if a value in `changes` is invalid.
        ValueError: `model` and `tokenizer` do not belong together, the catalogs share no item, titles are missing,
            `match` is unknown, `model` has no weights for a changed size or a longer input, or `projection` has a shape
            that does not fit.
    """
    check_sizes(model, tokenizer)
    places, old_places = shared_items(tokenizer, new_tokenizer, match)
    if not len(places):
        shared, other = ("item ID", "title") if match == "id" else ("title", "id")
        option = f"`match={other!r}` (`--match_items {other}`)"
        raise ValueError(f"The two catalogs share no {shared}. Use {option}, or train a new model.")
    length, longest = new_tokenizer.model_max_length, model.config.max_position_embeddings
    if length > longest:
        raise ValueError(
            f"The model has {longest} positions, but `new_tokenizer` has a `model_max_length` of {length}. Build "
            f"`new_tokenizer` with `max_length={longest}` or less (command line: `--max_length {longest}`)."
        )
    sizes = {"vocab_size": len(new_tokenizer), "max_position_embeddings": length}
    config = type(model.config)(**{**model.config.to_dict(), **changes, **sizes})
    new = type(model)(config).to(model.device, model.dtype)
    specials, total = len(SPECIAL_TOKENS), len(new_tokenizer.items)
    with torch.no_grad():
        tables = [(model.get_input_embeddings().weight, new.get_input_embeddings().weight)]
        if not config.tie_word_embeddings:
            tables.append((model.lm_head.weight, new.lm_head.weight))
        _copy_encoder(model, new, changes)
        for old, table in tables:
            table[specials:] += old[specials:].mean(dim=0)
        new.lm_head.bias[specials:] = model.lm_head.bias[specials:].min()
        for old, values in (*tables, (model.lm_head.bias, new.lm_head.bias)):
            values[:specials], values[places] = old[:specials], old[old_places]
    text = "Items that keep their weights: %d of %d. New items: %d. Vectors from features: %d."
    new_items = torch.from_numpy(np.setdiff1d(np.arange(specials, len(new_tokenizer)), places))
    described = start_from_features(new, new_tokenizer, new_items, projection)
    logger.info(text, len(places), total, len(new_items), int(described.sum()))
    if rows is not None and not described.all():
        initialize_new_items(new, rows, new_items[~described])
    return new


def shared_items(
    tokenizer: ItemTokenizer, new_tokenizer: ItemTokenizer, match: Literal["id", "title"]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the token IDs of the shared items in the new and in the old tokenizer, two tensors (shared,).

    With `match="title"`, a title that occurs twice in a catalog matches no item, and ValueError is raised if one of the
    tokenizers has no titles. An unknown `match` also raises ValueError.
    """
    if match not in ("id", "title"):
        raise ValueError(f"`match` must be 'id' or 'title', found {match!r}.")
    if match == "id":
        rows = tokenizer.encode_items(new_tokenizer.items)
        known = np.flatnonzero(rows != tokenizer.unk_token_id)
        return torch.from_numpy(known + len(SPECIAL_TOKENS)), torch.from_numpy(rows[known]).long()
    if tokenizer.titles is None:
        advice = "Add titles of its items with `add_items` (`hf-bert4rec items add`), or match items by ID."
        raise ValueError(f"The model to start from has no titles. {advice}")
    if new_tokenizer.titles is None:
        raise ValueError("The new catalog has no titles. Pass `titles` to `item_tokenizer` (`--titles`).")
    catalogs = pd.Series(tokenizer.titles, dtype=object), pd.Series(new_tokenizer.titles, dtype=object)
    old, new = (titles.drop_duplicates(keep=False).dropna() for titles in catalogs)
    shared = new[new.isin(old)]
    places, rows = shared.index.to_numpy(), old.index.to_numpy()[pd.Index(old).get_indexer(shared)]
    return torch.from_numpy(places + len(SPECIAL_TOKENS)), torch.from_numpy(rows + len(SPECIAL_TOKENS))


def _copy_encoder(model: PreTrainedModel, new: PreTrainedModel, changes: Iterable[str]) -> None:
    """Copy all weights except those with one row per item.

    If the new model has fewer positions, the rows of position embeddings and distances beyond them are not copied.
    `changes` are the names of changed options, for the error if a weight is missing.
    """
    old, table = model.state_dict(keep_vars=True), model.get_input_embeddings().weight
    item_weights = {name for name, weight in old.items() if weight is table} | {"lm_head.weight", "lm_head.bias"}
    item_weights |= {name for name, weight in old.items() if not weight.is_floating_point()}  # counts of the old log
    for name, weight in new.state_dict().items():
        if name in item_weights:
            continue
        found = list(old[name].shape) if name in old else [0]
        positions = name.endswith(("position_embeddings.weight", "repeat_head.distance.weight"))
        rows = len(weight) if positions else found[0]  # more positions than needed can be cut off
        if found[1:] != list(weight.shape[1:]) or not len(weight) == rows <= found[0]:
            missing = f"the model to start from has {f'the shape {found}' if name in old else 'no such weight'}"
            advice = f"Omit options that add or resize weights. Changed are {', '.join(f'`{it}`' for it in changes)}."
            raise ValueError(f"The weight {name} needs the shape {list(weight.shape)}, but {missing}. {advice}")
        weight.copy_(old[name][: len(weight)])
