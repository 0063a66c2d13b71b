"""Model cards: written from run facts, true in every part, and never broken by the text in them."""

import ast
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_bert4rec.hub.model_card import markdown_table, model_card, results_table, sampled_table
from hf_bert4rec.hub.run_facts import DataFacts, MachineFacts
from tests.conftest import small_facts

ROWS = {
    "Popularity": {"hr@10": 0.5, "ndcg@10": 0.25, "mrr@10": 0.125},
    "BERT4Rec": {"hr@1": 0.1, "ndcg@1": 0.1, "hr@10": 0.4, "ndcg@10": 0.2, "mrr@10": 0.1},
}
SAMPLED = {f"{name}_popularity_sampled": 0.75 for name in ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10", "mrr")}


def python_of(card: ModelCard) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", card.text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    "item", ['7" single', "it's", "a\\b", "line\nbreak", "```", "{{ 7 * 7 }}", "ü 日本 \u202e", "<b>&"]
)
def test_the_code_of_a_card_is_python_whatever_the_ids_contain(item):
    code = python_of(model_card(small_facts(example=[item, "b"])))[0]
    call = ast.parse(code).body[-1].value
    assert ast.literal_eval(call.args[0]) == [[item, "b"]]


@pytest.mark.parametrize(
    "text", ["x: y", "---\nlicense: mit\n---", "{{ 7 * 7 }}", "{% raw %}", "'\"", "#", "a\n```\nb"]
)
def test_no_text_of_the_facts_changes_the_metadata_of_a_card(text):
    facts = small_facts(
        name=text, protocol=text, data=DataFacts(name=text, items=10, terms=text), results={"test": ROWS}
    )
    metadata = ModelCard(model_card(facts).content).data
    assert metadata.model_name == text
    assert metadata.license == "other"
    assert {result.dataset_type for result in metadata.eval_results} == {text}
    assert {result.dataset_name for result in metadata.eval_results} == {f"{text} ({text})"}
    assert set(yaml.safe_load(str(metadata))) == {
        "library_name", "license", "license_name", "model-index", "pipeline_tag", "tags"
    }  # fmt: skip


def test_a_model_of_an_own_type_has_a_card_without_a_reference():
    card = model_card(small_facts(model="Mine", results={"validation": {"Mine": ROWS["BERT4Rec"]}}))
    assert "A Mine sequential recommender. Given a history" in card.text
    assert card.data.tags[0] == "mine"
    assert "| Mine | 0.4000 | 0.2000 | 0.1000 |" in card.text


@pytest.mark.parametrize(
    ("recipe", "modules", "module", "options"),
    [
        ({"architecture": "mine"}, [], "my_module", "--import my_module"),
        ({"architecture": "mine"}, ["own.models", "own.losses"], "own.models, own.losses",
         "--import own.models --import own.losses"),
        ({"architecture": "mine", "split": "shop.splits:half"}, [], "my_module",
         "--import my_module --import shop.splits"),
        ({"architecture": "shop.models:Config", "split": "shop.splits:half"}, ["shop.splits"], "shop.models",
         "--import shop.splits --import shop.models"),
    ],
)  # fmt: skip
def test_the_card_of_an_own_model_imports_its_module(recipe, modules, module, options):
    facts = small_facts(model="Mine", reproducible=True, recipe={"seed": 1, **recipe})
    card = model_card(facts, modules).text
    assert f"import hf_bert4rec\nimport {module}  # registers the model\n\nrecommender" in card
    assert f"after `import hf_bert4rec` and `import {module}`. Without `import {module}`,\n" in card
    assert "lets them run the code in this repository, which imports hf_bert4rec:\n" in card
    assert f"\nhf-bert4rec train path/to/this/folder --output_dir runs/again {options}\n" in card
    assert "import my_module" not in model_card(small_facts()).text


