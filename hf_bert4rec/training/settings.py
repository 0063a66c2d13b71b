"""Recommended settings, which follow from sizes of the log."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from datasets import Dataset

from ..data.histories import REPEATS, check_interactions

SHORT = 20  # median number of interactions of a user below which histories are short
DENSE = 100  # interactions per item from which a log is dense


@dataclass(frozen=True)
class Settings:
    """Options that differ from the defaults, by what they are passed to.

    Args:
        splitting: For `leave_one_out` and other splits.
        model: For the configuration, such as `Bert4RecConfig`.
        masking: For `cloze_training`.
        training: For `RecommendationTrainingArguments`.
        reason: The sizes of the log from which they follow, as text.
    """

    splitting: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    masking: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


def recommended_settings(interactions: Dataset, objective: Literal["cloze", "next_item"] = "cloze") -> Settings:
    """Return the settings that are recommended for a log. The defaults are meant for histories that are not short.

    - Median history below 20: more dropout and a lower learning rate; for the cloze objective also a training row for
      every prefix of a history, of which the last item is predicted, in larger batches and fewer epochs.
    - At least 100 interactions per item: less dropout.
    - More than 5 % of the interactions repeat an item of the user: the history is not excluded from recommendations.

    The numbers were chosen on the validation splits of several logs: docs/experiments.md.

    Args:
        interactions: Columns `user`, `item` and `timestamp`, as from `load_interactions`.
        objective: That of the architecture. Next-item training predicts every item of a row, and needs no prefixes.
    """
    table = check_interactions(interactions)
    users, items = (table[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in ("user", "item"))
    histories = np.bincount(users)
    pairs = len(np.unique(users.astype(np.int64) * (items.max(initial=0) + 1) + items))
    total = max(1, len(users))
    median, density, repeats = np.median(histories), total / max(1, len(np.unique(items))), 1 - pairs / total
    settings = Settings(
        reason=f"median history {median:.0f}, {density:.1f} interactions per item, {repeats:.0%} repeats"
    )
    if median < SHORT:
        settings.model.update(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
        settings.training["learning_rate"] = 1e-3
        if objective == "cloze":
            settings.splitting["prefixes"] = True
            settings.masking["last_item_probability"] = 1.0
            epochs = int(np.clip(800_000 / total, 8, 40))
            settings.training.update(per_device_train_batch_size=256, num_train_epochs=epochs)
    elif density >= DENSE:
        settings.model.update(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.1)
    if repeats > REPEATS:
        settings.model["exclude_history"] = False
    return settings
