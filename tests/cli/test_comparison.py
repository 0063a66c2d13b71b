"""Models side by side: their figures, slices and tests by hand, and the script from its file to its table."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hf_bert4rec import cloze_training
from hf_bert4rec.cli.evaluate import evaluator
from hf_bert4rec.cli.prepare import prepare, whole_histories
from hf_bert4rec.cli.recipe import parse_recipe
from hf_bert4rec.evaluation.baselines import Popularity
from hf_bert4rec.evaluation.comparison import UserResults, evaluate_users, paired_difference, split_metrics
from tests.training.test_training import LOG, RECIPE

SCRIPTS = Path(__file__).parents[2] / "scripts"
ROWS = 14  # of an item table of 11 items


@pytest.fixture
def recipe_file(tmp_path) -> Path:
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(log=tmp_path / "log.csv") + "popularity_candidates: 2\n")
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_judgement_is_the_same_for_any_batch_size_and_number_of_workers(recipe_file, tmp_path, batch_size, workers):
    def judged(*options):
        recipe = parse_recipe([str(recipe_file), f"--output_dir={tmp_path}/out", *options])
        interactions, tokenizer, histories = prepare(recipe)
        model = Popularity(whole_histories(recipe, interactions, tokenizer), len(tokenizer))
        return evaluate_users(evaluator(model, recipe, tokenizer), histories["test"])

    one = judged()
    other = judged(f"--per_device_eval_batch_size={batch_size}", f"--dataloader_num_workers={workers}")
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, vars(other)[name], err_msg=name)


def test_the_trainer_is_left_as_it_was(recipe_file, tmp_path):
    recipe = parse_recipe([str(recipe_file), f"--output_dir={tmp_path}/out"])
    interactions, tokenizer, histories = prepare(recipe)
    model = Popularity(whole_histories(recipe, interactions, tokenizer), len(tokenizer))
    trainer = evaluator(model, recipe, tokenizer)
    before = trainer.evaluate()
    evaluate_users(trainer, histories["test"])
    after = trainer.evaluate()
    assert after["eval_ndcg@10"] == before["eval_ndcg@10"]
    assert set(cloze_training(tokenizer)) >= {"compute_metrics", "preprocess_logits_for_metrics"}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("compare", SCRIPTS / "compare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def comparison(folder: Path, recipe: Path, **models) -> str:
    text = json.dumps({"recipe": str(recipe), "models": models})  # JSON is YAML
    (folder / "comparison.yaml").write_text(text)
    return str(folder / "comparison.yaml")


def test_a_comparison_trains_judges_and_keeps(script, recipe_file, tmp_path):
    models = {
        "Popularity": {"baseline": "popularity"},
        "SASRec": {"recipe": str(recipe_file), "architecture": "sasrec", "num_train_epochs": 1},
    }
    path, folder = comparison(tmp_path, recipe_file, **models), str(tmp_path / "kept")
    config = script.read(path)
    for name in models:
        script.train_and_judge(config, name, "validation", folder)
    kept = {file.name: file.stat().st_mtime_ns for file in Path(folder).glob("*.*")}
    assert set(kept) == {"popularity.json", "popularity.npz", "sasrec.json", "sasrec.npz"}
    report = script.compare(path, "validation", folder)  # nothing is run again
    assert {name: Path(folder, name).stat().st_mtime_ns for name in kept} == kept
    assert "Protocol: validation, leave-one-out (every user's last item), ranked among all 12 items" in report
    assert "never to be compared with the above" in report
    assert "| SASRec − Popularity |" in report or "| Popularity − SASRec |" in report
    assert "- validation: 16 of 16 rows (100.0%) are of users who are in train too" in report
    assert Path(folder, "comparison.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(
        ValueError, match=r"Move it away:\n\S+popularity\.json: split validation → test\n\S+sasrec\.json: split"
    ):
        script.compare(path, "test", folder)


def test_a_checkpoint_that_was_trained_with_other_options_is_not_taken_for_it(script, recipe_file, tmp_path):
    options = {"recipe": str(recipe_file), "num_train_epochs": 1}
    first = script.trained(options, str(tmp_path / "out"))
    assert script.trained(options, str(tmp_path / "out")) == first
    with pytest.raises(ValueError, match="was trained with other options: move it away"):
        script.trained({**options, "hidden_size": 24}, str(tmp_path / "out"))


def test_results_of_another_protocol_are_not_mixed(script, recipe_file, tmp_path):
    path, folder = comparison(tmp_path, recipe_file, Popularity={"baseline": "popularity"}), str(tmp_path / "kept")
    script.train_and_judge(script.read(path), "Popularity", "test", folder)
    recipe_file.write_text(recipe_file.read_text() + "exclude_history: false\n")
    with pytest.raises(ValueError, match=r"popularity\.json: exclude_history True → False$"):
        script.compare(path, "test", folder)


def test_results_of_other_options_or_weights_are_not_taken_for_those(script, recipe_file, tmp_path):
    checkpoint = script.trained({"recipe": str(recipe_file), "num_train_epochs": 1}, str(tmp_path / "out"))
    other = tmp_path / "sasrec.yaml"
    other.write_text(recipe_file.read_text() + "architecture: sasrec\nnum_train_epochs: 1\n")
    models = {"SASRec": {"recipe": str(other)}, "Ours": {"checkpoint": str(checkpoint)}}
    path, folder = comparison(tmp_path, recipe_file, **models), str(tmp_path / "kept")
    for name in models:
        script.train_and_judge(script.read(path), name, "test", folder)
    script.compare(path, "test", folder)
    kept = other.read_text()
    other.write_text(kept.replace("num_train_epochs: 1", "num_train_epochs: 2"))
    with pytest.raises(ValueError, match=r"sasrec\.json: num_train_epochs 1\S* → 2\S*$"):
        script.compare(path, "test", folder)
    other.write_text(kept)
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(ValueError, match=r"ours\.json: weights \['\w+'\] → "):
        script.compare(path, "test", folder)


def test_a_checkpoint_of_other_data_is_refused(script, recipe_file, tmp_path):
    trained = script.trained({"recipe": str(recipe_file), "num_train_epochs": 1}, str(tmp_path / "out"))
    (tmp_path / "log.csv").write_text(LOG.replace("u3,i9,0", "u3,i8,0"))
    config = script.read(comparison(tmp_path, recipe_file, Ours={"checkpoint": str(trained)}))
    with pytest.raises(ValueError, match="was trained on other data or items"):
        script.train_and_judge(config, "Ours", "test", str(tmp_path / "kept"))


def test_mistakes_are_found_before_anything_is_trained(script, recipe_file, tmp_path, capsys):
    models = {"First": {"recipe": str(recipe_file)}, "Second": {"baseline": "ease", "regularisation": 50}}
    with pytest.raises(ValueError, match=r"Second: .*got an unexpected keyword argument 'regularisation'"):
        script.compare(comparison(tmp_path, recipe_file, **models), "test", str(tmp_path / "kept"))
    for wrong, told in (
        ({"baseline": "als", "regularisation": 1}, "unexpected keyword argument 'regularisation'"),
        ({"baseline": "item_neighbors", "weighting": "tfidf"}, "must be cosine or bm25, found 'tfidf'"),
        ({"baseline": "item_neighbors", "neighbours": 0}, "a whole number from 1, found 0"),
    ):
        models["Second"] = wrong
        with pytest.raises(ValueError, match=f"Second: .*{told}"):
            script.compare(comparison(tmp_path, recipe_file, **models), "test", str(tmp_path / "kept"))
    models["Second"] = {"recipe": str(recipe_file), "num_train_epoch": 1}
    with pytest.raises(ValueError, match=r"Second: .*Unknown option"):
        script.compare(comparison(tmp_path, recipe_file, **models), "test", str(tmp_path / "kept"))
    assert not (tmp_path / "kept" / "first").exists()


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ({"X": {"baseline": "popular"}}, "expected a baseline among popularity, .* for 'X', found 'popular'"),
        (
            {"BPR-MF": {"baseline": "bpr_mf"}, "BPR MF": {"baseline": "bpr_mf"}},
            "'BPR-MF' and another model would have the same file, bpr-mf: rename one",
        ),
        ({"a|b": {"baseline": "ease"}}, r"a name with \| in it breaks the tables: rename 'a\|b'"),
        ({"X": {"checkpoint": "y", "max_length": 5}}, "a checkpoint takes no options, found .* for 'X'"),
        ({"X": {}}, "expected one of baseline, recipe, checkpoint for 'X'"),
        ({"X": {"baseline": "ease", "checkpoint": "y"}}, "expected one of baseline, recipe, checkpoint for 'X'"),
    ],
)
def test_what_is_no_model_is_refused_before_anything_runs(script, recipe_file, tmp_path, models, words):
    with pytest.raises(ValueError, match=words):
        script.read(comparison(tmp_path, recipe_file, **models))


@pytest.mark.parametrize(
    ("published", "told"),
    [
        ({"Popularity": {"the paper": {"hit@10": 0.1, "mrr": 0.1}}}, "found hit@10"),
        ({"Popularity": {"the paper": {"hr@10": "abc"}}}, r"expected SOURCE: \{metric: figure"),
        ({"Popularity": {"hr@10": 0.1}}, r"expected SOURCE: \{metric: figure"),
    ],
)
def test_published_figures_that_no_table_shows_are_refused(script, recipe_file, tmp_path, published, told):
    path = Path(comparison(tmp_path, recipe_file, Popularity={"baseline": "popularity"}))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"published": published}))
    with pytest.raises(ValueError, match=told):
        script.read(str(path))


def test_published_figures_need_candidates_to_stand_beside(script, recipe_file, tmp_path):
    recipe_file.write_text(recipe_file.read_text().replace("popularity_candidates: 2", ""))
    path = Path(comparison(tmp_path, recipe_file, Popularity={"baseline": "popularity"}))
    published = {"Popularity": {"the paper": {"hr@10": 0.1}}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"published": published}))
    with pytest.raises(ValueError, match=r"are figures among candidates, and .* draws none"):
        script.compare(str(path), "test", str(tmp_path / "kept"))


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("validation_in_train", True, "validation_in_train is True, where the comparison has False"),
        ("exclude_history", False, "exclude_history is False, where the comparison has True"),
        ("split", "at_time", "split is at_time, where the comparison has leave_one_out"),
    ],
)
def test_a_model_of_another_split_is_refused(script, recipe_file, tmp_path, option, value, told):
    models = {"Other": {"recipe": str(recipe_file), option: value}}
    with pytest.raises(ValueError, match=f"Other: {told}: it may know targets"):
        script.compare(comparison(tmp_path, recipe_file, **models), "test", str(tmp_path / "kept"))
    if option == "validation_in_train":
        words = {"recipe": str(recipe_file), option: value, "num_train_epochs": 1}
        checkpoint = script.trained(words, str(tmp_path / "out"))
        path = comparison(tmp_path, recipe_file, Other={"checkpoint": str(checkpoint)})
        with pytest.raises(ValueError, match=f"Other: {told}"):
            script.compare(path, "test", str(tmp_path / "kept"))


def test_a_stop_says_how_to_go_on(recipe_file, tmp_path):
    path = comparison(tmp_path, recipe_file, Ours={"recipe": str(recipe_file), "num_train_epochs": 10_000})
    command = [sys.executable, str(SCRIPTS / "compare.py"), path, "--output_dir", str(tmp_path / "kept")]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list((tmp_path / "kept" / "ours").glob("checkpoint-*")):
        assert running.poll() is None
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert f"compare.py: stopped. The same again goes on with what is in {tmp_path / 'kept'}." in errors
    assert not (tmp_path / "kept" / "unused").exists()


# Two users, eleven items. One: first and third of the catalogue, one of them level with another item, the first of its
# candidates and the second. Other: eleventh and second; second and fourth.
JUDGED = {"One": ([1.0, 3.0], [0, 1], [3, 4], [1.0, 2.0]), "Other": ([11.0, 2.0], [0, 0], [3, 3], [2.0, 4.0])}


@pytest.fixture
def judged():
    counts = np.array([0, 0, 0, 6, 2] + [0] * 9)
    models = {}
    for name, (ranks, ties, best, sampled) in JUDGED.items():
        recommended = np.full((2, 10), -1)
        recommended[:, 0] = best
        judgement = UserResults(np.array(ranks), np.array(ties), recommended, np.array(sampled))
        facts = {
            "figures": split_metrics(judgement, np.array([3, 4]), counts),
            "seconds": 12.3,
            "machine": "2 × 1 threads of x86_64, cpu",
            "users a second": 1234.5,
            "peak GB": 0.456,
        }
        models[name] = (facts, judgement)
    return models


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "---" not in line]


def test_the_table_of_results_is_that_written_by_hand(script, judged):
    header, one, other = cells(script.results(judged))
    assert header == ["model", "HR@10", "NDCG@10", "95 %", "MRR@10", "coverage", "popularity", "ties", "training",
                      "users/s", "GB"]  # fmt: skip
    # NDCG 1 and 1 / log2(4); MRR 1 and 1/3; two of eleven items; 6 and 2 of a mean target of 4; one of two has a tie
    assert one == ["One", "1.0000", "0.7500", "0.5000 to 1.0000", "0.6667", "0.182", "1.00", "0.500", "12 s on 2 × 1",
                   "1,234", "0.46"]  # fmt: skip
    # NDCG 0 and 1 / log2(3); MRR 0 and 1/2; one of eleven items; 6 and 6
    assert other == ["Other", "0.5000", "0.3155", "0.0000 to 0.6309", "0.2500", "0.091", "1.50", "0.000",
                     "12 s on 2 × 1", "1,234", "0.46"]  # fmt: skip


def test_the_table_among_candidates_is_that_written_by_hand(script, judged):
    published = {"One": {"the paper": {"hr@1": 0.25, "mrr": 0.5}}}
    assert cells(script.sampled({"published": published}, judged)) == [
        ["model", "HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10", "MRR"],
        ["One", "0.5000", "1.0000", "1.0000", "0.8155", "0.8155", "0.7500"],
        ["One in the paper", "0.2500", "", "", "", "", "0.5000"],
        ["Other", "0.0000", "1.0000", "1.0000", "0.5308", "0.5308", "0.3750"],
    ]
    for _, judgement in judged.values():
        judgement.sampled_ranks = None
    whole = {name: ({"figures": {"hr@10": 1.0}}, judgement) for name, (_, judgement) in judged.items()}
    assert script.sampled({"published": published}, whole) == ""


def test_the_table_of_slices_is_that_written_by_hand(script, judged):
    groups = {"head": np.array([True, False]), "tail": np.array([False, True]), "none": np.array([False, False])}
    assert cells(script.sliced(judged, groups)) == [
        ["NDCG@10", "head (1)", "tail (1)"], ["One", "1.0000", "0.5000"], ["Other", "0.0000", "0.6309"]
    ]  # fmt: skip


def test_the_table_of_differences_is_corrected(script):
    def judged(rank):
        judgement = UserResults(np.full(12, rank), np.zeros(12, int), np.full((12, 10), 3))
        return {"figures": split_metrics(judgement, np.full(12, 3), np.ones(ROWS))}, judgement

    header, *lines = cells(script.tested({"Third": judged(7.0), "First": judged(1.0), "Second": judged(3.0)}))
    assert header == ["difference of NDCG@10", "", "95 %, this pair", "p, corrected for 3 pairs"]
    assert [line[:3] for line in lines] == [
        ["First − Second", "+0.5000", "+0.5000 to +0.5000"],
        ["First − Third", "+0.6667", "+0.6667 to +0.6667"],
        ["Second − Third", "+0.1667", "+0.1667 to +0.1667"],
    ]
    alone = paired_difference(np.ones(12), np.full(12, 3.0)).p
    assert 0 < alone < 0.002  # 2 of 4,096 exchanges
    assert [line[3] for line in lines] == [f"{3 * alone:.4f}"] * 3


def test_what_the_file_says_reaches_the_models(script, recipe_file, tmp_path):
    """λ decides about EASE, BPR-MF knows its users, the history is left in where the recipe says so."""
    recipe_file.write_text(recipe_file.read_text().replace("popularity_candidates", "uniform_candidates"))
    again = recipe_file.with_name("again.yaml")
    again.write_text(recipe_file.read_text().replace("uniform_candidates: 2", "exclude_history: false"))

    def judged(recipe, **model):
        folder = str(tmp_path / f"kept-{len(list(tmp_path.iterdir()))}")
        config = {"recipe": str(recipe), "models": {"It": model}}
        script.train_and_judge(config, "It", "test", folder)
        return script.load(folder, "It")

    (weak, _), (strong, _) = (judged(recipe_file, baseline="ease", regularization=value) for value in (0.1, 1e6))
    assert weak["figures"] != strong["figures"]
    assert "mrr_uniform_sampled" in weak["figures"]
    _, without = judged(recipe_file, baseline="bpr_mf")
    assert len({tuple(row) for row in without.recommended.tolist()}) > 1  # not the mean user for everybody
    recipe = parse_recipe([str(again), f"--output_dir={tmp_path}/out"])
    histories = prepare(recipe)[2]["test"]["history"]
    _, kept_in = judged(again, baseline="popularity")
    hits = [set(best) & set(history) for best, history in zip(kept_in.recommended.tolist(), histories, strict=True)]
    assert any(hits)
    _, left_out = judged(recipe_file, baseline="popularity")
    hits = [set(best) & set(history) for best, history in zip(left_out.recommended.tolist(), histories, strict=True)]
    assert not any(hits)


def test_leaks_stand_in_the_report(script, recipe_file, tmp_path):
    log = tmp_path / "log.csv"
    user, item, time = log.read_text().splitlines()[-1].split(",")
    log.write_text(log.read_text().rstrip() + f"\n{user},{item},{time}\n")  # twice at one time
    path = comparison(tmp_path, recipe_file, Popularity={"baseline": "popularity"})
    script.train_and_judge(script.read(path), "Popularity", "test", str(tmp_path / "kept"))
    report = script.compare(path, "test", str(tmp_path / "kept"))
    assert "**Leaks**, or actions that somebody repeated at one time:\n\n- test: 1 of 16 rows" in report
