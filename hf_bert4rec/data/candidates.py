"""Candidates of sampled metrics: items drawn for each evaluated user, among which the target is ranked."""

from numbers import Integral

import numpy as np
import pyarrow as pa
from datasets import Dataset

from ..models.configuration_bert4rec import SPECIAL_TOKENS
from .arguments import check_count, check_number, read_rows


def popularity_candidates(rows: Dataset, counts: np.ndarray, number: int = 100, seed: int = 0) -> Dataset:
    """Draw items that are new to the user, in proportion to their popularity, as in the paper (section 4.2).

    The target is not drawn. Results depend on the draw, and are not comparable with rankings of the whole catalog.

    Args:
        rows: A validation or test split, as from `leave_one_out`.
        counts: (vocab_size,) number of interactions of each item, by token ID; in the paper, in the whole log:
            `np.bincount(tokenizer.encode_items(interactions), minlength=len(tokenizer))`. Special tokens are ignored.
        number: Number of items per user, drawn without replacement and in proportion to their counts.
        seed: Seed of the draw. The draw of a user depends on the seed and the column `row`, not on the other users.

    Returns:
        The split with a column `candidates`: `number` token IDs per row.

    Raises:
        ValueError: An argument is out of range, the rows have no targets, or too few items are left for a user.
    """
    options = "(command line: `--popularity_candidates` or `--uniform_candidates`)"
    check_number("number", number, f"a whole number of at least 1 {options}", lambda number: number >= 1, Integral)
    check_number("seed", seed, "a whole number of at least 0", lambda number: number >= 0, Integral)
    counts = np.where(np.arange(len(counts)) < len(SPECIAL_TOKENS), 0, counts)
    if counts.dtype.kind not in "iu" or (counts < 0).any():
        found = counts.min() if counts.dtype.kind in "iu" else counts.dtype
        raise ValueError(f"`counts` must be integers of at least 0, one per token ID, found {found}.")
    table = read_rows(rows, "row", "user", "labels", "history")
    if table["labels"].null_count:
        raise ValueError("Expected rows with targets, found training rows. Pass the validation or test split.")
    pairs = zip(table["history"], table["labels"], strict=True)
    excluded = [np.append(np.asarray(history.values), labels.values[-1].as_py()) for history, labels in pairs]
    if (highest := max((had.max() for had in excluded), default=0)) >= len(counts):
        found = f"found {len(counts)}, but the rows contain the token ID {highest}. Use the tokenizer of these rows"
        raise ValueError(f"Expected `len(tokenizer)` as `vocab_size`, or as the length of `counts`, {found}.")
    left = [int(np.count_nonzero(counts) - np.count_nonzero(counts[np.unique(had)])) for had in excluded]
    if number > (fewest := min(left, default=number)):
        most = f"only {fewest} items are new to the user {table['user'][left.index(fewest)]}"
        advice = f"Set it to at most {fewest}." if fewest else "Remove users without new items from the log."
        raise ValueError(f"`number` {options} is {number}, but {most}. {advice}")
    reach, drawn = np.cumsum(counts), np.empty((rows.num_rows, number), np.int32)
    for place, (row, had) in enumerate(zip(table["row"], excluded, strict=True)):
        generator = np.random.default_rng((seed, row.as_py()))
        found = np.empty(0, np.int64)
        while len(found) < number:  # as if items were drawn one by one without replacement
            more = np.searchsorted(reach, generator.integers(reach[-1], size=3 * number), side="right")
            found = np.concatenate([found, more[~np.isin(more, had)]])
            found = found[np.sort(np.unique(found, return_index=True)[1])]
        drawn[place] = found[:number]
    lists = pa.FixedSizeListArray.from_arrays(pa.array(drawn.ravel()), number)
    others = table.select([name for name in table.column_names if name != "candidates"])
    return Dataset(others.append_column("candidates", lists))


def uniform_candidates(rows: Dataset, vocab_size: int, number: int = 100, seed: int = 0) -> Dataset:
    """Draw items that are new to the user, each with the same probability; see `popularity_candidates`.

    `vocab_size` is `len(tokenizer)`: the number of items, plus the special tokens. Also pass
    `sampled="uniform_sampled"` to `cloze_training` or `next_item_training`. Otherwise the names of the metrics and the
    card say that candidates were drawn by popularity.
    """
    check_count("vocab_size", vocab_size)
    return popularity_candidates(rows, np.ones(vocab_size, np.int64), number, seed)
