"""Recipes: YAML and command line, types, and unknown options."""

import dataclasses
import inspect
import json
import re
from pathlib import Path

import pytest
import yaml
from transformers import TrainingArguments

from hf_bert4rec.cli.options import format_help
from hf_bert4rec.cli.own_code import find_configuration, find_split
from hf_bert4rec.cli.recipe import Recipe, parse_recipe
from hf_bert4rec.data.data_collator import DataCollatorForCloze
from hf_bert4rec.data.formats import FORMATS
from hf_bert4rec.data.interactions import load_interactions
from hf_bert4rec.data.splits import SPLITS, Split, leave_one_out
from hf_bert4rec.models.item_loss import LOSSES
from hf_bert4rec.models.registry import ARCHITECTURES

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


@pytest.fixture
def parse(tmp_path):
    """Parse a recipe from the text of a YAML file and further words."""

    def parse_text(text: str, *words: str):
        (tmp_path / "recipe.yaml").write_text(text)
        return parse_recipe([str(tmp_path / "recipe.yaml"), *words])

    return parse_text


def test_every_option_of_the_file_reaches_its_section_with_its_type(config):
    recipe = parse_recipe([config])
    assert (recipe.run.data, recipe.run.max_length, recipe.run.example) == ("log.csv", 7, ["1", "2"])
    assert recipe.training.learning_rate == 0.001  # YAML 1.1 takes 1e-3 for text
    assert recipe.options("model") == {"hidden_size": 12}
    assert recipe.options("masking") == {"mask_probability": 0.3}
    assert recipe.options("reading") == {"min_rating": 4.0, "keep_repeats": False}
    assert recipe.options("splitting") == {}


def test_the_command_line_overrides_the_file(config):
    recipe = parse_recipe([config, "--learning_rate", "2e-3", "--window-step", "0.1", "--user", "who", "--seed", "5"])
    assert recipe.training.learning_rate == 0.002
    assert recipe.options("splitting") == {"window_step": 0.1}
    assert recipe.reading.user == "who"
    assert (recipe.given["seed"], recipe.given["hidden_size"]) == (5, 12)


def test_a_recipe_needs_no_file():
    recipe = parse_recipe(["--data", "ratings.csv", "--output_dir", "runs/mine"])
    assert recipe.given == {"seed": 42, "data": "ratings.csv", "output_dir": "runs/mine"}
    training = recipe.training
    assert (training.learning_rate, training.muon_learning_rate, training.num_train_epochs) == (2e-3, None, 30)
    assert (training.early_stopping_patience, training.metric_for_best_model) == (10, "ndcg@10")


def test_a_recipe_cannot_be_changed(config):
    recipe = parse_recipe([config])
    for part, name in [(recipe, "source"), (recipe.run, "data"), (recipe.model, "hidden_size")]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, name, None)


@pytest.mark.parametrize("words", [["--rope_theta", "none"], ["--rope_theta=None"], ["--rope_theta", "null"]])
def test_none_unsets_an_option(parse, words):
    recipe = parse("{output_dir: out, rope_theta: 200, example: [a, none], hidden_size: 32}", "--seed", "3", *words)
    assert recipe.options("model") == {"rope_theta": None, "hidden_size": 32}
    assert recipe.run.example == ["a", "none"]
    assert recipe.training.seed == 3


def test_null_in_the_file_unsets_a_default_that_is_not_none(parse):
    recipe = parse("muon_learning_rate: null\nearly_stopping_patience: none\nrope_theta:\n")
    assert (recipe.training.muon_learning_rate, recipe.training.early_stopping_patience) == (None, None)
    assert recipe.options("model") == {"rope_theta": None}


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("eval_strategy: no\nload_best_model_at_end: false\nsave_strategy: no", "eval_strategy", "no"),
        ("lr_scheduler_kwargs: {num_cycles: 0.5}", "lr_scheduler_kwargs", {"num_cycles": 0.5}),
        ("lr_scheduler_kwargs: {}", "lr_scheduler_kwargs", {}),
        ("bf16: true", "bf16", True),
        ("max_grad_norm: 1e0", "max_grad_norm", 1.0),
        ("num_train_epochs: 3", "num_train_epochs", 3.0),
    ],
)
def test_values_of_training_options_in_the_file_have_their_types(parse, text, name, value):
    found = getattr(parse(text).training, name)
    assert found == value
    assert isinstance(found, type(value))