def test_the_card_of_a_model_with_an_own_loss_imports_its_module_for_training_alone():
    card = model_card(small_facts(reproducible=True, recipe={"seed": 1, "loss": "own"}), ["own_loss"]).text
    assert "\nhf-bert4rec train path/to/this/folder --output_dir runs/again --import own_loss\n" in card
    assert "Put the\nmodules after `--import`, which are not in this repository, into the working directory" in card
    assert "import own_loss  #" not in card


def test_the_card_of_a_model_that_was_trained_on_all_interactions_says_how_to_get_results():
    card = model_card(small_facts(reproducible=True, recipe={"seed": 1, "split": "train_on_all"})).text
    assert "because the model was trained on all interactions, and nothing was held out to evaluate it.\n" in card
    assert "`hf-bert4rec train path/to/this/folder --split leave_one_out --output_dir runs/held-out`." in card
    assert "No results were recorded." not in card


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        ({"num_followers": 0, "repeat_head": False}, ""),
        ({"num_followers": 9}, " The model contains a Markov chain over the 9 most frequent followers of each item "
         "(`num_followers`)."),
        ({"repeat_head": True}, " The model contains a second attention for repeated interactions (`repeat_head`)."),
        ({"num_followers": 9, "repeat_head": True}, " The model contains a Markov chain over the 9 most frequent "
         "followers of each item (`num_followers`) and a second attention for repeated interactions (`repeat_head`)."),
    ],
)  # fmt: skip
def test_the_first_paragraph_of_a_card_names_the_added_parts(recipe, text):
    card = model_card(small_facts(recipe={"seed": 1, **recipe})).text
    assert f"sequential recommender ([Sun et al., 2019](https://arxiv.org/abs/1904.06690)).{text} Given a" in card


@pytest.mark.parametrize(
    ("excluded", "text"),
    [(True, "are not recommended again. To allow them, pass `exclude_history=False`"),
     (False, "can be recommended again. To exclude them, pass `exclude_history=True`")],
)  # fmt: skip
def test_a_card_says_whether_items_of_the_history_are_excluded(excluded, text):
    assert f"Items of the history {text}." in model_card(small_facts(exclude_history=excluded)).text


def test_a_card_claims_a_seed_and_a_whole_recipe_only_for_reproducible_runs():
    card = model_card(small_facts(reproducible=True)).text
    assert "Seed 1 was set before the model was built." in card
    assert "Run this command:\n\n```sh\nhf-bert4rec train path/to/this/folder --output_dir runs/again\n```" in card
    machine = MachineFacts(processes=2, threads=1, processor="x86_64", device="cpu")
    card = model_card(small_facts(reproducible=True, machine=machine)).text
    assert "--num_processes 2 scripts/train.py path/to/this/folder" in card
    assert "in a clone of hf-bert4rec\n(`--multi_gpu`" in card
    card = model_card(small_facts()).text
    assert "Seed of the training arguments: 1. The initial weights may depend on another seed." in card
    assert "path/to/this/folder --output_dir" not in card
    assert "learning_curve.png" not in card


def test_results_are_compared_with_the_other_models():
    facts = small_facts(
        results={"test": {**ROWS, "Markov chain": {"ndcg@10": 0.1}}},
        intervals={"test": {"BERT4Rec": (0.15, 0.25)}},
        differences={"test": {"Popularity": (-0.1, 0.002), "Markov chain": (0.05, 0.15)}},
    )
    card = model_card(facts).text
    assert (
        "\n\n- The 95 % interval of the NDCG@10 of BERT4Rec is 0.1500 to 0.2500 (bootstrap over users).\n- The NDCG"
        in card
    )
    text = "{} than that of {}. The 95 % interval of this difference is\n  {}"
    assert (
        text.format("0.0500 lower", "Popularity", "-0.1000 to +0.0020, so the difference is within noise.\n- ") in card
    )
    assert text.format("0.1000 higher", "Markov chain", "+0.0500 to +0.1500.\n- ") in card
    assert "**Popularity has a higher NDCG@10**" in card
    assert "**Markov chain has a higher NDCG@10**" not in card


