"""Collators: pad rows of histories to a batch and, for training, choose the items to predict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Integral
from typing import Any

import numpy as np
import torch

from ..models.configuration_bert4rec import SPECIAL_TOKENS
from .arguments import check_number
from .tokenization import ItemTokenizer

Rows = Sequence[Mapping[str, Any]]


@dataclass
class DataCollatorForNextItem:
    """Collator for models that read past items only (`SasRecForMaskedLM`, `Gru4RecForMaskedLM`): every item is a label.

    A label is at the position of its item, because the models shift their inputs. Unknown items ([UNK]) have no label.
    Rows that already have labels (validation, test) are only padded. A batch may contain both kinds of row.

    Args:
        tokenizer: Source of the ID of [PAD].
    """

    tokenizer: ItemTokenizer

    @property
    def scored_share(self) -> float:
        """Share of the positions of a training batch that a model scores."""
        return 1.0

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Build a batch from rows with `input_ids`; rows to evaluate also have `labels`.

        Returns:
            `input_ids` (batch, length); `attention_mask` (batch, length), 1 = real item, 0 = padding; `labels` (batch,
            length), the item of the same position, -100 = not scored; if rows have them, `history` (batch, longest) and
            `candidates` (batch, number), padded with -100. All int64.

        Raises:
            ValueError: A training row has no item; with cloze masking and `epoch`, a training row has no column `row`;
                labels do not match the inputs; or only some evaluated rows have `history` or `candidates`.
        """
        input_ids, real = pad_rows([row["input_ids"] for row in features], self.tokenizer.pad_token_id)
        labels = np.full_like(input_ids, -100)
        evaluated = [row for row in features if row.get("labels") is not None]
        train = np.array([row.get("labels") is None for row in features], bool)
        if evaluated:
            lengths = [(len(row["input_ids"]), len(row["labels"])) for row in evaluated]
            if wrong := [f"{ids} `input_ids` but {number} `labels`" for ids, number in lengths if ids != number]:
                raise ValueError(f"A row has {wrong[0]}. Give each of the `input_ids` one label (-100: not scored).")
            labels[~train], _ = pad_rows([row["labels"] for row in evaluated], -100, input_ids.shape[1])
        if train.any():
            if not real[train].any(axis=1).all():
                raise ValueError("Expected an item in each training row, found empty `input_ids`. Remove such rows.")
            rows = [row for row in features if row.get("labels") is None]
            input_ids[train], chosen = self._choose_labels(rows, input_ids[train], real[train])
            labels[train] = np.where(chosen < len(SPECIAL_TOKENS), -100, chosen)  # [UNK] is not to be predicted
        batch = {"input_ids": input_ids, "attention_mask": real.astype(np.int64), "labels": labels}
        for name in ("history", "candidates"):
            found = [row.get(name) is not None for row in evaluated]
            if any(found):
                if not all(found):
                    missing = f"Evaluated rows without `{name}`: {found.count(False)} of {len(found)}"
                    raise ValueError(f"{missing}. Add this column to all evaluated rows or to none.")
                batch[name], _ = pad_rows([row[name] if row.get(name) is not None else [] for row in features], -100)
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _choose_labels(self, rows: Rows, input_ids: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and labels of training rows, (rows, length) each."""
        return input_ids, np.where(real, input_ids, -100)


@dataclass
class DataCollatorForCloze(DataCollatorForNextItem):
    """Collator for cloze masking (paper, section 3.6).

    In a training row of n items, max(1, round(`mask_probability` · n)) positions, at most `max_predictions`, are
    replaced by [MASK], never by a random item, as in the published code. In rows of two items or more, at least one
    item stays visible. In a share `last_item_probability` of the rows, only the last item is masked, as in inference.

    In your own training loop every batch gets fresh masks, drawn from torch's generator (`torch.manual_seed`):

        collator = DataCollatorForCloze(tokenizer)
        for batch in DataLoader(histories["train"], batch_size=64, shuffle=True, collate_fn=collator):
            model(**batch).loss.backward()

    If `epoch` is set, masks are a pure function of `seed`, `epoch`, the row's number (column `row`) and the position.
    Batch size, number of workers or processes, and a resumption change nothing. `ClozeCallback` sets `epoch`.

    Args:
        tokenizer: Source of the IDs of [PAD] and [MASK].
        mask_probability: Share ρ of the positions of a training row that are masked.
        last_item_probability: Share of training rows in which only the last item is masked (published code: 1 in 11).
        max_predictions: Largest number of masks in a training row, as in the published code. None: no limit.
        seed: Seed of the masks. None: `args.seed` in the Trainer, otherwise 0.
        epoch: Number of the pass over the data. None: fresh masks for every batch.
    """

    mask_probability: float = 0.2
    last_item_probability: float = 1 / 11
    max_predictions: int | None = None
    seed: int | None = None
    epoch: int | None = None

    def __post_init__(self) -> None:
        check_number("mask_probability", self.mask_probability, "above 0 and below 1", lambda share: 0 < share < 1)
        check_number("last_item_probability", self.last_item_probability, "from 0 to 1", lambda share: 0 <= share <= 1)
        if self.max_predictions is not None:
            expected = "a whole number of at least 1, or None"
            check_number("max_predictions", self.max_predictions, expected, lambda number: number >= 1, Integral)
        if self.seed is not None:
            check_number("seed", self.seed, "from 0 to 2^63 - 1, or None", lambda seed: 0 <= seed < 2**63, Integral)

    @property
    def scored_share(self) -> float:
        """Approximate share of the positions of a training batch that a model scores.

        In each row as many positions are scored as in the row with the most masks. This is the share
        `mask_probability`, or one position per row if only one item is masked.
        """
        one = 1 in (self.last_item_probability, self.max_predictions)
        return 1 / self.tokenizer.model_max_length if one else self.mask_probability

    def _choose_labels(self, rows: Rows, input_ids: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.epoch is None:
            epoch, numbers = int(torch.randint(2**31, ())), np.arange(len(rows), dtype=np.uint64)
        elif all("row" in row for row in rows):
            epoch, numbers = self.epoch, np.array([row["row"] for row in rows], np.uint64)
        else:
            raise ValueError(
                "Training rows need a column `row` with the row number. Pass `remove_unused_columns=False` to the "
                "training arguments, so that the Trainer keeps the column. If the rows lack it, add it: "
                "`dataset.add_column('row', range(len(dataset)))`."
            )
        masked = self._draw_masks(epoch, numbers, real)
        return np.where(masked, self.tokenizer.mask_token_id, input_ids), np.where(masked, input_ids, -100)

    def _draw_masks(self, epoch: int, rows: np.ndarray, real: np.ndarray) -> np.ndarray:
        """Return which positions to mask, (rows, length) bool: those with the smallest hashes, or only the last."""
        lengths = real.sum(axis=1)
        counts = np.rint(self.mask_probability * lengths).astype(int)
        counts = np.clip(counts, 1, np.maximum(1, np.minimum(lengths - 1, self.max_predictions or lengths)))
        row_hashes = _hash(_hash(_hash(np.uint64(self.seed or 0)) + np.uint64(epoch)) + rows)
        hashes = _hash(row_hashes[:, None] + np.arange(1, real.shape[1] + 1, dtype=np.uint64))  # distinct within a row
        smallest = np.sort(np.where(real, hashes, np.iinfo(np.uint64).max), axis=1)
        masked = real & (hashes <= smallest[np.arange(len(rows)), counts - 1][:, None])
        # The factor is the largest float below 2^64, so that a probability of 1 fits into uint64.
        last_only = _hash(row_hashes) < np.uint64(self.last_item_probability * (2**64 - 2**11))
        return np.where(last_only[:, None], np.arange(real.shape[1]) == lengths[:, None] - 1, masked)


def pad_rows(
    rows: Sequence[Sequence[int] | np.ndarray], value: int, length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows as an int64 array, (rows, longest or `length`), padded with `value`, and a mask of real values."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    real = np.arange(length or lengths.max(initial=0)) < lengths[:, None]
    padded = np.full(real.shape, value, np.int64)
    arrays = len(rows) > 0 and isinstance(rows[0], np.ndarray)  # for lists, fromiter is twice as fast
    padded[real] = np.concatenate(rows) if arrays else np.fromiter(chain.from_iterable(rows), np.int64, lengths.sum())
    return padded, real


def _hash(counters: np.ndarray | np.uint64) -> np.ndarray:
    """Return pseudorandom numbers as a function of counters: the finalizer of splitmix64 (Steele et al., 2014)."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is wanted
        mixed = np.asarray(counters, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
