"""A whole run on a small log: what it saves and shows, what it refuses, and how it is resumed after a kill."""

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, Trainer

import hf_bert4rec
from hf_bert4rec.cli import resume
from hf_bert4rec.cli import run as run_module
from hf_bert4rec.cli.main import main
from hf_bert4rec.cli.prepare import describe_data, prepare, whole_histories
from hf_bert4rec.cli.recipe import parse_recipe
from hf_bert4rec.cli.report import recommendation_table, summary
from hf_bert4rec.cli.run import _log_repeats, run
from hf_bert4rec.cli.trainers import evaluate, evaluator
from hf_bert4rec.data.splits import SPLITS, Split, leave_one_out, train_on_all
from hf_bert4rec.evaluation.baselines import Popularity
from hf_bert4rec.evaluation.trainer_evaluation import rank_rows
from hf_bert4rec.hub.checkpoint import check_sizes
from hf_bert4rec.hub.model_card import model_card
from hf_bert4rec.hub.push import HANDLER, push_checkpoint
from hf_bert4rec.hub.run_facts import DataFacts, RunFacts
from tests.hub_server import OWNER
from tests.training.test_training import LOG, RECIPE, StopAt

DIGEST = "959e3facc2d81ac81e7d4ec60b1141d2950aec8e19e559ac0b14b058ee75ef13"  # of LOG, as the first release made it


def recipe_for(folder: Path, *options: str, text: str = ""):
    if not (folder / "log.csv").exists():
        (folder / "log.csv").write_text(LOG)
    (folder / "titles.csv").write_text("item,title\ni0,Zero\ni1,One\n")
    (folder / "recipe.yaml").write_text(RECIPE.format(log=folder / "log.csv") + text)
    paths = ["--titles", str(folder / "titles.csv"), "--output_dir", str(folder / "out"), "--logging_strategy=epoch"]
    return parse_recipe([str(folder / "recipe.yaml"), *paths, *options])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    token = ["--hub_token", "hf_never_publish_me"]
    return run(recipe_for(folder, "--example", "i0", "i1", "--name", "bert4rec-test", *token))


# ---- what a run saves ------------------------------------------------------------------------------------------------


