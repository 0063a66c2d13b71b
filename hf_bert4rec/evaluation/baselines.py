"""Baselines: simple recommenders as modules that the Trainer evaluates like any model.

A baseline is fitted to the whole histories of the training users, one row per user, for example
`leave_one_out(..., max_length=...)` with a length above that of every history. For a query, a baseline reads the items
of the given history. BPR-MF cannot do this, so it identifies its users by their raw IDs.

All baselines take `train`, the training rows, and `vocab_size`, which is `len(tokenizer)`. They raise ValueError if
there are no items, a user has two rows, a token ID is not below `vocab_size`, or an option is out of range. They raise
ImportError if the package `implicit` is needed and missing.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

import numpy as np
import psutil
import torch
from datasets import Dataset
from torch import nn

from ..data.arguments import check_count, check_number, read_rows
from ..data.data_collator import DataCollatorForNextItem
from ..data.histories import flatten, times_are_comparable
from ..models.inputs import ranking_of
from ..models.modeling_bert4rec import MaskedItemOutput
from .ranking import SPECIALS

Batch = Mapping[str, torch.Tensor]


@dataclass
class DataCollatorWithUsers(DataCollatorForNextItem):
    """`DataCollatorForNextItem` whose batches also have `users` (batch,), the numbers of the users, for `BprMf`.

    Args:
        users: Dict from raw user ID to number, the `users` of a fitted `BprMf`. Other users get -1.
    """

    users: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Build a batch with `users`; ValueError if a row has no `user`."""
        if any("user" not in row for row in features):
            advice = "Pass `remove_unused_columns=False` to the training arguments."
            raise ValueError(f"{type(self).__name__} needs the column `user`. {advice}")
        users = torch.tensor([self.users.get(row["user"], -1) for row in features])
        return {**super().__call__(features), "users": users}


class Baseline(nn.Module):
    """Base class of baselines, which return the same output as the models, computed on the CPU."""

    users: Mapping[str, int] = {}  # raw user ID → number; empty for baselines that read histories only
    exclude_history = True  # whether items of the history are excluded from the ranking, as in `Bert4RecConfig`

    def scores(self, batch: Batch) -> torch.Tensor:
        """Return scores (users, vocab_size); larger is better.

        The batch has `input_ids` and `attention_mask` (users, length): the newest items, and [MASK] in place of the
        target; `history` (users, longest): all items before the target, padded with -100; and `users` (users,): rows
        of the users in the training split, from 0, or -1 for users that are not in it.
        """
        raise NotImplementedError

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
        history: torch.Tensor | None = None,
        candidates: torch.Tensor | None = None,
        users: torch.Tensor | None = None,
    ) -> MaskedItemOutput:
        """Return logits (users, 1, vocab_size). The loss is NaN, because gradients do not train baselines.

        `input_ids`, `attention_mask` (required), `history` and `candidates` are as in `Bert4RecForMaskedLM.forward`.
        Without `history`, the items are those of `input_ids`. `labels` are not used. `users` are as in `scores`;
        ValueError if `BprMf` gets none.
        """
        if users is None and self.users:
            advice = "Use `DataCollatorWithUsers(tokenizer, model.users)` of `hf_bert4rec.evaluation.baselines`."
            raise ValueError(f"{type(self).__name__} needs `users` in each batch. {advice}")
        users = torch.full(input_ids.shape[:1], -1) if users is None else users
        items = input_ids if history is None else history
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "history": items, "users": users}
        scores = self.scores({name: values.cpu() for name, values in batch.items()}).to(input_ids.device)
        ranking = ranking_of(self.exclude_history, history, candidates, input_ids)
        return MaskedItemOutput(loss=scores.new_full((), torch.nan), logits=scores[:, None], ranking=ranking)