def test_other_seeds_give_a_mean_and_a_standard_deviation():
    others = {"2": {"hr@10": 0.4, "ndcg@10": 0.3}, "3": {"hr@10": 0.4, "ndcg@10": 0.4, "mrr@10": 0.1}}
    text = model_card(small_facts(results={"test": ROWS}, other_seeds={"test": others})).text
    assert "The table is of seed 1.\n" in text
    assert (
        "- Mean ± standard deviation of BERT4Rec over the seeds 1, 2, 3: HR@10 0.4000 ± 0.0000, "
        "NDCG@10 0.3000 ± 0.1000.\n"
    ) in text  # one run has no MRR@10
    for seeds in ({}, {"validation": others}):
        text = model_card(small_facts(results={"test": ROWS}, other_seeds=seeds)).text
        assert "The table is of one run with one seed." in text
        assert "Mean ±" not in text


def test_results_of_the_validation_split_are_said_to_be_too_optimistic():
    card = model_card(small_facts(results={"validation": ROWS}, best_checkpoint="checkpoint-12", chosen_by="NDCG@10"))
    assert "more training did not improve the initial model" not in card.text
    facts = small_facts(results={"validation": ROWS}, best_checkpoint="checkpoint-1", chosen_by="NDCG@10")
    assert (
        "more training did not improve the initial model" not in model_card(facts).text
    )  # there was one step, or no log
    log = [{"step": 1, "epoch": 0.1}, {"step": 9, "epoch": 1.0}]
    facts = small_facts(results={"validation": ROWS}, best_checkpoint="checkpoint-1", chosen_by="NDCG@10", log=log)
    card = model_card(facts)
    assert "more training did not improve the initial model" in " ".join(card.text.split())
    assert "with the best validation NDCG@10 was kept." in card.text
    assert "The checkpoint was chosen on this split, so they are too optimistic." in card.text
    assert {result.dataset_split for result in card.data.eval_results} == {"validation"}
    assert "No results were recorded." in model_card(small_facts()).text


def test_sampled_metrics_have_a_protocol_and_an_entry_of_their_own():
    rows = {model: {**row, **SAMPLED} for model, row in ROWS.items()}
    facts = small_facts(results={"test": rows}, sampled_protocol="among 3 items", recipe={"popularity_candidates": 3})
    card = model_card(facts)
    assert "Do not compare it with the table above.\nProtocol: among 3 items." in card.text
    assert "as in the BERT4Rec paper" not in card.text
    configs = {result.metric_type: result.dataset_config for result in card.data.eval_results}
    assert configs["hr@10"] == "whole-catalog"
    assert configs["hr@10_popularity_sampled"] == "popularity-sampled"
    assert "ndcg@1" not in configs  # equal to hr@1
    paper = model_card(small_facts(results={"test": rows}, sampled_protocol="x", recipe={"popularity_candidates": 100}))
    assert "each target is ranked among sampled candidates, as in the BERT4Rec paper." in paper.text


@pytest.mark.parametrize(
    ("source", "base"), [("org/name", "org/name"), ("/home/me/model", None), ("model", None), (5, None)]
)
def test_only_a_hub_id_becomes_the_base_model(source, base):
    assert model_card(small_facts(recipe={"start_from": source})).data.base_model == base


def test_facts_with_few_metrics_have_a_card_with_gaps():
    card = model_card(small_facts(results={"test": {"BERT4Rec": {}, "Other": {"hr@10": 1.0}}}, seconds=3600.0))
    assert "| BERT4Rec | | | |" in card.text
    assert "| Other | 1.0000 | | |" in card.text
    assert "Training took 1.00 hours (3,600 s) with 1 process of 2 threads\non a CPU (x86_64)." in card.text


def test_tables_are_markdown():
    assert markdown_table(["", "A"], [["x", "1"]]) == "| | A |\n|---|---:|\n| x | 1 |"
    assert results_table({"m": {"hr@10": 0.12345}}, ["hr@10"]) == "| | HR@10 |\n|---|---:|\n| m | 0.1235 |"
    assert sampled_table(ROWS) == ""