def test_a_run_saves_a_complete_checkpoint_and_no_pickle(trained):
    assert sorted(path.name for path in trained.iterdir()) == [
        "README.md", "config.json", "configuration_bert4rec.py", "heads.py", "inputs.py", "item_loss.py",
        "items.parquet", "layers.py", "learning_curve.png", "model.safetensors", "modeling_bert4rec.py",
        "run_facts.json", "special_tokens.py", "tokenizer.json", "tokenizer_config.json",
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


def test_the_facts_are_enough_to_repeat_the_run(trained):
    facts = RunFacts.load(trained)
    assert facts.protocol == "leave-one-out (every user's last item), ranked among all 12 items, history excluded"
    assert facts.sampled_protocol is None
    assert facts.data == DataFacts(name="log.csv", interactions=94, users=16, items=12, sha256=DIGEST, last_time=7)
    assert set(facts.results["test"]) == {"Popularity", "Markov chain, first order", "BERT4Rec"}
    assert facts.evaluated == {"validation": 16, "test": 16}
    assert facts.example == ["i0", "i1"]
    again = parse_recipe([str(trained)])
    assert (again.model.hidden_size, again.training.seed, again.run.example) == (12, 42, ["i0", "i1"])


def test_the_card_has_the_test_results_as_model_index(trained):
    facts = RunFacts.load(trained)
    card = ModelCard.load(trained / "README.md")
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert set(results) == {"hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10", "mrr@5", "mrr@10"}  # at 1 all are the same
    ours = facts.results["test"]["BERT4Rec"]
    assert results == {name: round(ours[name], 4) for name in results}
    assert all("history excluded" in result.dataset_name for result in card.data.eval_results)
    assert 'recommender([["i0", "i1"]], top_k=10)' in card.text
    assert f"{ours['ndcg@10']:.4f}" in card.text


def test_no_token_and_no_folder_of_this_machine_is_published(trained):
    assert "hf_never_publish_me" not in "".join(path.read_text(errors="replace") for path in trained.iterdir())
    card = (trained / "README.md").read_text()
    assert "titles.csv" in card
    assert str(trained.parents[1]) not in card


@pytest.mark.parametrize(("start", "base"), [("org/bert4rec-ml1m", "org/bert4rec-ml1m"), ("model", None), (None, None)])
def test_a_card_names_the_repository_that_the_model_started_from(trained, start, base):
    facts = RunFacts.load(trained)
    facts.recipe["start_from"] = str(trained) if start == "model" else start
    assert model_card(facts).data.base_model == base


@pytest.mark.parametrize(
    ("options", "expected", "best"),
    [
        ([], "with the best validation NDCG@10 was kept", True),
        (
            ["--metric_for_best_model", "eval_loss", "--greater_is_better", "false"],
            "with the best validation loss was kept",
            True,
        ),
        (["--load_best_model_at_end", "false"], None, False),
    ],
)
def test_the_card_says_how_the_checkpoint_was_chosen(tmp_path, options, expected, best):
    folder = run(recipe_for(tmp_path, "--num_train_epochs", "2", *options))
    card, facts = (folder / "README.md").read_text(), RunFacts.load(folder)
    assert ("with the best validation" in card) is best
    assert bool(facts.best_checkpoint) is best
    assert expected is None or expected in card


def test_the_checksum_of_a_log_that_is_larger_than_a_chunk_is_that_of_its_csv(tmp_path, monkeypatch):
    recipe = recipe_for(tmp_path)
    _, interactions, _, _ = prepare(recipe)
    monkeypatch.setattr("hf_bert4rec.cli.prepare.CHUNK", 7)
    assert describe_data(recipe, interactions).sha256 == DIGEST


# ---- evaluation ------------------------------------------------------------------------------------------------------


def test_evaluating_the_checkpoint_gives_the_same_results_again(trained, caplog, tmp_path):
    facts = RunFacts.load(trained)
    (protocol, sampled_protocol), results, intervals = evaluate(parse_recipe([str(trained)]))
    assert (protocol, sampled_protocol) == (facts.protocol, None)
    assert intervals["test"] == pytest.approx(facts.intervals["test"]["BERT4Rec"], abs=1e-9)
    for split in ("validation", "test"):
        assert results[split] == pytest.approx(facts.results[split]["BERT4Rec"], abs=1e-9)
    evaluate(parse_recipe([str(trained), "--split", "leave_one_out"]))
    assert "too high" not in caplog.text
    evaluate(parse_recipe([str(trained), "--min_user_interactions", "2"]))
    assert "too high" not in caplog.text
    lines = Path(facts.recipe["data"]).read_text().splitlines(keepends=True)
    (tmp_path / "other.csv").write_text("".join(lines[:-1]))
    evaluate(parse_recipe([str(trained), "--data", str(tmp_path / "other.csv")]))
    assert "The log differs from that of the training. If the model was trained on targets of this" in caplog.text


def test_a_checkpoint_with_items_from_after_the_training_of_another_split_is_not_evaluated(trained, tmp_path):
    (tmp_path / "log.csv").write_text("user,item,timestamp\nu,i0,1\nv,i0,1\nv,i1,2\nu,i2,3\n")
    options = ["--data", str(tmp_path / "log.csv"), "--split=at_time", "--validation_time=2", "--test_time=3"]
    with pytest.raises(
        ValueError, match=r"^2 items of the tokenizer do not occur .* such as 'i1'.*use the same split as in training"
    ):
        evaluate(parse_recipe([str(trained), *options]))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_ranks_come_in_the_order_of_the_rows_whatever_their_lengths(trained, batch_size):
    recipe = parse_recipe([str(trained), f"--per_device_eval_batch_size={batch_size}", "--output_dir=unused"])
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    _, _, _, histories = prepare(recipe, tokenizer)
    rows = histories["test"]
    assert list(rows["length"]) != sorted(rows["length"])
    trainer = evaluator(model, recipe, tokenizer)
    one_by_one = [trainer.predict(rows.select([place])).predictions[0] for place in range(rows.num_rows)]
    assert len(set(one_by_one)) > 3
    assert rank_rows(trainer, rows).tolist() == one_by_one
    assert trainer.args.train_sampling_strategy == "group_by_length"


def test_a_checkpoint_on_the_hub_is_evaluated_and_nothing_is_pushed(trained, hub, capsys):
    name = f"{OWNER}/bert4rec-test"
    push_checkpoint(trained, name)
    facts, before = RunFacts.load(trained), len(hub.repositories[name].messages)
    log = str(trained.parents[1] / "log.csv")
    main(["evaluate", name, "--data", log, "--titles", "none", "--push_to_hub", "true"])
    assert f"{facts.results['test']['BERT4Rec']['ndcg@10']:.4f}" in capsys.readouterr().out
    assert list(hub.repositories) == [name]
    assert len(hub.repositories[name].messages) == before


def test_an_evaluator_of_another_catalog_is_refused(tmp_path, model):
    recipe = recipe_for(tmp_path)
    _, _, tokenizer, _ = prepare(recipe)
    with pytest.raises(ValueError, match="rows in its item table, the tokenizer has 15 tokens"):
        evaluator(model, recipe, tokenizer)


def test_rows_without_lengths_have_the_same_ranks(tmp_path):
    recipe = recipe_for(tmp_path)
    _, interactions, tokenizer, histories = prepare(recipe)
    trainer = evaluator(Popularity(whole_histories(recipe, interactions, tokenizer), len(tokenizer)), recipe, tokenizer)
    expected = rank_rows(trainer, histories["test"])
    assert (rank_rows(trainer, histories["test"].remove_columns("length")) == expected).all()


def test_a_checkpoint_without_facts_is_not_evaluated_on_unnamed_data(tmp_path, model, tokenizer):
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"The log is missing. Pass `--data ratings\.csv`"):
        evaluate(parse_recipe([str(tmp_path / "bare")]))


REPEATING_LOG = "user,item,timestamp\n" + "".join(f"u{u},i{(u + t) % 3},{t}\n" for u in range(9) for t in range(6))
REPEATING_LOG += "".join(f"v{item},i{item},0\nv{item},i{item},1\nv{item},i{item},2\n" for item in range(3, 14))


def test_hits_are_logged_for_repeated_and_for_new_targets(caplog):
    caplog.set_level("INFO", "hf_bert4rec")
    _log_repeats("test", np.array([False] * 4), np.array([True] * 4))
    assert not caplog.text
    _log_repeats("test", np.array([True, True, False, False]), np.array([True, True, True, False]))
    assert "of the user: 50 %. HR@10 of the model: 1.0000 for these, 0.5000 for the others." in caplog.text


