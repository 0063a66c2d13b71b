"""Continuing a checkpoint with new interactions: what is trained on, what is refused, and which model is kept."""

import dataclasses
import json
import shutil

import pandas as pd
import pytest
from transformers import AutoTokenizer

from hf_bert4rec import item_tokenizer, load_interactions, remove_items
from hf_bert4rec.cli import run
from hf_bert4rec.cli.main import main
from hf_bert4rec.cli.prepare import prepare, validation_histories
from hf_bert4rec.cli.recipe import parse_recipe
from hf_bert4rec.data.histories import target_items
from hf_bert4rec.data.splits import new_interactions
from hf_bert4rec.hub.run_facts import RunFacts

SMALL = ["--hidden_size", "8", "--num_attention_heads", "2", "--intermediate_size", "16", "--max_length", "6"]
QUIET = ["--disable_tqdm", "true", "--use_cpu", "true"]


def write_log(file, users, times, items):
    """Each user has all the items in turn, beginning with another one."""
    rows = [(user, items[(user + place) % len(items)], time) for user in users for place, time in enumerate(times)]
    pd.DataFrame(rows, columns=["user", "item", "timestamp"]).to_csv(file, index=False)
    return str(file)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("continue")
    old = write_log(folder / "old.csv", range(12), range(100, 108), [f"i{number}" for number in range(12)])
    (folder / "titles.csv").write_text("item,title\n" + "".join(f"i{number},Title {number}\n" for number in range(12)))
    args = ["--data", old, "--titles", str(folder / "titles.csv"), "--output_dir", str(folder / "first")]
    main(["train", *args, "--num_train_epochs", "1", "--learning_rate", "0.004", *SMALL, *QUIET])
    return folder


def continue_training(first, *options, data=None, output="second"):
    new = data or write_log(first / "new.csv", range(8, 14), range(200, 203), ["i1", "n1", "i2", "n2"])
    parent, history = str(first / "first" / "model"), str(first / "old.csv")
    args = ["--continue_from", parent, "--data", new, "--history", history, "--output_dir", str(first / output)]
    main(["train", *args, *QUIET, *options])
    return first / output


def test_new_rows_are_trained_on_with_a_sample_of_old_ones():
    rows = [("a", 1, 10), ("a", 2, 20), ("a", 3, 30), ("b", 1, 11), ("b", 2, 21), ("c", 3, 31), ("c", 1, 32)]
    log = load_interactions(pd.DataFrame(rows, columns=["user", "item", "timestamp"]))
    tokenizer = item_tokenizer(log, max_length=4)
    histories = new_interactions(log, tokenizer, since=30, held_out=0.5, replay=9, prefixes=True)
    assert histories["validation"].num_rows == 1  # of a and c, who have new interactions
    (target,) = histories["validation"]["user"]
    trained = list(zip(histories["train"]["user"], map(len, histories["train"]["input_ids"]), strict=True))
    assert trained == ([("a", 2), ("b", 2), ("c", 2)] if target == "a" else [("a", 3), ("a", 2), ("b", 2), ("c", 1)])
    new = new_interactions(log, tokenizer, since=30, held_out=0.5, replay=0, prefixes=True)["train"]
    assert all(max(times) >= 30 for times in new["timestamps"])
    with pytest.raises(ValueError, match=r"The log runs from 10 to 32, but `since` is 99\. Pass a time"):
        new_interactions(log, tokenizer, since=99)
    with pytest.raises(ValueError, match="`held_out` must be above 0 and below 1"):
        new_interactions(log, tokenizer, held_out=0)