class Popularity(Baseline):
    """Baseline that recommends the items with the most interactions to every user.

    Args:
        train: Training rows, with one row per user: the whole history (see `hf_bert4rec.evaluation.baselines`).
        vocab_size: `len(tokenizer)`.
        recent_share: Share of all interactions that is counted, the most recent first. Below 1 it needs timestamps.

    Raises:
        ValueError: A user has two rows, there are no items, a token ID is not below `vocab_size`, or `recent_share` is
            out of range or needs timestamps.
    """

    def __init__(self, train: Dataset, vocab_size: int, recent_share: float = 1.0) -> None:
        super().__init__()
        check_number("recent_share", recent_share, "above 0 and at most 1", lambda share: 0 < share <= 1)
        items, users = training_items(train, vocab_size)
        if recent_share < 1:
            times, _ = flatten(train.with_format("arrow")[:]["timestamps"])
            if not times_are_comparable(users, times):
                found = "In this log, the times of two users never overlap, as if they were row numbers."
                raise ValueError(f"`recent_share` below 1 needs timestamps. {found} Set this option to 1.")
            items = items[times >= np.quantile(times, 1 - recent_share)]
        self.counts = torch.from_numpy(np.bincount(items, minlength=vocab_size)).float()  # no buffer: stays on the CPU

    def scores(self, batch: Batch) -> torch.Tensor:
        """Return the counts for every user."""
        return self.counts.expand(len(batch["input_ids"]), -1)


class MarkovChain(Popularity):
    """First-order Markov chain: rank items by how often they followed the last item, then by popularity.

    `train`, `vocab_size` and their errors are as for `Popularity`.
    """

    def __init__(self, train: Dataset, vocab_size: int) -> None:
        super().__init__(train, vocab_size)
        items, users = training_items(train, vocab_size)
        before, after = (part[users[1:] == users[:-1]] for part in (items[:-1], items[1:]))
        self.followers = torch.from_numpy(after[np.argsort(before, kind="stable")])
        self.ends = np.bincount(before, minlength=vocab_size).cumsum()  # of the followers of each item

    def scores(self, batch: Batch) -> torch.Tensor:
        """Return the number of transitions from the last item, plus popularity scaled to less than one."""
        place = (batch["attention_mask"].sum(dim=1, keepdim=True) - 2).clamp(min=0)  # before the [MASK]
        last = batch["input_ids"].take_along_dim(place, dim=1)[:, 0]  # an empty history: [MASK], without transitions
        counts = torch.zeros(len(last), len(self.counts))
        for row, item in zip(counts, last.tolist(), strict=True):
            followers = self.followers[self.ends[item - 1] : self.ends[item]]
            row.index_add_(0, followers, torch.ones(len(followers)))
        return counts + 0.9 * self.counts / self.counts.max()


class OwnItems(Popularity):
    """Baseline that ranks the user's own items by their number in the history, then all other items by popularity.

    For logs with repeat consumption, to compare with models with `exclude_history=False`.
    """

    exclude_history = False

    def scores(self, batch: Batch) -> torch.Tensor:
        """Return the counts in the history, plus popularity scaled to less than one."""
        history = batch["history"]
        counts = torch.zeros(len(history), len(self.counts))
        counts.scatter_add_(1, history.clamp(min=0), (history >= SPECIALS).float())
        return counts + 0.9 * self.counts / self.counts.max()


class SetBaseline(Popularity):
    """Base class of baselines that read the history as a set; an empty history gets the popular items."""

    def scores(self, batch: Batch) -> torch.Tensor:
        """Return `scores_of_sets`; for an empty history, how often each item occurs in training."""
        history = batch["history"]
        sets = torch.zeros(len(history), len(self.counts))
        sets.scatter_(1, history.clamp(min=0), 1)[:, :SPECIALS] = 0
        return torch.where(sets.any(dim=1, keepdim=True), self.scores_of_sets(sets), self.counts)

    def scores_of_sets(self, sets: torch.Tensor) -> torch.Tensor:
        """Return scores (users, vocab_size) for sets (users, vocab_size) of 0 and 1."""
        raise NotImplementedError