def test_what_is_recommended_follows_the_setting_that_was_evaluated(tmp_path, caplog):
    (tmp_path / "log.csv").write_text(REPEATING_LOG)
    caplog.set_level("INFO", "hf_bert4rec")
    folder = run(recipe_for(tmp_path, "--exclude_history=false", "--example", "i0", "i1"))
    found = re.search(r"test split that .* of the user: 100 %\. HR@10 of the model: (.*) for these\.\n", caplog.text)
    assert found[1] == f"{RunFacts.load(folder).results['test']['BERT4Rec']['hr@10']:.4f}"
    assert "Own items" in RunFacts.load(folder).results["test"]
    facts = RunFacts.load(folder)
    assert facts.protocol.endswith("history not excluded")
    assert AutoModelForMaskedLM.from_pretrained(folder).config.exclude_history is False
    recommender = hf_bert4rec.pipeline(folder)
    listed = recommendation_table(recommender, ["i0", "i1"], top_k=14)
    assert {"i0", "i1"} <= {line.split()[0] for line in listed.split("title):")[1].strip().splitlines()}
    excluded = recommendation_table(recommender, ["i0", "i1"], top_k=12, exclude_history=True)
    assert not {"i0", "i1"} & {line.split()[0] for line in excluded.split("title):")[1].strip().splitlines()}

    (protocol, _), results, _ = evaluate(parse_recipe([str(folder)]))
    assert protocol == facts.protocol
    assert results["test"] == pytest.approx(facts.results["test"]["BERT4Rec"], abs=1e-9)
    (protocol, _), changed, _ = evaluate(parse_recipe([str(folder), "--exclude_history=true"]))
    assert protocol.endswith("history excluded")
    assert changed["test"] != results["test"]


# ---- what a run shows ------------------------------------------------------------------------------------------------


def test_the_command_for_the_last_training_has_the_same_options(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "my run" / "model")
    (command,) = [line for line in summary(folder).splitlines() if line.startswith("  hf-bert4rec train ")]
    recipe, stored = parse_recipe(shlex.split(command)[2:]), RunFacts.load(trained).recipe
    assert recipe.training.output_dir == f"{tmp_path}/my run-all"
    changed = {name for name, value in stored.items() if name not in recipe.given or recipe.given[name] != value}
    assert changed <= {"split", "num_train_epochs"}


def test_the_summary_names_its_protocol_and_shows_the_titles_of_the_example(trained):
    text = summary(trained)
    assert "ranked among all 12 items, history excluded; seed 42" in text
    assert "| BERT4Rec |" in text
    assert "| Popularity |" in text
    assert text.index("Zero") < text.index("Recommended")
    command = f"  hf-bert4rec train {trained} --split train_on_all --num_train_epochs"
    assert f"To train on all interactions before deployment, with the same options:\n{command}" in text


@pytest.mark.parametrize(("best", "late"), [(3, False), (10, True)])
def test_the_summary_says_whether_the_best_epoch_was_near_the_end(trained, tmp_path, best, late):
    folder = shutil.copytree(trained, tmp_path / "model")
    log = [{"epoch": float(epoch), "step": epoch} for epoch in range(1, 11)]
    dataclasses.replace(RunFacts.load(folder), log=log, best_checkpoint=f"checkpoint-{best}").save(folder)
    text = summary(folder)
    assert f"The best checkpoint is from epoch {best}." in text
    assert ("more epochs (`--num_train_epochs`) may be better" in text) is late


@pytest.mark.parametrize(("steps", "improved"), [(1, True), (4, False)])
def test_the_summary_says_that_more_steps_were_of_no_use_only_if_there_were_more(trained, tmp_path, steps, improved):
    folder = shutil.copytree(trained, tmp_path / "model")
    log = [{"epoch": step / 2, "step": step} for step in range(1, steps + 1)]
    dataclasses.replace(RunFacts.load(folder), log=log, best_checkpoint="checkpoint-1").save(folder)
    text = summary(folder)
    assert "The best checkpoint is from step 1" in text
    assert ("from step 1: more training did not improve the model." in text) is not improved
    assert ("Try a lower `--learning_rate`." in text) is not improved
    assert ("more epochs (`--num_train_epochs`) may be better" in text) is improved
    assert ("--split train_on_all --max_steps 1 --output_dir" in text) is not improved


def test_the_summary_of_a_run_with_max_steps_does_not_advise_to_deploy_it(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "model")
    facts = RunFacts.load(folder)
    log = [{"epoch": step / 2, "step": step} for step in range(1, 5)]
    dataclasses.replace(facts, log=log, best_checkpoint="checkpoint-4", recipe={**facts.recipe, "max_steps": 4}).save(
        folder
    )
    text = summary(folder)
    assert "The best checkpoint is from epoch 2.\nTrain without `--max_steps` before you deploy a model.\n" in text
    assert "train_on_all" not in text
    assert "more epochs" not in text


@pytest.mark.parametrize(("first", "steps", "known"), [(1, 4, True), (1, 1, False), (2, 4, False)])
def test_the_summary_shows_the_score_before_the_training_if_it_is_known(trained, tmp_path, first, steps, known):
    folder = shutil.copytree(trained, tmp_path / "model")
    facts = RunFacts.load(folder)
    log = [{"epoch": step / 2, "step": step, "eval_ndcg@10": 0.1234 * step} for step in range(first, steps + 1)]
    dataclasses.replace(facts, log=log, best_checkpoint=f"checkpoint-{steps}").save(folder)
    score = facts.results["validation"]["BERT4Rec"]["ndcg@10"]
    line = f"\nValidation NDCG@10 of BERT4Rec: 0.1234 before the training (step 1), {score:.4f} after.\n"
    assert (line in summary(folder)) is known


