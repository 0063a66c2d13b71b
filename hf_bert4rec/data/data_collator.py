"""Collators for the stock Trainer: labels are made for training rows, rows that bring their own are only padded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from ..models.configuration_bert4rec import SPECIAL_TOKENS
from .tokenization import ItemTokenizer


@dataclass
class DataCollatorForNextItem:
    """Pad rows of `histories` to a batch; in those without labels of their own every item is to be predicted.

    For models that look back only (`SasRecForMaskedLM`, `Gru4RecForMaskedLM`): each item is its own label, since they
    do not see it where they predict it.

    Args:
        tokenizer: Gives the ids of [PAD] and [MASK].
    """

    tokenizer: ItemTokenizer

    @property
    def scored_share(self) -> float:
        """Share of the positions of a training batch that is scored."""
        return 1.0

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch.

        Args:
            features: Rows with `input_ids`, and either `row` (their number, which cloze masks are drawn from) or
                `labels` (which are only padded, like `history` and `candidates` where there are any).

        Returns:
            `input_ids` (batch, length); `attention_mask` (batch, length), 1 = real item, 0 = padding; `labels`
            (batch, length), -100 = not scored; and for rows that brought them `history` (batch, longest) and
            `candidates` (batch, number), padded with -100. All int64.
        """
        input_ids, real = pad_rows([row["input_ids"] for row in features], self.tokenizer.pad_token_id)
        batch = {"input_ids": input_ids, "attention_mask": real.astype(np.int64)}
        if features[0].get("labels") is not None:
            batch["labels"], _ = pad_rows([row["labels"] for row in features], -100)
            for name in ("history", "candidates"):
                if features[0].get(name) is not None:
                    batch[name], _ = pad_rows([row[name] for row in features], -100)
        else:
            if not real.any(axis=1).all():
                raise ValueError("Expected training rows with at least one item each, found one with none.")
            batch["input_ids"], labels = self._for_training(features, input_ids, real)
            batch["labels"] = np.where(labels < len(SPECIAL_TOKENS), -100, labels)  # [UNK] is not to be predicted
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _for_training(
        self, features: Sequence[Mapping[str, Any]], input_ids: np.ndarray, real: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels, (batch, length) each, of rows without labels."""
        return input_ids, np.where(real, input_ids, -100)


@dataclass
class DataCollatorForCloze(DataCollatorForNextItem):
    """Pad rows of `histories` to a batch, and mask those that have no labels of their own (paper, section 3.6).

    Of a row of n items, max(1, round(`mask_probability` · n)) distinct positions are replaced by [MASK], never by a
    random item, as in the published code; one item is always left to see where there are two. A share of the rows,
    `last_item_probability`, has only its last item masked, which is what a recommendation looks like.

    Masks are a pure function of `seed`, `epoch`, the row's number and the position. They are the same for any number of
    workers, processes and resumptions, and fresh in every epoch as long as somebody sets `epoch`: `ClozeCallback` does.

    Args:
        tokenizer: Gives the ids of [PAD] and [MASK].
        mask_probability: ρ, the share of a row's positions that is masked.
        last_item_probability: Share of the rows in which the last item alone is masked (1 in 11 in the published code).
        max_predictions: Most masks of a row, as in the published code; no limit if None.
        seed: Seed of the masks.
        epoch: Number of the pass over the data.

    Raises:
        ValueError: A share is out of range.
    """

    mask_probability: float = 0.2
    last_item_probability: float = 1 / 11
    max_predictions: int | None = None
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.mask_probability < 1 or not 0 <= self.last_item_probability <= 1:
            raise ValueError(
                "Expected mask_probability above 0 and below 1, and last_item_probability from 0 to 1, found "
                f"{self.mask_probability} and {self.last_item_probability}."
            )
        if self.max_predictions is not None and self.max_predictions < 1:
            raise ValueError(f"Expected max_predictions of at least 1, or None, found {self.max_predictions}.")

    @property
    def scored_share(self) -> float:
        """Share of the positions of a training batch that is scored."""
        return self.mask_probability

    def _for_training(
        self, features: Sequence[Mapping[str, Any]], input_ids: np.ndarray, real: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        masked = self._draw_masks(self._row_numbers(features), real)
        return np.where(masked, self.tokenizer.mask_token_id, input_ids), np.where(masked, input_ids, -100)

    def _row_numbers(self, features: Sequence[Mapping[str, Any]]) -> np.ndarray:
        if "row" not in features[0]:
            raise ValueError(
                "Training rows need a column `row`, their number, for the masks to be drawn from: "
                "dataset.add_column('row', range(len(dataset))); and `remove_unused_columns=False` keeps it."
            )
        return np.array([row["row"] for row in features], np.uint64)

    def _draw_masks(self, rows: np.ndarray, real: np.ndarray) -> np.ndarray:
        """Which positions to mask, (batch, length) bool: in each row the k real positions with the smallest hash."""
        lengths = real.sum(axis=1)
        counts = np.rint(self.mask_probability * lengths).astype(int)
        counts = np.clip(counts, 1, np.maximum(1, np.minimum(lengths - 1, self.max_predictions or lengths)))
        row_hashes = _hash(_hash(_hash(np.uint64(self.seed)) + np.uint64(self.epoch)) + rows)
        hashes = _hash(row_hashes[:, None] + np.arange(1, real.shape[1] + 1, dtype=np.uint64))  # distinct within a row
        smallest = np.sort(np.where(real, hashes, np.iinfo(np.uint64).max), axis=1)
        masked = real & (hashes <= smallest[np.arange(len(rows)), counts - 1][:, None])
        last_only = _hash(row_hashes) < np.uint64(self.last_item_probability * (2**64 - 2**11))
        last = np.arange(real.shape[1]) == lengths[:, None] - 1
        return np.where(last_only[:, None], last, masked)


def pad_rows(
    rows: Sequence[Sequence[int] | np.ndarray], value: int, length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows in one array, (batch, longest or `length`) int64, filled up on the right; and what is not filling."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    real = np.arange(length or lengths.max(initial=0)) < lengths[:, None]
    padded = np.full(real.shape, value, np.int64)
    arrays = len(rows) > 0 and isinstance(rows[0], np.ndarray)  # from lists numpy is twice as fast by an iterator
    padded[real] = np.concatenate(rows) if arrays else np.fromiter(chain.from_iterable(rows), np.int64, lengths.sum())
    return padded, real


def _hash(counters: np.ndarray | np.uint64) -> np.ndarray:
    """Numbers that look random, as a function of counters: the finaliser of splitmix64 (Steele et al., 2014)."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is what is wanted
        mixed = np.asarray(counters, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
