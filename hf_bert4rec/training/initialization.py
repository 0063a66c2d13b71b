"""A start for new models: item vectors and biases from counts of the training histories, before the first step."""

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from ..data.histories import flatten
from ..models.configuration_bert4rec import SPECIAL_TOKENS

NORM = 0.2  # mean length of the item vectors
ITERATIONS = 8  # power iterations of the randomized decomposition


@torch.no_grad()
def initialize_items(model: PreTrainedModel, rows: Dataset) -> None:
    """Let a new model start from how often items occur, alone and together, in the training histories.

    The vectors of items become the right singular vectors, times the singular values, of the matrix of users and items
    whose entries are 1 / sqrt(items of the user · users of the item) (PureSVD; Cremonesi et al., RecSys 2010). They are
    rotated at random and scaled to a mean length of 0.2, and a tenth of the random vectors is added. The output biases
    become the logarithms of the numbers of users, minus their mean. The special rows do not change. Random numbers come
    from torch's generator.

    Args:
        model: A model of the package with random weights. It is changed in place.
        rows: Training rows with `user` and `input_ids`, as from `leave_one_out(…)["train"]`.
    """
    table, bias = model.get_input_embeddings().weight, model.get_output_embeddings().bias
    arrow = rows.with_format("arrow")[:]
    items, places = flatten(arrow["input_ids"])
    users = pa.chunked_array(arrow["user"]).combine_chunks().dictionary_encode().indices.to_numpy()[places]
    known = items >= len(SPECIAL_TOKENS)
    users, items = np.unique(np.stack([users[known], items[known]]), axis=1)  # pairs, each once
    user_counts, item_counts = np.bincount(users), np.bincount(items, minlength=len(table))
    values = (user_counts[users] * item_counts[items]) ** -0.5
    matrix = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([users, items])), torch.from_numpy(values).float(), (len(user_counts), len(table)),
        check_invariants=False,
    )  # fmt: skip
    rank = min(table.shape[1], *matrix.shape)
    _, scales, vectors = torch.svd_lowrank(matrix, rank, niter=ITERATIONS)
    # Without a rotation, the first dimension of all items would be their popularity, and the last ones nearly nothing.
    rotation, _ = torch.linalg.qr(torch.randn(rank, table.shape[1]).T)
    vectors = vectors * scales @ rotation.T
    vectors *= NORM / vectors.norm(dim=1)[item_counts > 0].mean()
    first = len(SPECIAL_TOKENS)
    table[first:] *= 0.1
    table[first:] += vectors[first:].to(table)
    logarithms = torch.from_numpy(np.log1p(item_counts[first:]))
    bias[first:] = (logarithms - logarithms.mean()).to(bias)