@pytest.mark.parametrize(("low", "high", "noise"), [(-0.01, 0.03, True), (0.001, 0.03, False), (-0.05, -0.02, False)])
def test_the_summary_says_whether_a_difference_is_within_noise(trained, tmp_path, low, high, noise):
    folder = shutil.copytree(trained, tmp_path / "model")
    facts = RunFacts.load(folder)
    results = facts.results["test"]
    results["Popularity"], results["BERT4Rec"] = ({**results["Popularity"], "ndcg@10": score} for score in (0.2, 0.25))
    facts.differences["test"] = {"Popularity": [low, high]}
    facts.save(folder)
    line = next(line for line in summary(folder).splitlines() if "Popularity" in line and "times" in line)
    assert "1.25 times that of Popularity" in line
    assert f"{low:+.4f} to {high:+.4f}" in line
    assert ("within noise" in line) is noise


def test_the_difference_from_a_baseline_is_paired_over_users(trained):
    facts = RunFacts.load(trained)
    for name in ("Popularity", "Markov chain, first order"):
        low, high = facts.differences["test"][name]
        results = facts.results["test"]
        assert low <= results["BERT4Rec"]["ndcg@10"] - results[name]["ndcg@10"] <= high


def test_an_unknown_item_in_an_example_has_no_title(trained):
    assert "nothing" in recommendation_table(hf_bert4rec.pipeline(trained), ["nothing"], top_k=1)


def test_without_a_bar_an_evaluation_is_one_line(tmp_path, capsys):
    run(recipe_for(tmp_path, "--num_train_epochs=2", "--disable_tqdm=true"))
    lines = capsys.readouterr().out.splitlines()
    assert [line[:13] for line in lines if "NDCG@10" in line] == ["epoch   1.0  ", "epoch   2.0  "]
    assert not [line for line in lines if "eval_" in line]


def test_bars_end_with_the_training_and_a_loss_is_not_printed_before_there_is_one(tmp_path, capfd):
    run(recipe_for(tmp_path, *SHORT, "--logging_strategy=steps", "--logging_steps=4"))
    output = capfd.readouterr()
    assert "epoch   1.0   validation HR@10" in output.out
    assert "epoch   2.0   loss" in output.out
    assert "nan" not in output.out
    bars = [
        bar.strip() for bar in output.err.replace("\r", "\n").splitlines() if "it/s]" in bar and "shards" not in bar
    ]
    assert "4/4" in bars[-1]  # the steps of the training


# ---- options of data, model and training -----------------------------------------------------------------------------


def test_a_run_can_start_from_the_checkpoint_of_another_catalog(trained, tmp_path, caplog):
    options = ["--start_from", str(trained), "--hidden_dropout_prob=0.1", "--conv_kernel_size=5"]
    options += ["--num_train_epochs=1", "--learning_rate=1e-9", "--muon_learning_rate=none"]
    (tmp_path / "log.csv").write_text(LOG.replace("i3,", "new,"))
    recipe = recipe_for(tmp_path, *options)
    folder = run(recipe)
    old, new = (AutoModelForMaskedLM.from_pretrained(path) for path in (trained, folder))
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (trained, folder)]
    for item in ("i0", "i11"):
        before, after = (
            model.get_input_embeddings().weight[tokenizer.encode_items([item])[0]]
            for model, tokenizer in zip((old, new), tokenizers, strict=True)
        )
        torch.testing.assert_close(before, after, atol=1e-6, rtol=0)
    assert new.config.hidden_dropout_prob == 0.1
    assert f"has `--conv_kernel_size {old.config.conv_kernel_size}`." in caplog.text
    assert RunFacts.load(folder).recipe["conv_kernel_size"] == old.config.conv_kernel_size
    assert recipe.given["conv_kernel_size"] == 5  # the recipe itself is never modified
    assert not {"num_followers", "repeat_head"} & {*RunFacts.load(folder).recipe}  # the model has neither
    with pytest.raises(ValueError, match="is a bert4rec model, but `--architecture` is sasrec"):
        run(recipe_for(tmp_path, *options, "--architecture=sasrec", f"--output_dir={tmp_path}/other"))


def test_the_card_names_the_markov_chain_of_the_checkpoint_that_a_model_started_from(tmp_path):
    quick = ("--num_train_epochs=1", "--learning_rate=1e-9", "--muon_learning_rate=none")
    chain = run(recipe_for(tmp_path, *quick, "--num_followers=2"))
    folder = run(recipe_for(tmp_path, *quick, "--start_from", str(chain), f"--output_dir={tmp_path}/started"))
    assert RunFacts.load(folder).recipe["num_followers"] == 2
    assert "a Markov chain over the 2 most frequent followers" in (folder / "README.md").read_text()
    assert parse_recipe([str(folder)]).model.num_followers == 2


def test_metrics_among_uniform_candidates_say_so_in_name_protocol_and_card(tmp_path):
    folder = run(recipe_for(tmp_path, "--uniform_candidates", "3", "--num_train_epochs", "1"))
    facts = RunFacts.load(folder)
    row = facts.results["test"]["BERT4Rec"]
    assert row["hr@5_uniform_sampled"] == 1  # of 3 candidates and the target
    assert not [name for name in row if "popularity" in name]
    assert "ranked among 3 items drawn for each user uniformly, history excluded" in facts.sampled_protocol
    card = (folder / "README.md").read_text()
    assert "uniformly" in card
    assert "by their popularity" not in card
    with pytest.raises(ValueError, match="`--popularity_candidates` or `--uniform_candidates`, not both"):
        run(recipe_for(tmp_path, "--uniform_candidates=3", "--popularity_candidates=3"))


