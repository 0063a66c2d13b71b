"""scripts/study.py: the options of variants, resuming, tables and plots."""

from pathlib import Path

import pytest
import yaml

from hf_bert4rec.evaluation.ranking import ndcg_gains as study_gains
from tests.conftest import load_script

SCRIPTS = Path(__file__).parents[2] / "scripts"
LINES = [
    {"study": "s", "variant": "a", "seed": 0, "options": {"x": 1}, "curve": [[5, 60, 0.1], [9, 120, 0.2]],
     "ndcg@10": 0.2, "short": 0.1, "long": 0.3, "standard_error": 0.01},
    {"study": "s", "variant": "a", "seed": 1, "options": {"x": 1}, "curve": [[9, 240, 0.1]],
     "ndcg@10": 0.1, "short": 0.1, "long": 0.1, "standard_error": 0.03},
    {"study": "s", "variant": "b", "seed": 0, "options": {"x": 2}, "curve": [[9, 60, 0.3]],
     "ndcg@10": 0.3, "short": 0.2, "long": 0.4},
]  # fmt: skip


@pytest.fixture(scope="module")
def study():
    return load_script("study")


@pytest.mark.parametrize(("cumulative", "last"), [(True, {"c": 0, "a": 1, "b": 3}), (False, {"c": 0, "b": 3})])
def test_a_cumulative_study_adds_up_the_options_of_its_variants(study, cumulative, last):
    description = {
        "options": {"c": 0},
        "cumulative": cumulative,
        "variants": {"none": None, "one": {"a": 1, "b": 2}, "two": {"b": 3}},
    }
    assert list(study.iterate_variants(description)) == [
        ("none", {"c": 0}),
        ("one", {"c": 0, "a": 1, "b": 2}),
        ("two", last),
    ]


def test_the_table_contains_means_gains_and_seeds(study):
    rows = study.format_tables(LINES).splitlines()
    assert rows[4:6] == [
        "| a | 0.1500 | 0.0200 | | 0.2000, 0.1000 | 0.1000 | 0.2000 | 3.0 |",
        "| b | 0.3000 | nan | | 0.3000 | 0.2000 | 0.4000 | 1.0 |",
    ]
    assert "Median of the variants 0.2250, best variant 0.3000. ±: standard error over" in rows
    rows = study.format_tables([{**line, "cumulative": True} for line in LINES]).splitlines()
    assert rows[5] == "| b | 0.3000 | nan | +0.1500 | 0.3000 | 0.2000 | 0.4000 | 1.0 |"


@pytest.mark.parametrize("x", ["minutes", "x"])
def test_the_plot_is_a_png(study, x, tmp_path):
    study.plot(LINES, tmp_path / "plot.png", x)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def recipe(tmp_path) -> str:
    items = [f"{user} {(user * 5 + place) % 12}" for user in range(20) for place in range(4 + user % 5)]
    (tmp_path / "log.txt").write_text("\n".join(items))
    options = {"data": str(tmp_path / "log.txt"), "max_length": 8, "hidden_size": 8, "max_steps": 4}
    options |= {"eval_strategy": "steps", "eval_steps": 2, "output_dir": "unused", "popularity_candidates": 1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(options))
    return str(tmp_path / "recipe.yaml")


def test_variants_with_a_result_are_not_trained_again(study, recipe, tmp_path, monkeypatch):
    describe = {
        "recipe": recipe,
        "seeds": [0, 1],
        "variants": {"a": {"mask_probability": 0.3}, "b": {"window_step": 1}},
    }
    path, results = str(tmp_path / "s.yaml"), str(tmp_path / "results.jsonl")
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(describe))
    runs: list = []
    monkeypatch.setattr(study, "train", lambda recipe: runs.append(recipe) or {"ndcg@10": 0.5})
    study.run(path, results, [0], 1)
    study.run(path, results, None, 1)
    assert [(run.training.seed, run.given.get("mask_probability")) for run in runs] == [
        (0, 0.3),
        (0, None),
        (1, 0.3),
        (1, None),
    ]
    assert [(line["variant"], line["seed"]) for line in study.load_lines(results)] == [
        ("a", 0),
        ("b", 0),
        ("a", 1),
        ("b", 1),
    ]
    describe["variants"]["b"] = {"window_step": 0.5}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(describe))
    with pytest.raises(ValueError, match=r"a run of the variant 'b' with seed 0 and other options \(window_step\)\."):
        study.run(path, results, None, 1)
    assert len(runs) == 4