def test_items_keep_their_rows_and_facts_name_the_parent(first, caplog):
    caplog.set_level("INFO")
    folder = continue_training(first, "--tolerance", "1", output="kept") / "model"
    old, new = (AutoTokenizer.from_pretrained(it) for it in (first / "first" / "model", folder))
    assert new.items[: len(old.items)].equals(old.items)
    assert set(new.items.to_pylist()) - set(old.items.to_pylist()) == {"n1", "n2"}
    assert new.titles[0] == old.titles[0]
    assert "New items: 2. Vectors from features: 0." in caplog.text
    assert "New items whose vectors start from items of the same users: 2 of 2." in caplog.text
    assert "mean of all items" not in caplog.text
    facts = RunFacts.load(folder)
    assert facts.recipe["start_from"] == str(first / "first" / "model")
    assert facts.recipe["learning_rate"] == 0.004  # that of the first training
    assert facts.recipe["hidden_size"] == 8
    new = write_log(first / "next.csv", range(8, 14), range(300, 303), ["i1", "n1", "i2", "n2"])
    args = ["--data", new, "--output_dir", str(first / "next"), "--tolerance", "1", *QUIET]
    main(["train", "--continue_from", str(folder), *args])
    recipe = RunFacts.load(first / "next" / "model").recipe
    assert (recipe["learning_rate"], recipe["since"]) == (0.004, 300)
    assert facts.data.last_time == 202
    assert facts.data.name == "old.csv-and-new.csv"
    main(["evaluate", str(folder)])  # reads both logs again
    main(["recommend", str(folder), "--history", "i1", "n1"])


def test_removed_items_in_the_new_log_are_reported(first, tmp_path, caplog):
    folder = shutil.copytree(first / "first" / "model", tmp_path / "parent")
    remove_items(folder, ["i1", "i5"])
    new = write_log(tmp_path / "new.csv", range(8, 14), range(200, 203), ["i1", "n1", "i2", "n2"])
    args = ["--data", new, "--history", str(first / "old.csv"), "--output_dir", str(tmp_path / "out")]
    main(["train", "--continue_from", str(folder), "--tolerance", "1", *args, *QUIET])
    assert f"{new}: the items of 4 of 18 interactions were removed. Histories keep them, but" in caplog.text
    card = (tmp_path / "out/model/README.md").read_text()
    assert "Removed items at the time of the training: 2. The results rank these items" in card
    assert "It started from another model, whose own training is not" in card


def test_an_old_log_that_ends_in_the_future_is_named(first, tmp_path):
    old = pd.read_csv(first / "old.csv").assign(timestamp=lambda log: log["timestamp"] + 1_500_000_000)
    old.loc[len(old)] = [0, "i1", 4102358400]
    old.to_csv(tmp_path / "old.csv", index=False)
    times = range(1_600_000_000, 1_600_000_003)
    new = write_log(tmp_path / "new.csv", range(8, 14), times, ["i1", "n1", "i2", "n2"])
    args = ["train", "--continue_from", str(first / "first" / "model"), "--data", new]
    with pytest.raises(SystemExit, match=r"in the future\. Fix the dates in .*old\.csv, or pass `--allow_"):
        main([*args, "--history", str(tmp_path / "old.csv"), "--output_dir", str(tmp_path / "out"), *QUIET])
    folder = shutil.copytree(first / "first" / "model", tmp_path / "parent")
    facts = RunFacts.load(folder)
    dataclasses.replace(facts, data=dataclasses.replace(facts.data, last_time=4102358400)).save(folder)
    with pytest.raises(SystemExit, match=r"in the future\. Train .*parent again with corrected dates, or pass"):
        main(["train", "--continue_from", str(folder), "--data", new, "--output_dir", str(tmp_path / "out"), *QUIET])


def test_a_worse_model_does_not_replace_the_old_one(first, capsys, caplog):
    with pytest.raises(SystemExit) as error:
        continue_training(first, "--tolerance", "-1", output="worse")
    assert f"was not replaced. The new model is in {first / 'worse' / 'rejected'}" in str(error.value.code)  # status 1
    assert (first / "worse" / "rejected" / "model.safetensors").exists()
    assert not (first / "worse" / "model").exists()
    assert "Validation: " in capsys.readouterr().out
    text = "Held-out users: 1. With fewer than 100, chance decides which checkpoint or model is better. Increase `--"
    assert text in caplog.text