@pytest.mark.parametrize(
    ("text", "section", "name", "value"),
    [
        ("example: []", "run", "example", []),
        ("example: [007, 1_0, 12:30, yes]", "run", "example", ["007", "1_0", "12:30", "yes"]),
        ("example: i1", "run", "example", ["i1"]),
        ("validation_time: 1970-01-01 00:00:04", "splitting", "validation_time", "1970-01-01 00:00:04"),
        ("user: 0", "reading", "user", "0"),
        ("separator: '~'", "reading", "separator", "~"),
        ("prediction_head: no", "model", "prediction_head", False),
    ],
)
def test_values_of_other_options_in_the_file_have_their_types(parse, text, section, name, value):
    assert getattr(getattr(parse(text), section), name) == value


def test_bf16_works_on_a_cpu_from_the_command_line():
    training = parse_recipe(["--bf16", "--use_cpu"]).training
    assert (training.bf16, training.use_cpu) == (True, True)
    assert parse_recipe(["--bf16", "true"]).training.bf16  # this machine has no accelerator, so use_cpu is the default


def test_the_options_of_a_run_are_a_recipe_that_makes_it_again(config, parse):
    first = parse_recipe([config, "--window_step", "0.1", "--rope_theta", "none"])
    again = parse(json.dumps(first.given))
    assert again.given == first.given
    for section in SECTIONS:
        assert vars(getattr(again, section)) == vars(getattr(first, section))


@pytest.mark.parametrize(
    ("argument", "near"),
    [("--learning_rat=1", "--learning_rate"), ("--mask_probabilty", "--mask_probability"), ("--hidden", "--hidden_")],
)
def test_an_unknown_option_on_the_command_line_is_refused_with_the_near_names(config, argument, near):
    name = argument.split("=")[0]
    with pytest.raises(ValueError, match=rf"^Unknown option `{name}`\. Did you mean .*`{near}"):
        parse_recipe([config, argument])
    with pytest.raises(ValueError, match=r"Unknown option `--xyz`\. `hf-bert4rec train --help-all` lists all options"):
        parse_recipe([config, "--xyz=1"])


