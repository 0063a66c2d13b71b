"""Recommended settings: the rule at its limits, and what a run makes of it."""

import numpy as np
import pytest
from datasets import Dataset, Features, Value

from hf_bert4rec import recommended_settings
from hf_bert4rec.cli.prepare import prepare
from hf_bert4rec.cli.recipe import parse_recipe
from hf_bert4rec.cli.trainers import objective_arguments


def log(users: int, length: int, items: int, repeat: int = 0) -> Dataset:
    """Users who each have `length` different items in random order and then the last one `repeat` times more."""
    random = np.random.default_rng(0)
    orders = [random.permutation(items)[:length] for _ in range(users)]
    rows = [(f"u{u}", f"i{item}", t) for u, order in enumerate(orders) for t, item in enumerate(order)]
    rows += [(f"u{u}", f"i{order[-1]}", length + t) for u, order in enumerate(orders) for t in range(repeat)]
    return Dataset.from_dict(dict(zip(("user", "item", "timestamp"), zip(*rows, strict=True), strict=True)))


@pytest.fixture
def limits(monkeypatch):
    """Change limits of the rule, so that logs of a few rows pass them."""
    return lambda **values: [
        monkeypatch.setattr(f"hf_bert4rec.training.settings.{name}", it) for name, it in values.items()
    ]


def test_a_small_log_trains_one_layer_on_prefixes():
    settings = recommended_settings(log(users=50, length=30, items=60))
    assert settings.splitting == {"prefixes": True}
    assert settings.masking == {"last_item_probability": 0.9, "max_predictions": 1}
    assert settings.model == {"num_hidden_layers": 1}
    assert settings.training == {"weight_decay": 0.1, "num_train_epochs": 40}
    statistics = "median history 30, 25.0 interactions per item, 0% repeats"
    assert settings.reason == f"{statistics}, items 1.0 times as likely given the item before as given popularity alone"


def test_prefixes_are_true_or_false_and_any_max_length_is_counted():
    small = log(users=5, length=3, items=9)
    with pytest.raises(ValueError, match=r"^`prefixes` must be True or False, found 'no'\.$"):
        recommended_settings(small, prefixes="no")
    assert recommended_settings(small, max_length=10**30) == recommended_settings(small, max_length=100)


@pytest.mark.parametrize(("share", "followers"), [(0.05, None), (0.3, 50)])
def test_followers_are_counted_if_enough_items_follow_from_the_last_one(share, followers):
    random = np.random.default_rng(0)
    items = [[int(random.integers(40))] for _ in range(400)]
    for history in items:
        for _ in range(9):
            follows = random.random() < share
            history.append((history[-1] + 1) % 40 if follows else int(random.integers(40)))
    rows = [(f"u{u}", f"i{item}", t) for u, history in enumerate(items) for t, item in enumerate(history)]
    shuffled = [rows[place] for place in random.permutation(len(rows))]
    interactions = Dataset.from_dict(dict(zip(("user", "item", "timestamp"), zip(*shuffled, strict=True), strict=True)))
    settings = recommended_settings(interactions)
    assert settings.model.get("num_followers") == followers
    assert recommended_settings(interactions, prefixes=False).model.get("num_followers") == followers


@pytest.mark.parametrize("small", [50 * 19, 50 * 20])  # a small log gets the same settings
def test_short_histories_train_on_prefixes_with_more_dropout(limits, small):
    limits(SMALL=small)
    settings = recommended_settings(log(users=50, length=19, items=60))
    assert settings.splitting == {"prefixes": True}
    assert settings.masking == {"last_item_probability": 0.9, "max_predictions": 1}
    assert settings.model == {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    assert settings.training == {"learning_rate": 1e-3, "per_device_train_batch_size": 256, "num_train_epochs": 40}


def test_a_large_log_whose_histories_are_not_short_keeps_the_defaults(limits):
    limits(SMALL=50 * 20)
    settings = recommended_settings(log(users=50, length=20, items=60))
    assert (settings.splitting, settings.model, settings.masking, settings.training) == ({}, {}, {}, {})


def test_short_histories_that_follow_a_chain_get_the_settings_of_small_logs(limits):
    rows = [(f"u{user}", f"i{(user + time) % 40}", time) for user in range(80) for time in range(5)]
    interactions = Dataset.from_dict(dict(zip(("user", "item", "timestamp"), zip(*rows, strict=True), strict=True)))
    assert recommended_settings(interactions).model == {"num_hidden_layers": 1, "num_followers": 50}
    assert recommended_settings(interactions, prefixes=False).model["hidden_dropout_prob"] == 0.5
    limits(STRONG_GAIN=1000)
    assert recommended_settings(interactions).model["hidden_dropout_prob"] == 0.5


LARGER = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}


