"""Recommended settings: the rule at its limits, and what a run makes of it."""

import pytest
from datasets import Dataset

from hf_bert4rec import recommended_settings


def log(users: int, length: int, items: int, repeat: int = 0) -> Dataset:
    """Users who each have `length` different items and then the last one `repeat` times more."""
    rows = [(f"u{u}", f"i{(u + t) % items}", t) for u in range(users) for t in range(length)]
    rows += [(f"u{u}", f"i{(u + length - 1) % items}", length + t) for u in range(users) for t in range(repeat)]
    return Dataset.from_dict(dict(zip(("user", "item", "timestamp"), zip(*rows, strict=True), strict=True)))


def test_short_histories_train_on_prefixes_with_more_dropout():
    settings = recommended_settings(log(users=50, length=19, items=60))
    assert settings.splitting == {"prefixes": True}
    assert settings.masking == {"last_item_probability": 1.0}
    assert settings.model["hidden_dropout_prob"] == 0.5
    assert settings.training["num_train_epochs"] == 40
    assert settings.reason == "median history 19, 15.8 interactions per item, 0% repeats"


def test_histories_of_twenty_interactions_are_not_short():
    settings = recommended_settings(log(users=50, length=20, items=60))
    assert (settings.splitting, settings.model, settings.masking, settings.training) == ({}, {}, {}, {})


def test_next_item_training_needs_no_prefixes():
    settings = recommended_settings(log(users=50, length=5, items=60), "next_item")
    assert (settings.splitting, settings.masking) == ({}, {})
    assert settings.model["hidden_dropout_prob"] == 0.5


def test_a_large_log_of_short_histories_gets_fewer_epochs():
    assert recommended_settings(log(users=5000, length=8, items=600)).training["num_train_epochs"] == 20


def test_a_dense_log_gets_less_dropout():
    assert recommended_settings(log(users=100, length=20, items=20)).model == {
        "hidden_dropout_prob": 0.2,
        "attention_probs_dropout_prob": 0.1,
    }


@pytest.mark.parametrize(("repeat", "excluded"), [(1, True), (2, False)])  # 1 and 2 of 21 and 22: 4.8 and 9.1 %
def test_repeats_above_five_percent_are_recommended(repeat, excluded):
    assert recommended_settings(log(50, 20, 60, repeat)).model.get("exclude_history", True) is excluded