def test_a_run_with_candidates_renames_its_items(tmp_path):
    (tmp_path / "ids.tsv").write_text("item\tname\n" + "".join(f"i{i}\tfilm {i}\n" for i in range(12)))
    (tmp_path / "all.csv").write_text("item,title\n" + "".join(f"i{i},Title {i}\n" for i in range(12)))
    options = ["--item_ids", str(tmp_path / "ids.tsv"), "--titles", str(tmp_path / "all.csv")]
    options += ["--popularity_candidates", "3", "--num_train_epochs", "1", "--rope_theta", "100"]
    folder = run(recipe_for(tmp_path, *options))
    facts = RunFacts.load(folder)
    row = facts.results["test"]["BERT4Rec"]
    names = ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10", "mrr")
    assert {f"{name}_popularity_sampled" for name in names} <= set(row)
    assert row["hr@5_popularity_sampled"] == 1  # of 3 candidates and the target
    low, high = facts.intervals["test"]["BERT4Rec"]
    assert low <= row["ndcg@10"] <= high
    _, again, _ = evaluate(parse_recipe([str(folder)]))
    assert again["test"] == pytest.approx(row, abs=1e-9)
    card = ModelCard.load(folder / "README.md")
    sampled = [result.dataset_name for result in card.data.eval_results if "sampled" in result.metric_type]
    assert all("ranked among 3 items drawn for each user by their popularity" in name for name in sampled)
    assert len(sampled) == 8
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.titles[tokenizer.items.to_pylist().index("film 1")] == "Title 1"


def test_titles_that_do_not_list_the_ids_of_the_log_are_refused(tmp_path):
    (tmp_path / "ids.tsv").write_text("item\tname\n" + "".join(f"i{i}\tfilm {i}\n" for i in range(12)))
    with pytest.raises(ValueError, match=r"no title for 'i10' of .*ids.tsv .IDs without a title: 10."):
        run(recipe_for(tmp_path, "--item_ids", str(tmp_path / "ids.tsv")))


def test_two_new_ids_for_one_item_are_refused(tmp_path):
    (tmp_path / "ids.csv").write_text("".join(f"i{i},film {i}\n" for i in range(12)) + "i3,film 30\n")
    with pytest.raises(
        ValueError, match=r"^ids\.csv: expected one new ID per item, found 'film 3' and 'film 30' for 'i3'"
    ):
        prepare(recipe_for(tmp_path, "--item_ids", str(tmp_path / "ids.csv")))


def test_the_columns_of_the_titles_can_be_named(tmp_path):
    (tmp_path / "shop.csv").write_text("key,what\ni0,Tea\ni5,Pot\n")
    columns = ["--title_item=key", "--title_column=what"]
    _, _, tokenizer, _ = prepare(recipe_for(tmp_path, "--titles", str(tmp_path / "shop.csv"), *columns))
    titles = dict(zip(tokenizer.items.to_pylist(), tokenizer.titles, strict=True))
    assert {item: title for item, title in titles.items() if title} == {"i0": "Tea", "i5": "Pot"}


def test_a_split_at_a_point_in_time_trains_on_the_past_alone(tmp_path):
    options = ["--split", "at_time", "--validation_time", "4", "--test_time", "5"]
    folder = run(recipe_for(tmp_path, *options, "--num_train_epochs", "1"))
    assert RunFacts.load(folder).protocol.startswith("first item of every user from 5 on")
    with pytest.raises(ValueError, match="'at_time' needs `--validation_time`"):
        run(recipe_for(tmp_path, "--split=at_time", "--test_time=5"))
    with pytest.raises(ValueError, match="The split leave_one_out has no option `--validation_time`"):
        run(recipe_for(tmp_path, "--validation_time=4"))


def test_a_leak_in_a_split_of_the_user_is_logged(tmp_path, monkeypatch, caplog):
    def leaking(interactions, tokenizer, *, max_length=None):
        histories = leave_one_out(interactions, tokenizer, max_length=max_length)
        histories["train"] = train_on_all(interactions, tokenizer, max_length=max_length)["train"]
        return histories

    monkeypatch.setitem(SPLITS, "leaking", Split(leaking, "leaking"))
    run(recipe_for(tmp_path, "--split", "leaking", "--max_steps", "1"))
    leaks = [message for message in caplog.messages if "may have a leak" in message]
    assert len(leaks) == 3
    assert re.fullmatch(
        r"The split leaking may have a leak \(docs/data\.md, section Leaks\)\. test: (\d+) of \1 rows \(100\.0%\) have "
        r"a target that is in the user's training rows \(rows 0, 1, 2, 3, 4, …\)\.",
        leaks[2],
    )
    (tmp_path / "other").mkdir()
    monkeypatch.setitem(SPLITS, "honest", Split(lambda log, items, **rows: leave_one_out(log, items, **rows), "honest"))
    caplog.clear()
    run(recipe_for(tmp_path / "other", "--split", "honest", "--max_steps", "1"))
    assert "leak" not in caplog.text


def test_the_number_of_targets_without_training_is_logged(tmp_path, caplog):
    caplog.set_level("INFO", "hf_bert4rec")
    rows = [f"u{user},i{time},{time}" for user in range(4) for time in range(12)] + ["u0,new,99", "u1,newer,99"]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,timestamp", *rows]))
    run(recipe_for(tmp_path, "--max_steps", "1"))
    assert "Targets without an interaction in the training rows: validation 2 of 4, test 4 of 4." in caplog.messages