def test_a_run_is_evaluated_on_validation_and_on_both_halves_of_its_histories(study, recipe, tmp_path, monkeypatch):
    ranked = []
    monkeypatch.setattr(study, "ndcg_gains", lambda ranks, k: ranked.append(ranks) or study_gains(ranks, k))
    line = study.train(study.build_recipe(recipe, {}, 3, str(tmp_path / "out")))
    assert [step for step, _, _ in line["curve"]] == [2, 4]
    assert line["curve"][-1][2] == pytest.approx(line["ndcg@10"], abs=1e-5)
    assert [ranks.shape for ranks in ranked] == [(20,)]
    short = [4 + user % 5 - 2 <= line["median_history"] for user in range(20)]
    halves = sum(short) * line["short"] + (20 - sum(short)) * line["long"]
    assert line["ndcg@10"] == pytest.approx(halves / 20, abs=1e-4)


@pytest.mark.parametrize("options", [{"validation_in_train": True}, {"eval_strategy": "no"}, {"split": "train_on_all"}])
def test_a_study_without_validation_is_refused_before_training(study, recipe, options, tmp_path):
    with pytest.raises(ValueError, match="a study needs a validation split and evaluations"):
        study.build_recipe(recipe, options, 0, str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the keys `recipe`, `seeds` and .* found no keys"),
        ("{recipe: r, seeds: [0], variants: {a: {}}, option: {}}", "found `recipe`, `seeds`, `variants`, `option`"),
        ("{recipe: r, variants: {a: {}}}", "found `recipe`, `variants`"),
        ("{recipe: r, seeds: 3, variants: {a: {}}}", "`seeds` must be a list with at least one seed, found 3"),
        ("{recipe: r, seeds: [0], variants: [a]}", "`variants` must be lines of `name: options`"),
        ("{recipe: r, seeds: [0], variants: {a: 3}}", "the variant 'a' must be lines of `option: value`, found 3"),
        ("{recipe: r, seeds: [], variants: {a: {}}}", "`seeds` must be a list with at least one seed"),
        ("{recipe: r, seeds: [0], variants: {a: {}}, cumulative: 1}", "`cumulative` must be true or false, found 1"),
        ("{", "expected the YAML file of a study"),
    ],
)
def test_a_file_that_is_no_study_is_refused(study, text, message, tmp_path):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        study.run(str(tmp_path / "s.yaml"), str(tmp_path / "results.jsonl"), None, 1)
    with pytest.raises(ValueError, match="found no such file"):
        study.load_study(str(tmp_path / "other.yaml"))


def test_a_misspelled_option_of_the_last_variant_is_found_before_training(study, recipe, tmp_path, monkeypatch):
    text = {"recipe": recipe, "seeds": [0], "variants": {"a": {}, "b": {"conv_kernal_size": 3}}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(text))
    monkeypatch.setattr(study, "train", lambda recipe: pytest.fail("trained"))
    with pytest.raises(ValueError, match="conv_kernel_size"):
        study.run(str(tmp_path / "s.yaml"), str(tmp_path / "results.jsonl"), None, 1)


def test_missing_results_and_an_option_that_is_no_number_are_refused(study, tmp_path):
    with pytest.raises(ValueError, match="does not exist or has no results"):
        study.load_lines(str(tmp_path / "results.jsonl"), required=True)
    with pytest.raises(ValueError, match="an option with a number in every line of the results, found y"):
        study.plot(LINES, str(tmp_path / "plot.png"), "y")


@pytest.mark.parametrize("path", sorted((SCRIPTS / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_has_a_recipe_and_known_options(study, path, monkeypatch, tmp_path):
    monkeypatch.chdir(SCRIPTS.parent)
    description = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert description["seeds"]
    for _, options in study.iterate_variants(description):
        recipe = study.build_recipe(description["recipe"], options, 7, str(tmp_path))
        assert recipe.training.seed == 7
        given = {name: None if value == "none" else value for name, value in options.items()}
        assert {name: recipe.given[name] for name in given} == given
