"""RecommendationTrainer: checks, training, resumption, cards and uploads."""

import itertools
import json
import re
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainerCallback, TrainingArguments

import hf_bert4rec
from hf_bert4rec import (
    Bert4RecForMaskedLM,
    ClozeCallback,
    RecommendationTrainer,
    RecommendationTrainingArguments,
    ResourceCallback,
    SasRecConfig,
    SasRecForMaskedLM,
    cloze_training,
    item_tokenizer,
    leave_one_out,
    muon,
    next_item_training,
    remove_items,
    uniform_candidates,
)
from hf_bert4rec.cli.recipe import parse_recipe
from hf_bert4rec.cli.run import run
from hf_bert4rec.hub.checkpoint import check_checkpoint
from hf_bert4rec.hub.push import HANDLER
from hf_bert4rec.hub.run_facts import RunFacts
from hf_bert4rec.training.callbacks import EarlyStopping
from hf_bert4rec.training.optimizer import MuonAdamW
from tests.conftest import small_config
from tests.hub.test_push import CODE
from tests.hub_server import OWNER, TOKEN
from tests.training.test_training import StopAt
from tests.training.trainers import make_trainer

SAVED = {"README.md", "config.json", "model.safetensors", "run_facts.json", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def trained(cyclic_histories, tmp_path):
    trainer = make_trainer(cyclic_histories, tmp_path / "bert4rec-mine")
    trainer.train()
    trainer.evaluate(cyclic_histories[0]["test"])  # has the names of validation in the log
    return trainer


@pytest.mark.parametrize("rate", [None, 1e-2])
def test_it_trains_as_the_stock_trainer_does(cyclic_histories, tmp_path, rate):
    setup = muon(RecommendationTrainingArguments(str(tmp_path)), rate) if rate else {}
    stock = make_trainer(cyclic_histories, tmp_path / "stock", Trainer, setup)
    stock.train()
    same = {"early_stopping_patience": None}  # which adds an evaluation, and that draws a random number
    ours = make_trainer(cyclic_histories, tmp_path / "ours", muon_learning_rate=rate, **same)
    ours.train()
    pairs = zip(stock.model.parameters(), ours.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_it_evaluates_the_initial_model_then_after_a_third_of_an_epoch_and_after_each(cyclic_histories, tmp_path):
    trainer = make_trainer(cyclic_histories, tmp_path, per_device_train_batch_size=1, early_stopping_patience=5)
    initial, evaluated = {name: it.clone() for name, it in trainer.model.state_dict().items()}, []

    class Compare(TrainerCallback):
        def on_evaluate(self, args, state, control, model=None, **kwargs):
            evaluated.append(all(torch.equal(it, initial[name]) for name, it in model.state_dict().items()))

    trainer.add_callback(Compare)
    trainer.train()
    steps = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry or "eval_ndcg@10" in entry]
    epoch = trainer.state.max_steps // 3
    assert steps == [1, epoch // 3, epoch, 2 * epoch, 3 * epoch]
    assert evaluated == [True, False, False, False, False]


def test_an_interrupted_training_leaves_nothing_behind(cyclic_histories, tmp_path):
    class Interrupt(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise KeyboardInterrupt

    before = torch.backends.cuda.cudnn_sdp_enabled()
    trainer = make_trainer(cyclic_histories, tmp_path)
    trainer.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert torch.backends.cuda.cudnn_sdp_enabled() is before
    assert trainer.data_collator.epoch is None


def test_it_saves_a_checkpoint_with_a_card_and_without_pickles(trained, tmp_path):
    for folder in (tmp_path / "bert4rec-mine", tmp_path / "elsewhere"):
        trained.save_model(str(folder) if folder.name == "elsewhere" else None)
        assert {path.name for path in folder.iterdir() if path.is_file()} == SAVED | CODE
        check_checkpoint(folder)
    assert not list((tmp_path / "bert4rec-mine").glob("checkpoint-*/training_args.bin"))


def test_training_goes_on_from_what_it_saves(cyclic_histories, tmp_path, trained):
    longer = make_trainer(cyclic_histories, tmp_path / "bert4rec-mine")
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == trained.state.global_step


def test_the_card_contains_what_the_trainer_knows(trained, tmp_path):
    trained.save_model()
    card = ModelCard.load(tmp_path / "bert4rec-mine" / "README.md")
    facts = RunFacts.load(tmp_path / "bert4rec-mine")
    best = next(
        entry
        for entry in trained.state.log_history
        if entry["step"] == trained.state.best_global_step and "eval_ndcg@10" in entry
    )
    assert facts.results["validation"]["BERT4Rec"]["ndcg@10"] == best["eval_ndcg@10"] == trained.state.best_metric
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert set(results) == {"hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10", "mrr@5", "mrr@10"}
    assert results == {name: round(best[f"eval_{name}"], 4) for name in results}
    assert {result.dataset_split for result in card.data.eval_results} == {"validation"}
    assert "The checkpoint was chosen on this split, so they are too optimistic." in card.text
    assert f"12 items, history excluded. Number of targets: {len(trained.eval_dataset)}." in card.text
    assert f"Training took {facts.seconds:.1f} s with 1 process of " in card.text
    assert 'recommender([["i0", "i1", "i2"]], top_k=10)' in card.text
    assert "The terms of the training data are not recorded." in card.text
    assert "learning_curve.png" not in card.text


def test_an_evaluation_named_test_gives_the_test_results_of_the_card(trained, cyclic_histories, tmp_path, caplog):
    rows = cyclic_histories[0]["test"].select(range(20))
    measured = trained.evaluate(rows, metric_key_prefix="test")
    trained.save_model()
    facts = RunFacts.load(tmp_path / "bert4rec-mine")
    assert facts.results["test"]["BERT4Rec"]["ndcg@10"] == measured["test_ndcg@10"]
    assert facts.evaluated == {"validation": len(trained.eval_dataset), "test": 20}
    card = ModelCard.load(tmp_path / "bert4rec-mine" / "README.md")
    assert {result.dataset_split for result in card.data.eval_results} == {"test"}
    assert "Number of targets: 20." in card.text
    assert "early stopping" not in caplog.text
    candidates = uniform_candidates(rows, len(trained.processing_class), 3)
    trained.evaluate(candidates, None, "test")
    trained.create_model_card()
    assert "Protocol: None" not in (tmp_path / "bert4rec-mine" / "README.md").read_text()

    class Evaluate(TrainerCallback):
        def on_epoch_end(self, *args, **kwargs):
            trained.evaluate(rows, metric_key_prefix="test")

    trained.add_callback(Evaluate())
    trained.train()
    assert set(trained.run_facts().results) == {"validation"}  # the evaluated models are not the final one


def test_without_a_best_checkpoint_the_last_validation_before_the_end_counts(cyclic_histories, tmp_path):
    trainer = make_trainer(cyclic_histories, tmp_path / "last", load_best_model_at_end=False)
    trainer.train()
    trainer.evaluate(cyclic_histories[0]["test"])
    last = [entry for entry in trainer.state.log_history if "eval_ndcg@10" in entry][-2]
    assert trainer.run_facts().results["validation"]["BERT4Rec"]["ndcg@10"] == last["eval_ndcg@10"]
    assert trainer.run_facts().best_checkpoint == ""


def test_the_card_of_an_untrained_model_has_no_results(cyclic_histories, tmp_path):
    trainer = make_trainer(cyclic_histories, tmp_path / "new")
    trainer.model.config.exclude_history = False
    trainer.save_model()
    card = ModelCard.load(tmp_path / "new" / "README.md")
    assert card.data.eval_results is None
    assert "No results were recorded." in card.text
    assert trainer.run_facts().protocol.endswith("history not excluded")


def test_metrics_of_other_functions_are_not_recorded(trained):
    trained.preprocess_logits_for_metrics = None
    assert "validation" not in trained.run_facts().results


def test_it_pushes_a_checkpoint_in_one_commit_that_loads_and_has_a_valid_card(trained, hub, tmp_path):
    for name in ("optimizer.pt", "notes.txt"):
        (tmp_path / "bert4rec-mine" / name).write_bytes(b"private")
    address = trained.push_to_hub(license="mit", tags="films", dataset="my log")
    name = f"{OWNER}/bert4rec-mine"
    assert address.startswith(f"{hub.url}/{name}/commit/")
    assert hub.repositories[name].messages == ["initial commit", "End of training"]
    assert set(hub.repositories[name].files) == SAVED | CODE | set(HANDLER)
    assert len(hf_bert4rec.pipeline(name)([["i1"]], top_k=3)[0]) == 3
    assert "POST /api/validate-yaml" in hub.requests
    card = ModelCard.load(name)
    assert card.data.license == "mit"
    assert card.data.tags == ["bert4rec", "recommender-system", "sequential-recommendation", "films"]
    assert card.data.eval_results[0].dataset_type == "my log"


def test_a_push_keeps_the_card_of_the_user(trained, hub, tmp_path):
    trained.save_model()
    card = tmp_path / "bert4rec-mine" / "README.md"
    card.write_text(card.read_text() + "One more line.\n")
    trained.push_to_hub()
    assert hub.repositories[f"{OWNER}/bert4rec-mine"].files["README.md"].endswith(b"One more line.\n")


def test_predictions_come_in_the_order_of_the_rows(trained, cyclic_histories):
    rows = cyclic_histories[0]["test"]
    assert list(rows["length"]) != sorted(rows["length"], reverse=True)
    one_by_one = [trained.predict(rows.select([place])).predictions[0] for place in range(rows.num_rows)]
    assert len(set(one_by_one)) > 3
    assert trained.predict(rows).predictions.tolist() == one_by_one
    assert trained.args.train_sampling_strategy == "group_by_length"


def test_masks_depend_on_the_seed_of_the_arguments(cyclic_histories, tmp_path):
    found = []
    for seed in (1, 1, 2):
        seen: list = []

        class Record(TrainerCallback):
            """Record the masks of the first rows in the first epoch."""

            def on_epoch_begin(self, args, state, control, seen=seen, **kwargs):
                rows = cyclic_histories[0]["train"].select(range(4))
                seen.append(kwargs["train_dataloader"].collate_fn([*rows])["labels"])

        trainer = make_trainer(cyclic_histories, tmp_path / str(len(found)), max_steps=1, eval_strategy="no",
                               load_best_model_at_end=False, seed=seed, setup={"callbacks": [Record()]})  # fmt: skip
        trainer.train()
        found.append(seen[0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_card_contains_all_arguments_of_create_model_card(trained, tmp_path):
    trained.model.add_model_tags("of-the-model")
    trained.create_model_card(
        language="en", license="mit", tags="films", model_name="Named", finetuned_from="org/older", tasks=["next-item"],
        dataset_tags="org/data", dataset=["log", "other log"], dataset_args="2026",
    )  # fmt: skip
    written = ModelCard.load(tmp_path / "bert4rec-mine" / "README.md")
    trained.save_model()  # a later card says the same
    for card in (written, ModelCard.load(tmp_path / "bert4rec-mine" / "README.md")):
        data = card.data
        assert (data.language, data.license, data.base_model, data.datasets) == ("en", "mit", "org/older", ["org/data"])
        assert data.tags[3:] == ["films", "next-item", "of-the-model"]
        assert data.eval_results[0].dataset_type == "log other log 2026"
        assert "\n# Named\n" in card.content


def test_a_card_of_the_user_is_kept_until_create_model_card_replaces_it(trained, tmp_path, caplog):
    card = tmp_path / "bert4rec-mine" / "README.md"
    card.write_text("# By hand\n")
    trained.save_model()
    assert card.read_text() == "# By hand\n"
    kept = "was edited or not written by this package, so it is kept. `trainer.create_model_card()` replaces it."
    assert caplog.messages == [f"{card} {kept}"]
    trained.create_model_card()
    written = card.read_text()
    assert "# bert4rec-mine" in written
    trained.state.log_history = []
    trained.save_model()  # this one is its own
    assert card.read_text() != written
    remove_items(card.parent, trained.processing_class.items[:1])
    assert "## Items changed after the training" in card.read_text()
    trained.save_model()  # all items may be recommended again
    assert "## Items changed after the training" not in card.read_text()
    card.write_text(written + "One more line.\n")
    for _ in range(2):
        trained.save_model()
        assert card.read_text().endswith("One more line.\n")


def test_the_token_and_the_branch_of_a_push_are_those_passed(trained, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    begun = []
    trained.add_callback(type("Begin", (TrainerCallback,), {"on_push_begin": lambda *_, **__: begun.append(1)}))
    commit = trained.push_to_hub(token=TOKEN)
    assert commit.commit_url == str(commit)
    with pytest.raises(FileNotFoundError, match="bert4rec-mine: found no such revision"):
        trained.push_to_hub(token=TOKEN, revision="dev")
    assert len(begun) == 2


def test_push_to_hub_while_training_uploads_the_model_once_it_is_saved(cyclic_histories, hub, tmp_path):
    name = f"{OWNER}/named"
    trainer = make_trainer(
        cyclic_histories, tmp_path / "out", push_to_hub=True, hub_model_id=name, hub_private_repo=True
    )
    trainer.train()
    assert hub.repositories[name].files == {}
    trainer.save_model()
    assert hub.repositories[name].private
    assert set(hub.repositories[name].files) == SAVED | CODE | set(HANDLER)
    assert load_file(tmp_path / "out" / "model.safetensors").keys()
    assert hub.repositories[name].files["README.md"] == (tmp_path / "out" / "README.md").read_bytes()


def test_an_unreachable_hub_raises_before_training(cyclic_histories, hub, tmp_path):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ConnectionError, match="org/named: the connection to the Hub failed"):
        make_trainer(cyclic_histories, tmp_path / "out", push_to_hub=True, hub_model_id=f"{OWNER}/named")


def test_other_hub_strategies_raise_because_they_upload_pickles(tmp_path):
    with pytest.raises(ValueError, match="`hub_strategy` must be 'end'"):
        RecommendationTrainingArguments(str(tmp_path), push_to_hub=True, hub_strategy="checkpoint")


def test_a_missing_tokenizer_raises_at_construction(cyclic_histories, tmp_path):
    for value, found in ((None, "NoneType"), (object(), "object")):
        with pytest.raises(ValueError, match=f"needs an `ItemTokenizer` as `processing_class`, found {found}"):
            make_trainer(cyclic_histories, tmp_path / "out", setup={"processing_class": value})


def test_a_model_of_another_package_raises_at_construction(cyclic_histories, tmp_path):
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    with pytest.raises(ValueError, match="configuration of a model of hf_bert4rec, found BertConfig"):
        make_trainer(cyclic_histories, tmp_path / "out", setup={"model": BertForMaskedLM(config)})


@pytest.mark.parametrize("difference", [-5, 5])
def test_a_model_of_another_size_than_the_tokenizer_raises_at_construction(cyclic_histories, tmp_path, difference):
    splits, tokenizer = cyclic_histories
    model = Bert4RecForMaskedLM(small_config(len(tokenizer) + difference, 8))
    args = RecommendationTrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(
        ValueError, match=f"The model has {15 + difference} rows in its item table, the tokenizer has 15"
    ):
        RecommendationTrainer(
            model, args, train_dataset=splits["train"], eval_dataset=splits["test"], **cloze_training(tokenizer)
        )


def test_a_cloze_model_with_next_item_labels_raises(cyclic_histories, tmp_path):
    with pytest.raises(ValueError, match="BERT4Rec with `next_item_training` would see the items"):
        make_trainer(cyclic_histories, tmp_path, setup=next_item_training(cyclic_histories[1]))


def test_masks_for_a_next_item_model_are_reported(cyclic_histories, tmp_path, caplog):
    splits, tokenizer = cyclic_histories
    model = SasRecForMaskedLM(SasRecConfig(vocab_size=len(tokenizer), max_position_embeddings=8, hidden_size=8))
    args = RecommendationTrainingArguments(
        str(tmp_path), use_cpu=True, eval_strategy="no", load_best_model_at_end=False
    )
    for setup, reported in ((next_item_training, False), (cloze_training, True)):
        RecommendationTrainer(model, args, train_dataset=splits["train"], **setup(tokenizer))
        assert ("Use `next_item_training(tokenizer)`." in caplog.text) is reported


def test_a_catalog_that_is_too_small_for_the_metrics_raises_before_training(tmp_path):
    log = Dataset.from_dict({"user": list("aaabbb"), "item": list("xyzyzx"), "timestamp": [1, 2, 3, 1, 2, 3]})
    tokenizer = item_tokenizer(log, max_length=8)
    with pytest.raises(ValueError, match="Metrics at 10 need a catalog of more than 10 items, found 3"):
        make_trainer((leave_one_out(log, tokenizer), tokenizer), tmp_path)


class Count(TrainerCallback):
    def __init__(self):
        self.steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1


def test_own_callbacks_are_added_to_those_of_the_package(cyclic_histories, tmp_path):
    splits, tokenizer = cyclic_histories
    for way in ("argument", "function"):
        count = Count()
        args = RecommendationTrainingArguments(str(tmp_path), use_cpu=True, num_train_epochs=1, disable_tqdm=True)
        setup = {"callbacks": [count], **cloze_training(tokenizer)}
        trainer = RecommendationTrainer(
            Bert4RecForMaskedLM(small_config(len(tokenizer), 8)),
            args,
            train_dataset=splits["train"],
            eval_dataset=splits["validation"],
            **(setup if way == "argument" else cloze_training(tokenizer, callbacks=[count])),
        )
        trainer.train()
        kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
        assert count.steps == 1
        assert [kinds.count(kind) for kind in (ClozeCallback, ResourceCallback, EarlyStopping, Count)] == [1] * 4


def test_muon_trains_with_its_learning_rate_and_adamw_without(cyclic_histories, tmp_path):
    for rate, optimizer in ((0.02, MuonAdamW), (None, torch.optim.AdamW)):
        trainer = make_trainer(cyclic_histories, tmp_path, muon_learning_rate=rate)
        assert isinstance(trainer.create_optimizer(), optimizer)
        assert trainer.run_facts().recipe["muon_learning_rate"] == rate


def test_the_recipe_of_next_item_training_is_read_again(cyclic_histories, tmp_path):
    splits, tokenizer = cyclic_histories
    model = SasRecForMaskedLM(SasRecConfig(vocab_size=len(tokenizer), max_position_embeddings=8, hidden_size=8))
    args = RecommendationTrainingArguments(str(tmp_path), use_cpu=True, seed=7)
    setup = next_item_training(tokenizer)
    trainer = RecommendationTrainer(
        model, args, train_dataset=splits["train"], eval_dataset=splits["validation"], **setup
    )
    trainer.run_facts().save(tmp_path)
    recipe = parse_recipe([str(tmp_path), "--data", "log.csv"])
    assert "mask_probability" not in recipe.given
    assert (recipe.training.seed, recipe.run.architecture) == (7, "sasrec")
    with pytest.raises(
        ValueError, match=r"does not contain all options, .* To train a new model, write `data` and the options"
    ):
        run(recipe)


class Worse(TrainerCallback):
    """Set the metric of the best checkpoint: it rises for two evaluations and falls afterwards."""

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        metrics["eval_ndcg@10"] = 0.5 - abs(state.epoch - 2) / 100


def test_early_stopping_counts_on_after_a_resumption(cyclic_histories, tmp_path):
    """The best evaluation is the second; with a patience of 4 the sixth is the last."""

    def train(folder, callbacks, resume=None):
        options = {"num_train_epochs": 12, "early_stopping_patience": 4, "save_total_limit": None}
        trainer = make_trainer(cyclic_histories, folder, setup={"callbacks": callbacks}, **options)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    assert train(tmp_path / "whole", [Worse()]).state.epoch == 6
    train(tmp_path / "cut", [Worse(), StopAt(20)])  # the fourth of the epochs of five steps
    resumed = train(tmp_path / "cut", [Worse()], resume=True)
    assert resumed.state.epoch == 6


def test_seconds_are_those_of_the_whole_training(cyclic_histories, tmp_path, monkeypatch):
    clock = itertools.count(step=10)
    monkeypatch.setattr("hf_bert4rec.training.callbacks.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    options = {"num_train_epochs": 2, "save_total_limit": None}
    make_trainer(cyclic_histories, tmp_path, setup={"callbacks": [StopAt(5)]}, **options).train()
    stored = json.loads((tmp_path / "checkpoint-5" / "trainer_state.json").read_text())
    before = stored["stateful_callbacks"]["ResourceCallback"]["attributes"]["earlier_seconds"]
    resumed = make_trainer(cyclic_histories, tmp_path, **options)
    resumed.train(resume_from_checkpoint=True)
    assert before > 0
    assert resumed.run_facts().seconds > before


def test_training_resumes_from_complete_checkpoints_only(cyclic_histories, tmp_path):
    with pytest.raises(ValueError, match="Found no complete checkpoint to resume from"):
        make_trainer(cyclic_histories, tmp_path).train(resume_from_checkpoint=True)
    make_trainer(cyclic_histories, tmp_path, save_total_limit=None).train()
    (tmp_path / "checkpoint-15" / "trainer_state.json").unlink()
    (tmp_path / "checkpoint-10" / "optimizer.pt").unlink()
    trainer = make_trainer(cyclic_histories, tmp_path)
    for name in ("checkpoint-10", "nothing"):
        with pytest.raises(ValueError, match=f"Found no complete checkpoint to resume from: .*{name}"):
            trainer.train(resume_from_checkpoint=str(tmp_path / name))
    trainer.train(resume_from_checkpoint=True)
    assert len([entry for entry in trainer.state.log_history if "loss" in entry]) == 3


def test_a_loss_function_of_the_user_trains_and_evaluates(cyclic_histories, tmp_path):
    """The Trainer removes the labels before the model is called."""

    def loss(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())

    plain = make_trainer(cyclic_histories, tmp_path).evaluate()
    trainer = make_trainer(cyclic_histories, tmp_path, setup={"compute_loss_func": loss}, num_train_epochs=1)
    assert trainer.evaluate()["eval_ndcg@10"] == plain["eval_ndcg@10"]
    assert trainer.train().training_loss > 0


def test_a_model_init_gives_the_same_weights_whatever_was_seeded_before(cyclic_histories, tmp_path):
    splits, tokenizer = cyclic_histories
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        trainer = RecommendationTrainer(
            model_init=lambda: Bert4RecForMaskedLM(small_config(len(tokenizer), 8)),
            args=RecommendationTrainingArguments(str(tmp_path), use_cpu=True),
            train_dataset=splits["train"],
            eval_dataset=splits["validation"],
            **cloze_training(tokenizer),
        )
        weights.append(trainer.model.lm_head.weight)
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` must be 0"),
        ({"learning_rate": -1.0}, "`learning_rate` must be at least 0, found -1"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be at least 0, found nan"),
        ({"muon_learning_rate": -1.0}, r"\(`muon_learning_rate`\) must be above 0, found -1"),
        ({"optim": "sgd", "muon_learning_rate": 0.01}, "`optim='sgd'` cannot be combined with Muon"),
        ({"early_stopping_patience": 0}, "`early_stopping_patience` must be at least 1, or None, found 0"),
        ({"prediction_loss_only": True}, "found True: `metric_for_best_model='ndcg@10'` needs the scores"),
        ({"num_train_epochs": 0}, "`num_train_epochs` must be above 0 and finite, found 0"),
        ({"num_train_epochs": float("nan")}, "`num_train_epochs` must be above 0 and finite, found nan"),
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` must be at least 1, found 0"),
        ({"per_device_eval_batch_size": 0}, "`per_device_eval_batch_size` must be at least 1, found 0"),
    ],
)
def test_arguments_that_do_not_work_raise(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        RecommendationTrainingArguments(str(tmp_path), **options)


@pytest.mark.parametrize(("metric", "greater"), [("ndcg@10", True), ("loss", False), ("eval_loss", False)])
def test_the_best_checkpoint_by_the_loss_is_that_with_the_smallest(tmp_path, metric, greater):
    args = RecommendationTrainingArguments(str(tmp_path), metric_for_best_model=metric)
    assert args.greater_is_better is greater
    assert RecommendationTrainingArguments(str(tmp_path), greater_is_better=True).greater_is_better is True
    assert args.load_best_model_at_end is True
    assert RecommendationTrainingArguments(str(tmp_path), eval_strategy="no").load_best_model_at_end is False
    with pytest.raises(ValueError, match="save and eval strategy to match"):
        RecommendationTrainingArguments(str(tmp_path), eval_strategy="no", load_best_model_at_end=True)
    stop = {"early_stopping_patience": None, "load_best_model_at_end": False}
    RecommendationTrainingArguments(str(tmp_path), prediction_loss_only=True, metric_for_best_model=None, **stop)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda splits: {"train_dataset": splits["train"].select([])}, "`train_dataset` must have at least one row"),
        (lambda splits: {"eval_dataset": splits["test"].select([])}, "`eval_dataset` must have at least one row"),
        (
            lambda _: {"optimizers": (torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]), None)},
            "`optimizers` must train the weights of `model`, found other weights.",
        ),
    ],
)
def test_a_trainer_checks_rows_and_optimizer(cyclic_histories, tmp_path, change, message):
    splits, tokenizer = cyclic_histories
    args = RecommendationTrainingArguments(str(tmp_path), use_cpu=True)
    given = {"args": args, "train_dataset": splits["train"], "eval_dataset": splits["validation"]} | change(splits)
    with pytest.raises(ValueError, match=re.escape(message)):
        RecommendationTrainer(
            Bert4RecForMaskedLM(small_config(len(tokenizer), 8)), **given, **cloze_training(tokenizer)
        )


def test_label_smoothing_of_stock_arguments_raises(cyclic_histories, tmp_path):
    tokenizer = cyclic_histories[1]
    args = TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, use_cpu=True)
    with pytest.raises(ValueError, match="`label_smoothing_factor` must be 0"):
        RecommendationTrainer(Bert4RecForMaskedLM(small_config(len(tokenizer), 8)), args, **cloze_training(tokenizer))
    arguments = cloze_training(tokenizer, callbacks=[])
    stock = Trainer(Bert4RecForMaskedLM(small_config(len(tokenizer), 8)), args, **arguments)
    stock.train_dataset = cyclic_histories[0]["train"]
    with pytest.raises(ValueError, match="`label_smoothing_factor` must be 0"):
        stock.train()
