"""scripts/study.py: the options of variants, what is run again, its table and its plot."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

SCRIPTS = Path(__file__).parent.parent / "scripts"
LINES = [
    {"study": "s", "variant": "a", "seed": 0, "options": {"x": 1}, "curve": [[5, 60, 0.1], [9, 120, 0.2]],
     "ndcg@10": 0.2, "short": 0.1, "long": 0.3},
    {"study": "s", "variant": "a", "seed": 1, "options": {"x": 1}, "curve": [[9, 240, 0.1]],
     "ndcg@10": 0.1, "short": 0.1, "long": 0.1},
    {"study": "s", "variant": "b", "seed": 0, "options": {"x": 2}, "curve": [[9, 60, 0.3]],
     "ndcg@10": 0.3, "short": 0.2, "long": 0.4},
]  # fmt: skip


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("study", SCRIPTS / "study.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("cumulative", "last"), [(True, {"c": 0, "a": 1, "b": 3}), (False, {"c": 0, "b": 3})])
def test_changes_are_added_up_where_the_study_says_so(study, cumulative, last):
    description = {
        "options": {"c": 0},
        "cumulative": cumulative,
        "variants": {"none": None, "one": {"a": 1, "b": 2}, "two": {"b": 3}},
    }
    assert list(study.variants(description)) == [("none", {"c": 0}), ("one", {"c": 0, "a": 1, "b": 2}), ("two", last)]


def test_the_table_gives_means_gains_and_seeds(study):
    rows = study.table(LINES).splitlines()
    assert rows[4:6] == [
        "| a | 0.1500 |  | 0.2000, 0.1000 | 0.1000 | 0.2000 | 3.0 |",
        "| b | 0.3000 | +0.1500 | 0.3000 | 0.2000 | 0.4000 | 1.0 |",
    ]
    assert "Median 0.2250, best 0.3000: 0.75." in rows


@pytest.mark.parametrize("x", ["minutes", "x"])
def test_the_plot_is_a_png(study, x, tmp_path):
    study.plot(LINES, tmp_path / "plot.png", x)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_what_has_its_line_is_not_run_again(study, tmp_path, monkeypatch):
    (tmp_path / "s.yaml").write_text("{recipe: r.yaml, seeds: [0, 1], variants: {a: {x: 1}, b: {x: 2}}}")
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    runs = []
    monkeypatch.setattr(study, "train", lambda *run: runs.append(run) or {"ndcg@10": 0.5})
    study.run(str(tmp_path / "s.yaml"), str(tmp_path / "results.jsonl"), None)
    assert runs == [("r.yaml", {"x": 2}, 1)]
    assert study.load(str(tmp_path / "results.jsonl"))[3:] == [
        {"study": "s", "variant": "b", "seed": 1, "options": {"x": 2}, "ndcg@10": 0.5}
    ]


def test_a_run_is_judged_on_validation_and_on_both_halves_of_its_histories(study, tmp_path):
    items = [f"{user} {(user * 5 + place) % 9}" for user in range(20) for place in range(4 + user % 5)]
    (tmp_path / "log.txt").write_text("\n".join(items))
    recipe = {"output_dir": str(tmp_path / "out"), "data": str(tmp_path / "log.txt"), "max_length": 8}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "hidden_size": 8, "max_steps": 4}))
    options = {"eval_strategy": "steps", "eval_steps": 2}
    line = study.train(str(tmp_path / "recipe.yaml"), options, seed=3)
    assert [step for step, _, _ in line["curve"]] == [2, 4]
    assert line["curve"][-1][2] == line["ndcg@10"]
    short = [4 + user % 5 - 2 <= line["median_history"] for user in range(20)]
    assert line["ndcg@10"] == pytest.approx(
        (sum(short) * line["short"] + (20 - sum(short)) * line["long"]) / 20, abs=1e-4
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", sorted((SCRIPTS / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_names_a_recipe_and_options_that_are_read(study, path, monkeypatch, tmp_path):
    monkeypatch.chdir(SCRIPTS.parent)
    description = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert description["seeds"]
    for _, options in study.variants(description):
        recipe = study.with_options(description["recipe"], options, 7, str(tmp_path))
        assert recipe.training.seed == 7
        assert all(recipe.options[name] == value for name, value in options.items())
