"""Run facts: written and read in one place, older formats included, and nothing in them acts on another machine."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest

import hf_bert4rec
from hf_bert4rec.cli.recipe import parse_recipe
from hf_bert4rec.cli.trainers import evaluate
from hf_bert4rec.hub.checkpoint import check_checkpoint
from hf_bert4rec.hub.model_card import model_card
from hf_bert4rec.hub.run_facts import FORMAT_VERSION, DataFacts, MachineFacts, RunFacts
from tests.conftest import small_facts

FIXTURES = Path(__file__).parent / "fixtures"
VERSION_1 = FIXTURES / "version_1"
RELEASES = sorted((Path(__file__).parents[2] / "model_cards").glob("*/"))


def full_facts() -> RunFacts:
    return small_facts(
        data=DataFacts(name="log.csv", items=10, users=4, interactions=40, sha256="0" * 64, terms="cite us"),
        sampled_protocol="among 3 items",
        exclude_history=False,
        results={
            "test": {"BERT4Rec": {"hr@10": 0.5, "ndcg@10": 0.25, "mrr@10": 0.125}, "Popularity": {"ndcg@10": 0.2}}
        },
        intervals={"test": {"BERT4Rec": (0.2, 0.3)}},
        differences={"test": {"Popularity": (-0.01, 0.1)}},
        recipe={"seed": 3, "betas": [0.9, 0.99], "options": {"a": None}},
        reproducible=True,
        seconds=12.5,
        best_checkpoint="checkpoint-4",
        chosen_by="NDCG@10",
        versions={"torch": "2.13.0"},
        log=[{"loss": 1.5, "step": 1}],
        example=['7" single', "ü"],
        titles=True,
        card="f" * 64,
    )


def test_facts_are_read_as_they_were_written(tmp_path):
    full_facts().save(tmp_path)
    assert RunFacts.load(tmp_path) == full_facts()
    assert json.loads((tmp_path / "run_facts.json").read_text())["format_version"] == 4 == FORMAT_VERSION


def test_a_checkpoint_of_version_1_loads_with_its_facts_and_card():
    check_checkpoint(VERSION_1)
    facts = RunFacts.load(VERSION_1)
    assert facts.name == "bert4rec-tiny"
    assert facts.model == "BERT4Rec"
    assert facts.data == DataFacts(
        name="log.csv", items=12, users=16, interactions=104,
        sha256="53436860d9d8e0b4373a0d4e66a0a84aead1922bce5cee506eafe7012c0bd90b",
    )  # fmt: skip
    assert facts.machine.processes == 1
    assert facts.machine.processor == "x86_64"
    assert facts.example == ["i0", "i1", "i2"]
    assert facts.titles
    assert facts.reproducible
    assert facts.exclude_history
    assert set(facts.results) == {"validation", "test"}
    assert set(facts.results["test"]) == {"Popularity", "Markov chain, first order", "BERT4Rec"}
    assert facts.intervals["test"]["BERT4Rec"] == pytest.approx((0.3921, 0.4647), abs=1e-4)
    assert "ranked among 3 items drawn for each user by their popularity" in facts.sampled_protocol
    card = model_card(facts)
    assert {result.metric_type: result.metric_value for result in card.data.eval_results}["hr@10"] == round(
        facts.results["test"]["BERT4Rec"]["hr@10"], 4
    )
    assert "Seed 42 was set before the model was built." in card.text


def test_a_recipe_of_version_1_keeps_the_defaults_of_its_time():
    recipe = RunFacts.load(VERSION_1).recipe
    assert recipe["hidden_size"] == 8  # given
    assert recipe["max_length"] == 5  # given
    defaults = {"hidden_dropout_prob": 0.2, "initializer_range": 0.02, "rope_theta": None, "prediction_head": True}
    assert defaults.items() <= recipe.items()
    assert recipe["learning_rate"] == 0.003
    assert recipe["muon_learning_rate"] is None


@pytest.mark.parametrize("reproducible", [True, False])
def test_a_recipe_of_version_2_keeps_the_defaults_of_its_time(tmp_path, reproducible):
    facts = dataclasses.replace(
        small_facts(), recipe={"learning_rate": 0.5}, format_version=2, reproducible=reproducible
    )
    facts.save(tmp_path)
    recipe = RunFacts.load(tmp_path).recipe
    old = {"recommended_settings": False, "initialize_items": False, "identity_attention": False,
           "learned_positions": True, "muon_learning_rate": 0.01, "learning_rate": 0.5}  # fmt: skip
    assert old.items() <= recipe.items() if reproducible else recipe == {"learning_rate": 0.5}
    assert RunFacts.load(tmp_path).format_version == FORMAT_VERSION


def test_a_checkpoint_of_version_1_recommends_and_is_evaluated_as_before():
    best = hf_bert4rec.pipeline(VERSION_1)([["i1", "i2"]], top_k=3)[0]
    assert [row["item"] for row in best] == ["i11", "i5", "i6"]
    assert [row["title"] for row in best] == ["Title 11", "Title 5", "Title 6"]
    assert [row["score"] for row in best] == pytest.approx([0.0975934, 0.0906033, 0.0887365], abs=1e-6)
    recipe = parse_recipe([str(VERSION_1), "--data", str(FIXTURES / "version_1_log.csv")])
    metrics = evaluate(recipe)[1]
    expected = RunFacts.load(VERSION_1).results
    assert metrics["test"] == pytest.approx(expected["test"]["BERT4Rec"], abs=1e-6)


@pytest.mark.parametrize("place", ["folder", "hub"])
@pytest.mark.parametrize("excluded", [None, True, False])
def test_the_exclude_history_of_a_version_1_recipe_holds_for_pipeline_and_evaluation(tmp_path, hub, excluded, place):
    folder = shutil.copytree(VERSION_1, tmp_path / "model")
    facts = json.loads((folder / "run_facts.json").read_text())
    facts["recipe"] |= {} if excluded is None else {"exclude_history": excluded}
    (folder / "run_facts.json").write_text(json.dumps(facts))
    assert "exclude_history" not in json.loads((folder / "config.json").read_text())
    if place == "hub":
        huggingface_hub.create_repo("org/old")
        huggingface_hub.upload_folder(repo_id="org/old", folder_path=folder)
    recommender = hf_bert4rec.pipeline("org/old" if place == "hub" else folder)
    expected = excluded is not False
    assert recommender.model.config.exclude_history is expected
    recommended = {row["item"] for row in recommender([["i1", "i2"]], top_k=12)[0]}
    assert recommended.isdisjoint({"i1", "i2"}) is expected
    recipe = parse_recipe([str(folder), "--data", str(FIXTURES / "version_1_log.csv")])
    assert evaluate(recipe)[0][0].endswith("history excluded" if expected else "history not excluded")


def as_trainer_facts(values: dict) -> dict:
    """What a Trainer wrote in version 1."""
    del values["intervals"], values["test"]
    return {**values, "data": {"name": "mine", "items": 12}, "recipe": {"seed": 42}}


def write_version_1(folder: Path, change) -> Path:
    values = json.loads((VERSION_1 / "run_facts.json").read_text())
    (folder / "run_facts.json").write_text(json.dumps(change(values) or values))
    return folder


def test_facts_that_a_trainer_wrote_in_version_1_are_not_reproducible(tmp_path):
    facts = RunFacts.load(write_version_1(tmp_path, as_trainer_facts))
    assert not facts.reproducible
    assert facts.recipe == {"seed": 42}
    assert "Seed of the training arguments: 42." in model_card(facts).text


def test_an_unescaped_example_of_version_1_is_replaced_by_that_of_the_recipe(tmp_path):
    def change(values):
        values["example"], values["recipe"]["example"] = '"7" single"', ['7" single']

    assert RunFacts.load(write_version_1(tmp_path, change)).example == ['7" single']


def test_a_protocol_among_no_candidates_is_dropped_from_version_1(tmp_path):
    def change(values):
        for split in ("validation", "test"):
            for row in values[split].values():
                for metric in [metric for metric in row if "_sampled" in metric]:
                    del row[metric]
        values["sampled_protocol"] = "leave-one-out, ranked among 0 items drawn for each user"

    facts = RunFacts.load(write_version_1(tmp_path, change))
    assert facts.sampled_protocol is None
    assert "ranked among 0 items" not in model_card(facts).content


PRIVATE = {
    "push_to_hub": True,
    "hub_token": "hf_secret",
    "hub_model_id": "mallory/yours",
    "report_to": "wandb",
    "trackio_space_id": "mallory/log",
    "resume_from_checkpoint": "/etc",
    "output_dir": "/home/me/runs",
    "deepspeed": "/etc/passwd",
}


def test_options_that_are_never_published_are_neither_written_nor_read(tmp_path):
    facts = small_facts(recipe={"seed": 1, **PRIVATE})
    assert facts.recipe == {"seed": 1}
    facts.save(tmp_path)
    assert "hf_secret" not in (tmp_path / "run_facts.json").read_text()
    values = json.loads(facts.to_json())
    values["recipe"] |= PRIVATE
    (tmp_path / "run_facts.json").write_text(json.dumps(values))
    assert RunFacts.load(tmp_path).recipe == {"seed": 1}
    recipe = parse_recipe([str(tmp_path)])
    assert not recipe.training.push_to_hub
    assert recipe.training.hub_token is None
    assert recipe.training.hub_model_id is None
    assert recipe.training.output_dir != "/home/me/runs"


@pytest.mark.parametrize(
    ("given", "published"),
    [
        ("/home/me/log.csv", "log.csv"),
        ("../../client/log.csv", "log.csv"),
        ("data/log.csv", "data/log.csv"),
        ("C:\\Users\\me\\log.csv", "log.csv"),
        ("org/name", "org/name"),
        (["/a/b"], ["/a/b"]),  # item IDs
        ("/", "/"),  # a separator
        (0.5, 0.5),
    ],
)
def test_published_recipes_contain_no_folder_of_this_machine(given, published):
    facts = small_facts(recipe={"data": given})
    assert facts.published().recipe == {"data": published}
    assert facts.recipe == {"data": given}


def test_a_newer_format_asks_for_an_update(tmp_path):
    (tmp_path / "run_facts.json").write_bytes(dataclasses.replace(small_facts(), format_version=5).to_json())
    with pytest.raises(ValueError, match=r"`format_version` must be from 1 to 4, found 5\. Update hf-bert4rec"):
        RunFacts.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"machine": "2 × 1 threads of x86_64, cpu"},
        {"results": {"test": {"BERT4Rec": {"ndcg@10": "high"}}}},
        {"intervals": {"test": {"BERT4Rec": [0.1]}}},
        {"recipe": None},
        {"log": {"a": 1}},
        {"example": [1]},
        {"format_version": "two"},
    ],
)
def test_facts_of_wrong_types_are_refused_with_the_file_named(tmp_path, change):
    (tmp_path / "run_facts.json").write_text(json.dumps({**json.loads(small_facts().to_json()), **change}))
    with pytest.raises(ValueError, match=r"run_facts\.json: "):
        RunFacts.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data": {"name": "x"}}, "found no 'items'"),
        ({"data": []}, "a value has the wrong form"),
        ({"name": 5}, "Field 'name' expected str, got int"),
        ({"format_version": 0}, "must be from 1 to 4, found 0"),
    ],
)
def test_the_reason_is_no_error_of_python(tmp_path, change, reason):
    (tmp_path / "run_facts.json").write_text(json.dumps({**json.loads(small_facts().to_json()), **change}))
    with pytest.raises(ValueError, match=rf"run_facts\.json: .*{reason}.*(ownload or save|Otherwise copy)"):
        RunFacts.load(tmp_path)


def test_a_folder_without_facts_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"found no run_facts\.json\. Pass a checkpoint that `hf-bert4rec"):
        RunFacts.load(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "run_facts.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=rf"Did you mean {re.escape(str(tmp_path / 'model'))}[?]"):
        RunFacts.load(tmp_path)


@pytest.mark.parametrize("folder", RELEASES, ids=lambda folder: folder.name)
def test_the_facts_of_a_release_are_of_the_current_version(folder):
    facts = RunFacts.load(folder)
    assert (folder / "run_facts.json").read_bytes() == facts.published().to_json()


def test_a_machine_is_described_as_in_cards():
    machine = MachineFacts(processes=2, threads=1, processor="x86_64", device="cpu")
    assert str(machine) == "2 × 1 threads of x86_64, cpu"