@pytest.mark.parametrize(("medium", "large"), [(1050, 1050), (1050, 1051), (1051, 1051)])
def test_a_dense_log_that_is_not_hard_to_learn_has_more_steps_or_if_it_is_large_a_larger_model(limits, medium, large):
    limits(SMALL=500, MEDIUM=medium, LARGE=large, DENSE=10, EASY=10, MOST_PREFIX_ITEMS_OF_LONG_HISTORIES=0)
    interactions = log(users=50, length=21, items=100)  # 1,050 interactions
    settings = recommended_settings(interactions)
    next_item = recommended_settings(interactions, objective="next_item")
    dropout = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}
    assert next_item.model == dropout
    if large == 1050:
        dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.0}
        assert settings.model == LARGER | dropout | {"identity_attention": False}
        assert settings.training == next_item.training == {}
    else:
        assert settings.model == dropout
        more_steps = {"learning_rate": 4e-3, "num_train_epochs": 45} if medium == 1051 else {}
        assert settings.training == next_item.training == more_steps
    limits(EASY=11, EASY_GAIN=0.0)
    assert recommended_settings(interactions) == settings
    limits(DENSE=11)
    assert recommended_settings(interactions).model == {}
    with pytest.raises(ValueError, match=r"^`objective` must be 'cloze' or 'next_item', found 'bert'\.$"):
        recommended_settings(interactions, objective="bert")


