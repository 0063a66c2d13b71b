"""Training with features of items: the saved model is a stock one, and unseen items are represented by features."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments, set_seed

from hf_bert4rec import (
    ARCHITECTURES,
    Bert4RecForMaskedLM,
    RecommendationTrainer,
    RecommendationTrainingArguments,
    before,
    cloze_training,
    initialize_items,
    item_tokenizer,
    leave_one_out,
    load_interactions,
    load_item_features,
    next_item_training,
    pipeline,
    split_at_time,
    train_on_all,
)
from hf_bert4rec.inference.pipeline import NextItemRecommendationPipeline
from hf_bert4rec.training.item_features import FeatureProjection, load_projection
from tests.conftest import small_config

# Users stay within one of two kinds of items. Items 10 to 13 have no interactions.
KIND = {item: "even" if item % 2 == 0 else "odd" for item in range(14)}
FEATURES = pd.DataFrame({"item": list(KIND), "kind": list(KIND.values())})
UNSEEN = ["10", "11", "12", "13"]


@pytest.fixture(scope="module")
def log():
    random = np.random.default_rng(0)
    rows = [
        (user, item, time)
        for user in range(60)
        for time, item in enumerate(random.permutation([it for it in range(10) if it % 2 == user % 2]))
    ]
    return load_interactions(pd.DataFrame(rows, columns=["user", "item", "timestamp"]))


def make_trainer(log, folder, epochs=3, **options):
    tokenizer = item_tokenizer(log, features=load_item_features(FEATURES), max_length=6)
    splits = leave_one_out(log, tokenizer)
    set_seed(1)
    model = Bert4RecForMaskedLM(small_config(len(tokenizer), 6))
    initialize_items(model, splits["train"])
    args = {"num_train_epochs": epochs, "report_to": [], "disable_tqdm": True, "seed": 3, "use_cpu": True} | options
    return RecommendationTrainer(
        model,
        RecommendationTrainingArguments(str(folder), **args),
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        **cloze_training(tokenizer),
    )


@pytest.fixture(scope="module")
def trained(log, tmp_path_factory):
    trainer = make_trainer(log, tmp_path_factory.mktemp("features"), epochs=40, per_device_train_batch_size=16)
    trainer.train()
    trainer.save_model()
    return trainer


def test_the_stock_trainer_refuses_features_that_it_would_ignore(log, tmp_path):
    ours = make_trainer(log, tmp_path)
    args = TrainingArguments(str(tmp_path), report_to=[], remove_unused_columns=False, use_cpu=True)
    setup = cloze_training(ours.processing_class, callbacks=[])
    trainer = Trainer(ours.model, args, train_dataset=ours.train_dataset, **setup)
    with pytest.raises(ValueError, match="stock `Trainer` does not train with item features"):
        trainer.train()


def test_the_saved_model_is_a_stock_one_with_the_sums(trained):
    folder = Path(trained.args.output_dir)
    loaded, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in trained.model.state_dict().items())
    assert not [name for name in loaded.state_dict() if "features" in name]
    projected = torch.from_numpy(tokenizer.features.vectors(tokenizer.items)) @ load_projection(folder)
    unseen = tokenizer.encode_items(UNSEEN)
    table = torch.cat([loaded.lm_head.weight, loaded.lm_head.bias[:, None]], dim=1)
    torch.testing.assert_close(table[unseen], projected[unseen - 3])
    assert not torch.allclose(table[3:13], projected[:10], atol=1e-3)  # items of the log also have a part of their own


def test_unseen_items_are_recommended_by_their_features(trained):
    recommender = pipeline(trained.args.output_dir)
    for history, kind in ((["0", "2"], "even"), (["1", "3"], "odd")):
        items = [it["item"] for it in recommender([history], allow=UNSEEN)[0]]
        assert {KIND[int(item)] for item in items[:2]} == {kind}


def test_checkpoints_of_the_training_are_stock_models_too(trained):
    best = Path(trained.state.best_model_checkpoint)
    loaded = AutoModelForMaskedLM.from_pretrained(best)
    torch.testing.assert_close(loaded.lm_head.weight, trained.model.lm_head.weight)
    torch.testing.assert_close(load_projection(best), trained.projection)


def test_a_resumed_run_ends_with_the_same_weights(log, tmp_path):
    class Stop(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.epoch >= 1

    options = {"early_stopping_patience": None, "load_best_model_at_end": False}
    whole = make_trainer(log, tmp_path / "whole", **options)
    whole.train()
    half = make_trainer(log, tmp_path / "half", **options)
    half.add_callback(Stop())
    half.train()
    resumed = make_trainer(log, tmp_path / "half", **options)
    resumed.train(resume_from_checkpoint=True)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, atol=1e-5, rtol=1e-4)


def test_items_without_new_rows_keep_what_was_learned(trained, log, tmp_path):
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(trained.args.output_dir), trained.processing_class
    before = model.lm_head.weight.detach().clone()
    rows = train_on_all(log, tokenizer)["train"].filter(lambda row: 3 in row["input_ids"])  # one kind of items
    options = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    args = RecommendationTrainingArguments(
        str(tmp_path), **options, learning_rate=1e-6, disable_tqdm=True, use_cpu=True
    )
    trainer = RecommendationTrainer(model, args, train_dataset=rows, **cloze_training(tokenizer))
    trainer.projection = trained.projection
    trainer.train()
    torch.testing.assert_close(model.lm_head.weight.detach(), before, atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", ["sasrec", "gru4rec"])
def test_other_architectures_have_features_too(log, tmp_path, architecture):
    tokenizer = item_tokenizer(log, features=load_item_features(FEATURES), max_length=6)
    row, sizes = ARCHITECTURES[architecture], {"vocab_size": len(tokenizer), "max_position_embeddings": 6}
    model = row.model_class(row.config_class(**sizes, hidden_size=8, num_attention_heads=2, intermediate_size=16))
    options = {"max_steps": 2, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    args = RecommendationTrainingArguments(str(tmp_path), **options, disable_tqdm=True, use_cpu=True)
    rows = train_on_all(log, tokenizer)["train"]
    trainer = RecommendationTrainer(model, args, train_dataset=rows, **next_item_training(tokenizer))
    trainer.train()
    projected = torch.from_numpy(tokenizer.features.vectors(tokenizer.items)) @ trainer.projection
    torch.testing.assert_close(model.get_input_embeddings().weight[13:], projected[10:, :-1])
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_another_projection_and_untied_tables_are_errors(log, tmp_path):
    trainer = make_trainer(log, tmp_path)
    trainer.projection = torch.zeros(5, 13)
    with pytest.raises(ValueError, match=r"has the shape \(5, 13\), but .* need \(3, 13\)\. Use"):
        trainer.train()
    trainer = make_trainer(log, tmp_path)
    trainer.model.config.tie_word_embeddings = False
    with pytest.raises(ValueError, match="need `tie_word_embeddings=True`"):
        trainer.train()
    with pytest.raises(ValueError, match="`id_dropout` must be at least 0 and below 1, found 1"):
        RecommendationTrainingArguments(str(tmp_path), id_dropout=1)


def test_scores_without_id_embeddings_leave_the_histories_as_they_are(log):
    tokenizer = item_tokenizer(log, features=load_item_features(FEATURES), max_length=6)
    model = Bert4RecForMaskedLM(small_config(len(tokenizer), 6))
    rows = torch.from_numpy(tokenizer.encode_items(list(map(str, range(10))))).long()
    in_training = torch.zeros(len(tokenizer), dtype=torch.bool)
    in_training[rows] = True
    features = FeatureProjection(model, tokenizer, 0.999999, in_training)
    before = model.get_input_embeddings().weight.detach()[rows]
    histories, scored, bias = features()
    torch.testing.assert_close(histories[rows], before)
    torch.testing.assert_close((scored - histories)[rows], -features.ids[rows])
    unseen = torch.from_numpy(tokenizer.encode_items(UNSEEN)).long()
    assert (bias[unseen] < -1e30).all()  # never a target of the loss
    histories, scored, _ = features.eval()()
    torch.testing.assert_close(scored[rows], before)
    assert scored is histories


def test_a_pipeline_during_the_training_uses_all_id_embeddings(log):
    tokenizer = item_tokenizer(log, features=load_item_features(FEATURES), max_length=6)
    model = Bert4RecForMaskedLM(small_config(len(tokenizer), 6))
    recommender = NextItemRecommendationPipeline(model=model, tokenizer=tokenizer, device="cpu")
    features = FeatureProjection(model, tokenizer, 0.9, torch.ones(len(tokenizer), dtype=torch.bool))
    features.attach(model.train())
    model(torch.tensor([[3, 1]]))  # a step, which drops ID embeddings
    answers = recommender([["1", "2"]])
    features.detach(model)
    for answer, expected in zip(answers[0], recommender([["1", "2"]])[0], strict=True):
        assert answer["score"] == pytest.approx(expected["score"], rel=1e-4)


def test_a_damaged_projection_is_an_error(tmp_path):
    (tmp_path / "item_features.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is damaged"):
        load_projection(tmp_path)
    for present, missing in (("safetensors", "parquet"), ("parquet", "safetensors")):
        (folder := tmp_path / present).mkdir()
        save_file({"projection": torch.ones(2, 3)}, folder / f"item_features.{present}")
        with pytest.raises(ValueError, match=f"item_features.{missing} is missing"):
            load_projection(folder)
    assert load_projection(tmp_path / "other") is None


def test_a_second_training_continues_the_first(log, tmp_path):
    trainer = make_trainer(log, tmp_path, eval_strategy="no", load_best_model_at_end=False)
    trainer.train()
    table, projection = trainer.model.lm_head.weight.detach().clone(), trainer.projection.clone()
    trainer.train()
    assert not torch.equal(trainer.model.lm_head.weight, table)
    assert not torch.equal(trainer.projection, projection)


def test_stock_arguments_and_optimizers_of_the_user(log, tmp_path):
    trainer = make_trainer(log, tmp_path)
    stock = TrainingArguments(str(tmp_path), max_steps=1, report_to=[], remove_unused_columns=False, use_cpu=True)
    rows = {"train_dataset": trainer.train_dataset, **cloze_training(trainer.processing_class)}
    RecommendationTrainer(trainer.model, stock, **rows).train()
    optimizer = torch.optim.AdamW(trainer.model.parameters())
    with pytest.raises(ValueError, match="the Trainer creates the optimizer"):
        RecommendationTrainer(trainer.model, stock, optimizers=(optimizer, None), **rows).train()


def test_features_of_other_items_are_an_error(log, tmp_path):
    trainer = make_trainer(log, tmp_path)
    others = load_item_features(FEATURES.assign(item=[f"sku-{item}" for item in FEATURES["item"]]))
    trainer.processing_class.features = others
    with pytest.raises(ValueError, match=r"No item of the training rows has features\. Use the same item IDs"):
        trainer.train()


def test_a_split_at_a_time_accepts_items_that_are_known_by_their_features(log):
    tokenizer = item_tokenizer(before(log, 2), features=load_item_features(FEATURES))
    histories = split_at_time(log, tokenizer, validation_time=2, test_time=3)
    assert len(histories["test"]) == 60