def test_a_date_in_the_yaml_of_a_recipe_is_a_time(tmp_path):
    times = "split: at_time\nvalidation_time: 1970-01-01 00:00:04\ntest_time: 5\n"
    _, _, _, histories = prepare(recipe_for(tmp_path, text=times))
    assert histories["validation"].num_rows > 0


def test_validation_merged_into_train_keeps_the_last_checkpoint(tmp_path):
    folder = run(recipe_for(tmp_path, "--validation_in_train", "true", "--num_train_epochs", "1"))
    facts = RunFacts.load(folder)
    assert set(facts.results) == {"test"}
    assert facts.best_checkpoint == ""
    assert "validation items trained on" in facts.protocol


def test_training_on_all_interactions_has_no_results_and_says_so(tmp_path, capsys, caplog):
    recipe = recipe_for(tmp_path, "--split", "train_on_all", "--num_train_epochs", "2")
    _, interactions, _, histories = prepare(recipe)
    assert sum(histories["train"]["length"]) == interactions.num_rows
    folder = run(recipe)
    facts = RunFacts.load(folder)
    assert (facts.results, facts.best_checkpoint) == ({}, "")
    assert [entry["epoch"] for entry in facts.log if "loss" in entry] == [1, 2]
    assert re.findall(r"^epoch +(\S+)   loss +\d\.\d{3}$", capsys.readouterr().out, re.MULTILINE) == ["1.0", "2.0"]
    assert not ModelCard.load(folder / "README.md").data.eval_results
    text = summary(folder)
    assert text.startswith("\nThere are no results, because the split train_on_all holds no items out. Seed 42.\n")
    assert "nothing held out" not in text
    assert "Recommended" in text
    with pytest.raises(ValueError, match="train_on_all holds no items out"):
        evaluate(parse_recipe([str(folder)]))
    evaluate(parse_recipe([str(folder), "--split", "leave_one_out"]))
    evaluate(parse_recipe([str(folder), "--split", "at_time", "--validation_time", "4", "--test_time", "5"]))
    found = [message for message in caplog.messages if message.startswith("The model was trained with")]
    assert [message.partition(".")[0] for message in found] == ["The model was trained with `--split train_on_all`"] * 2


def test_evaluate_warns_about_options_of_the_model_that_have_no_effect(trained, caplog):
    evaluate(parse_recipe([str(trained), "--loss", "bce", "--exclude_history", "false"]))
    assert f"Your values of these options are not used, because {trained} has `--loss softmax`." in caplog.messages


def test_a_folder_that_is_no_checkpoint_is_not_taken_for_a_recipe_without_options(trained, tmp_path):
    folder = trained.parent
    with pytest.raises(FileNotFoundError, match=rf"found no run_facts\.json\. Did you mean {folder / 'model'}\?"):
        run(parse_recipe([str(folder), "--data", "not/read.csv", "--output_dir", str(tmp_path / "out")]))


def test_an_option_with_its_default_is_not_another_split(tmp_path, caplog):
    folder = run(recipe_for(tmp_path, "--num_train_epochs", "1"))
    evaluate(parse_recipe([str(folder), "--validation_in_train", "false"]))
    assert "was trained with" not in caplog.text
    evaluate(parse_recipe([str(folder), "--validation_in_train", "true"]))
    assert "The model was trained with `--validation_in_train False`." in caplog.text


def test_options_without_effect_are_reported_once(tmp_path, caplog):
    run(recipe_for(tmp_path, "--num_negatives=5", "--num_train_epochs=1"))
    assert [m for m in caplog.messages if "num_negatives" in m] == ["The loss softmax does not use `--num_negatives`."]
    caplog.clear()
    run(recipe_for(tmp_path, "--architecture=sasrec", "--mask_probability=0.5", "--num_train_epochs=1"))
    assert len([m for m in caplog.messages if m == "The architecture sasrec does not use `--mask_probability`."]) == 1
    caplog.clear()
    run(recipe_for(tmp_path, "--tolerance=0.1", "--encoder=x", "--num_train_epochs=1", "--report_to=none"))
    assert [m for m in caplog.messages if "no effect" in m] == [
        "`--tolerance` has no effect without `--continue_from`.", "`--encoder` has no effect without `--item_features`."
    ]  # fmt: skip


@pytest.mark.parametrize("metric", ["foo", "eval_ndcg", "popularity_sampled"])
def test_an_unknown_metric_of_the_best_checkpoint_is_refused_before_the_training(tmp_path, metric):
    with pytest.raises(ValueError, match=rf"Unknown metric `--metric_for_best_model {metric}`. Choose from loss, hr@1"):
        run(recipe_for(tmp_path, "--metric_for_best_model", metric))


def test_fp16_on_a_cpu_and_followers_that_nothing_counts_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`--fp16` needs a GPU, found the device cpu"):
        run(recipe_for(tmp_path, "--fp16", "true"))
    with pytest.raises(ValueError, match="`--num_followers` needs `--initialize_items true`"):
        run(recipe_for(tmp_path, "--num_followers=3", "--initialize_items=false"))