def test_the_old_model_is_scored_as_it_is_used_without_new_items(first, tmp_path, caplog):
    caplog.set_level("INFO")
    rows = [(user, item, 200 + time) for user in range(20, 32) for time, item in enumerate(["i1", "n1"])]
    pd.DataFrame(rows, columns=["user", "item", "timestamp"]).to_csv(tmp_path / "new.csv", index=False)
    continue_training(first, "--held_out", "0.5", data=str(tmp_path / "new.csv"), output="scored")
    assert "Validation NDCG@10 (held-out users: 6): old model 0.0000, " in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--architecture", "sasrec"], "is a bert4rec model, but `--architecture` is sasrec"),
        (["--tolerance", "x"], "tolerance"),
        (["--tolerance", "nan"], "`tolerance` must be a number, found nan"),
    ],
)
def test_what_cannot_be_continued(first, options, message):
    with pytest.raises(SystemExit, match=message):
        continue_training(first, *options, output="refused")


def test_data_that_do_not_fit_the_checkpoint_are_errors(first, tmp_path):
    with pytest.raises(
        SystemExit, match=r"begins at 50, but .*old.csv ends at 107\. Remove interactions that are in both"
    ):
        continue_training(first, data=write_log(tmp_path / "early.csv", range(4), range(50, 53), ["i1", "i2"]))
    with pytest.raises(
        SystemExit, match=r"none of its item IDs, such as 'x', is in .* pass `--titles`, and `--start_from` with "
    ):
        continue_training(first, data=write_log(tmp_path / "other.csv", range(4), range(200, 203), ["x", "y"]))
    future = write_log(tmp_path / "future.csv", range(4), range(4_000_000_000, 4_000_000_003), ["i1", "i2"])
    message = r"future.csv begins at 4000000000 \(2096-10-02 07:06 UTC\), which is in the future\. Fix its dates"
    with pytest.raises(SystemExit, match=message):
        continue_training(first, data=future)
    (tmp_path / "titles.csv").write_text("item,title\ni1,Title 7\ni2,Title 8\n")
    with pytest.raises(
        SystemExit, match=r"2 of 2 items have another title than in .*If only the titles have changed, omit `--titles`"
    ):
        continue_training(first, "--titles", str(tmp_path / "titles.csv"))
    early = write_log(tmp_path / "early.csv", range(4), range(50, 53), ["i1", "i2"])
    continue_training(first, "--allow_earlier", "true", "--tolerance", "1", data=early, output="early")
    millis = write_log(tmp_path / "millis.csv", range(4), [1_700_000_000_000 + time for time in range(3)], ["i1", "i2"])
    seconds = write_log(tmp_path / "seconds.csv", range(4), [1_600_000_000 + time for time in range(3)], ["i1", "i2"])
    with pytest.raises(SystemExit, match=r"if these are milliseconds.*Convert the times of both logs to the same unit"):
        continue_training(first, "--history", seconds, data=millis)


def test_other_users_and_many_new_items_are_reported(first, tmp_path, caplog):
    new = write_log(tmp_path / "new.csv", range(90, 94), range(200, 203), ["i1", "I2", "I3", "I4"])
    continue_training(first, "--tolerance", "1", data=new, output="doubtful")
    assert "new.csv, such as '90', is in " in caplog.text
    assert "new.csv: 9 of 12 interactions have items that " in caplog.text


@pytest.mark.parametrize(
    ("masks", "prefixes"),
    [
        ({"last_item_probability": 1.0}, True),
        ({"last_item_probability": 0.9}, True),
        ({"last_item_probability": 0.4, "max_predictions": 1}, True),
        ({"last_item_probability": 0.1}, False),
    ],
)
def test_a_model_that_was_trained_in_python_is_continued_with_the_same_kind_of_rows(
    first, tmp_path, caplog, masks, prefixes
):
    shutil.copytree(first / "first" / "model", tmp_path / "python")
    facts = RunFacts.load(tmp_path / "python")
    recipe = {"architecture": "bert4rec", **masks}
    dataclasses.replace(facts, recipe=recipe, reproducible=False).save(tmp_path / "python")
    output = ["--output_dir", str(tmp_path / "second"), "--tolerance", "1", *QUIET]
    new = write_log(tmp_path / "new.csv", range(8, 14), range(200, 203), ["i1", "n1", "i2", "n2"])
    main(["train", "--continue_from", str(tmp_path / "python"), "--data", new, *output])
    assert f"run facts lack `--prefixes`. The default is `--prefixes {str(prefixes).lower()}`." in caplog.text
    assert RunFacts.load(tmp_path / "second" / "model").recipe["prefixes"] is prefixes