class Ease(SetBaseline):
    """EASE (Steck, WWW 2019): linear autoencoder of sets of items, in closed form. No item predicts itself.

    Args:
        regularization: λ above 0, which is added to the number of users of every item.

    Raises:
        MemoryError: Three matrices of shape (vocab_size, vocab_size) do not fit into the memory.
    """

    def __init__(self, train: Dataset, vocab_size: int, regularization: float = 500.0) -> None:
        check_number("regularization", regularization, "above 0", lambda number: number > 0)
        super().__init__(train, vocab_size)
        needed, free = 3 * 4e-9 * vocab_size**2, psutil.virtual_memory().available / 1e9
        if needed > free:
            solution = "Drop rare items with `min_item_interactions`, or use the baseline `item_neighbors`."
            raise MemoryError(f"EASE needs {needed:.1f} GB of memory, {free:.1f} GB are free. {solution}")
        counts = np.zeros((vocab_size, vocab_size), np.float32)  # users who have both items
        for history in train.with_format("numpy")["input_ids"][:]:
            items = np.unique(history)
            counts[np.ix_(items, items)] += 1
        gram = torch.from_numpy(counts)
        gram.diagonal().add_(regularization)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        self.weights = inverse / -inverse.diagonal()
        self.weights.fill_diagonal_(0)

    def scores_of_sets(self, sets: torch.Tensor) -> torch.Tensor:
        """Return for each item the sum of the weights from the items of the set, (users, vocab_size)."""
        return sets @ self.weights


class ItemNeighbors(SetBaseline):
    """Item neighbors (`implicit`): similarities to the nearest items, summed over the history.

    Args:
        weighting: `cosine`, or `bm25`, which reduces the weight of popular items.
        neighbors: Number of nearest items per item, including the item itself.
    """

    def __init__(
        self, train: Dataset, vocab_size: int, weighting: Literal["cosine", "bm25"] = "cosine", neighbors: int = 100
    ) -> None:
        super().__init__(train, vocab_size)
        check_count("neighbors", neighbors)
        classes = {"cosine": "CosineRecommender", "bm25": "BM25Recommender"}
        if weighting not in classes:
            raise ValueError(f"`weighting` must be {' or '.join(classes)}, found {weighting!r}.")
        model = fit_implicit("nearest_neighbours", classes[weighting], train, vocab_size, K=neighbors)
        self.similarity = model.similarity.tocsr()

    def scores_of_sets(self, sets: torch.Tensor) -> torch.Tensor:
        """Return for each item the sum of its similarities to the items of the set, (users, vocab_size)."""
        return torch.from_numpy((sparse_matrix(sets.numpy()) @ self.similarity).toarray()).float()


class Als(SetBaseline):
    """Matrix factorization of implicit feedback (Hu et al., ICDM 2008; `implicit`); user factors follow from histories.

    Args:
        factors: Number of user and item factors.
        iterations: Number of alternations between users and items.
        seed: Seed of the initial factors.
        **options: `regularization` and `alpha` of `implicit.cpu.als.AlternatingLeastSquares`.
    """

    def __init__(
        self, train: Dataset, vocab_size: int, factors: int = 64, iterations: int = 15, seed: int = 0, **options: float
    ) -> None:
        super().__init__(train, vocab_size)
        options |= {"factors": factors, "iterations": iterations, "num_threads": torch.get_num_threads()}
        self.model = fit_implicit("cpu.als", "AlternatingLeastSquares", train, vocab_size, random_state=seed, **options)

    def scores_of_sets(self, sets: torch.Tensor) -> torch.Tensor:
        """Return the products of item factors and the factors that are computed for each set, (users, vocab_size)."""
        factors = self.model.recalculate_user(np.arange(len(sets)), sparse_matrix(sets.numpy()))
        return torch.from_numpy(factors @ self.model.item_factors.T).float()