def test_a_run_pushes_its_checkpoint(tmp_path, hub):
    options = ["--push_to_hub", "true", "--hub_model_id", "org/mine", "--hub_private_repo", "true"]
    folder = run(recipe_for(tmp_path, *options, "--num_train_epochs", "1"))
    there, here = hub.repositories["org/mine"].files, {path.name: path.read_bytes() for path in folder.iterdir()}
    for published in (there.pop("run_facts.json"), there["README.md"]):
        assert str(tmp_path).encode() not in published
    assert str(tmp_path).encode() in here.pop("run_facts.json")  # to be evaluated here
    assert there == here | HANDLER
    assert hub.repositories["org/mine"].private


def test_a_run_pushes_to_the_given_branch(tmp_path, hub):
    options = ["--push_to_hub", "true", "--hub_model_id", "org/mine", "--hub_revision", "dev", "--num_train_epochs=1"]
    with pytest.raises(FileNotFoundError, match="org/mine: found no such revision"):
        run(recipe_for(tmp_path, *options))
    assert hub.repositories["org/mine"].files == {}


def test_only_a_complete_checkpoint_is_pushed(tmp_path):
    with pytest.raises(FileNotFoundError, match="found no such folder"):
        push_checkpoint(tmp_path / "nothing", "org/name")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json.*no model\.safetensors"):
        push_checkpoint(tmp_path / "half", "org/name")


# ---- interrupted runs ------------------------------------------------------------------------------------------------

SHORT = ("--num_train_epochs", "2", "--per_device_train_batch_size", "8")


def interrupt(folder: Path, step: int) -> None:
    """Stop a run at a step, as a kill after the last save does."""
    train = Trainer.train

    def stop(self, *args, **kwargs):
        self.add_callback(StopAt(step))
        train(self, *args, **kwargs)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            run(recipe_for(folder, *SHORT))


def resumed(folder: Path, *options: str):
    return recipe_for(folder, *SHORT, "--resume_from_checkpoint", "true", *options)


def test_an_interrupted_run_continues_where_it_stopped_and_leaves_only_its_result(tmp_path):
    interrupt(tmp_path, 2)
    facts = RunFacts.load(run(resumed(tmp_path)))
    assert [entry["step"] for entry in facts.log if "loss" in entry] == [2, 4]
    assert list((tmp_path / "out").glob("checkpoint-*")) == []


def test_an_existing_model_is_reported_before_it_is_replaced(tmp_path, caplog):
    for _ in range(2):
        folder = run(recipe_for(tmp_path, "--num_train_epochs", "1"))
    reports = [record.message for record in caplog.records if "will be replaced" in record.message]
    assert reports == [f"{folder} exists and will be replaced at the end of this run."]


def test_an_interrupted_run_is_not_overwritten(tmp_path):
    interrupt(tmp_path, 2)
    with pytest.raises(ValueError, match="contains checkpoint-2 of an interrupted run"):
        run(recipe_for(tmp_path, *SHORT))


def test_resuming_on_changed_data_is_refused_because_items_would_be_renumbered(tmp_path):
    interrupt(tmp_path, 2)
    header, first, *rest = LOG.splitlines()
    (tmp_path / "log.csv").write_text("\n".join([header, *rest, first]))
    with pytest.raises(ValueError, match="the log, its filters or the item features have changed since the run began"):
        run(resumed(tmp_path))


@pytest.mark.parametrize("name", ["seed", "learning_rate", "weight_decay", "muon_learning_rate"])
def test_resuming_with_what_the_optimizer_would_override_is_refused(tmp_path, name):
    interrupt(tmp_path, 2)
    with pytest.raises(ValueError, match=rf"`--{name}` was \S+ and is 7(\.0)?\. Use the same options"):
        run(resumed(tmp_path, f"--{name}=7"))


def test_resuming_keeps_copies_of_checkpoints(tmp_path):
    interrupt(tmp_path, 2)
    copy = shutil.copytree(tmp_path / "out" / "checkpoint-2", tmp_path / "out" / "checkpoint-2-mine")
    with pytest.raises(ValueError, match="contains checkpoint-2-mine, which is not from a run of this command"):
        run(resumed(tmp_path))
    shutil.rmtree(copy)
    run(resumed(tmp_path))


def test_resuming_with_another_optimizer_is_refused(tmp_path):
    interrupt(tmp_path, 2)
    with pytest.raises(ValueError, match=r"`--optim` was adamw_torch\S* and is sgd\. Use the same options"):
        run(resumed(tmp_path, "--optim=sgd"))


def test_folders_and_files_of_the_user_stay(tmp_path):
    out = tmp_path / "out"
    (out / "model").mkdir(parents=True)
    (out / "model" / "train.py").write_text("code")
    with pytest.raises(ValueError, match=r"model is not an earlier result .* Pass a new folder as `--output_dir`\."):
        run(recipe_for(tmp_path, "--num_train_epochs", "1"))
    (out / "model").rename(tmp_path / "mine")
    for name in ("checkpoint-7", "checkpoint-best"):
        (out / name).symlink_to(tmp_path / "mine")
        with pytest.raises(
            ValueError, match=rf"contains {name}, which is not from a run of this command\. Move {name}"
        ):
            run(recipe_for(tmp_path, "--num_train_epochs", "1"))
        (out / name).unlink()
    (out / "checkpoint-notes.txt").write_text("notes")
    run(recipe_for(tmp_path, "--num_train_epochs", "1"))
    assert (out / "checkpoint-notes.txt").exists()
    (out / "checkpoint-best").mkdir()  # refused also in the folder of an earlier run
    with pytest.raises(ValueError, match="contains checkpoint-best, which is not from a run of this command"):
        run(recipe_for(tmp_path, "--num_train_epochs", "1"))