@pytest.mark.parametrize("value", ["high", None, [1]])
def test_a_mask_of_a_damaged_record_is_named(first, tmp_path, value):
    shutil.copytree(first / "first" / "model", tmp_path / "python")
    facts = RunFacts.load(tmp_path / "python")
    recipe = {"architecture": "bert4rec", "last_item_probability": value}
    dataclasses.replace(facts, recipe=recipe, reproducible=False).save(tmp_path / "python")
    with pytest.raises(SystemExit, match=r"python: `last_item_probability` must be"):
        main(["train", "--continue_from", str(tmp_path / "python"), "--data", "new.csv"])


def test_features_of_a_continued_checkpoint(first, tmp_path, caplog):
    kinds = "".join(f"i{number},{'even' if number % 2 == 0 else 'odd'}\n" for number in range(12))
    (tmp_path / "features.csv").write_text("item,kind\n" + kinds)
    (tmp_path / "new.csv").write_text("item,kind\nn1,odd\nn2,even\nn3,odd\n")
    (tmp_path / "other.csv").write_text("item,brand\nn1,x\nn2,x\n")
    message = "was trained without features of items. Omit `--item_features`"
    with pytest.raises(SystemExit, match=message):
        continue_training(first, "--item_features", str(tmp_path / "new.csv"))
    args = ["--data", str(first / "old.csv"), "--item_features", str(tmp_path / "features.csv"), *SMALL, *QUIET]
    main(["train", *args, "--num_train_epochs", "1", "--output_dir", str(tmp_path / "first")])
    new = write_log(tmp_path / "today.csv", range(8, 14), range(200, 203), ["i1", "n1", "i2", "n2"])
    more = ["--data", new, "--history", str(first / "old.csv"), "--tolerance", "1", *QUIET]
    parent = str(tmp_path / "first" / "model")
    with pytest.raises(SystemExit, match="expected a column 'kind', as in the training, whose features are kind"):
        main(["train", "--continue_from", parent, *more, "--item_features", str(tmp_path / "other.csv")])
    output = ["--output_dir", str(tmp_path / "second"), "--item_features", str(tmp_path / "new.csv")]
    main(["train", "--continue_from", parent, *more, *output])
    cold = "1 of 3 items, such as 'n3', are neither in"
    assert [record.levelname for record in caplog.records if cold in record.getMessage()] == ["INFO"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "second" / "model")
    assert tokenizer.features.items.to_pylist() == [*(f"i{number}" for number in range(12)), "n1", "n2", "n3"]
    assert tokenizer.items.to_pylist()[12:] == ["n1", "n2", "n3"]  # n3 has no interactions yet
    assert (tmp_path / "second" / "model" / "item_features.safetensors").exists()
    assert "new items start without features" not in caplog.text
    main(["train", "--continue_from", parent, *more, "--output_dir", str(tmp_path / "third")])
    assert "Without `--item_features`, new items start without features." in caplog.text
    (tmp_path / "mistaken.csv").write_text("item,kind\n1,odd\n2,even\n")
    mistaken = ["--output_dir", str(tmp_path / "fourth"), "--item_features", str(tmp_path / "mistaken.csv")]
    main(["train", "--continue_from", parent, *more, *mistaken])
    found = [it for it in caplog.records if "2 of 2 items, such as '1', are neither in" in it.getMessage()]
    assert [record.levelname for record in found] == ["WARNING"]
    assert "If they are not new, check their IDs." in found[0].getMessage()