def test_an_unknown_option_in_the_file_is_refused_with_the_near_names(parse):
    with pytest.raises(ValueError, match=r"recipe.yaml: Unknown option `window_steps`\. Did you mean `window_step`"):
        parse("window_steps: 0.1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "- a list",
            "expected a YAML file of options or a checkpoint folder, found \\['a list'\\]\\. Fix this file. If it is",
        ),
        (
            "a: [",
            r"YAML file of options or a checkpoint folder, but it cannot be read \(while parsing .*\)\. Fix this file",
        ),
        ("a: &x [1]\nb: [*x, *x]", r"aliases \(\*name\) are not supported"),
        ("[" * 100_000, "expected a YAML file of options or a checkpoint folder"),
        ("learning_rate: fast", r"recipe.yaml: `learning_rate` must be a number, found 'fast'\."),
        ("learning_rate:", "`learning_rate` must be a number, found ''"),
        ("hidden_size: [1, 2]", "`hidden_size` must be one value, found a list"),
        ("hidden_size: {a: 1}", "`hidden_size` must be a whole number"),
        ("hidden_size: 1.5", "`hidden_size` must be a whole number, found '1.5'"),
        ("bf16: maybe", "`bf16` must be true or false, found 'maybe'"),
        ("match_items: x", "`match_items` must be one of .*id.*title.*, found 'x'"),
        ("seed: 1\nseed: 2", "`seed` is given more than once"),
        ("example: {a: 1, a: 2}", "`a` is given more than once"),
        ("eval_strategy: sometimes", "sometimes"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(parse, text, message):
    with pytest.raises(ValueError, match=message) as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_second_argument_are_refused_by_name(config):
    with pytest.raises(ValueError, match=r"nothing\.yaml: found no such file"):
        parse_recipe(["nothing.yaml"])
    with pytest.raises(ValueError, match=r"Unexpected argument 'other.yaml'\. Name one checkpoint or YAML file, "):
        parse_recipe([config, "other.yaml"])
    for word in ("-seed", "–seed"):
        with pytest.raises(ValueError, match=rf"Unexpected argument '{word}'\. Options begin with two hyphens"):
            parse_recipe([config, word, "1"])


def test_a_missing_value_and_invalid_json_are_refused_by_name(config):
    with pytest.raises(ValueError, match=r"^`--hidden_size` needs a value, found none\."):
        parse_recipe([config, "--hidden_size", "--seed=1"])
    with pytest.raises(ValueError, match=r"`--fsdp_config` must be JSON, found '\{a'"):
        parse_recipe([config, "--fsdp_config={a"])


def test_options_that_are_never_published_are_ignored_in_a_checkpoint(trained_facts):
    recipe = parse_recipe([trained_facts(push_to_hub=True, hub_model_id="org/evil", hub_token="x", hidden_size=12)])
    assert (recipe.training.push_to_hub, recipe.training.hub_model_id) == (False, None)
    assert recipe.given["hidden_size"] == 12
    assert not [name for name in recipe.given if name.startswith(("push", "hub"))]


@pytest.mark.parametrize("name", ["split", "architecture"])
def test_a_checkpoint_does_not_choose_the_code_that_is_imported(trained_facts, name):
    folder = trained_facts(**{name: "antigravity:module"})
    with pytest.raises(ValueError, match=r"If you trust this code, add `--import antigravity`"):
        parse_recipe([folder])


@pytest.fixture
def trained_facts(tmp_path):
    """Folder with run facts of version 1, whose recipe has the given options."""

    def write(**recipe):
        facts = {
            "model": "BERT4Rec", "name": "m", "data": {"name": "log", "items": 3, "sha256": "0"}, "protocol": "p",
            "sampled_protocol": "s", "example": '"a"', "recipe": recipe, "seconds": 1.0, "best_checkpoint": "",
            "chosen_by": "NDCG@10", "machine": "1 × 1 threads of x86_64, cpu", "versions": {}, "log": [],
        }  # fmt: skip
        (tmp_path / "run_facts.json").write_text(json.dumps(facts))
        return str(tmp_path)

    return write


@pytest.mark.parametrize("value", ["--split", "--push_to_hub", "-x", "--hidden_size=5"])
def test_no_value_of_a_list_in_a_file_is_taken_for_an_option(parse, trained_facts, value):
    for recipe in (parse(f"example: [a, '{value}', b]"), parse_recipe([trained_facts(example=["a", value, "b"])])):
        assert recipe.run.example == ["a", value, "b"]
        assert recipe.run.split == "leave_one_out"
        assert not recipe.training.push_to_hub
        assert recipe.given.get("hidden_size") is None


# ---- one place for each default and for each option ------------------------------------------------------------------


SECTIONS = ("run", "reading", "splitting", "model", "masking")


def names(recipe: Recipe, section: str) -> set[str]:
    return {field.name for field in dataclasses.fields(getattr(recipe, section))}


def test_every_parameter_is_an_option_with_its_default():
    recipe = parse_recipe([])
    reading, masking = (inspect.signature(it).parameters for it in (load_interactions, DataCollatorForCloze))
    assert names(recipe, "reading") == {*reading} - {"source"}
    assert names(recipe, "masking") == {*masking} - {"tokenizer", "seed", "epoch"}
    assert names(recipe, "splitting") == {option for split in SPLITS.values() for option in split.options}
    for section, parameters in (("reading", reading), ("masking", masking)):
        for name, value in vars(getattr(recipe, section)).items():
            assert value == parameters[name].default
    for architecture, row in ARCHITECTURES.items():
        recipe, config = parse_recipe(["--architecture", architecture]), row.config_class()
        for name, value in vars(recipe.model).items():
            assert value == getattr(config, name)
        assert {"hidden_size", "tie_word_embeddings", "rope_theta", "exclude_history", "loss"} <= names(recipe, "model")
        assert not {"vocab_size", "pad_token_id", "dtype", "id2label"} & names(recipe, "model")


def test_no_option_is_in_two_sections():
    recipe = parse_recipe([])
    options = [names(recipe, section) for section in SECTIONS]
    options.append({field.name for field in dataclasses.fields(TrainingArguments)})
    assert len(set.union(*options)) == sum(map(len, options))


def test_the_help_of_all_options_shows_the_texts_and_the_defaults_of_what_reads_them():
    words = " ".join(format_help("hf-bert4rec train").split())
    for option in ("--data", "--min_rating", "--validation_time", "--hidden_size", "--mask_probability", "--seed"):
        assert option in words
    assert (
        "Width d of the item embeddings and of every layer; a multiple of `num_attention_heads`. (default: 64)" in words
    )
    assert "as a share of `max_length`, for histories longer than `max_length`. (default: 0.5)" in words
    assert "The same as --exclude_history false." in words
    for registry in (FORMATS, SPLITS, ARCHITECTURES, LOSSES):
        assert f" Names: {', '.join(registry)}. (default: " in words


# ---- splits and architectures of the user's own ----------------------------------------------------------------------

OWN_SPLIT = """
from __future__ import annotations

from hf_bert4rec.data.splits import leave_one_out


def half(interactions, tokenizer, *, share: float = 0.5, max_length: int | None = None, words: list[str] = []):
    return leave_one_out(interactions, tokenizer, max_length=max_length)


split = leave_one_out
"""


def test_a_list_that_is_given_twice_is_an_error():  # the first one would be ignored
    message = "^`--feature_text` is given more than once. Write all values after one `--feature_text`.$"
    for words in (
        ["--feature_text", "a", "--feature_text", "b"],
        ["--feature_text=a", "--seed", "1", "--feature-text=b"],
    ):
        with pytest.raises(ValueError, match=message):
            parse_recipe(words)
    assert parse_recipe(["--seed", "1", "--feature_text", "a", "b", "--seed", "2"]).given == {
        "seed": 2, "feature_text": ["a", "b"]
    }  # fmt: skip


def test_an_option_of_an_own_split_must_have_a_name_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "clashing_split.py").write_text("def half(interactions, tokenizer, *, seed: int = 0): ...")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"^`--seed` is already an option of the package\. Rename this parameter of your split"
    ):
        parse_recipe(["--split", "clashing_split:half"])


