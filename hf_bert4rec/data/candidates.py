"""Candidates for sampled metrics: items drawn for each evaluated user, among which the target is ranked."""

import numpy as np
import pyarrow as pa
from datasets import Dataset

from ..models.configuration_bert4rec import SPECIAL_TOKENS


def popularity_candidates(rows: Dataset, counts: np.ndarray, number: int = 100, seed: int = 0) -> Dataset:
    """Draw the items among which the paper ranks each target (section 4.2): popular ones that the user has not had.

    Figures from these candidates never compare with those from the whole catalogue, and differ with the draw.

    Args:
        rows: A split to evaluate, from `leave_one_out` or `split_at_time`.
        counts: (rows of the item table,) how often each item occurs, in the paper over all actions, held-out ones too;
            those of the special rows are passed over.
        number: Items to draw for each user, without replacement and in proportion to their counts.
        seed: Of the draw, with the number in `row`: no other row of the split matters.

    Returns:
        The split with a column `candidates`.

    Raises:
        ValueError: `number` is below 1, the rows have no targets, or a user is left with fewer items than `number`.
    """
    if number < 1:
        raise ValueError(f"Expected at least one candidate, found {number}.")
    table = rows.with_format("arrow")[:]
    if table["labels"].null_count:
        raise ValueError("Expected rows with targets, the validation or test split, found training rows.")
    counts = np.where(np.arange(len(counts)) < len(SPECIAL_TOKENS), 0, counts)
    reach, occurring = np.cumsum(counts), np.count_nonzero(counts)
    drawn = np.empty((rows.num_rows, number), np.int32)
    for place, (row, history, labels) in enumerate(zip(*(table[n] for n in ("row", "history", "labels")), strict=True)):
        had = np.append(np.asarray(history.values), labels.values[-1].as_py())
        if number > occurring - np.count_nonzero(counts[np.unique(had)]):
            raise ValueError(f"Expected {number} items that user {table['user'][place]} has not had, found fewer.")
        generator = np.random.default_rng((seed, row.as_py()))
        found = np.empty(0, np.int64)
        while len(found) < number:  # as drawing one by one and passing over what was drawn or had before
            more = np.searchsorted(reach, generator.integers(reach[-1], size=3 * number), side="right")
            found = np.concatenate([found, more[~np.isin(more, had)]])
            found = found[np.sort(np.unique(found, return_index=True)[1])]
        drawn[place] = found[:number]
    return Dataset(
        table.append_column("candidates", pa.FixedSizeListArray.from_arrays(pa.array(drawn.ravel()), number))
    )


def uniform_candidates(rows: Dataset, vocab_size: int, number: int = 100, seed: int = 0) -> Dataset:
    """As `popularity_candidates`, every item of the catalogue, `vocab_size` rows with the special ones, as likely."""
    return popularity_candidates(rows, np.ones(vocab_size, np.int64), number, seed)
