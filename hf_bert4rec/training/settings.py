"""Recommended settings, which follow from statistics of the log."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset

from ..data.histories import REPEATS, check_interactions
from ..models.configuration_bert4rec import Bert4RecConfig

SHORT = 20  # median number of interactions of a user below which histories are short
DENSE = 100  # interactions per item from which a log is dense
MOST_PREFIX_ITEMS = 20_000_000  # in all prefixes together: 0.3 GB of rows


@dataclass(frozen=True)
class Settings:
    """Options that differ from the defaults, grouped by the function or class that takes them.

    Args:
        splitting: For `leave_one_out` and other splits.
        model: For the configuration, such as `Bert4RecConfig`.
        masking: For `cloze_training`.
        training: For `RecommendationTrainingArguments`.
        reason: The statistics of the log from which they follow, as text.
    """

    splitting: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    masking: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


def recommended_settings(interactions: Dataset, *, prefixes: bool = True) -> Settings:
    """Return the settings that are recommended for a log. The defaults are meant for histories that are not short.

    - Median history below 20 interactions: more dropout and a lower learning rate. If `prefixes`, also a training row
      for every prefix of a history, of which the last item is predicted, in larger batches and fewer epochs, unless the
      rows would have more than 20 million items.
    - Otherwise, at least 100 interactions per item: less dropout.
    - More than 5 % of the interactions repeat an item of the user: the history is not excluded from recommendations.

    The numbers were chosen on the validation splits of several logs: docs/experiments.md.

    Args:
        interactions: Columns `user`, `item` and `timestamp`, as from `load_interactions`.
        prefixes: Whether the training rows may be prefixes. False for next-item training, which predicts every item of
            a row, and if you choose rows or masks yourself.
    """
    table = check_interactions(interactions)
    if not table.num_rows:
        return Settings(reason="an empty log")
    users, items = (table[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in ("user", "item"))
    histories, catalog = np.bincount(users), items.max() + 1
    pairs = len(np.unique(users.astype(np.int64) * catalog + items))
    median, density, repeats = np.median(histories), len(users) / catalog, 1 - pairs / len(users)
    settings = Settings(
        reason=f"median history {median:.0f}, {density:.1f} interactions per item, {repeats:.0%} repeats"
    )
    if median < SHORT:
        settings.model.update(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
        settings.training["learning_rate"] = 1e-3
        if (
            prefixes
            and (histories * np.minimum(histories, Bert4RecConfig.max_position_embeddings)).sum() <= MOST_PREFIX_ITEMS
        ):
            settings.splitting["prefixes"] = True
            settings.masking["last_item_probability"] = 1.0
            epochs = int(np.clip(800_000 / len(users), 8, 40))
            settings.training.update(per_device_train_batch_size=256, num_train_epochs=epochs)
    elif density >= DENSE:
        settings.model.update(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.1)
    if repeats > REPEATS:
        settings.model["exclude_history"] = False
    return settings
