"""Simple recommenders to beat, as modules that the stock Trainer evaluates like any model.

Each is fitted on the whole histories of the training split, a row a user (`leave_one_out(..., max_length=…)["train"]`
with a length that none exceeds); windows that overlap, whose actions would count twice, are refused. What it then
knows of a user are the items of the history to complete, the validation item among them at test. Only BPR-MF, which has
no way to take in new items, remembers its users from training instead.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import psutil
import torch
from datasets import Dataset
from torch import nn

from ..data.data_collator import DataCollatorForNextItem
from ..data.histories import times_are_comparable
from ..models.configuration_bert4rec import SPECIAL_TOKENS
from ..models.modeling_bert4rec import MaskedItemOutput


@dataclass
class DataCollatorWithUsers(DataCollatorForNextItem):
    """Batches that also tell whose rows they are, for `Baseline.forward`.

    Args:
        tokenizer: As for `DataCollatorForNextItem`.
        users: Raw id → number; others are -1.
    """

    users: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """As in `DataCollatorForNextItem`, with `users` (batch,)."""
        users = torch.tensor([self.users.get(row["user"], -1) for row in features])
        return {**super().__call__(features), "users": users}


class Baseline(nn.Module):
    """What the simple recommenders share: they answer as the models do, and are computed on the CPU."""

    users: Mapping[str, int] = {}
    """Those whom it remembers from training, for `DataCollatorWithUsers`."""

    exclude_history = True
    """As for `Bert4RecConfig`."""

    def scores(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, history: torch.Tensor, users: torch.Tensor
    ) -> torch.Tensor:
        """Scores (users, rows), larger is better.

        Args:
            input_ids: (users, length), the newest items and the [MASK] of the query.
            attention_mask: (users, length), 1 = real.
            history: (users, longest) all items of each user before the target, filled up with -100.
            users: (users,) numbers in `self.users`, -1 for others.
        """
        raise NotImplementedError

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        history: torch.Tensor,
        candidates: torch.Tensor | None = None,
        users: torch.Tensor | None = None,
    ) -> MaskedItemOutput:
        """As the models do: (users, 1, rows) logits. The loss, which the Trainer asks for, is NaN: scores have none."""
        if users is None and self.users:
            raise ValueError(
                "It knows its users by their id: collate with DataCollatorWithUsers(tokenizer, model.users)."
            )
        users = torch.full(input_ids.shape[:1], -1) if users is None else users
        scores = self.scores(input_ids.cpu(), attention_mask.cpu(), history.cpu(), users.cpu()).to(input_ids.device)
        loss = torch.full((), torch.nan)
        ranking = {"history": history if self.exclude_history else history[:, :0]}
        ranking |= {} if candidates is None else {"candidates": candidates}
        return MaskedItemOutput(loss=loss, logits=scores[:, None], ranking=ranking)


class Popularity(Baseline):
    """Every user gets the items with the most actions.

    Args:
        train: Training rows.
        vocab_size: Rows of the item table, `len(tokenizer)`.
        newest: Share of the actions, the newest ones, that count. It needs a log with times.

    Raises:
        ValueError: `newest` is not above 0 and at most 1, or below 1 where times of different users cannot be compared;
            or a user has two rows.
    """

    def __init__(self, train: Dataset, vocab_size: int, newest: float = 1.0) -> None:
        super().__init__()
        if not 0 < newest <= 1:
            raise ValueError(f"Expected newest, a share of the actions, above 0 and at most 1, found {newest}.")
        histories = whole_rows(train)
        items = np.concatenate(histories)
        if newest < 1:
            times = np.concatenate(train.with_format("numpy")["timestamps"][:])
            if not times_are_comparable(np.repeat(np.arange(len(histories)), list(map(len, histories))), times):
                raise ValueError("Expected a log with times for `newest`, found one that has only an order.")
            items = items[times >= np.quantile(times, 1 - newest)]
        self.counts = torch.from_numpy(np.bincount(items, minlength=vocab_size)).float()  # no buffer: stays on the CPU

    def scores(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, history: torch.Tensor, users: torch.Tensor
    ) -> torch.Tensor:
        """The counts, for everybody."""
        return self.counts.expand(len(input_ids), -1)


class MarkovChain(Popularity):
    """The next item given the last one (first order), items never seen to follow it by their popularity."""

    def __init__(self, train: Dataset, vocab_size: int) -> None:
        super().__init__(train, vocab_size)
        pairs = np.concatenate([np.stack([history[:-1], history[1:]]) for history in whole_rows(train)], axis=1)
        ones, shape = torch.ones(pairs.shape[1]), (vocab_size, vocab_size)
        followed = torch.sparse_coo_tensor(torch.from_numpy(pairs), ones, shape, check_invariants=False)
        self.followed = followed.coalesce()

    def scores(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, history: torch.Tensor, users: torch.Tensor
    ) -> torch.Tensor:
        """Times that an item followed the last one, plus less than one for popularity."""
        before_mask = (attention_mask.sum(dim=1, keepdim=True) - 2).clamp(min=0)
        last = input_ids.take_along_dim(before_mask, dim=1)[:, 0]  # [MASK] itself for an empty history: follows nothing
        return self.followed.index_select(0, last).to_dense() + 0.9 * self.counts / self.counts.max()


class FromHistory(Popularity):
    """A baseline that knows a user by the items of the history alone; who has none gets what is popular."""

    def scores(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, history: torch.Tensor, users: torch.Tensor
    ) -> torch.Tensor:
        """Those of `scores_of_sets`, or the counts."""
        sets = as_sets(history, len(self.counts))
        return torch.where(sets.any(dim=1, keepdim=True), self.scores_of_sets(sets), self.counts)

    def scores_of_sets(self, sets: torch.Tensor) -> torch.Tensor:
        """Scores (users, rows) for (users, rows) of 0 and 1, what each has had."""
        raise NotImplementedError


class Ease(FromHistory):
    """EASE (Steck, WWW 2019): the linear autoencoder over sets of items with an empty diagonal, in closed form.

    Args:
        train: Training rows.
        vocab_size: Rows of the item table.
        regularization: λ, in actions, added to every item's count.

    Raises:
        MemoryError: A matrix of rows × rows, three times, does not fit.
        ValueError: `regularization` is not above 0.
    """

    def __init__(self, train: Dataset, vocab_size: int, regularization: float = 500.0) -> None:
        if not regularization > 0:
            raise ValueError(f"Expected a regularization above 0, found {regularization}.")
        needed, free = 3 * 4e-9 * vocab_size**2, psutil.virtual_memory().available / 1e9
        if needed > free:
            raise MemoryError(f"EASE on {vocab_size} rows takes {needed:.1f} GB, {free:.1f} GB are free.")
        super().__init__(train, vocab_size)
        together = torch.from_numpy(counted_together(train, vocab_size))
        together.diagonal().add_(regularization)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(together))
        weights = inverse / -inverse.diagonal()
        weights.fill_diagonal_(0)
        self.weights = weights

    def scores_of_sets(self, sets: torch.Tensor) -> torch.Tensor:
        """The sum over the history of what each of its items says of the others."""
        return sets @ self.weights


class ItemNeighbors(FromHistory):
    """Items that the same people have (`implicit`): similarities to the nearest others, summed over a history.

    Args:
        train: Training rows.
        vocab_size: Rows of the item table.
        weighting: `cosine`, or `bm25`, which counts items less that many people have.
        neighbors: Nearest items of an item, itself among them, as `implicit` counts.

    Raises:
        ValueError: There is no such weighting, or `neighbors` is no whole number from 1.
    """

    def __init__(
        self, train: Dataset, vocab_size: int, weighting: Literal["cosine", "bm25"] = "cosine", neighbors: int = 100
    ) -> None:
        super().__init__(train, vocab_size)
        whole_numbers(neighbors=neighbors)
        classes = {"cosine": "CosineRecommender", "bm25": "BM25Recommender"}
        if weighting not in classes:
            raise ValueError(f"Expected a weighting among {', '.join(classes)}, found {weighting!r}.")
        model = getattr(implicit("nearest_neighbours"), classes[weighting])(K=neighbors)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # implicit warns of a conversion that it makes itself
            model.fit(user_items(train, vocab_size), show_progress=False)
        self.similarity = model.similarity.tocsr()

    def scores_of_sets(self, sets: torch.Tensor) -> torch.Tensor:
        """The sum over the history of similarities."""
        from scipy.sparse import csr_matrix  # comes with implicit

        return torch.from_numpy((csr_matrix(sets.numpy()) @ self.similarity).toarray()).float()


class BprMf(Baseline):
    """Matrix factorisation by pairs (Rendle et al., UAI 2009; `implicit`). It knows its users by their id.

    Args:
        train: Training rows.
        vocab_size: Rows of the item table.
        factors: Width of users and items.
        learning_rate: Of the steps.
        regularization: Of the factors.
        iterations: Passes over the actions.
        seed: Of start and sampling, the same only with one thread.

    Raises:
        ValueError: `factors` or `iterations` is no whole number from 1.
    """

    def __init__(
        self,
        train: Dataset,
        vocab_size: int,
        factors: int = 64,
        learning_rate: float = 0.01,
        regularization: float = 0.01,
        iterations: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        options = {"learning_rate": learning_rate, "regularization": regularization}
        kind = ("cpu.bpr", "BayesianPersonalizedRanking")
        model = factorised(kind, user_items(train, vocab_size), factors, iterations, seed, **options)
        self.users = {user: row for row, user in enumerate(train["user"][:])}
        self.user_factors, self.item_factors = (
            torch.from_numpy(model.user_factors),
            torch.from_numpy(model.item_factors),
        )

    def scores(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, history: torch.Tensor, users: torch.Tensor
    ) -> torch.Tensor:
        """Products of factors; somebody unknown counts as the mean user."""
        factors = torch.where(users[:, None] >= 0, self.user_factors[users], self.user_factors.mean(dim=0))
        return factors @ self.item_factors.T


class Als(FromHistory):
    """Matrix factorisation of implicit feedback (Hu et al., ICDM 2008; `implicit`), users folded in by their history.

    Args:
        train: Training rows.
        vocab_size: Rows of the item table.
        factors: Width of users and items.
        regularization: Of the factors.
        alpha: Weight of what somebody has, beside 1 for what not.
        iterations: Times that users and items are solved for in turn.
        seed: Of the start.

    Raises:
        ValueError: `factors` or `iterations` is no whole number from 1.
    """

    def __init__(
        self,
        train: Dataset,
        vocab_size: int,
        factors: int = 64,
        regularization: float = 0.01,
        alpha: float = 1.0,
        iterations: int = 15,
        seed: int = 0,
    ) -> None:
        super().__init__(train, vocab_size)
        options = {"regularization": regularization, "alpha": alpha}
        kind = ("cpu.als", "AlternatingLeastSquares")
        self.model = factorised(kind, user_items(train, vocab_size), factors, iterations, seed, **options)

    def scores_of_sets(self, sets: torch.Tensor) -> torch.Tensor:
        """Products of factors, those of the users solved for."""
        from scipy.sparse import csr_matrix

        factors = self.model.recalculate_user(np.arange(len(sets)), csr_matrix(sets.numpy()))
        return torch.from_numpy(factors @ self.model.item_factors.T).float()


BASELINES: dict[str, type[Baseline]] = {
    "popularity": Popularity,
    "markov_chain": MarkovChain,
    "ease": Ease,
    "item_neighbors": ItemNeighbors,
    "als": Als,
    "bpr_mf": BprMf,
}


def implicit(module: str) -> Any:
    """A module of the library.

    Raises:
        ImportError: It is not installed.
    """
    try:
        return __import__(f"implicit.{module}", fromlist=["*"])
    except ImportError as error:
        raise ImportError("This baseline needs implicit: pip install 'hf-bert4rec[baselines]'.") from error


def factorised(kind: tuple[str, str], sets: Any, factors: int, iterations: int, seed: int, **options: float) -> Any:
    """A matrix factorisation of `implicit`, by its module and class, fitted to who has what."""
    whole_numbers(factors=factors, iterations=iterations)
    model = getattr(implicit(kind[0]), kind[1])(
        factors=factors, iterations=iterations, random_state=seed, num_threads=torch.get_num_threads(), **options
    )
    model.fit(sets, show_progress=False)
    return model


def whole_numbers(**options: Any) -> None:
    """Refuse options that are no whole numbers from 1: `implicit` takes some of them and fails later, or crashes."""
    for name, value in options.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"Expected {name}, a whole number from 1, found {value}.")


def whole_rows(train: Dataset) -> list[np.ndarray]:
    """The history of each user.

    Raises:
        ValueError: A user has two rows.
    """
    if len(set(train["user"][:])) != train.num_rows:
        raise ValueError("Expected a row a user, whole histories: split with a max_length longer than any.")
    return train.with_format("numpy")["input_ids"][:]


def user_items(train: Dataset, vocab_size: int) -> Any:
    """Who has what, (users, rows) of 0 and 1 as a scipy matrix, users in the order of their first row."""
    from scipy.sparse import csr_matrix

    histories = whole_rows(train)
    rows = np.repeat(np.arange(len(histories)), list(map(len, histories)))
    matrix = csr_matrix(
        (np.ones(len(rows), np.float32), (rows, np.concatenate(histories))), (len(histories), vocab_size)
    )
    matrix.data[:] = 1  # what somebody has twice was added up
    return matrix


def counted_together(train: Dataset, vocab_size: int) -> np.ndarray:
    """How many people have both of two items, (rows, rows) float32."""
    together = np.zeros((vocab_size, vocab_size), np.float32)
    for history in whole_rows(train):
        items = np.unique(history)
        together[np.ix_(items, items)] += 1
    return together


def as_sets(history: torch.Tensor, rows: int) -> torch.Tensor:
    """(users, rows) of 0 and 1 from (users, longest) histories that are filled up with -100."""
    sets = torch.zeros(len(history), rows)
    users, places = (history >= len(SPECIAL_TOKENS)).nonzero(as_tuple=True)
    sets[users, history[users, places]] = 1
    return sets
