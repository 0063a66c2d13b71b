"""`hf-bert4rec compare`: from the comparison file to the report."""

import dataclasses
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hf_bert4rec.cli.compare import compare, evaluate_model, train_model
from hf_bert4rec.cli.comparison_file import Comparison
from hf_bert4rec.cli.comparison_options import check_model, differing_options, resolved_options
from hf_bert4rec.cli.comparison_report import (
    ModelResult,
    differences_table,
    format_report,
    groups_table,
    metrics_table,
    options_table,
    sampled_metrics_table,
    summarize,
)
from hf_bert4rec.cli.main import main
from hf_bert4rec.cli.own_code import import_own_code, imported
from hf_bert4rec.cli.prepare import excludes_history, prepare
from hf_bert4rec.cli.recipe import parse_recipe
from hf_bert4rec.cli.run import run
from hf_bert4rec.evaluation.baselines import BASELINES
from hf_bert4rec.evaluation.comparison import UserResults, paired_difference, split_metrics
from hf_bert4rec.hub.run_facts import RunFacts
from tests.processes import started, wait_until
from tests.training.test_training import LOG, RECIPE

ROWS = 14  # of an item table of 11 items


@pytest.fixture
def recipe_file(tmp_path) -> Path:
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(log=tmp_path / "log.csv") + "popularity_candidates: 2\n")
    return tmp_path / "recipe.yaml"


def comparison_file(folder: Path, recipe: Path, published: dict | None = None, **models) -> str:
    content = {"recipe": str(recipe), "models": models} | ({"published": published} if published else {})
    (folder / "comparison.yaml").write_text(json.dumps(content))  # JSON is YAML
    return str(folder / "comparison.yaml")


# --------------------------------------------------------------------------------------- training, evaluating, keeping


def test_models_are_evaluated_once_and_reported(recipe_file, tmp_path, capsys):
    models = {
        "Popularity": {"baseline": "popularity"},
        "SASRec": {"recipe": str(recipe_file), "architecture": "sasrec", "num_train_epochs": 1},
    }
    path, folder = comparison_file(tmp_path, recipe_file, **models), str(tmp_path / "kept")
    for name in models:
        evaluate_model(Comparison.load(path), name, "validation", folder)
    kept = {file.name: file.stat().st_mtime_ns for file in Path(folder).glob("*.*")}
    assert set(kept) == {"popularity.json", "popularity.npz", "sasrec.json", "sasrec.npz"}
    report = compare(path, "validation", folder)  # nothing is run again
    assert {name: Path(folder, name).stat().st_mtime_ns for name in kept} == kept
    printed = capsys.readouterr().out
    assert f"delete {folder}/popularity.json.\n" in printed
    assert f"delete {folder}/sasrec.json. To train this model again, delete {folder}/sasrec too.\n" in printed
    assert "Protocol: validation, leave-one-out (every user's last item), ranked among all 12 items" in report
    assert "Never compare these metrics with those of the table above" in report
    assert "| SASRec − Popularity |" in report or "| Popularity − SASRec |" in report
    assert "- validation: 16 of 16 rows (100.0%)" in report
    assert Path(folder, "comparison.md").read_text() == report
    assert format_report(json.loads(Path(folder, "comparison.json").read_text())) == report
    with pytest.raises(
        ValueError,
        match=r"Delete these files.*\n\S+popularity\.json: evaluated split validation → test\n\S+sasrec\.json: ",
    ):
        compare(path, "test", folder)


@pytest.mark.parametrize("excluded", [None, False])
def test_all_models_exclude_the_history_or_none(excluded, recipe_file, tmp_path):
    if excluded is not None:
        recipe_file.write_text(recipe_file.read_text() + "exclude_history: false\n")
    path = comparison_file(tmp_path, recipe_file, Own={"baseline": "own_items"})
    evaluate_model(Comparison.load(path), "Own", "test", str(tmp_path / "kept"))
    *_, histories = prepare(Comparison.load(path).parse_recipe())
    users = zip(np.load(tmp_path / "kept" / "own.npz")["recommended"], histories["test"]["history"], strict=True)
    assert all(bool(set(items) & set(history)) is (excluded is False) for items, history in users)


