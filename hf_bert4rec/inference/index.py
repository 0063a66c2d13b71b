"""Candidates from an index of item vectors, for catalogs in which scoring every item takes too long."""

from typing import Any

import numpy as np
from datasets import Dataset


def search_index(index: Any, queries: np.ndarray, count: int, items: int) -> np.ndarray:
    """Return places in the catalog, (users, count) int64, of the items that an index finds; -1 where it finds fewer.

    The index contains the rows of `index_vectors()` or `item_vectors()` for all `items` of the catalog, by inner
    product: a usearch or FAISS index, or a `Dataset` after `add_faiss_index`. The queries (users, width) float32 are
    those of `encode`.
    """
    faiss = index
    if isinstance(index, Dataset):
        if len(names := index.list_indexes()) != 1:
            raise ValueError(f"Expected a dataset with one FAISS index, found {len(names)}. Call add_faiss_index once.")
        faiss = index.get_index(names[0]).faiss_index
    size = getattr(faiss, "ntotal", None)  # FAISS
    if size is None and not (hasattr(index, "search") and hasattr(index, "__len__")):
        found = type(index).__name__
        raise ValueError(f"`index` must be a usearch or FAISS index, or a Dataset with a FAISS index, found {found}.")
    if (size := len(index) if size is None else size) != items:
        raise ValueError(
            f"The index has {size} vectors, the catalog {items} items. Build it from index_vectors() of this model."
        )
    missing = getattr(faiss, "d", getattr(faiss, "ndim", queries.shape[1])) - queries.shape[1]
    if missing not in (0, 1):
        raise ValueError(
            f"The vectors of the index have {queries.shape[1] + missing} numbers, those of the model "
            f"{queries.shape[1] + 1}. Build it from index_vectors() of this model."
        )
    queries = np.pad(queries, ((0, 0), (0, missing)))  # the number that makes item vectors equally long meets a zero
    if faiss is not index or hasattr(faiss, "ntotal"):
        return faiss.search(queries, count)[1].astype(np.int64, copy=False)
    found = index.search(queries, count)
    places = np.full((len(queries), count), -1, np.int64)
    keys = np.atleast_2d(found.keys).astype(np.int64)
    places[:, : keys.shape[1]] = keys
    counts: Any = getattr(found, "counts", len(found))  # of a single query: one number
    places[np.arange(count) >= np.atleast_1d(counts)[:, None]] = -1
    return places
