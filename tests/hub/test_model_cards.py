"""The released checkpoints: they load without the data, and weights, tokenizer, facts and card say the same."""

import json
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer
from transformers.dynamic_module_utils import get_class_from_dynamic_module

import hf_bert4rec
from hf_bert4rec.cli.recipe import parse_recipe
from hf_bert4rec.cli.trainers import evaluate
from hf_bert4rec.hub.checkpoint import check_checkpoint
from hf_bert4rec.hub.model_card import model_card, sampled_table
from hf_bert4rec.hub.push import HANDLER, push_checkpoint
from hf_bert4rec.hub.run_facts import RunFacts
from hf_bert4rec.models import configuration_bert4rec

CARDS = Path(__file__).parents[2] / "model_cards"
FOLDERS = sorted(path for path in CARDS.iterdir() if path.is_dir())


@pytest.fixture(params=FOLDERS, ids=lambda path: path.name)
def folder(request):
    return request.param


def test_a_release_is_a_whole_checkpoint_and_no_pickle(folder):
    names = {path.name for path in folder.iterdir()}
    assert names >= {"README.md", "config.json", "model.safetensors", "run_facts.json", "tokenizer.json"}
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]


def test_a_release_loads_and_its_parts_agree(folder):
    check_checkpoint(folder)
    AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_the_code_of_a_release_gives_the_same_logits_as_the_package(folder, tmp_path_factory, monkeypatch):
    # Whatever a test before this one loaded so must neither be found again nor be where Python looks.
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not Path(path, "transformers_modules").exists()])
    modules = tmp_path_factory.mktemp("modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(modules))
    code = get_class_from_dynamic_module("modeling_bert4rec.Bert4RecForMaskedLM", str(folder))
    assert code is not hf_bert4rec.Bert4RecForMaskedLM
    ids = torch.tensor([[3, 100, 7, 1]])
    with torch.no_grad():
        logits = [model.from_pretrained(folder)(ids).logits for model in (code, AutoModelForMaskedLM)]
    assert torch.equal(*logits)


def test_a_release_names_every_option_and_has_the_code_of_the_package(folder):
    config = json.loads((folder / "config.json").read_text())
    assert set(hf_bert4rec.Bert4RecConfig.__annotations__) - {"model_type", "_paper_settings"} <= set(config)
    for file in folder.glob("*.py"):
        assert file.read_text() == Path(configuration_bert4rec.__file__).with_name(file.name).read_text(), file.name


def test_the_card_of_a_release_says_what_its_facts_say(folder):
    facts = RunFacts.load(folder)
    card = ModelCard.load(folder / "README.md")
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {
        name: round(value, 4)
        for name, value in facts.results["test"]["BERT4Rec"].items()
        if name.removesuffix("_popularity_sampled") not in ("ndcg@1", "mrr@1")  # they repeat hr@1
    }
    assert model_card(facts).content == card.content
    assert sampled_table(facts.results["test"]) in card.text
    assert (facts.data.terms or "") in card.text
    assert f"history excluded. Number of targets: {facts.evaluated['test']:,}. The checkpoint" in card.text
    processes = facts.machine.processes
    launcher = f"accelerate launch --multi_gpu --num_processes {processes} scripts/train.py"
    launcher = "hf-bert4rec train" if processes == 1 else launcher
    assert "(`num_followers`)" not in card.text
    assert "(`repeat_head`)" not in card.text
    assert f"\n{launcher} path/to/this/folder --output_dir runs/again\n" in card.text
    for model, row in facts.results["test"].items():
        ahead = row["ndcg@10"] > facts.results["test"]["BERT4Rec"]["ndcg@10"]
        assert (f"**{model} has a higher NDCG@10**" in card.text) == ahead


def test_a_release_can_be_pushed_as_it_stands_and_its_card_is_valid(folder, hub):
    push_checkpoint(folder, "org/release")
    assert "POST /api/validate-yaml" in hub.requests
    own = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert hub.repositories["org/release"].files == own | HANDLER
    card = ModelCard.load("org/release")
    assert card.data.license_name == "terms-of-the-data"
    for heading in ("## Use", "## Cost", "## Limits", "## Terms of the data"):
        assert heading in card.text


def test_bert4rec_ml1m_recommends_films_by_movielens_ids():
    recommended = hf_bert4rec.pipeline(CARDS / "bert4rec-ml1m")([["260", "1196"]], top_k=5)[0]
    titles = {row["title"] for row in recommended}
    assert any(title.startswith("Star Wars: Episode VI") for title in titles)
    assert not {"260", "1196"} & {row["item"] for row in recommended}


def test_a_release_is_judged_the_same_again(folder, monkeypatch):
    monkeypatch.chdir(CARDS.parent)
    recipe = parse_recipe([str(folder)])
    if not Path(recipe.run.data).exists():
        pytest.skip(f"{recipe.run.data} is not at hand: the datasets may not travel with the project")
    facts = RunFacts.load(folder)
    _, metrics, intervals = evaluate(recipe)
    card = (folder / "README.md").read_text()
    assert "{:.4f} to {:.4f}".format(*intervals["test"]) in card
    for name, value in facts.results["test"]["BERT4Rec"].items():
        assert f"{metrics['test'][name]:.4f}" == f"{value:.4f}", name
