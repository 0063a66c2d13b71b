"""Initialization of new models: item vectors and biases from the training histories."""

import logging
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel

from ..data.arguments import read_rows
from ..data.histories import flatten
from ..models.configuration_bert4rec import SPECIAL_TOKENS
from .transitions import Transitions

logger = logging.getLogger(__name__)

NORM = 0.2  # mean length of the item vectors
FEW_ITEMS, WEAK_NORM = 5, 0.05  # below 5 items per user, the vectors are mostly noise, and must not outweigh the biases
ITERATIONS = 8  # power iterations of the randomized decomposition


@torch.no_grad()
def initialize_items(model: PreTrainedModel, rows: Dataset) -> None:
    """Initialize item vectors and output biases of a new model from the training histories.

    The vectors become the right singular vectors, times the singular values, of the matrix of users and items (PureSVD;
    Cremonesi et al., RecSys 2010). An entry is 1 / sqrt(items of the user · users of the item) if the item is in the
    histories of the user, otherwise 0. The vectors are rotated at random and scaled to a mean length of 0.2 (0.05 if
    users have fewer than 5 items on average). The model's own vectors, times 0.1, are added; an item without users has
    only this part.

    Trainable output biases become log(1 + users of the item), minus the mean. Untied output matrices start with the
    same vectors. The rows of special tokens do not change. With `num_followers`, the transitions are counted too; see
    `count_transitions`. Random numbers come from torch's generator.

    Args:
        model: A model of the package with random weights, changed in place.
        rows: Training rows with `user` and `input_ids`, as from `leave_one_out(…)["train"]`.

    Raises:
        ValueError: The rows have no items of the tokenizer, or token IDs that the model does not have.
    """
    first, output = len(SPECIAL_TOKENS), model.get_output_embeddings()
    table: torch.Tensor = model.get_input_embeddings().weight
    matrix, users = _users_of_items(rows, len(table))
    rank = min(table.shape[1], *matrix.shape)
    _, scales, vectors = torch.svd_lowrank(matrix, rank, niter=ITERATIONS)
    # Without a rotation, the first dimension of all items would be their popularity, and the last ones nearly nothing.
    rotation, _ = torch.linalg.qr(torch.randn(table.shape[1], rank, dtype=vectors.dtype, device=vectors.device))
    vectors = vectors * scales @ rotation.T
    norm = WEAK_NORM if len(matrix.values()) < FEW_ITEMS * len(matrix) else NORM
    vectors *= norm / vectors.norm(dim=1)[users > 0].mean()
    vectors[first:] += 0.1 * table[first:].to(vectors)
    for weight in _item_tables(model):
        weight[first:] = vectors[first:].to(weight)
    if output.bias is not None and output.bias.requires_grad:
        logarithms = users[first:].log1p()
        output.bias[first:] = (logarithms - logarithms.mean()).to(output.bias)
    if model.config.num_followers:
        share = count_transitions(model, rows)
        # This gate makes the transitions most likely, as long as the scores of the catalog are the biases.
        start = np.log(share / (1 - share)) + output.bias[first:].logsumexp(dim=0).item()
        model.transition_head.gate.bias.fill_(start)


@torch.no_grad()
def initialize_new_items(model: PreTrainedModel, rows: Dataset, items: torch.Tensor) -> None:
    """Initialize the new items of a trained model from the histories that contain them.

    The vector of a new item is the sum of its users' vectors, scaled to the mean length of the other items' vectors. A
    user's vector is the sum of the vectors of the user's other items. Both sums have the weights of `initialize_items`.
    The bias is log(1 + users of the item), plus the mean of bias - log(1 + users) over the other items. A new item
    without other items in its histories does not change.

    Args:
        model: A trained model of the package, whose item table has rows for the new items. Changed in place.
        rows: Training rows with `user` and `input_ids`.
        items: Token IDs of the new items, (new,).
    """
    output = model.get_output_embeddings()
    matrix, users = _users_of_items(rows, len(output.weight))
    others = users > 0
    others[items] = False
    for weight in _item_tables(model):
        table = weight.float().cpu()
        vectors = (matrix.T @ (matrix @ table.masked_fill(~others[:, None], 0)))[items]
        length, linked = table[others].norm(dim=1).mean(), vectors.norm(dim=1) > 0
        weight[items[linked]] = (nn.functional.normalize(vectors[linked]) * length).to(weight)
    logarithms = users.log1p()
    bias = logarithms + (output.bias.cpu() - logarithms)[others].mean()
    output.bias[items[linked]] = bias[items[linked]].to(output.bias)
    logger.info("New items whose vectors start from items of the same users: %d of %d.", int(linked.sum()), len(items))


