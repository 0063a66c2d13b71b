"""Recipes: YAML and command line, types, and options that nobody reads."""

from pathlib import Path

import pytest
import yaml

from hf_bert4rec.cli.recipe import parse_recipe

RECIPE = """
data: log.csv
max_length: 7
learning_rate: 1e-3
hidden_size: 12
mask_probability: 0.3
min_rating: 4
keep_repeats: false
example: [1, 2]
use_cpu: true
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return str(tmp_path / "recipe.yaml")


def test_every_option_of_the_file_reaches_what_reads_it_with_its_type(config):
    recipe = parse_recipe([config])
    assert (recipe.run.data, recipe.run.max_length) == ("log.csv", 7)
    assert recipe.training.learning_rate == 0.001  # YAML takes 1e-3 for a word
    assert recipe.model.hidden_size == 12
    assert recipe.masking.mask_probability == 0.3
    assert recipe.reading.min_rating == 4.0
    assert recipe.reading.keep_repeats is False


def test_what_is_not_given_has_the_default_of_what_reads_it(config):
    recipe = parse_recipe([config])
    assert recipe.masking.last_item_probability == 1 / 11
    assert recipe.splitting.window_step == 0.5
    assert recipe.model.hidden_act == "gelu"
    assert recipe.reading.min_user_interactions == 1


def test_the_command_line_has_the_last_word_on_any_option(config):
    recipe = parse_recipe([config, "--learning_rate", "2e-3", "--window_step", "0.1", "--user", "who", "--seed", "5"])
    assert recipe.training.learning_rate == 0.002
    assert recipe.splitting.window_step == 0.1
    assert recipe.reading.user == "who"
    assert recipe.options["seed"] == 5
    assert recipe.options["window_step"] == 0.1


@pytest.mark.parametrize("words", [["--rope_theta", "none"], ["--rope_theta=None"], ["--rope_theta", "null"]])
def test_none_takes_an_option_of_the_file_back(words, tmp_path):
    (tmp_path / "recipe.yaml").write_text("{output_dir: out, rope_theta: 200, example: [a, none], hidden_size: 32}")
    recipe = parse_recipe([str(tmp_path / "recipe.yaml"), "--seed", "3", *words])
    assert (recipe.model.rope_theta, recipe.model.hidden_size, recipe.training.seed) == (None, 32, 3)
    assert recipe.run.example == ["a", "none"]
    assert recipe.options["rope_theta"] is None


def test_the_options_of_a_run_are_a_recipe_that_gives_them_again(config, tmp_path):
    first = parse_recipe([config, "--window_step", "0.1"])
    lines = "\n".join(f"{name}: {value}" for name, value in first.options.items())
    (tmp_path / "again.yaml").write_text(lines)
    again = parse_recipe([str(tmp_path / "again.yaml")])
    assert again.splitting == first.splitting
    assert again.run.max_length == first.run.max_length
    assert again.training.learning_rate == first.training.learning_rate


@pytest.mark.parametrize(
    ("argument", "near"),
    [("--learning_rat=1", "learning_rate"), ("--mask_probabilty", "mask_probability"), ("--hidden", "hidden_size")],
)
def test_an_option_on_the_command_line_that_nobody_reads_is_refused_with_the_near_names(config, argument, near, capsys):
    with pytest.raises(SystemExit):
        parse_recipe([config, argument])
    message = capsys.readouterr().err
    assert "Nobody reads the option" in message
    assert near in message


def test_an_option_in_the_file_that_nobody_reads_is_refused_with_the_near_names(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("window_steps: 0.1\n")
    with pytest.raises(SystemExit):
        parse_recipe([str(tmp_path / "recipe.yaml")])
    assert "'window_steps'" in (message := capsys.readouterr().err)
    assert "Did you mean window_step" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list", "expected lines of 'option: value', found a list"),
        ("a: [", "Expected a YAML file of options"),
        ("learning_rate: fast", "invalid float value: 'fast'"),
        ("eval_strategy: sometimes", "sometimes"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, capsys, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(SystemExit):
        parse_recipe([str(tmp_path / "recipe.yaml")])
    assert message in capsys.readouterr().err


def test_a_missing_file_is_refused_by_name(capsys):
    with pytest.raises(SystemExit):
        parse_recipe(["nothing.yaml"])
    assert "nothing.yaml" in capsys.readouterr().err


def test_the_help_tells_every_option_with_its_words_and_default(capsys):
    with pytest.raises(SystemExit):
        parse_recipe(["--help"])
    words = " ".join(capsys.readouterr().out.split())
    for option in ("--data", "--min_rating", "--validation_time", "--hidden_size", "--mask_probability", "--seed"):
        assert option in words
    assert "Width d of the item embeddings" in words
    assert "Share of the rows in which the last item alone is masked" in words


# ---- the recipes of the repository -----------------------------------------------------------------------------------

CONFIGS = sorted((Path(__file__).parents[2] / "scripts" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_read_whole(path):
    recipe = parse_recipe([str(path)])
    sections = (recipe.run, recipe.reading, recipe.splitting, recipe.model, recipe.masking, recipe.training)
    for name, value in yaml.safe_load(path.read_text()).items():
        found = next(getattr(section, name) for section in sections if hasattr(section, name))
        assert getattr(found, "value", found) == value, name


@pytest.mark.parametrize(
    ("name", "length", "rho", "most", "step", "dropout", "attention", "steps"),
    [
        ("ml-1m", 200, 0.2, 40, 0.5, 0.2, 0.2, 400_000),
        ("beauty", 50, 0.6, 30, 0.1, 0.5, 0.2, 400_000),
        ("beauty-5core", 50, 0.6, 30, 0.1, 0.5, 0.2, 400_000),
        ("steam", 50, 0.4, 20, 0.5, 0.1, 0.1, 800_000),
        ("ml-20m", 200, 0.2, 20, 0.5, 0.1, 0.1, 400_000),
    ],
)
def test_the_paper_s_presets_have_its_hyper_parameters(name, length, rho, most, step, dropout, attention, steps):
    recipe = parse_recipe([str(CONFIGS[0].with_name(f"paper-{name}.yaml"))])
    assert (recipe.run.max_length, recipe.splitting.window_step) == (length, step)
    assert recipe.splitting.validation_in_train
    assert (recipe.masking.mask_probability, recipe.masking.max_predictions) == (rho, most)
    assert recipe.masking.last_item_probability == pytest.approx(1 / 11, abs=1e-4)
    model = recipe.model
    assert (model.hidden_size, model.num_hidden_layers, model.num_attention_heads, model.intermediate_size) == (
        64, 2, 2, 256,
    )  # fmt: skip
    assert (model.hidden_dropout_prob, model.attention_probs_dropout_prob) == (dropout, attention)
    assert (model.initializer_range, model.rope_theta, model.loss) == (0.02, None, "softmax")
    assert (model.conv_kernel_size, model.prediction_head) == (None, True)
    training = recipe.training
    assert (training.learning_rate, training.warmup_steps, training.max_steps) == (1e-4, 100, steps)
    assert (training.per_device_train_batch_size, training.weight_decay, training.max_grad_norm) == (256, 0.01, 5)
    assert recipe.run.muon_learning_rate is None