def test_the_report_has_the_options_that_differ_and_warns_of_a_chain_in_one_model(recipe_file, tmp_path, caplog):
    options = {"recipe": str(recipe_file), "num_train_epochs": 1}
    options |= {"recommended_settings": True, "exclude_history": True}
    models = {
        "Popularity": {"baseline": "popularity"},
        "Chain": {**options, "num_followers": 2},
        "Causal": {**options, "architecture": "sasrec", "learning_rate": 0.004},
    }
    path, folder = comparison_file(tmp_path, recipe_file, **models), str(tmp_path / "kept")
    for name in models:
        logging.getLogger("hf_bert4rec").setLevel(logging.INFO)
        evaluate_model(Comparison.load(path), name, "validation", folder)
    settings = [it.getMessage() for it in caplog.records if "Recommended settings" in it.getMessage()]
    assert len(settings) == 2
    assert "--prefixes True" in settings[0]  # of BERT4Rec alone
    assert "--prefixes" not in settings[1]
    assert "--num_followers 50" in settings[1]
    report = compare(path, "validation", folder)
    rows = {row[0]: row[1:] for row in cells(report.partition("trained models:\n\n")[2].partition("\n\n")[0])}
    assert rows["option"] == ["Chain", "Causal"]
    assert rows["architecture"] == ["bert4rec", "sasrec"]
    assert rows["num_followers"] == ["2", "50"]
    assert rows["prefixes"] == ["true", "false"]
    assert rows["learning_rate"][1] == "0.004"
    assert not {"num_train_epochs", "hidden_size", "last_item_probability", "output_dir", "repeat_head"} & {*rows}
    warning = "The trained models differ in `num_followers`, which"
    assert [warning in it.getMessage() for it in caplog.records].count(True) == report.count(warning) == 1
    shutil.rmtree(Path(folder, "chain"))  # its result is kept
    assert "Options that differ" not in compare(path, "validation", folder)


def test_unknown_options_of_a_checkpoint_are_not_claimed_to_be_defaults(recipe_file, tmp_path):
    checkpoint = train_model({"recipe": str(recipe_file), "num_train_epochs": 1}, str(tmp_path / "out"))
    assert resolved_options(checkpoint)["mask_probability"] == 0.2
    facts = RunFacts.load(checkpoint)
    dataclasses.replace(facts, reproducible=False, recipe={"seed": 3, "learning_rate": 0.5}).save(checkpoint)
    options = resolved_options(checkpoint)
    assert {"mask_probability", "prefixes", "weight_decay"} & {*options} == set()
    assert (options["learning_rate"], options["hidden_size"]) == (0.5, 12)


def test_a_checkpoint_trained_with_other_options_is_not_reused(recipe_file, tmp_path):
    options = {"recipe": str(recipe_file), "num_train_epochs": 1}
    first = train_model(options, str(tmp_path / "out"))
    assert train_model(options, str(tmp_path / "out")) == first
    with pytest.raises(ValueError, match=r"was trained with other options\. Delete this folder"):
        train_model({**options, "hidden_size": 24}, str(tmp_path / "out"))


def test_results_of_another_protocol_are_not_mixed(recipe_file, tmp_path):
    path = comparison_file(tmp_path, recipe_file, Popularity={"baseline": "popularity"})
    folder = str(tmp_path / "kept")
    evaluate_model(Comparison.load(path), "Popularity", "test", folder)
    recipe_file.write_text(recipe_file.read_text() + "exclude_history: false\n")
    with pytest.raises(ValueError, match=r"popularity\.json: exclude_history True → False$"):
        compare(path, "test", folder)