@torch.no_grad()
def count_transitions(model: PreTrainedModel, rows: Dataset, since: float | None = None) -> float:
    """Count the transitions of training rows for a model with `num_followers`, in place.

    For a new model, `initialize_items` calls this function. After `transfer`, call this function yourself.

    Args:
        model: A model of the package with `num_followers`.
        rows: Training rows with `user` and `input_ids`, as from `leave_one_out(…)["train"]`; for `since` also with
            `timestamps`.
        since: Count only transitions to interactions from this time on, in the unit of `timestamps`, and add them to
            the counts of the model. Default: count all transitions, and replace the counts of the model.

    Returns:
        The weight of the Markov chain in its best mixture with the popularity of the items, from 0.001 to 0.999.

    Raises:
        ValueError: The model has no `num_followers`, or the rows have token IDs that the model does not have.
    """
    if model.transition_head is None:
        raise ValueError("`num_followers` of the model must be above 0, found 0. Build the model with this option.")
    arrow, items, places = _read(rows, model.config.vocab_size, *["timestamps"] * (since is not None))
    counted = None if since is None else flatten(arrow["timestamps"])[0] >= since
    if counted is None:
        model.transition_head.counts.zero_()
        model.transition_head.totals.zero_()
    known = np.where(items >= len(SPECIAL_TOKENS), items, -1)
    found = Transitions.count(_users(arrow)[places], places, known, counted)
    found.add_to(model.transition_head)
    return float(np.clip(found.mixture()[0], 0.001, 0.999))


def _read(rows: Dataset, vocab_size: int, *columns: str) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """Return training rows as a table, and the token ID and the row of each interaction, (interactions,) each."""
    arrow = read_rows(rows, "user", "input_ids", *columns)
    items, places = flatten(arrow["input_ids"])
    if (last := items.max(initial=0)) >= vocab_size:
        found = f"A training row has the token ID {last}, but the model has {vocab_size} tokens"
        raise ValueError(f"{found}. Build the training rows with the tokenizer of the model.")
    return arrow, items, places


def _users(rows: pa.Table) -> np.ndarray:
    """Return a number for the user of each row."""
    return pa.chunked_array(rows["user"]).combine_chunks().dictionary_encode().indices.to_numpy()


def _item_tables(model: PreTrainedModel) -> list[torch.Tensor]:
    """Return the input embeddings of the items, and the output matrix if it is another tensor."""
    embeddings, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return [embeddings] if output is embeddings else [embeddings, output]


def _users_of_items(rows: Dataset, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normalized matrix (users, vocab_size), sparse, and the number of users of each item, (vocab_size,)."""
    arrow, items, places = _read(rows, vocab_size)
    users = _users(arrow)[places]
    known = items >= len(SPECIAL_TOKENS)
    if not known.any():
        raise ValueError("The training rows have no known items. Build rows and tokenizer from the same log.")
    pairs = np.sort(pd.unique(users[known].astype(np.int64) * vocab_size + items[known]))  # np.unique is much slower
    users, items = pairs // vocab_size, pairs % vocab_size
    counts = np.bincount(items, minlength=vocab_size)
    values = torch.from_numpy((np.bincount(users)[users] * counts[items]) ** -0.5).float()
    indices, shape = torch.from_numpy(np.stack([users, items])), (int(users.max()) + 1, vocab_size)
    with warnings.catch_warnings():  # torch 2.11 and 2.12 warn although `check_invariants` is given
        warnings.filterwarnings("ignore", "Sparse invariant checks", UserWarning)
        matrix = torch.sparse_coo_tensor(indices, values, shape, check_invariants=False).coalesce()
    return matrix, torch.from_numpy(counts)