def test_a_split_of_the_users_own_is_one_function_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "own_split_module.py").write_text(OWN_SPLIT)
    monkeypatch.chdir(tmp_path)
    recipe = parse_recipe(["--split", "own_split_module:half", "--share", "0.25", "--words", "a", "b"])
    assert recipe.options("splitting") == {"share": 0.25, "words": ["a", "b"]}
    assert find_split(recipe.run.split).describe(recipe.options("splitting")) == "own_split_module:half"
    with pytest.raises(ValueError, match="Unknown option `--share`"):
        parse_recipe(["--share", "0.25"])


def test_one_entry_in_the_registry_is_enough_for_a_split(monkeypatch):
    def own(interactions, tokenizer, *, max_length=None, newest: int = 3):
        return leave_one_out(interactions, tokenizer, max_length=max_length)

    monkeypatch.setitem(SPLITS, "own", Split(own, "the {newest} newest"))
    recipe = parse_recipe(["--split", "own", "--newest", "2"])
    assert find_split("own").describe(recipe.options("splitting")) == "the 2 newest"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--split", "leave_on_out"],
            "`--split leave_on_out` is unknown. Choose from leave_one_out, at_time, new_interactions, train_on_all\\. "
            "Name your own code as `package.module:function`, or pass its module to `--import`.",
        ),
        (["--split", "os:nothing"], "`--split os:nothing` cannot be imported"),
        (["--split", ":nothing"], "`--split :nothing` cannot be imported"),
        (["--split", ".mine:split"], "`--split .mine:split` cannot be imported: '.mine' is a relative name"),
        (["--split", "os:sep"], "`--split os:sep` names an object of type str. Name a function or a `Split`"),
        (["--architecture", "os:path"], "`--architecture os:path` names an object of type module. Name a "),
        (
            ["--architecture", "transformers:BertConfig"],
            "names the class BertConfig. Name a configuration class that inherits from `Bert4RecConfig`.",
        ),
        (
            ["--architecture", "gru"],
            "`--architecture gru` is unknown. Choose from bert4rec, sasrec, gru4rec\\. Name your own code as "
            "`package.module:ConfigClass`, or pass its module to `--import`.",
        ),
        (["--architecture", "no_such_module:Config"], "No module named 'no_such_module'"),
    ],
)
def test_a_split_or_architecture_that_does_not_exist_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe(words)