def test_the_result_of_a_baseline_whose_code_has_changed_is_not_reused(recipe_file, tmp_path, monkeypatch):
    code = "from hf_bert4rec import BASELINES, Popularity\nclass Own(Popularity): pass\nBASELINES['own'] = Own\n"
    (tmp_path / "own_baseline.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(BASELINES, "own", None)  # removed after the test
    path, folder = comparison_file(tmp_path, recipe_file, Own={"baseline": "own"}), str(tmp_path / "kept")
    import_own_code("own_baseline")
    evaluate_model(Comparison.load(path), "Own", "validation", folder)
    compare(path, "validation", folder)
    (tmp_path / "own_baseline.py").write_text(code + "# other code")
    with pytest.raises(ValueError, match=r"own\.json: code \w{64} → \w{64}"):
        compare(path, "validation", folder)


def test_results_of_other_options_or_weights_are_not_reused(recipe_file, tmp_path):
    checkpoint = train_model({"recipe": str(recipe_file), "num_train_epochs": 1}, str(tmp_path / "out"))
    other = tmp_path / "sasrec.yaml"
    other.write_text(recipe_file.read_text().replace("epochs: 3", "epochs: 1") + "architecture: sasrec\n")
    models = {"SASRec": {"recipe": str(other)}, "Ours": {"checkpoint": str(checkpoint)}}
    path, folder = comparison_file(tmp_path, recipe_file, **models), str(tmp_path / "kept")
    for name in models:
        evaluate_model(Comparison.load(path), name, "test", folder)
    compare(path, "test", folder)
    kept = other.read_text()
    other.write_text(kept.replace("num_train_epochs: 1", "num_train_epochs: 2"))
    with pytest.raises(ValueError, match=r"sasrec\.json: num_train_epochs 1\S* → 2\S*$"):
        compare(path, "test", folder)
    other.write_text(kept)
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(ValueError, match=r"ours\.json: weights \['\w+'\] → "):
        compare(path, "test", folder)


def test_code_of_a_checkpoint_is_imported_if_the_comparison_names_it(recipe_file, tmp_path, monkeypatch):
    (tmp_path / "trusted.py").write_text("from hf_bert4rec import leave_one_out as split\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = tmp_path / "own.yaml"
    own.write_text(recipe_file.read_text() + "split: trusted:split\n")
    checkpoint = train_model({"recipe": str(own), "num_train_epochs": 1}, str(tmp_path / "out"))
    path = comparison_file(tmp_path, own, Ours={"checkpoint": str(checkpoint)})
    imported.clear()
    check_model(Comparison.load(path), "Ours", parse_recipe([str(own)]), str(tmp_path))
    path = comparison_file(tmp_path, recipe_file, Ours={"checkpoint": str(checkpoint)})
    arguments = Comparison.load(path), "Ours", parse_recipe([str(recipe_file)]), str(tmp_path)
    imported.clear()
    with pytest.raises(ValueError, match=r"would import trusted:split\. .* add `--import trusted`"):
        check_model(*arguments)
    import_own_code("trusted")
    with pytest.raises(ValueError, match="the split or ranking differs from "):  # it has been imported
        check_model(*arguments)


def test_a_model_that_starts_from_a_checkpoint_is_ranked_as_this_checkpoint(recipe_file, tmp_path):
    parts = ["--exclude_history=false", "--num_train_epochs=1", f"--output_dir={tmp_path / 'first'}"]
    first = run(parse_recipe([str(recipe_file), *parts]))
    recipe = parse_recipe([str(recipe_file), f"--start_from={first}"])
    assert excludes_history(recipe) is False
    assert excludes_history(parse_recipe([str(recipe_file), f"--start_from={first}", "--exclude_history=true"])) is True


def test_a_checkpoint_of_other_data_is_refused(recipe_file, tmp_path):
    checkpoint = train_model({"recipe": str(recipe_file), "num_train_epochs": 1}, str(tmp_path / "out"))
    (tmp_path / "log.csv").write_text(LOG.replace("u3,i9,0", "u3,i8,0"))
    path = comparison_file(tmp_path, recipe_file, Ours={"checkpoint": str(checkpoint)})
    with pytest.raises(ValueError, match="was not trained on the data and items of"):
        evaluate_model(Comparison.load(path), "Ours", "test", str(tmp_path / "kept"))
    models = {"First": {"baseline": "popularity"}, "Ours": {"checkpoint": str(checkpoint)}}
    with pytest.raises(ValueError, match="was not trained on the data and items of"):
        compare(comparison_file(tmp_path, recipe_file, **models), "test", str(tmp_path / "kept"))
    (checkpoint / "run_facts.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"found no run_facts\.json"):
        compare(comparison_file(tmp_path, recipe_file, **models), "test", str(tmp_path / "kept"))
    assert not (tmp_path / "kept").exists()


def test_a_checkpoint_without_a_checksum_of_its_data_is_compared_by_its_items(recipe_file, tmp_path, caplog):
    checkpoint = train_model({"recipe": str(recipe_file), "num_train_epochs": 1}, str(tmp_path / "out"))
    facts = RunFacts.load(checkpoint)
    dataclasses.replace(facts, data=dataclasses.replace(facts.data, sha256=None)).save(checkpoint)
    path = comparison_file(tmp_path, recipe_file, Ours={"checkpoint": str(checkpoint)})
    compare(path, "test", str(tmp_path / "kept"))
    assert caplog.text.count(f"{checkpoint}: the training data is unknown. If it contains targets") == 1
    (tmp_path / "log.csv").write_text(LOG + "u3,new,99\n")
    with pytest.raises(ValueError, match="was not trained on the data and items of"):
        compare(path, "test", str(tmp_path / "kept"))


def test_options_of_the_file_reach_the_models(recipe_file, tmp_path):
    """The regularization of EASE, the users of BPR-MF, and whether the history is excluded."""
    recipe_file.write_text(recipe_file.read_text().replace("popularity_candidates", "uniform_candidates"))
    again = recipe_file.with_name("again.yaml")
    again.write_text(recipe_file.read_text().replace("uniform_candidates: 2", "exclude_history: false"))

    def evaluate(recipe, **model) -> ModelResult:
        folder = str(tmp_path / f"kept-{len(list(tmp_path.iterdir()))}")
        evaluate_model(Comparison("comparison.yaml", str(recipe), {"It": model}), "It", "test", folder)
        return ModelResult.load(folder, "it")

    weak, strong = (evaluate(recipe_file, baseline="ease", regularization=value) for value in (0.1, 1e6))
    assert weak.metrics != strong.metrics
    assert "mrr_uniform_sampled" in weak.metrics
    personal = evaluate(recipe_file, baseline="bpr_mf").users.recommended
    assert len({tuple(row) for row in personal.tolist()}) > 1  # not those of the mean user
    recipe = parse_recipe([str(again), f"--output_dir={tmp_path}/out"])
    histories = prepare(recipe)[3]["test"]["history"]

    def recommended_again(result: ModelResult) -> list[set[int]]:
        return [set(b) & set(h) for b, h in zip(result.users.recommended.tolist(), histories, strict=True)]

    assert any(recommended_again(evaluate(again, baseline="popularity")))
    assert not any(recommended_again(evaluate(recipe_file, baseline="popularity")))


def test_leaks_are_reported(recipe_file, tmp_path):
    log = tmp_path / "log.csv"
    user, item, time = log.read_text().splitlines()[-1].split(",")
    log.write_text(log.read_text().rstrip() + f"\n{user},{item},{time}\n")  # twice at one time
    path = comparison_file(tmp_path, recipe_file, Popularity={"baseline": "popularity"})
    evaluate_model(Comparison.load(path), "Popularity", "test", str(tmp_path / "kept"))
    report = compare(path, "test", str(tmp_path / "kept"))
    assert "**Leaks**, or interactions that a user repeated at the same time:\n\n- test: 1 of 16 rows" in report


def test_the_process_of_a_model_imports_code_of_the_user(recipe_file, tmp_path, monkeypatch):
    mark = "import os, pathlib; pathlib.Path(__file__).with_name(f'mark-{os.getpid()}').touch()"
    (tmp_path / "own_marks.py").write_text(mark)
    monkeypatch.syspath_prepend(tmp_path)
    path = comparison_file(tmp_path, recipe_file, Popularity={"baseline": "popularity"})
    import_own_code("own_marks")
    compare(path, "validation", str(tmp_path / "kept"))
    assert len(list(tmp_path.glob("mark-*"))) == 2


def test_an_interrupted_comparison_says_how_to_continue(recipe_file, tmp_path):
    path = comparison_file(
        tmp_path,
        recipe_file,
        Ours={"recipe": str(recipe_file), "num_train_epochs": 10_000, "early_stopping_patience": "none"},
    )
    words = ["compare", path, "--output_dir", str(tmp_path / "kept")]
    # Python ignores interruptions if it is started in the background, as a test run may be.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += f"from hf_bert4rec.cli.main import main\nif __name__ == '__main__':\n    main({words})\n"
    script = tmp_path / "command.py"  # which the processes of the models import again
    script.write_text(code)
    with started([sys.executable, script], stderr=subprocess.PIPE, text=True) as running:
        wait_until(lambda: list((tmp_path / "kept" / "ours").glob("checkpoint-*")), running)
        os.killpg(running.pid, signal.SIGINT)
        _, errors = running.communicate(timeout=60)
    assert f"Interrupted. Run the same command to continue with the results in {tmp_path / 'kept'}." in errors


# ---------------------------------------------------------------------------------- mistakes, before any training


def test_a_missing_recipe_is_named_with_its_file_and_key(tmp_path):
    path = comparison_file(tmp_path, tmp_path / "gone.yaml", popularity={"baseline": "popularity"})
    with pytest.raises(ValueError, match=r"comparison\.yaml: `recipe`: /.*gone\.yaml: found no such file"):
        compare(path, "test", str(tmp_path / "compared"))


def test_mistakes_are_found_before_anything_is_trained(recipe_file, tmp_path):
    for options, message in (
        ({"baseline": "ease", "regularisation": 50}, r"the baseline ease cannot use \{'regularisation': 50\}"),
        ({"baseline": "als", "regularisation": 1}, r"BASELINES\['als'\]\)` in Python lists its options"),
        ({"baseline": "item_neighbors", "weighting": "tfidf"}, "cosine.*bm25.*'tfidf'"),
        ({"baseline": "item_neighbors", "neighbors": 0}, "neighbors.*0"),
        ({"recipe": str(recipe_file), "num_train_epoch": 1}, "num_train_epochs"),
        ({"checkpoint": str(tmp_path / "none" / "model")}, "none"),
    ):
        models = {"First": {"recipe": str(recipe_file)}, "Second": options}
        with pytest.raises((ValueError, OSError), match=message) as error:
            compare(comparison_file(tmp_path, recipe_file, **models), "test", str(tmp_path / "kept"))
        assert isinstance(error.value, OSError) or "'Second': " in str(error.value)
    assert not (tmp_path / "kept" / "first").exists()


def test_a_missing_package_is_named_with_its_install_command_before_anything_is_trained(
    recipe_file, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "implicit", None)  # an import of it fails
    for module in [name for name in sys.modules if name.startswith("implicit.")]:
        monkeypatch.delitem(sys.modules, module)
    models = {"First": {"recipe": str(recipe_file)}, "Second": {"baseline": "als"}}
    path = comparison_file(tmp_path, recipe_file, **models)
    with pytest.raises(SystemExit) as error:
        main(["compare", path, "--output_dir", str(tmp_path / "kept")])
    assert "pip install 'hf-bert4rec[baselines]'" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"X": {"baseline": "popular"}}, "'X': unknown baseline 'popular'. Choose from popularity, "),
        (
            {"BPR-MF": {"baseline": "bpr_mf"}, "BPR MF": {"baseline": "bpr_mf"}},
            "'BPR MF': bpr-mf.json is already the file of 'BPR-MF'. Rename",
        ),
        (
            {"Comparison": {"baseline": "ease"}},
            "'Comparison': comparison.json is already the file of 'the report'. Rename",
        ),
        ({"a|b": {"baseline": "ease"}}, r"'a\|b': a name with \| breaks the tables"),
        ({"X": {"checkpoint": "y", "max_length": 5}}, "'X': `checkpoint` cannot be combined with max_length"),
        ({"X": {}}, "'X': expected one of baseline, recipe, checkpoint"),
        ({"X": {"baseline": "ease", "checkpoint": "y"}}, "'X': expected one of baseline, recipe, checkpoint"),
        ({"X": "ease"}, r"'models\['X'\]' expected a dict, got str"),
        ({}, "`models` is empty"),
    ],
)
def test_invalid_models_are_refused(recipe_file, tmp_path, models, message):
    with pytest.raises(ValueError, match=f"comparison.yaml: .*{message}"):
        Comparison.load(comparison_file(tmp_path, recipe_file, **models))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "values for the keys `recipe` and `models`, and optionally `published`, found none. `hf-bert4rec"),
        ("- recipe", "a YAML file of a comparison, found ['recipe']. `hf-bert4rec compare --help` shows an example."),
        ("recipe", "found 'recipe'. "),
        (
            "{",
            "a YAML file of a comparison, but it cannot be read (while parsing a flow node expected the node content",
        ),
        ("recipe: a\nmodels: {X: {baseline: ease}}\nmodel: 1", "found `recipe`, `models`, `model`. `hf-b"),
        ("recipe: a", "found `recipe`. `hf-bert4rec compare --help` shows an example."),
        ("recipe: a\nmodels:", "found `recipe`. "),
        ("\0", "a YAML file of a comparison, but it cannot be read (unacceptable character"),
        (
            "recipe: a\nmodels: {X: {baseline: ease}, X: {baseline: als}}",
            "`X` is given more than once. Keep one line).",
        ),
    ],
)
def test_a_file_that_is_no_comparison_is_refused(tmp_path, text, message):
    (tmp_path / "comparison.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"comparison\.yaml: expected .*{re.escape(message)}"):
        Comparison.load(str(tmp_path / "comparison.yaml"))


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("{1: {baseline: ease}}", "Field 'models.key' expected str, got int (value: 1)"),
        ("{X: ease}", "expected a dict, got str. `hf-bert4rec compare --help` shows an example."),
        ("{X: {baseline: [ease]}}", "'X': unknown baseline \"['ease']\". Choose from "),
        ("{X: {recipe: [a]}}", "'X': `recipe` must be the path of a recipe, found ['a']. "),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(tmp_path, models, message):
    (tmp_path / "comparison.yaml").write_text(f"recipe: a\nmodels: {models}")
    with pytest.raises(ValueError, match=re.escape(message)):
        Comparison.load(str(tmp_path / "comparison.yaml"))


def test_a_recipe_is_no_comparison(recipe_file):
    with pytest.raises(ValueError, match=r"recipe\.yaml: expected values for the keys `recipe` .* found `data`"):
        Comparison.load(str(recipe_file))


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({"Popularity": {"the paper": {"hit@10": 0.1, "mrr": 0.1}}}, "Unknown metric 'hit@10'"),
        ({"Popularity": {"the paper": {"hr@10": "abc"}}}, r"published.*'abc' must be a number\. `hf-bert4rec"),
        ({"Popularity": {"hr@10": 0.1}}, r"'published\['Popularity'\]\['hr@10'\]' expected a dict, got float"),
    ],
)
def test_published_values_without_a_column_are_refused(recipe_file, tmp_path, published, message):
    path = comparison_file(tmp_path, recipe_file, published, Popularity={"baseline": "popularity"})
    with pytest.raises(ValueError, match=message):
        Comparison.load(path)


