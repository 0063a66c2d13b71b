"""Recommended settings for a log, chosen from statistics of the log."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset

from ..data.arguments import check_bool
from ..data.histories import REPEATS, check_interactions
from ..models.configuration_bert4rec import Bert4RecConfig
from ..models.registry import Objective, check_objective
from .transitions import Transitions

SHORT = 20  # median number of interactions of a user below which histories are short
SMALL, LARGE = 100_000, 400_000  # interactions below which a log is small, and from which it is large
MEDIUM = 200_000  # interactions below which a dense log without prefixes gets more steps
DENSE = 50  # interactions per item from which a log is dense
EASY, EASY_GAIN = 500, 1.5  # interactions per item, or gain, from which a dense log is not hard to learn
ROWS, PREFIX_ITEMS = 800_000, 20_000_000  # of all epochs together; they take five minutes on a core
EPOCHS = (8, 40)  # fewest and most epochs, which take precedence over the two numbers above
PREFIX_MASKS = {"last_item_probability": 0.9, "max_predictions": 1}  # a random item in a tenth of the rows, for gaps
SIZES = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}  # of a large and dense log
LARGE_DENSE = {**SIZES, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.0, "identity_attention": False}
MOST_PREFIX_ITEMS = 20_000_000  # upper bound of the items in all prefixes of short histories: at most 0.3 GB of rows
MOST_PREFIX_ITEMS_OF_LONG_HISTORIES = 3_000_000  # more need more than five minutes on one core
GAIN, FOLLOWERS = 1.1, 50  # gain of a Markov chain from which `num_followers` is set, and its value
STRONG_GAIN = 2.0  # gain from which short histories of a small log mostly follow the chain
MOST_COUNTED, MOST_ITEMS = 2_000_000, 100_000  # most interactions to count, and most items, for `num_followers`


@dataclass(frozen=True)
class Settings:
    """Recommended options that differ from the defaults: one dict from name to value for each function or class.

    Args:
        splitting: Options of `leave_one_out` and other splits.
        model: Options of the configuration, such as `Bert4RecConfig`.
        masking: Options of `cloze_training`.
        training: Options of `RecommendationTrainingArguments`.
        reason: The statistics of the log that determine the options, as text.
    """

    splitting: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    masking: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


def recommended_settings(
    interactions: Dataset, *, objective: Objective = "cloze", prefixes: bool = True, max_length: int | None = None
) -> Settings:
    """Return the settings that are recommended for a log.

    A log is short if the median user has fewer than 20 interactions, and small if it has fewer than 100,000 in total.
    Logs that are not short are dense from 50 interactions per item on. Without prefixes, a dense log is hard to learn
    if it has fewer than 500 per item, and items are less than 1.5 times as likely given the item before as given
    popularity alone.

    - Short or small: a training row for every prefix of a history, and 8 to 40 epochs. One item of each row is
      predicted: in nine of ten rows the last one, in the others a random one, so that the model learns to fill gaps.
      Not used if n · min(n, `max_length`), summed over users with n items, is above 20 million (not short: 3 million).
    - Short, or hard to learn: more dropout and a lower learning rate; with prefixes also larger batches.
    - Small, with prefixes: one layer and more weight decay. For short logs only if items are at least twice as likely
      given the item before as given popularity alone, and then instead of the settings for short logs.
    - Dense otherwise: less dropout. With prefixes up to twice as many epochs. Without prefixes, and below 200,000
      interactions, a higher learning rate and 45 epochs. From 400,000 on, for the objective cloze, a larger model with
      even less dropout, without `num_followers` and `identity_attention`.
    - More than 5 % of the interactions repeat an item of the user: `exclude_history=False` and a `repeat_head`.
    - Small or not short, at most 100,000 items, and items are at least 1.1 times as likely given the item before as
      given popularity alone: `num_followers`, a Markov chain over the 50 most frequent followers.

    The numbers were chosen on validation splits of several logs (docs/experiments.md).

    Args:
        interactions: Columns `user`, `item` and `timestamp`, as from `load_interactions`; otherwise ValueError.
        objective: "cloze" for BERT4Rec, "next_item" for SASRec and GRU4Rec, which predict every item of a row, so that
            the training rows are never prefixes.
        prefixes: Whether the training rows may be prefixes. False if you set the options of rows or masks yourself.
        max_length: Longest input, including the [MASK] of the query. Default: `Bert4RecConfig.max_position_embeddings`.
    """
    check_bool("prefixes", prefixes)
    check_objective(objective)
    table = check_interactions(interactions)
    if not table.num_rows:
        return Settings(reason="an empty log")
    users, items = (table[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in ("user", "item"))
    lengths, catalog = np.bincount(users), items.max() + 1
    pairs = len(pd.unique(users.astype(np.int64) * catalog + items))  # np.unique takes seven times as long
    median, density, repeats = np.median(lengths), len(users) / catalog, 1 - pairs / len(users)
    counted = np.flatnonzero(users <= np.searchsorted(np.cumsum(lengths), MOST_COUNTED))  # users are numbered from 0
    order = counted[np.lexsort((table["timestamp"].to_numpy()[counted], users[counted]))]
    _, gain = Transitions.count(users[order], users[order], items[order]).mixture()
    settings = Settings(
        reason=f"median history {median:.0f}, {density:.1f} interactions per item, {repeats:.0%} repeats, items "
        f"{gain:.1f} times as likely given the item before as given popularity alone"
    )
    longest = min(max_length or Bert4RecConfig.max_position_embeddings, len(users))
    prefix_items = (lengths * np.minimum(lengths, longest)).sum()
    short, small = median < SHORT, len(users) < SMALL
    dense = not short and density >= DENSE
    limit = MOST_PREFIX_ITEMS if short else MOST_PREFIX_ITEMS_OF_LONG_HISTORIES if small else 0
    prefixes = prefixes and objective == "cloze" and bool(prefix_items <= limit)
    if prefixes:
        settings.splitting["prefixes"] = True
        settings.masking.update(PREFIX_MASKS)
        epochs = (1 + dense) * min(ROWS / len(users), PREFIX_ITEMS / prefix_items)
        settings.training["num_train_epochs"] = int(np.clip(epochs, *EPOCHS))
    hard = dense and not prefixes and density < EASY and gain < EASY_GAIN
    if hard or (short and not (prefixes and small and gain >= STRONG_GAIN)):
        settings.model.update(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
        settings.training["learning_rate"] = 1e-3
        if prefixes:
            settings.training["per_device_train_batch_size"] = 256
    elif prefixes:
        settings.model["num_hidden_layers"] = 1
        settings.training["weight_decay"] = 0.1
    large = dense and not hard and not prefixes and len(users) >= LARGE and objective == "cloze"
    if large:
        settings.model.update(LARGE_DENSE)
    elif dense and not hard:
        settings.model.update(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.1)
        medium = not prefixes and len(users) < MEDIUM
        settings.training.update({"learning_rate": 4e-3, "num_train_epochs": 45} if medium else {})
    if not large and gain >= GAIN and catalog <= MOST_ITEMS and (small or not short):
        settings.model["num_followers"] = FOLLOWERS
    if repeats > REPEATS:
        settings.model.update(exclude_history=False, repeat_head=True)
    return settings