def test_a_continued_model_with_transitions_is_continued_from_a_time_and_evaluated_without_a_warning(
    first, tmp_path, caplog
):
    model = [*SMALL, "--num_followers", "5", "--num_train_epochs", "1", "--output_dir", str(tmp_path / "first")]
    main(["train", "--data", str(first / "old.csv"), *model, *QUIET])
    new = write_log(tmp_path / "new.csv", range(8, 14), range(200, 203), ["i1", "n1", "i2", "n2"])
    words = ["--data", new, "--history", str(first / "old.csv"), "--since", "200", "--tolerance", "1", *QUIET]
    parent, second = str(tmp_path / "first" / "model"), str(tmp_path / "second")
    main(["train", "--continue_from", parent, *words, "--output_dir", second])
    caplog.clear()
    main(["evaluate", f"{second}/model"])
    assert "the results are too high" not in caplog.text


@pytest.mark.parametrize(("after", "kept"), [(0.2990, True), (0.2975, False)])
def test_the_tolerance_is_a_fall_of_the_score(first, monkeypatch, after, kept):
    scores = iter([0.3, after])
    monkeypatch.setattr(run, "_validation_score", lambda *args: next(scores))
    output = f"tolerance-{after}"
    if kept:
        continue_training(first, output=output)
    else:
        with pytest.raises(SystemExit, match="was not replaced"):
            continue_training(first, output=output)
    assert (first / output / ("model" if kept else "rejected") / "model.safetensors").exists()


def test_options_that_contradict_each_other(first):
    parent = str(first / "first" / "model")
    with pytest.raises(SystemExit, match=r"or `--continue_from`, not both\. Found `start_from` in the command"):
        continue_training(first, "--start_from", parent)
    with pytest.raises(SystemExit, match=r"`--max_length` must be 6, as in .*, found 9"):
        continue_training(first, "--max_length", "9")
    with pytest.raises(SystemExit, match=r"needs a split with validation .*, found `--split train_on_all`\. Omit"):
        continue_training(first, "--split", "train_on_all")
    with pytest.raises(SystemExit, match="`--history` needs `--continue_from`"):
        main(["train", "--data", str(first / "old.csv"), "--history", str(first / "old.csv")])


def test_a_downloaded_checkpoint_does_not_choose_what_is_imported(first, tmp_path, monkeypatch):
    shutil.copytree(first / "first" / "model", tmp_path / "model")
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    facts = json.loads((tmp_path / "model" / "run_facts.json").read_text())
    facts["recipe"]["architecture"] = "evil:Config"
    (tmp_path / "model" / "run_facts.json").write_text(json.dumps(facts))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="would import evil:Config"):
        main(["train", "--continue_from", "model", "--data", str(first / "old.csv")])


def test_both_models_are_evaluated_on_the_same_users_and_targets_if_the_log_is_filtered(first):
    items = ["i1", "n1", "i2", "n2"]
    rows = [(user, items[(user // 4 + n) % 4], 200 + n) for user in range(30, 60) for n in range(1 + user % 4)]
    rows += [(user, f"rare{user}", 300) for user in range(30, 40)]
    pd.DataFrame(rows, columns=["user", "item", "timestamp"]).to_csv(first / "filtered.csv", index=False)
    parent = str(first / "first" / "model")
    words = ["--continue_from", parent, "--data", str(first / "filtered.csv"), "--history", str(first / "old.csv")]
    filters = ["--min_user_interactions", "2", "--min_item_interactions", "2", "--held_out", "0.5"]
    recipe, interactions, tokenizer, histories = prepare(parse_recipe([*words, *filters, *QUIET]))
    old_tokenizer = AutoTokenizer.from_pretrained(parent)
    new, old = histories["validation"], validation_histories(recipe, interactions, old_tokenizer)
    assert interactions.num_rows < len(rows) + 12 * 8  # the filters have dropped rows
    assert len(new) == 12
    assert list(new["user"]) == list(old["user"])
    known = {*old_tokenizer.items.to_pylist()}
    targets, same = (it.convert_ids_to_tokens(target_items(rows).tolist()) for it, rows in
                     ((tokenizer, new), (old_tokenizer, old)))  # fmt: skip
    assert {*targets} - known == {"n1", "n2"}
    assert same == [item if item in known else "[UNK]" for item in targets]
    for its, other in zip(new["history"], old["history"], strict=True):
        kept = [item for item in tokenizer.convert_ids_to_tokens(its) if item in known]
        assert old_tokenizer.convert_ids_to_tokens(other) == kept