def test_published_values_need_candidates(recipe_file, tmp_path):
    recipe_file.write_text(recipe_file.read_text().replace("popularity_candidates: 2", ""))
    published = {"Popularity": {"the paper": {"hr@10": 0.1}}}
    path = comparison_file(tmp_path, recipe_file, published, Popularity={"baseline": "popularity"})
    with pytest.raises(ValueError, match=r"`published` needs metrics among sampled candidates\. Set `popularity_cand"):
        compare(path, "test", str(tmp_path / "kept"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_in_train": True}, "validation_in_train False → True"),
        ({"exclude_history": False}, "exclude_history True → False"),
        ({"split": "at_time", "validation_time": 2, "test_time": 3}, "split leave_one_out → at_time"),
    ],
)
def test_a_model_of_another_split_is_refused(recipe_file, tmp_path, options, message):
    models = {"Other": {"recipe": str(recipe_file), **options}}
    with pytest.raises(ValueError, match=f"'Other': the split or ranking differs from .*{message}"):
        compare(comparison_file(tmp_path, recipe_file, **models), "test", str(tmp_path / "kept"))


def test_a_model_that_alone_chooses_exclude_history_from_the_log_is_refused(recipe_file, tmp_path):
    text = re.sub(r"recommended_settings: \w+\n", "", recipe_file.read_text())
    recipe_file.write_text(f"{text}recommended_settings: false\n")
    models = {"Other": {"recipe": str(recipe_file), "recommended_settings": True}}
    found = "chosen from the log for this model, but not for the comparison"
    advice = r"Set the same value for this model and in \S+recipe\.yaml\."
    with pytest.raises(ValueError, match=f"'Other': `exclude_history` is {found}. {advice}$"):
        compare(comparison_file(tmp_path, recipe_file, **models), "test", str(tmp_path / "kept"))