class BprMf(Baseline):
    """Matrix factorization for pairwise ranking (BPR-MF; Rendle et al., UAI 2009; `implicit`).

    Each user of the training rows has a vector of factors. Other users get the mean of these vectors.

    Args:
        factors: Number of user and item factors.
        iterations: Number of passes over the interactions.
        seed: Seed of initial factors and sampling. Results repeat only with one thread (`torch.set_num_threads`).
        **options: `learning_rate` and `regularization` of `implicit.cpu.bpr.BayesianPersonalizedRanking`.
    """

    def __init__(
        self, train: Dataset, vocab_size: int, factors: int = 64, iterations: int = 100, seed: int = 0, **options: float
    ) -> None:
        super().__init__()
        options |= {"factors": factors, "iterations": iterations, "num_threads": torch.get_num_threads()}
        model = fit_implicit("cpu.bpr", "BayesianPersonalizedRanking", train, vocab_size, random_state=seed, **options)
        self.users = {user: row for row, user in enumerate(train["user"][:])}
        self.user_factors, self.item_factors = map(torch.from_numpy, (model.user_factors, model.item_factors))

    def scores(self, batch: Batch) -> torch.Tensor:
        """Return the inner products of user and item factors. Unknown users get the mean of the user factors."""
        users = batch["users"]
        factors = torch.where(users[:, None] >= 0, self.user_factors[users], self.user_factors.mean(dim=0))
        return factors @ self.item_factors.T


BASELINES: dict[str, type[Baseline]] = {
    "popularity": Popularity,
    "markov_chain": MarkovChain,
    "own_items": OwnItems,
    "ease": Ease,
    "item_neighbors": ItemNeighbors,
    "als": Als,
    "bpr_mf": BprMf,
}
"""Dict from the name in a comparison file to the class of the baseline."""


def training_items(train: Dataset, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return token ID and row of each interaction in training rows; ValueError as for the baselines."""
    table = read_rows(train, "user", "input_ids")
    items, rows = flatten(table["input_ids"])
    if not len(items):
        raise ValueError("Expected training rows with items, found none.")
    if (last := items.max()) >= vocab_size:
        found = f"found {vocab_size}, but the training rows have the token ID {last}"
        raise ValueError(f"`vocab_size` must be `len(tokenizer)`, {found}.")
    if len(table["user"].unique()) != train.num_rows:
        advice = "Split with `prefixes=False` and a `max_length` above the longest history, such as 1_000_000."
        raise ValueError(f"Baselines need one row per user, found users with several rows. {advice}")
    return items.astype(np.int64, copy=False), rows  # rows from other programs may have smaller integers


def sparse_matrix(values: Any, shape: tuple[int, int] | None = None) -> Any:
    """Return a sparse matrix of scipy, which is installed with `implicit`."""
    return import_module("scipy.sparse").csr_matrix(values, shape)


def fit_implicit(module: str, kind: str, train: Dataset, vocab_size: int, **options: Any) -> Any:
    """Fit the class `kind` of the package `implicit` to the distinct items of each training user."""
    for name in sorted({"factors", "iterations"} & options.keys()):  # `implicit` accepts other values and fails later
        check_count(name, options[name])
    try:
        model = getattr(import_module(f"implicit.{module}"), kind)(**options)
    except ModuleNotFoundError as error:
        advice = "Run `pip install 'hf-bert4rec[baselines]'`."
        raise ImportError(f"This baseline needs the package implicit. {advice}") from error
    items, users = training_items(train, vocab_size)
    matrix = sparse_matrix((np.ones(len(users), np.float32), (users, items)), (len(train), vocab_size))
    matrix.data[:] = 1  # repeated items were added up
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # implicit warns about a conversion of its own
        model.fit(matrix, show_progress=False)
    return model
