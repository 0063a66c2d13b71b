"""Candidates of sampled metrics: items drawn for each evaluated user, among which the target is ranked."""

from numbers import Integral

import numpy as np
import pyarrow as pa
from datasets import Dataset

from ..models.configuration_bert4rec import SPECIAL_TOKENS
from .arguments import check_number


def popularity_candidates(rows: Dataset, counts: np.ndarray, number: int = 100, seed: int = 0) -> Dataset:
    """Draw items that are new to the user, in proportion to their popularity, as in the paper (section 4.2).

    Results depend on the draw and are not comparable with a ranking among the whole catalog.

    Args:
        rows: A validation or test split.
        counts: (vocab_size,) number of interactions of each item; in the paper, in the whole log. The values of special
            tokens are ignored.
        number: Number of items per user, drawn without replacement and in proportion to their counts.
        seed: Seed of the draw. The draw of a user depends on the seed and the column `row`, not on the other users.

    Returns:
        The split with a column `candidates`.

    Raises:
        ValueError: An argument is out of range, the rows have no targets, or too few items are left for a user.
    """
    check_number("number", number, "a whole number of candidates, at least 1", lambda number: number >= 1, Integral)
    counts = np.where(np.arange(len(counts)) < len(SPECIAL_TOKENS), 0, counts)
    if counts.dtype.kind not in "iu" or (counts < 0).any():
        found = counts.min() if counts.dtype.kind in "iu" else counts.dtype
        raise ValueError(f"`counts` must be integers of at least 0, one per token ID, found {found}.")
    table = rows.with_format("arrow")[:]
    if table["labels"].null_count:
        raise ValueError("Expected rows with targets, found training rows. Pass the validation or test split.")
    reach, occurring = np.cumsum(counts), np.count_nonzero(counts)
    drawn = np.empty((rows.num_rows, number), np.int32)
    for place, (row, history, labels) in enumerate(zip(*(table[n] for n in ("row", "history", "labels")), strict=True)):
        had = np.append(np.asarray(history.values), labels.values[-1].as_py())
        left = occurring - np.count_nonzero(counts[np.unique(had)])
        if number > left:
            option = "`number` (command line: `--popularity_candidates` or `--uniform_candidates`)"
            advice = f"Lower {option} to at most {left}." if left else "Remove this user from the log."
            found = f"found {left} for user {table['user'][place]}"
            raise ValueError(f"Expected at least {number} items to draw candidates from, {found}. {advice}")
        generator = np.random.default_rng((seed, row.as_py()))
        found = np.empty(0, np.int64)
        while len(found) < number:  # as if items were drawn one by one without replacement
            more = np.searchsorted(reach, generator.integers(reach[-1], size=3 * number), side="right")
            found = np.concatenate([found, more[~np.isin(more, had)]])
            found = found[np.sort(np.unique(found, return_index=True)[1])]
        drawn[place] = found[:number]
    if "candidates" in table.column_names:
        table = table.drop_columns("candidates")
    lists = pa.FixedSizeListArray.from_arrays(pa.array(drawn.ravel()), number)
    return Dataset(table.append_column("candidates", lists))


def uniform_candidates(rows: Dataset, vocab_size: int, number: int = 100, seed: int = 0) -> Dataset:
    """Draw items that are new to the user, each with the same probability; see `popularity_candidates`.

    `vocab_size` is `len(tokenizer)`: the number of items, plus the special tokens.
    """
    return popularity_candidates(rows, np.ones(vocab_size, np.int64), number, seed)