def test_a_model_with_another_exclude_history_than_the_log_suggests_is_refused(recipe_file, tmp_path):
    text = re.sub(r"recommended_settings: \w+\n", "", recipe_file.read_text())
    recipe_file.write_text(f"{text}recommended_settings: true\n")
    comparison = Comparison("comparison.yaml", str(recipe_file), {"It": {"recipe": str(recipe_file)}})
    recipe = prepare(comparison.parse_recipe())[0]
    chosen = excludes_history(recipe)
    comparison.models["It"]["exclude_history"] = chosen
    check_model(comparison, "It", recipe, str(tmp_path))
    comparison.models["It"]["exclude_history"] = not chosen
    with pytest.raises(ValueError, match=f"'It': .*exclude_history {chosen} → {not chosen}"):
        check_model(comparison, "It", recipe, str(tmp_path))


@pytest.mark.parametrize(
    ("option", "split", "message"),
    [
        (
            "validation_in_train: true",
            "validation",
            r"no validation split, found only train and test\. Pass `--split test`",
        ),
        ("split: train_on_all", "test", r"no test split, found only train\. Set `split` in .*recipe\.yaml to one that"),
    ],
)
def test_a_split_that_the_recipe_does_not_have_is_refused(recipe_file, tmp_path, option, split, message):
    recipe_file.write_text(recipe_file.read_text() + option + "\n")
    with pytest.raises(ValueError, match=message):
        compare(comparison_file(tmp_path, recipe_file, Last={"baseline": "popularity"}), split, str(tmp_path / "kept"))