def test_resuming_with_another_model_is_refused_with_what_has_changed(tmp_path):
    interrupt(tmp_path, 2)
    with pytest.raises(ValueError, match=r"`--hidden_size` was 12 and is 32, `--mask_probability` was 0.2 and is 0.5"):
        run(resumed(tmp_path, "--hidden_size=32", "--mask_probability=0.5"))


def test_resuming_with_a_default_that_is_now_given_is_allowed(tmp_path):
    interrupt(tmp_path, 2)
    run(resumed(tmp_path, "--mask_probability=0.2", "--window_step=0.5", "--learning_rate=2e-3"))


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("true", "out contains no complete checkpoint"), ("nowhere/checkpoint-1", "checkpoint-1 is not a complete")],
)
def test_resuming_where_there_is_nothing_to_resume_is_refused(tmp_path, wanted, found):
    with pytest.raises(ValueError, match=rf"{found}.* and the `--output_dir` of the interrupted run\. "):
        run(recipe_for(tmp_path, "--resume_from_checkpoint", wanted))


def test_resuming_from_the_output_folder_says_how_to_resume_its_checkpoint(tmp_path):
    interrupt(tmp_path, 2)
    folder = tmp_path / "out"
    advice = r"To resume \S*checkpoint-2, pass `--resume_from_checkpoint true`\."
    with pytest.raises(ValueError, match=rf"out is not a complete checkpoint\. {advice}"):
        run(recipe_for(tmp_path, "--resume_from_checkpoint", str(folder)))


def test_resuming_a_checkpoint_whose_run_has_no_record_is_refused(tmp_path):
    interrupt(tmp_path, 2)
    (tmp_path / "out" / "begun.json").unlink()
    with pytest.raises(ValueError, match=r"file begun.json, which records data and options"):
        run(resumed(tmp_path))


def test_a_run_can_be_repeated_in_the_same_folder(tmp_path):
    first = run(recipe_for(tmp_path, "--num_train_epochs", "2"))
    weights = (first / "model.safetensors").read_bytes()
    assert (run(recipe_for(tmp_path, "--num_train_epochs", "2")) / "model.safetensors").read_bytes() == weights


class Killed(BaseException):
    """Raised where a process is killed; no code of the package catches it."""


def test_a_kill_between_any_two_deletions_at_the_end_never_loses_the_best_model(tmp_path, monkeypatch):
    def kill_before_deleting(folder):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "finish", kill_before_deleting)
        with pytest.raises(Killed):
            run(recipe_for(tmp_path, "--save_total_limit=none"))
    output = tmp_path / "out"
    weights = (output / "model" / "model.safetensors").read_bytes()
    shutil.copytree(output, tmp_path / "copy")
    files = len(list(output.glob("checkpoint-*/*")))
    assert files > 20

    for number in range(0, files, 6):
        shutil.rmtree(output)
        shutil.copytree(tmp_path / "copy", output)
        remaining = iter([True] * number)

        def delete(folder, remaining=remaining):
            for file in Path(folder).iterdir():
                if not next(remaining, False):
                    raise Killed
                file.unlink()
            folder.rmdir()

        with monkeypatch.context() as patch:
            patch.setattr(resume.shutil, "rmtree", delete)
            with pytest.raises(Killed):
                resume.finish(output)
        with pytest.raises(ValueError, match="this run has finished, so there is nothing to resume"):
            run(recipe_for(tmp_path, "--resume_from_checkpoint=true"))
        assert (output / "model" / "model.safetensors").read_bytes() == weights
        assert list(output.glob("checkpoint-*")) == []
    run(recipe_for(tmp_path, "--num_train_epochs=1"))  # a new run starts in the same folder
    (output / "checkpoint-7").mkdir()  # of another program
    (output / "checkpoint-7" / "trainer_state.json").write_text("{}")
    with pytest.raises(ValueError, match="contains checkpoint-7, which is not from a run of this command"):
        run(recipe_for(tmp_path, "--num_train_epochs=1"))
    assert (output / "checkpoint-7" / "trainer_state.json").exists()


@pytest.mark.parametrize("name", ["evaluate_rows", "draw_curve", "finish"])
def test_a_kill_after_the_training_leaves_the_trained_model_and_can_be_resumed(tmp_path, monkeypatch, name):
    def kill(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run_module, name, kill)
        with pytest.raises(Killed):
            run(recipe_for(tmp_path))
    early = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    assert bool(RunFacts.load(tmp_path / "out" / "model").results) is (name == "finish")
    folder = run(recipe_for(tmp_path, "--resume_from_checkpoint=true"))
    assert (folder / "model.safetensors").read_bytes() == early
    assert set(RunFacts.load(folder).results) == {"validation", "test"}


def test_resuming_without_the_best_checkpoint_is_refused(tmp_path, monkeypatch):
    def kill(*args, **kwargs):
        raise Killed

    monkeypatch.setattr(run_module, "save_checkpoint", kill)
    with pytest.raises(Killed):
        run(recipe_for(tmp_path, "--learning_rate=0.5", "--num_train_epochs=4"))
    newest = max((tmp_path / "out").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    state = json.loads((newest / "trainer_state.json").read_text())
    best = Path(state["best_model_checkpoint"])
    assert best.name != newest.name
    (best / "model.safetensors").unlink()
    options = ["--learning_rate=0.5", "--num_train_epochs=4", "--resume_from_checkpoint=true"]
    with pytest.raises(ValueError, match=rf"the best checkpoint of this run, .*{best.name}, is missing or incomplete"):
        run(recipe_for(tmp_path, *options))
