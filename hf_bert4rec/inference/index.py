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
    width = queries.shape[1]
    if isinstance(index, Dataset):
        if len(names := index.list_indexes()) != 1:
            raise ValueError(f"Expected a dataset with one FAISS index, found {len(names)}. Call add_faiss_index once.")
        index = index.get_index(names[0]).faiss_index
    is_faiss = hasattr(index, "ntotal")
    if not is_faiss and not (hasattr(index, "search") and hasattr(index, "__len__")):
        found = type(index).__name__
        raise ValueError(f"`index` must be a usearch or FAISS index, or a Dataset with a FAISS index, found {found}.")
    advice = "Build it from index_vectors() of this model."
    if (size := index.ntotal if is_faiss else len(index)) != items:
        raise ValueError(f"The index has {size} vectors, the catalog {items} items. {advice}")
    missing = getattr(index, "d" if is_faiss else "ndim", width) - width
    if missing not in (0, 1):
        found = f"The vectors of the index have {width + missing} numbers, those of the model {width + 1}"
        raise ValueError(f"{found}. {advice}")
    queries = np.pad(queries, ((0, 0), (0, missing)))  # the number that makes item vectors equally long meets a zero
    if is_faiss:
        return index.search(queries, count)[1].astype(np.int64, copy=False)
    found = index.search(queries, count)
    places = np.full((len(queries), count), -1, np.int64)
    keys = np.atleast_2d(found.keys).astype(np.int64)
    places[:, : keys.shape[1]] = keys
    counts: Any = getattr(found, "counts", len(found))  # of a single query: one number
    places[np.arange(count) >= np.atleast_1d(counts)[:, None]] = -1
    return places
