"""A whole run on a small log: what it saves, prints and refuses, and the scripts around it."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, Trainer

import hf_bert4rec
from hf_bert4rec.cli.recipe import parse_recipe
from hf_bert4rec.cli.run import (
    evaluate,
    evaluator,
    prepare,
    rank_rows,
    recommendation_table,
    run,
    summary,
    whole_histories,
)
from hf_bert4rec.evaluation.baselines import Popularity
from hf_bert4rec.hub.checkpoint import check_sizes, save_checkpoint
from hf_bert4rec.hub.model_card import model_card
from hf_bert4rec.hub.push import push_checkpoint
from hf_bert4rec.hub.run_facts import RunFacts
from tests.training.test_training import LOG, RECIPE, StopAt

SCRIPTS = Path(__file__).parents[2] / "scripts"


def recipe_for(folder: Path, *options: str):
    (folder / "log.csv").write_text(LOG)
    (folder / "titles.csv").write_text("item,title\ni0,Zero\ni1,One\n")
    (folder / "recipe.yaml").write_text(RECIPE.format(log=folder / "log.csv") + "logging_strategy: epoch\n")
    paths = ["--titles", str(folder / "titles.csv"), "--output_dir", str(folder / "out")]
    return parse_recipe([str(folder / "recipe.yaml"), *paths, *options])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    token = ["--hub_token", "hf_never_publish_me"]
    return run(recipe_for(folder, "--example", "i0", "i1", "--name", "bert4rec-test", *token))


def test_a_run_saves_a_complete_checkpoint_and_no_pickle(trained):
    assert sorted(path.name for path in trained.iterdir()) == [
        "README.md", "config.json", "configuration_bert4rec.py", "item_loss.py", "items.parquet", "learning_curve.png",
        "model.safetensors", "modeling_bert4rec.py", "run_facts.json", "tokenizer.json", "tokenizer_config.json",
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
    facts = RunFacts.load(trained)
    assert facts.protocol == "leave-one-out (every user's last item), ranked among all 12 items, history excluded"
    assert vars(facts.data) | {"sha256": None} == {
        "name": "log.csv", "interactions": 94, "users": 16, "items": 12, "sha256": None, "terms": None,
    }  # fmt: skip
    assert len(facts.data.sha256) == 64
    assert set(facts.results["test"]) == {"Popularity", "Markov chain, first order", "BERT4Rec"}
    assert parse_recipe([str(trained)]).model.hidden_size == 12


def test_the_card_holds_the_test_results_as_model_index(trained):
    facts = RunFacts.load(trained)
    card = ModelCard.load(trained / "README.md")
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert set(results) == {"hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10", "mrr@5", "mrr@10"}  # at 1 all are the same
    assert results == {name: round(facts.results["test"]["BERT4Rec"][name], 4) for name in results}
    assert all("history excluded" in result.dataset_name for result in card.data.eval_results)
    assert 'recommender([["i0", "i1"]], top_k=10)' in card.text
    assert f"{facts.results['test']['BERT4Rec']['ndcg@10']:.4f}" in card.text


def test_no_token_and_no_folder_of_this_machine_is_in_what_is_published(trained):
    assert "hf_never_publish_me" not in "".join(path.read_text(errors="replace") for path in trained.iterdir())
    card = (trained / "README.md").read_text()
    assert 'titles: "titles.csv"' in card
    assert str(trained.parents[1]) not in card


def test_evaluation_of_the_checkpoint_gives_the_same_figures_again(trained):
    facts = RunFacts.load(trained)
    (protocol, _), metrics, intervals = evaluate(parse_recipe([str(trained)]))
    assert protocol == facts.protocol
    assert intervals["test"] == pytest.approx(facts.intervals["test"]["BERT4Rec"], abs=1e-9)
    assert metrics["test"] == pytest.approx(facts.results["test"]["BERT4Rec"], abs=1e-9)
    assert metrics["validation"] == pytest.approx(facts.results["validation"]["BERT4Rec"], abs=1e-9)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_ranks_come_in_the_order_of_the_rows_whatever_their_lengths(trained, batch_size):
    recipe = parse_recipe([str(trained), f"--per_device_eval_batch_size={batch_size}", "--output_dir=unused"])
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    _, _, histories = prepare(recipe, tokenizer)
    rows = histories["test"]
    assert list(rows["length"]) != sorted(rows["length"])
    judge = evaluator(model, recipe, tokenizer, rows)
    one_by_one = [judge.predict(rows.select([place])).predictions[0] for place in range(rows.num_rows)]
    assert len(set(one_by_one)) > 3
    assert rank_rows(judge, rows).tolist() == one_by_one
    assert judge.args.train_sampling_strategy == "group_by_length"


def test_a_run_can_start_from_the_checkpoint_of_another_catalogue(trained, tmp_path, caplog):
    options = ["--start_from", str(trained), "--hidden_dropout_prob=0.1", "--conv_kernel_size=3"]
    options += ["--num_train_epochs=1", "--learning_rate=1e-9"]
    recipe = recipe_for(tmp_path, *options)
    (tmp_path / "log.csv").write_text(LOG.replace("i3,", "new,"))
    folder = run(recipe)
    assert "11 of 12 items keep what they had learnt elsewhere, 1 are new." in caplog.text
    old, new = (AutoModelForMaskedLM.from_pretrained(path) for path in (trained, folder))
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (trained, folder)]
    for item in ("i0", "i11"):
        before, after = (
            model.get_input_embeddings().weight[tokenizer.encode_items([item])[0]]
            for model, tokenizer in zip((old, new), tokenizers, strict=True)
        )
        torch.testing.assert_close(before, after, atol=1e-6, rtol=0)
    assert new.config.hidden_dropout_prob == 0.1
    assert "decides about the weights, not the recipe: conv_kernel_size None." in caplog.text
    assert RunFacts.load(folder).recipe["conv_kernel_size"] is None
    with pytest.raises(ValueError, match="is a bert4rec, the recipe's architecture sasrec"):
        run(recipe_for(tmp_path, *options, "--architecture=sasrec", f"--output_dir={tmp_path}/other"))


@pytest.mark.parametrize(("start", "base"), [("org/bert4rec-ml1m", "org/bert4rec-ml1m"), ("model", None), (None, None)])
def test_a_card_names_the_repository_that_the_model_started_from(trained, start, base):
    facts = RunFacts.load(trained)
    facts.recipe["start_from"] = str(trained) if start == "model" else start
    assert model_card(facts).data.base_model == base


def test_the_summary_names_its_protocol_and_shows_the_titles_of_the_example(trained):
    text = summary(trained)
    assert "ranked among all 12 items, history excluded; seed 42" in text
    assert "| BERT4Rec |" in text
    assert "| Popularity |" in text
    assert text.index("Zero") < text.index("Recommended")


def test_an_unknown_item_in_an_example_has_no_title(trained):
    assert "nothing" in recommendation_table(hf_bert4rec.pipeline(trained), ["nothing"], top_k=1)


def test_metrics_among_uniform_candidates_say_so_in_name_protocol_and_card(tmp_path):
    folder = run(recipe_for(tmp_path, "--uniform_candidates", "3", "--num_train_epochs", "1"))
    facts = RunFacts.load(folder)
    row = facts.results["test"]["BERT4Rec"]
    assert row["hr@5_uniform_sampled"] == 1  # of 3 candidates and the target
    assert not [name for name in row if "popularity" in name]
    assert "ranked among 3 items drawn for each user uniformly, history excluded" in facts.sampled_protocol
    card = (folder / "README.md").read_text()
    assert "uniformly" in card
    results = ModelCard.load(folder / "README.md").data.eval_results
    assert {result.dataset_config for result in results} == {"whole-catalogue", "uniform-sampled"}
    with pytest.raises(ValueError, match="popularity_candidates or uniform_candidates, found both"):
        evaluate(parse_recipe([str(folder), "--popularity_candidates=2"]))


def test_a_run_by_muon_is_judged_among_candidates_too_and_names_its_items(tmp_path):
    (tmp_path / "ids.tsv").write_text("item\tname\n" + "".join(f"i{i}\tfilm {i}\n" for i in range(12)))
    (tmp_path / "all.csv").write_text("item,title\n" + "".join(f"i{i},Title {i}\n" for i in range(12)))
    options = [
        "--item_ids",
        str(tmp_path / "ids.tsv"),
        "--titles",
        str(tmp_path / "all.csv"),
        "--popularity_candidates",
        "3",
        "--num_train_epochs",
        "1",
    ]
    folder = run(recipe_for(tmp_path, *options, "--rope_theta", "100", "--muon_learning_rate", "0.01"))
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
    sampled = [result for result in card.data.eval_results if "sampled" in result.metric_type]
    assert all(
        "ranked among 3 items drawn for each user by their popularity" in result.dataset_name for result in sampled
    )
    assert len(sampled) == 8
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.titles[tokenizer.items.to_pylist().index("film 1")] == "Title 1"


def test_titles_that_do_not_name_the_items_as_the_log_does_are_refused(tmp_path):
    (tmp_path / "ids.tsv").write_text("item\tname\n" + "".join(f"i{i}\tfilm {i}\n" for i in range(12)))
    with pytest.raises(ValueError, match="a title for each of the log's own ids, found none for 10, such as 'i10'"):
        run(recipe_for(tmp_path, "--item_ids", str(tmp_path / "ids.tsv")))


def test_a_split_at_a_point_in_time_trains_on_the_past_alone(tmp_path):
    options = ["--split", "at_time", "--validation_time", "4", "--test_time", "5", "--num_train_epochs", "1"]
    folder = run(recipe_for(tmp_path, *options))
    facts = RunFacts.load(folder)
    assert facts.protocol.startswith("first item of every user from 5 on")


def test_validation_folded_into_train_keeps_the_last_checkpoint(tmp_path):
    folder = run(recipe_for(tmp_path, "--validation_in_train", "true", "--num_train_epochs", "1"))
    facts = RunFacts.load(folder)
    assert "validation" not in facts.results
    assert facts.best_checkpoint == ""
    assert "validation items trained on" in facts.protocol


def interrupted(folder: Path, step: int):
    """A run that was stopped at a step, as by a kill after the last save."""
    recipe = recipe_for(folder, "--num_train_epochs", "2", "--per_device_train_batch_size", "8")
    train = Trainer.train

    def stop(self, *args, **kwargs):
        self.add_callback(StopAt(step))
        train(self, *args, **kwargs)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            run(recipe)
    return recipe_for(folder, "--num_train_epochs", "2", "--per_device_train_batch_size", "8")


def test_an_interrupted_run_goes_on_where_it_stopped_and_leaves_only_its_result(tmp_path):
    recipe = interrupted(tmp_path, 2)
    recipe.training.resume_from_checkpoint = "true"
    folder = run(recipe)
    facts = RunFacts.load(folder)
    assert [entry["step"] for entry in facts.log if "loss" in entry] == [2, 4]
    assert list((tmp_path / "out").glob("checkpoint-*")) == []


def test_a_finished_run_in_the_way_is_told_before_it_is_replaced(tmp_path, caplog):
    for _ in range(2):
        folder = run(recipe_for(tmp_path, "--num_train_epochs", "1"))
    said = [record for record in caplog.records if "will be replaced" in record.message]
    assert [record.message for record in said] == [
        f"{folder} is there already, and will be replaced at the end of this run."
    ]


def test_an_interrupted_run_is_not_written_over(tmp_path):
    with pytest.raises(ValueError, match="holds checkpoint-2 of an interrupted run"):
        run(interrupted(tmp_path, 2))


def test_resuming_on_changed_data_is_refused_because_items_would_be_renumbered(tmp_path):
    recipe = interrupted(tmp_path, 2)
    recipe.training.resume_from_checkpoint = "true"
    header, first, *rest = LOG.splitlines()
    (tmp_path / "log.csv").write_text("\n".join([header, *rest, first]))
    with pytest.raises(ValueError, match="items would be renumbered"):
        run(recipe)


@pytest.mark.parametrize("name", ["seed", "learning_rate", "weight_decay", "muon_learning_rate"])
def test_resuming_with_what_the_optimiser_would_overrule_is_refused(tmp_path, name):
    recipe = interrupted(tmp_path, 2)
    recipe.training.resume_from_checkpoint = "true"
    setattr(recipe.run if name == "muon_learning_rate" else recipe.training, name, 7)
    with pytest.raises(ValueError, match=rf"{name} was \S+ and is 7\. Go on as this run began"):
        run(recipe)


def test_resuming_with_another_model_is_refused_with_what_has_changed(tmp_path):
    recipe = interrupted(tmp_path, 2)
    recipe.training.resume_from_checkpoint = "true"
    recipe.model.hidden_size, recipe.masking.mask_probability = 32, 0.5
    with pytest.raises(ValueError, match=r"hidden_size was \d+ and is 32, mask_probability was 0.2 and is 0.5\."):
        run(recipe)


@pytest.mark.parametrize("wanted", ["true", "nowhere/checkpoint-1"])
def test_resuming_where_there_is_nothing_to_resume_is_refused(tmp_path, wanted):
    with pytest.raises(ValueError, match=r"Expected a complete checkpoint to resume in .*, found none"):
        run(recipe_for(tmp_path, "--resume_from_checkpoint", wanted))


def test_a_run_can_be_repeated_in_the_same_folder(tmp_path):
    first = run(recipe_for(tmp_path, "--num_train_epochs", "2"))
    weights = (first / "model.safetensors").read_bytes()
    assert (run(recipe_for(tmp_path, "--num_train_epochs", "2")) / "model.safetensors").read_bytes() == weights


def test_a_date_in_the_yaml_of_a_recipe_is_a_time(tmp_path):
    recipe_for(tmp_path)
    times = "split: at_time\nvalidation_time: 1970-01-01 00:00:04\ntest_time: 5\n"
    with (tmp_path / "recipe.yaml").open("a") as recipe:
        recipe.write(times + "num_train_epochs: 1\nexample: i1\n")
    folder = run(parse_recipe([str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "out")]))
    assert RunFacts.load(folder).recipe["example"] == ["i1"]


def test_a_checkpoint_without_facts_is_not_judged_on_data_that_nobody_named(tmp_path, model, tokenizer):
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="does not say which log it was trained on: name it with --data"):
        evaluate(parse_recipe([str(tmp_path / "bare")]))


def test_a_kill_between_the_renames_of_a_save_loses_nothing(tmp_path, model, tokenizer, trained):
    facts = RunFacts.load(trained)
    save_checkpoint(tmp_path / "model", model, tokenizer, facts, {})
    (tmp_path / "model").rename(tmp_path / "model.replaced")
    model.save_pretrained = full_disk
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "model", model, tokenizer, facts, {})
    assert (tmp_path / "model" / "model.safetensors").exists()


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_while_saving_leaves_the_older_checkpoint_whole(tmp_path, model, tokenizer, trained, monkeypatch):
    facts = RunFacts.load(trained)
    save_checkpoint(tmp_path / "model", model, tokenizer, facts, {})
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    monkeypatch.setattr(type(tokenizer), "save_pretrained", full_disk)
    torch.nn.init.zeros_(model.lm_head.bias)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "model", model, tokenizer, facts, {})
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_run_pushes_to_the_branch_it_was_told(tmp_path, hub):
    options = [
        "--push_to_hub",
        "true",
        "--hub_model_id",
        "org/mine",
        "--hub_revision",
        "dev",
        "--num_train_epochs",
        "1",
    ]
    with pytest.raises(FileNotFoundError, match="org/mine has no such revision"):
        run(recipe_for(tmp_path, *options))
    assert hub.repositories["org/mine"].files == {}


@pytest.mark.parametrize(
    ("options", "told", "best"),
    [
        ([], "was chosen by validation NDCG@10.", True),
        (["--metric_for_best_model", "eval_loss", "--greater_is_better", "false"], "chosen by validation loss.", True),
        (["--load_best_model_at_end", "false"], None, False),
    ],
)
def test_the_card_says_how_the_checkpoint_was_chosen(tmp_path, options, told, best):
    folder = run(recipe_for(tmp_path, "--num_train_epochs", "2", *options))
    card, facts = (folder / "README.md").read_text(), RunFacts.load(folder)
    assert ("chosen by" in card) is best
    assert bool(facts.best_checkpoint) is best
    assert told is None or told in card


def test_a_run_pushes_its_checkpoint_when_told_to(tmp_path, hub):
    options = ["--push_to_hub", "true", "--hub_model_id", "org/mine", "--hub_private_repo", "true"]
    folder = run(recipe_for(tmp_path, *options, "--num_train_epochs", "1"))
    there, here = hub.repositories["org/mine"].files, {path.name: path.read_bytes() for path in folder.iterdir()}
    for published in (there.pop("run_facts.json"), there["README.md"]):
        assert str(tmp_path).encode() not in published
    assert str(tmp_path).encode() in here.pop("run_facts.json")  # to be evaluated here
    assert there == here
    assert hub.repositories["org/mine"].private


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
    assert "usage: " in finished.stdout


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


def test_a_mistake_of_the_user_is_told_by_a_script_in_one_sentence(tmp_path):
    command = [sys.executable, str(SCRIPTS / "recommend.py"), str(tmp_path), "--history", "1"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 1
    assert finished.stderr.startswith("hf-bert4rec recommend: error:")
    assert "no config.json" in finished.stderr


def test_an_evaluator_of_another_catalogue_is_refused(tmp_path, model):
    recipe = recipe_for(tmp_path)
    _, tokenizer, histories = prepare(recipe)
    with pytest.raises(ValueError, match="they belong to different catalogues"):
        evaluator(model, recipe, tokenizer, histories["test"])


def test_rows_of_ones_own_need_no_lengths(tmp_path):
    recipe = recipe_for(tmp_path)
    interactions, tokenizer, histories = prepare(recipe)
    popularity = Popularity(whole_histories(recipe, interactions, tokenizer), len(tokenizer))
    judge = evaluator(popularity, recipe, tokenizer, histories["test"])
    expected = rank_rows(judge, histories["test"])
    assert (rank_rows(judge, histories["test"].remove_columns("length")) == expected).all()


def test_without_a_bar_an_evaluation_is_one_line(tmp_path, capsys):
    run(recipe_for(tmp_path, "--num_train_epochs=2", "--disable_tqdm=true"))
    lines = capsys.readouterr().out.splitlines()
    assert [line[:13] for line in lines if "NDCG@10" in line] == ["epoch   1.0  ", "epoch   2.0  "]
    assert not [line for line in lines if "eval_" in line]