def test_an_option_of_a_split_without_annotation_has_the_type_of_its_default(monkeypatch):
    def own(interactions, tokenizer, *, max_length=None, purchases=8, share=0.5, strict=False, kind="new", other=None):
        return leave_one_out(interactions, tokenizer, max_length=max_length)

    monkeypatch.setitem(SPLITS, "own", Split(own, "own"))
    words = ["--purchases", "9", "--share", "1", "--strict", "true", "--kind", "old", "--other", "7"]
    options = parse_recipe(["--split", "own", *words]).options("splitting")
    assert options == {"purchases": 9, "share": 1.0, "strict": True, "kind": "old", "other": "7"}
    assert [type(value) for value in options.values()] == [int, float, bool, str, str]
    with pytest.raises(ValueError, match="`--purchases` must be a whole number, found 'many'"):
        parse_recipe(["--split", "own", "--purchases", "many"])


def test_options_that_another_split_does_not_have_are_dropped(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("split: at_time\nvalidation_time: 10\ntest_time: 20\nprefixes: true\n")
    assert parse_recipe([str(file)]).options("splitting")["test_time"] == "20"
    assert parse_recipe([str(file), "--split", "leave_one_out"]).options("splitting") == {"prefixes": True}
    assert parse_recipe([str(file), "--split", "at_time"]).options("splitting")["test_time"] == "20"
    words = [str(file), "--split", "leave_one_out", "--test_time", "20"]  # typed, so `prepare` refuses it
    assert parse_recipe(words).options("splitting") == {"prefixes": True, "test_time": "20"}


def test_a_log_in_place_of_a_recipe_is_recognized(tmp_path):
    (file := tmp_path / "log.csv").write_text("user,item,time\n1,2,3\n")
    with pytest.raises(ValueError, match=re.escape(f"Fix this file. If it is a log, pass `--data {file}`.")):
        parse_recipe([str(file)])


def test_options_of_an_architecture_of_the_users_own_are_read_from_its_class(tmp_path, monkeypatch):
    (tmp_path / "own_model_module.py").write_text(
        "from hf_bert4rec import Bert4RecConfig\n\n"
        "class OwnConfig(Bert4RecConfig):\n    model_type = 'own'\n    width_factor: float | int = 1.5\n"
    )
    monkeypatch.chdir(tmp_path)
    recipe = parse_recipe(["--architecture", "own_model_module:OwnConfig", "--width_factor", "2", "--hidden_size", "8"])
    assert recipe.options("model") == {"hidden_size": 8, "width_factor": 2.0}
    assert find_configuration(recipe.run.architecture).__name__ == "OwnConfig"


# ---- the recipes of the repository -----------------------------------------------------------------------------------

CONFIGS = sorted((Path(__file__).parents[2] / "scripts" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_read_whole(path):
    recipe = parse_recipe([str(path)])
    for name, value in (yaml.safe_load(path.read_text()) or {}).items():
        assert recipe.given[name] == (None if value == "none" else value), name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_recorded_recipes_are_not_stopped_early(path):
    assert (parse_recipe([str(path)]).training.early_stopping_patience is None) == (path.stem != "own-data")


def test_the_template_for_own_data_has_lines_that_can_be_used(parse):
    text = next(path for path in CONFIGS if path.stem == "own-data").read_text()
    options = re.findall(r"^# (\w+: .+)", text, re.MULTILINE)
    assert len(options) > 8
    assert parse("\n".join(options)).given["loss"] == "sampled_softmax"


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
def test_the_presets_of_the_paper_have_its_hyperparameters(name, length, rho, most, step, dropout, attention, steps):
    recipe = parse_recipe([str(CONFIGS[0].with_name(f"paper-{name}.yaml"))])
    assert (recipe.run.max_length, recipe.splitting.window_step) == (length, step)
    assert recipe.splitting.validation_in_train
    assert (recipe.masking.mask_probability, recipe.masking.max_predictions) == (rho, most)
    assert recipe.masking.last_item_probability == pytest.approx(1 / 11, abs=1e-4)
    config = find_configuration(recipe.run.architecture)(vocab_size=100, **recipe.options("model"))
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size) == (
        64, 2, 2, 256,
    )  # fmt: skip
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (dropout, attention)
    assert (config.initializer_range, config.rope_theta, config.loss) == (0.02, None, "softmax")
    assert (config.conv_kernel_size, config.prediction_head) == (None, True)
    training = recipe.training
    assert (training.learning_rate, training.warmup_steps, training.max_steps) == (1e-4, 100, steps)
    assert (training.per_device_train_batch_size, training.weight_decay, training.max_grad_norm) == (256, 0.01, 5)
    assert training.muon_learning_rate is None