def test_a_dense_log_that_is_hard_to_learn_has_more_dropout_and_a_lower_learning_rate(limits):
    limits(DENSE=12, EASY=13, EASY_GAIN=1.5)
    settings = recommended_settings(log(users=50, length=25, items=100), prefixes=False)
    assert settings.model == {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    assert settings.training == {"learning_rate": 1e-3}


def test_a_dense_log_with_prefixes_has_less_dropout_and_twice_the_epochs(limits):
    interactions = log(users=50, length=25, items=100)  # 1,250 interactions
    limits(ROWS=12_500, DENSE=13)
    usual = recommended_settings(interactions)
    limits(DENSE=12)
    dense = recommended_settings(interactions)
    assert dense.model == usual.model | {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}
    assert (usual.training["num_train_epochs"], dense.training["num_train_epochs"]) == (10, 20)


def test_without_prefixes_rows_and_masks_stay_as_they_are():
    settings = recommended_settings(log(users=50, length=5, items=60), prefixes=False)
    assert settings.training == {"learning_rate": 1e-3}
    assert (settings.splitting, settings.masking) == ({}, {})
    assert settings.model["hidden_dropout_prob"] == 0.5


@pytest.mark.parametrize(
    ("values", "epochs"), [({"ROWS": 20_000}, 20), ({"PREFIX_ITEMS": 100_000}, 10), ({"ROWS": 2000}, 8), ({}, 40)]
)
def test_more_rows_or_longer_ones_get_fewer_epochs(limits, values, epochs):
    limits(**values)
    interactions = log(users=100, length=10, items=60)  # 1,000 interactions, 10,000 items in prefixes
    assert recommended_settings(interactions).training["num_train_epochs"] == epochs


@pytest.mark.parametrize(("name", "length"), [("MOST_PREFIX_ITEMS", 5), ("MOST_PREFIX_ITEMS_OF_LONG_HISTORIES", 20)])
def test_a_log_whose_prefixes_would_be_too_many_keeps_its_windows(limits, name, length):
    limits(**{name: 50 * length**2})
    assert recommended_settings(log(users=50, length=length, items=60)).splitting == {"prefixes": True}
    assert recommended_settings(log(users=51, length=length, items=60)).splitting == {}


def test_longer_inputs_have_more_items_in_their_prefixes(limits):
    limits(MOST_PREFIX_ITEMS_OF_LONG_HISTORIES=50 * 60 * 50)
    interactions = log(users=50, length=60, items=70)
    assert recommended_settings(interactions).splitting == {"prefixes": True}  # up to 50 of them
    assert recommended_settings(interactions, max_length=51).splitting == {}


def test_an_empty_log_has_no_settings():
    columns = Features({"user": Value("string"), "item": Value("string"), "timestamp": Value("int64")})
    assert recommended_settings(Dataset.from_dict({name: [] for name in columns}, columns)).model == {}


# ---- in a recipe -----------------------------------------------------------------------------------------------------


@pytest.fixture
def short_log(tmp_path):
    rows = [f"u{u},i{(u + t) % 12},{t}\n" for u in range(16) for t in range(6)]
    (tmp_path / "log.csv").write_text("user,item,timestamp\n" + "".join(rows))

    def prepared(*words: str):
        return prepare(
            parse_recipe(["--data", str(tmp_path / "log.csv"), "--output_dir", str(tmp_path / "out"), *words])
        )

    return prepared


def test_a_recipe_is_filled_with_what_the_log_asks_for_and_says_so(short_log, caplog):
    caplog.set_level("INFO", "hf_bert4rec")
    recipe, _, tokenizer, histories = short_log("--hidden_dropout_prob", "0.2")
    assert recipe.given["prefixes"] is True
    assert recipe.given["recommended_settings"] is False  # the options of another log would not fit
    assert recipe.options("model") == {"hidden_dropout_prob": 0.2, "num_hidden_layers": 1, "num_followers": 50}
    assert recipe.training.weight_decay == 0.1
    assert histories["train"].num_rows == 16 * 3  # of four training items, all but the first
    collator = objective_arguments(recipe, tokenizer)["data_collator"]
    assert (collator.last_item_probability, collator.max_predictions) == (0.9, 1)
    (text,) = [message for message in caplog.messages if "Recommended settings" in message]
    statistics = "median history 6, 8.0 interactions per item, 0% repeats"
    assert f"({statistics}, items 11.7 times as likely given the item before as given popularity alone)" in text
    assert "--prefixes True" in text
    assert "hidden_dropout_prob" not in text


@pytest.mark.parametrize(
    "words",
    [
        ["--mask_probability", "0.3"],
        ["--prefixes", "false"],
        ["--window_step", "0.2"],
        ["--last_item_probability", "0.1"],
        ["--max_predictions", "2"],
        ["--architecture", "sasrec", "--conv_kernel_size", "none"],
    ],
)
def test_rows_and_masks_are_chosen_together_or_not_at_all(short_log, words):
    recipe, _, _, histories = short_log(*words)
    assert histories["train"].num_rows == 16
    assert not {"last_item_probability": 0.9, "max_predictions": 1}.items() & recipe.options("masking").items()
    assert recipe.training.per_device_train_batch_size == 64
    assert recipe.training.learning_rate == 1e-3


def test_the_options_that_are_printed_give_the_same_settings(short_log):
    words = "--prefixes true --last_item_probability 0.9 --max_predictions 1 --num_train_epochs 40 --weight_decay 0.1"
    words += " --num_hidden_layers 1"
    given, chosen = short_log(*words.split())[0].given, short_log()[0].given
    assert {name: given[name] for name in chosen} == chosen
    assert short_log("--prefixes", "true")[0].given == chosen


def test_the_rule_can_be_switched_off_and_does_not_change_a_model_that_starts_from_another(short_log):
    assert short_log("--recommended_settings", "false")[0].options("model") == {}
    assert short_log("--start_from", "nobody/nothing")[0].options("model") == {}


@pytest.mark.parametrize("words", [["--hidden_size", "32"], ["--num_attention_heads", "8"]])
def test_the_sizes_of_a_model_are_chosen_together_or_not_at_all(short_log, limits, words):
    limits(SHORT=0, SMALL=0, LARGE=0, DENSE=0, EASY=0)
    model = short_log()[0].options("model")
    assert LARGER.items() <= model.items()
    given = short_log(*words)[0].options("model")
    assert given == {words[0][2:]: int(words[1])} | {name: model[name] for name in model if name not in LARGER}
    assert "num_followers" not in model
    sasrec = short_log("--architecture", "sasrec", "--conv_kernel_size", "none")[0].options("model")
    assert not LARGER.keys() & sasrec.keys()
    assert sasrec["num_followers"] == 50


def test_a_very_dense_log_without_prefixes_gets_less_dropout(limits):
    limits(SMALL=0, EASY=100)
    assert recommended_settings(log(users=100, length=20, items=20)).model == {
        "hidden_dropout_prob": 0.2,
        "attention_probs_dropout_prob": 0.1,
    }


@pytest.mark.parametrize(("repeat", "excluded"), [(1, True), (2, False)])  # 1 and 2 of 21 and 22: 4.8 and 9.1 %
def test_repeats_above_five_percent_are_recommended(repeat, excluded):
    settings = recommended_settings(log(50, 20, 60, repeat)).model
    assert settings.get("exclude_history", True) is excluded
    assert settings.get("repeat_head", False) is not excluded


def test_a_log_with_repeats_gets_the_repeat_head_unless_the_loss_cannot_have_it(tmp_path):
    rows = [f"u{u},i{(u + t % 6) % 12},{t}\n" for u in range(16) for t in range(9)]
    (tmp_path / "log.csv").write_text("user,item,timestamp\n" + "".join(rows))
    words = ["--data", str(tmp_path / "log.csv"), "--output_dir", str(tmp_path / "out")]
    assert prepare(parse_recipe(words))[0].options("model")["repeat_head"] is True
    other = prepare(parse_recipe([*words, "--loss", "bce", "--num_negatives", "3"]))[0].options("model")
    assert "repeat_head" not in other
    assert "repeat_head" not in prepare(parse_recipe([*words, "--exclude_history", "true"]))[0].options("model")
    assert other["exclude_history"] is False
