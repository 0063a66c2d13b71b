"""A whole run on a small log: what it saves, prints and refuses, and the scripts around it."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

import hf_bert4rec
from hf_bert4rec.checkpoint import check_sizes, push_checkpoint, save_checkpoint
from hf_bert4rec.recipe import parse_recipe
from hf_bert4rec.run import evaluate, recommendation_table, run, summary
from tests.test_training import LOG, RECIPE

SCRIPTS = Path(__file__).parents[1] / "scripts"


def recipe_for(folder: Path, *options: str):
    (folder / "log.csv").write_text(LOG)
    (folder / "titles.csv").write_text("item,title\ni0,Zero\ni1,One\n")
    (folder / "recipe.yaml").write_text(RECIPE.format(log=folder / "log.csv") + "logging_strategy: epoch\n")
    paths = ["--titles", str(folder / "titles.csv"), "--output_dir", str(folder / "out")]
    return parse_recipe([str(folder / "recipe.yaml"), *paths, *options])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return run(recipe_for(folder, "--example", "i0", "i1", "--name", "bert4rec-test"))


def test_a_run_saves_a_complete_checkpoint_and_no_pickle(trained):
    assert sorted(path.name for path in trained.iterdir()) == [
        "README.md", "config.json", "items.parquet", "learning_curve.png", "model.safetensors", "run_facts.json",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert (trained / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_checkpoint_loads_through_the_auto_classes_and_the_pipeline(trained):
    assert isinstance(AutoModel.from_pretrained(trained), hf_bert4rec.Bert4RecModel)
    model = AutoModelForMaskedLM.from_pretrained(trained)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    check_sizes(model, tokenizer)
    assert tokenizer.titles[:3] == ["Zero", "One", None]
    items = hf_bert4rec.pipeline(trained)([["i1", "i2"]], top_k=2)[0]
    assert len(items) == 2
    assert set(items[0]) == {"item", "title", "score"}


def test_the_facts_are_enough_to_make_the_run_again(trained):
    facts = json.loads((trained / "run_facts.json").read_text())
    assert facts["protocol"] == "leave-one-out (every user's last item), ranked among all 12 items, history excluded"
    assert facts["data"] | {"sha256": None} == {
        "name": "log.csv", "interactions": 94, "users": 16, "items": 12, "sha256": None, "terms": None,
    }  # fmt: skip
    assert len(facts["data"]["sha256"]) == 64
    assert set(facts["test"]) == {"Popularity", "Markov chain, first order", "BERT4Rec"}
    assert parse_recipe([str(trained)]).model.hidden_size == 12


def test_the_card_holds_the_test_results_as_model_index(trained):
    facts = json.loads((trained / "run_facts.json").read_text())
    card = ModelCard.load(trained / "README.md")
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {name: round(value, 4) for name, value in facts["test"]["BERT4Rec"].items()}
    assert all("history excluded" in result.dataset_name for result in card.data.eval_results)
    assert 'recommender([["i0", "i1"]], top_k=10)' in card.text
    assert f"{facts['test']['BERT4Rec']['ndcg@10']:.4f}" in card.text


def test_evaluation_of_the_checkpoint_gives_the_same_figures_again(trained):
    facts = json.loads((trained / "run_facts.json").read_text())
    protocol, metrics = evaluate(trained, parse_recipe([str(trained)]))
    assert protocol == facts["protocol"]
    assert metrics["test"] == pytest.approx(facts["test"]["BERT4Rec"], abs=1e-9)
    assert metrics["validation"] == pytest.approx(facts["validation"]["BERT4Rec"], abs=1e-9)


def test_the_summary_names_its_protocol_and_shows_the_titles_of_the_example(trained):
    text = summary(trained)
    assert "ranked among all 12 items, history excluded; seed 42" in text
    assert "| BERT4Rec |" in text
    assert "| Popularity |" in text
    assert text.index("Zero") < text.index("Recommended")


def test_an_unknown_item_in_an_example_has_no_title(trained):
    assert "nothing" in recommendation_table(hf_bert4rec.pipeline(trained), ["nothing"], top_k=1)


def test_a_split_at_a_point_in_time_trains_on_the_past_alone(tmp_path):
    options = ["--split", "at_time", "--validation_time", "4", "--test_time", "5", "--num_train_epochs", "1"]
    folder = run(recipe_for(tmp_path, *options))
    facts = json.loads((folder / "run_facts.json").read_text())
    assert facts["protocol"].startswith("first item of every user from 5 on")


def test_validation_folded_into_train_keeps_the_last_checkpoint(tmp_path):
    folder = run(recipe_for(tmp_path, "--validation_in_train", "true", "--num_train_epochs", "1"))
    facts = json.loads((folder / "run_facts.json").read_text())
    assert "validation" not in facts
    assert facts["best_checkpoint"] == ""


def test_resuming_on_changed_data_is_refused_because_items_would_be_renumbered(tmp_path):
    run(recipe_for(tmp_path, "--num_train_epochs", "1"))
    recipe = recipe_for(tmp_path, "--num_train_epochs", "2", "--resume_from_checkpoint", "true")
    header, first, *rest = LOG.splitlines()
    (tmp_path / "log.csv").write_text("\n".join([header, *rest, first]))
    with pytest.raises(ValueError, match="items would be renumbered"):
        run(recipe)


def test_an_unknown_split_is_refused_with_the_near_name(tmp_path):
    with pytest.raises(ValueError, match=r"leave_one_out or at_time, found 'leave_one'\. Did you mean leave_one_out"):
        run(recipe_for(tmp_path, "--split", "leave_one"))


def test_a_full_disk_while_saving_leaves_the_older_checkpoint_whole(tmp_path, model, tokenizer, trained, monkeypatch):
    facts = json.loads((trained / "run_facts.json").read_text())
    save_checkpoint(tmp_path / "model", model, tokenizer, facts)
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(tokenizer), "save_pretrained", full)
    torch.nn.init.zeros_(model.lm_head.bias)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "model", model, tokenizer, facts)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_only_a_complete_checkpoint_is_pushed(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a checkpoint folder"):
        push_checkpoint(tmp_path / "nothing", "org/name")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json.*no model\.safetensors"):
        push_checkpoint(tmp_path / "half", "org/name")


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "recommend.py", "push_to_hub.py"])
def test_every_script_explains_itself(script):
    finished = subprocess.run([sys.executable, str(SCRIPTS / script), "--help"], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert f"python scripts/{script}" in finished.stdout


def test_evaluate_and_recommend_work_from_the_command_line(trained, tmp_path):
    command = [
        sys.executable,
        str(SCRIPTS / "evaluate.py"),
        str(trained),
        "--data",
        str(trained.parents[1] / "log.csv"),
    ]
    judged = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert judged.returncode == 0, judged.stderr
    assert "| test |" in judged.stdout
    command = [sys.executable, str(SCRIPTS / "recommend.py"), str(trained), "--history", "i0", "i3", "--top_k", "2"]
    recommended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert recommended.returncode == 0, recommended.stderr
    assert "Zero" in recommended.stdout
    assert len(recommended.stdout.split("title):")[1].strip().splitlines()) == 2