@pytest.mark.parametrize("option", ["validation_in_train", "exclude_history"])
def test_a_checkpoint_of_another_split_is_refused(recipe_file, tmp_path, option):
    value = option == "validation_in_train"
    checkpoint = train_model({"recipe": str(recipe_file), option: value, "num_train_epochs": 1}, str(tmp_path / "out"))
    comparison = Comparison("comparison.yaml", str(recipe_file), {"Other": {"checkpoint": str(checkpoint)}})
    with pytest.raises(ValueError, match=f"'Other': .*{option} {not value} → {value}"):
        check_model(comparison, "Other", comparison.parse_recipe(), str(tmp_path))


# ------------------------------------------------------------------------------------------------- tables, by hand

# Two users, eleven items. One: first and third of the catalog, one of them level with another item, the first of its
# candidates and the second. Other: eleventh and second; second and fourth.
USERS = {"One": ([1.0, 3.0], [0, 1], [3, 4], [1.0, 2.0]), "Other": ([11.0, 2.0], [0, 0], [3, 3], [2.0, 4.0])}


def model_result(users: UserResults, targets: list[int], counts: list[int]) -> ModelResult:
    return ModelResult(
        settings={},
        protocol="p",
        sampled_protocol="s",
        metrics=split_metrics(users, np.array(targets), np.array(counts)),
        training_seconds=12.3,
        processes=2,
        threads=1,
        users_per_second=1234.5,
        peak_gb=0.456,
        users=users,
    )


