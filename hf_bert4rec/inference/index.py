"""Search for candidates in an index of item vectors, from usearch or FAISS."""

from typing import Any

import numpy as np
from datasets import Dataset


class ItemIndex:
    """A usearch or FAISS index, also of a `Dataset` after `add_faiss_index`; ValueError for other values.

    The index must contain `index_vectors()`, or `item_vectors()` of shape (`items`, `width`), with their positions as
    keys.
    """

    def __init__(self, index: Any, items: int, width: int) -> None:
        advice = "Build the index from `index_vectors()` of this pipeline."
        if isinstance(index, Dataset):
            if len(names := index.list_indexes()) != 1:
                solution = "Remove the others with `drop_index`." if names else "Call `add_faiss_index`."
                raise ValueError(f"`index`: expected a `Dataset` with one FAISS index, found {len(names)}. {solution}")
            index = index.get_index(names[0]).faiss_index
        self.is_faiss = hasattr(index, "ntotal")
        if not self.is_faiss and not (hasattr(index, "search") and hasattr(index, "__len__")):
            expected = "a usearch or FAISS index, or a `Dataset` with a FAISS index"
            raise ValueError(f"`index` must be {expected}, found {type(index).__name__}. {advice}")
        if (size := index.ntotal if self.is_faiss else len(index)) != items:
            raise ValueError(f"`index` has {size:,} vectors, but the model has {items:,} items. {advice}")
        # One more number than a query if the index was built from `index_vectors`.
        self.added = getattr(index, "d" if self.is_faiss else "ndim", width) - width
        if self.added not in (0, 1):
            found = f"{width + self.added} numbers, but those of `index_vectors()` have {width + 1}"
            raise ValueError(f"The vectors in `index` have {found}. {advice}")
        self.index, self.items = index, items
        if hasattr(index, "id_map"):  # IndexIDMap of FAISS
            import faiss

            self._check_keys(faiss.vector_to_array(index.id_map))
        elif hasattr(index, "keys") and not (0 in index and items - 1 in index):  # usearch: all keys would take longer
            self._check_keys(np.array(index.keys).astype(np.int64))

    def _check_keys(self, keys: np.ndarray) -> None:
        """Raise ValueError unless all keys are positions in `item_vectors()`, or -1 for no item."""
        if len(others := keys[(keys < -1) | (keys >= self.items)]):
            expected = f"the keys 0 ... {self.items - 1}, the row numbers of `index_vectors()`, found {others[0]}"
            raise ValueError(f"`index`: expected {expected}. Add the vectors to a new index with these numbers.")

    def compare(self, keys: np.ndarray, vectors: np.ndarray) -> None:
        """Raise ValueError if the index stores other vectors than `vectors` (keys, width) under most of the keys.

        Indexes that cannot return their vectors are not compared.
        """
        try:
            stored = self.index.reconstruct_batch(keys) if self.is_faiss else self.index.get(keys, np.float32)
            own = np.array(stored, np.float32)[:, : vectors.shape[1]]
            similar = (own / np.linalg.norm(own, axis=1, keepdims=True)) @ vectors.T
        except Exception:  # whatever an index raises that stores codes, or has vectors of bits
            return
        similar /= np.linalg.norm(vectors, axis=1)
        if np.mean(similar.diagonal() < similar.max(axis=1) - 1e-3) > 0.5:
            advice = "Build it again from `index_vectors()` of this pipeline, with row numbers as keys."
            raise ValueError(f"`index` has the vectors of another model, or other keys. {advice}")

    def search(self, queries: np.ndarray, count: int) -> np.ndarray:
        """Return the positions in the catalog of the items that the index finds, (users, count) int64.

        They are -1 where it finds fewer items. The queries (users, width) float32 come from `encode`.
        """
        found = self.index.search(np.pad(queries, ((0, 0), (0, self.added))), count)
        if self.is_faiss:
            places = found[1].astype(np.int64, copy=False)
        else:
            places = np.full((len(queries), count), -1, np.int64)
            keys = np.atleast_2d(found.keys).astype(np.int64)
            places[:, : keys.shape[1]] = keys
            counts: Any = getattr(found, "counts", len(found))  # one number for a single query
            places[np.arange(count) >= np.atleast_1d(counts)[:, None]] = -1
        self._check_keys(places)
        return places