@pytest.fixture
def results() -> dict[str, ModelResult]:
    found = {}
    for name, (ranks, ties, best, sampled) in USERS.items():
        recommended = np.full((2, 10), -1)
        recommended[:, 0] = best
        users = UserResults(np.array(ranks), np.array(ties), recommended, np.array(sampled))
        found[name] = model_result(users, [3, 4], [0, 0, 0, 6, 2] + [0] * 9)
    return found


def summary(
    results: dict, groups: dict | None = None, published: dict | None = None, options: dict | None = None
) -> dict:
    return json.loads(json.dumps(summarize("test", results, groups or {}, published or {}, [], options or {})))


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "---" not in line]


def test_the_table_of_metrics_equals_one_written_by_hand(results):
    header, one, other = cells(metrics_table(summary(results)))
    assert header == ["model", "HR@10", "NDCG@10", "95 %", "MRR@10", "coverage", "popularity", "ties", "training",
                      "users/s", "GB"]  # fmt: skip
    # NDCG 1 and 1 / log2(4); MRR 1 and 1/3; two of eleven items; 6 and 2 of a mean target of 4; one of two has a tie
    assert one == ["One", "1.0000", "0.7500", "0.5000 to 1.0000", "0.6667", "0.182", "1.00", "0.500", "12 s on 2 × 1",
                   "1,234", "0.46"]  # fmt: skip
    # NDCG 0 and 1 / log2(3); MRR 0 and 1/2; one of eleven items; 6 and 6
    assert other == ["Other", "0.5000", "0.3155", "0.0000 to 0.6309", "0.2500", "0.091", "1.50", "0.000",
                     "12 s on 2 × 1", "1,234", "0.46"]  # fmt: skip


def test_the_table_among_candidates_equals_one_written_by_hand(results):
    published = {"One": {"the paper": {"hr@1": 0.25, "mrr": 0.5}}}
    assert cells(sampled_metrics_table(summary(results, published=published))) == [
        ["model", "HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10", "MRR"],
        ["One", "0.5000", "1.0000", "1.0000", "0.8155", "0.8155", "0.7500"],
        ["One in the paper", "0.2500", "", "", "", "", "0.5000"],
        ["Other", "0.0000", "1.0000", "1.0000", "0.5308", "0.5308", "0.3750"],
    ]
    for result in results.values():
        result.metrics = {"hr@10": 1.0, "ndcg@10": 1.0}
    assert sampled_metrics_table(summary(results, published=published)) == ""


def test_the_table_of_options_equals_one_written_by_hand(results):
    trained = {
        "One": {"loss": "softmax", "rope_theta": None, "prefixes": True, "seed": 1, "mask_probability": 0.2},
        "Other": {"loss": "gbce", "rope_theta": 9.5, "prefixes": True, "seed": 1},  # it has no masks
    }
    options = differing_options(trained)
    assert cells(options_table(summary(results, options=options))) == [
        ["option", "One", "Other"],
        ["loss", "softmax", "gbce"],
        ["rope_theta", "none", "9.5"],
    ]
    assert options_table(summary(results)) == ""
    assert "Options that differ" not in format_report({**summary(results), "options": {}})
    assert "Note" not in format_report(summary(results, options=options))


def test_the_table_of_groups_equals_one_written_by_hand(results):
    groups = {"head": np.array([True, False]), "tail": np.array([False, True]), "none": np.array([False, False])}
    assert cells(groups_table(summary(results, groups))) == [
        ["NDCG@10", "head (1)", "tail (1)"], ["One", "1.0000", "0.5000"], ["Other", "0.0000", "0.6309"]
    ]  # fmt: skip


def test_p_values_are_corrected_for_the_number_of_pairs():
    def ranked(rank: float) -> ModelResult:
        users = UserResults(np.full(12, rank), np.zeros(12, int), np.full((12, 10), 3))
        return model_result(users, [3] * 12, [1] * ROWS)

    results = {"Third": ranked(7.0), "First": ranked(1.0), "Second": ranked(3.0)}
    header, *lines = cells(differences_table(summary(results)))
    assert header == ["difference of NDCG@10", "", "95 %, this pair", "p, corrected for 3 pairs"]
    assert [line[:3] for line in lines] == [
        ["First − Second", "+0.5000", "+0.5000 to +0.5000"],
        ["First − Third", "+0.6667", "+0.6667 to +0.6667"],
        ["Second − Third", "+0.1667", "+0.1667 to +0.1667"],
    ]
    alone = paired_difference(np.ones(12), np.full(12, 3.0)).p
    assert 0 < alone < 0.002  # 2 of 4,096 exchanges
    assert [line[3] for line in lines] == [f"{3 * alone:.4f}"] * 3


def test_a_result_is_read_as_it_was_saved(results, tmp_path):
    results["One"].save(str(tmp_path), "one")
    found = ModelResult.load(str(tmp_path), "one")
    np.testing.assert_equal(vars(found.users), vars(results["One"].users))
    assert {**vars(found), "users": None} == {**vars(results["One"]), "users": None}
