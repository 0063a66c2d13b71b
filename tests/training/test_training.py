"""Training through the stock Trainer: resumption, workers, processes, ranking, and what is refused."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainerState

from hf_bert4rec import (
    Bert4RecForMaskedLM,
    ClozeCallback,
    RecommendationTrainingArguments,
    ResourceCallback,
    cloze_training,
    estimate_memory,
    muon,
)
from hf_bert4rec.hub.checkpoint import last_complete_checkpoint
from hf_bert4rec.hub.run_facts import RunFacts
from hf_bert4rec.training import resources
from hf_bert4rec.training.resources import MemoryEstimate, format_memory
from tests.conftest import small_config
from tests.training.trainers import make_trainer


def stock_trainer(histories, folder, callbacks=(), by_muon=False, **options) -> Trainer:
    """Return a stock `Trainer`; with `callbacks=None`, it has no callbacks of the package."""
    options = {"warmup_steps": 2, **options}
    args = RecommendationTrainingArguments(str(folder), **options)
    setup = {"callbacks": None} | cloze_training(histories[1], callbacks=callbacks) | (muon(args) if by_muon else {})
    return make_trainer(histories, folder, Trainer, setup, {"hidden_dropout_prob": 0.1}, **options)


def test_training_does_not_use_the_attention_of_cudnn(cyclic_histories, tmp_path):
    used = []
    note = TrainerCallback()
    note.on_step_end = lambda *args, **kwargs: used.append(torch.backends.cuda.cudnn_sdp_enabled())
    before = torch.backends.cuda.cudnn_sdp_enabled()
    stock_trainer(
        cyclic_histories,
        tmp_path,
        callbacks=[note],
        max_steps=2,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
    ).train()
    assert (used, torch.backends.cuda.cudnn_sdp_enabled()) == ([False, False], before)


class StopAt(TrainerCallback):
    """Save and stop at a step, as a kill would after the last save."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


class Record(TrainerCallback):
    """Which rows and masks each epoch drew, through the batches that reach the model."""

    def __init__(self):
        self.epochs = []

    def on_epoch_begin(self, args, state, control, train_dataloader=None, model=None, **kwargs):
        self.epochs.append([])
        if len(self.epochs) == 1:
            model.register_forward_pre_hook(self.see, with_kwargs=True)

    def see(self, model, args, batch):
        if model.training:
            self.epochs[-1] += [
                (tuple(torch.where(labels == -100, ids, labels)[real == 1].tolist()), tuple((labels != -100).tolist()))
                for ids, labels, real in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True)
            ]


@pytest.mark.parametrize(
    ("step", "workers", "by_muon"), [(2, 0, False), (5, 0, True), (8, 0, False), (8, 0, True), (13, 2, False)]
)
def test_a_run_that_was_interrupted_and_resumed_ends_bit_equal_to_one_that_was_not(
    cyclic_histories, tmp_path, step, workers, by_muon
):
    options = {"dataloader_num_workers": workers, "eval_strategy": "no", "load_best_model_at_end": False}
    options["by_muon"] = by_muon
    whole = stock_trainer(cyclic_histories, tmp_path / "whole", **options)
    whole.train()
    stock_trainer(cyclic_histories, tmp_path / "cut", callbacks=[StopAt(step)], **options).train()
    resumed = stock_trainer(cyclic_histories, tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=str(last_complete_checkpoint(tmp_path / "cut")))
    for expected, found in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(expected, found)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_row_is_drawn_once_an_epoch_with_fresh_masks_the_same_for_any_number_of_workers(
    cyclic_histories, tmp_path, workers
):
    seen, again = Record(), Record()
    stock_trainer(cyclic_histories, tmp_path, callbacks=[seen], dataloader_num_workers=workers).train()
    stock_trainer(cyclic_histories, tmp_path, callbacks=[again]).train()
    expected = sorted(tuple(row) for row in cyclic_histories[0]["train"]["input_ids"])
    assert [sorted(row for row, _ in epoch) for epoch in seen.epochs] == [expected] * 3
    first, second, third = (sorted(epoch) for epoch in seen.epochs)
    assert first != second
    assert first != third
    assert second != third
    assert seen.epochs == again.epochs


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stock_trainer_without_our_callbacks_repeats_a_run_with_the_same_seed(cyclic_histories, tmp_path, workers):
    seen = []
    for _ in range(2):
        seen.append(Record())
        trainer = stock_trainer(
            cyclic_histories, tmp_path, callbacks=None, num_train_epochs=2, dataloader_num_workers=workers
        )
        assert not any(isinstance(it, ClozeCallback) for it in trainer.callback_handler.callbacks)
        trainer.add_callback(seen[-1])
        trainer.train()
    assert sorted(row for row, _ in seen[0].epochs[0]) == sorted(map(tuple, cyclic_histories[0]["train"]["input_ids"]))
    assert sorted(seen[0].epochs[0]) != sorted(seen[0].epochs[1])  # fresh masks
    assert seen[0].epochs == seen[1].epochs


class Spoil(TrainerCallback):
    """Evaluate and save exaggerated scores, and at last reversed and faint ones: the worst ranks, yet the best loss."""

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        self.factor = -(2.0**-10) if state.epoch == args.num_train_epochs else 2.0**10
        self.multiply(model, self.factor)

    def on_epoch_begin(self, args, state, control, model=None, **kwargs):
        if state.epoch:
            self.multiply(model, 1 / self.factor)

    @torch.no_grad()
    def multiply(self, model, factor):
        for parameter in (*model.prediction_head.norm.parameters(), model.lm_head.bias):
            parameter *= factor


def test_the_best_checkpoint_by_validation_ndcg_is_restored(cyclic_histories, tmp_path):
    trainer = stock_trainer(cyclic_histories, tmp_path, [Spoil()], num_train_epochs=6, learning_rate=0.02)
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_ndcg@10" in entry]
    scores, losses = ([entry[name] for entry in evaluations] for name in ("eval_ndcg@10", "eval_loss"))
    assert scores[-1] == min(scores) < max(scores)
    assert losses[-1] == min(losses)
    assert trainer.evaluate()["eval_ndcg@10"] == pytest.approx(max(scores))


def test_gradient_accumulation_changes_nothing(cyclic_histories, tmp_path):
    options = {"num_train_epochs": 2, "train_sampling_strategy": "random", "logging_steps": 1}
    options |= {"logging_strategy": "steps", "eval_strategy": "no", "load_best_model_at_end": False}
    losses = []
    for batch, accumulation in ((4, 1), (2, 2)):
        trainer = stock_trainer(
            cyclic_histories,
            tmp_path,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            **options,
        )
        trainer.model.apply(lambda module: setattr(module, "p", 0.0) if isinstance(module, torch.nn.Dropout) else None)
        for layer in trainer.model.model.layers:
            layer.attention.attention_dropout = 0.0
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_history_is_excluded_from_the_ranking_by_default(cyclic_histories, tmp_path):
    excluded = stock_trainer(cyclic_histories, tmp_path).evaluate()
    trainer = stock_trainer(cyclic_histories, tmp_path)
    trainer.model.config.exclude_history = False
    assert excluded["eval_mrr@10"] > trainer.evaluate()["eval_mrr@10"]


def test_persistent_workers_raise_because_their_masks_would_never_change(tmp_path):
    with pytest.raises(ValueError, match="masks of the first epoch"):
        RecommendationTrainingArguments(str(tmp_path), dataloader_num_workers=1, dataloader_persistent_workers=True)


def test_no_user_may_be_dropped_from_an_evaluation(tmp_path):
    with pytest.raises(
        ValueError, match="`dataloader_drop_last` must be False, found True: evaluation would also drop"
    ):
        RecommendationTrainingArguments(str(tmp_path), dataloader_drop_last=True)


def test_rows_may_have_the_format_of_torch(cyclic_histories, tmp_path):
    splits, tokenizer = cyclic_histories
    trainer = stock_trainer((splits.with_format("torch"), tokenizer), tmp_path, max_steps=1)
    assert trainer.train().global_step == 1


LOG = "user,item,timestamp\n" + "".join(
    f"u{u},i{(3 * u + t) % 12},{t}\n" for u in range(16) for t in range(4 + u % 5)
)  # 16 training rows: two steps of eight
RECIPE = """
data: {log}
recommended_settings: false
max_length: 8
hidden_size: 12
intermediate_size: 20
hidden_dropout_prob: 0.0
attention_probs_dropout_prob: 0.0
num_train_epochs: 3
warmup_steps: 2
use_cpu: true
logging_strategy: steps
logging_steps: 1
"""


def test_two_processes_train_and_evaluate_as_one_does(tmp_path):
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(log=tmp_path / "log.csv"))
    script = Path(__file__).parents[2] / "scripts" / "train.py"
    facts = []
    for processes, batch in ((1, 8), (2, 4)):
        folder = tmp_path / str(processes)
        launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"]
        options = ["--output_dir", str(folder), "--per_device_train_batch_size", str(batch)]
        command = [
            sys.executable,
            *(launcher if processes > 1 else []),
            str(script),
            str(tmp_path / "recipe.yaml"),
            *options,
        ]
        finished = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600)
        assert finished.returncode == 0, finished.stderr[-2000:]
        facts.append(RunFacts.load(folder / "model"))
    one, two = facts
    losses = [[entry["loss"] for entry in run.log if "loss" in entry] for run in facts]
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert one.results["test"]["BERT4Rec"] == pytest.approx(two.results["test"]["BERT4Rec"], abs=1e-6)
    assert one.results["test"]["Popularity"] == two.results["test"]["Popularity"]


@pytest.mark.parametrize("by_muon", [False, True])
def test_a_rate_of_muon_that_the_stock_trainer_does_not_read_is_a_warning(cyclic_histories, tmp_path, caplog, by_muon):
    options = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    stock_trainer(cyclic_histories, tmp_path, by_muon=by_muon, muon_learning_rate=0.01, max_steps=1, **options).train()
    text = "`muon_learning_rate` is not used, because the optimizer is AdamW. Use `RecommendationTrainer`, "
    text += "or pass `**muon(args, args.muon_learning_rate)` to the stock `Trainer`."
    assert (text in caplog.messages) is not by_muon


def test_memory_is_logged_before_training_and_time_after_two_steps(cyclic_histories, tmp_path, caplog):
    trainer = stock_trainer(cyclic_histories, tmp_path, eval_strategy="no", save_strategy="no")
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(len([message for message in caplog.messages if "A step takes" in message]))

    trainer.add_callback(Look())
    with caplog.at_level("INFO", logger="hf_bert4rec.training.callbacks"):
        trainer.train()
    memory, time = caplog.messages
    assert re.fullmatch(
        r"Memory for training, without libraries and data: about \S+ MB \(parameters 0\.0 MB, .*\)\.", memory
    )
    assert re.fullmatch(
        r"A step takes \d+\.\d\d s, an epoch at most \S+ s, and the rest of the training at most \S+ s, not .*", time
    )
    assert seen == [0] + [1] * 14


def report_of_time(caplog, monkeypatch, strategy="random", model=None, loader=range(80)):
    """What is logged after a second step that takes 2.5 seconds, of 40 steps per epoch and 102 in all."""
    clock = iter([10.0, 12.5])
    monkeypatch.setattr("hf_bert4rec.training.callbacks.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    callback, state = ResourceCallback(), TrainerState(global_step=2, max_steps=102)
    args = SimpleNamespace(train_sampling_strategy=strategy, gradient_accumulation_steps=2)
    with caplog.at_level("INFO", logger="hf_bert4rec.training.callbacks"):
        for _ in range(3):
            callback.on_step_begin(args, state, None)
            callback.on_step_end(args, state, None, model=model, train_dataloader=loader)
    return "\n".join(caplog.messages)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("group_by_length", "at most 0:01:40, and the rest of the training at most 0:04:10, not counting evaluations."),
        ("random", "about 0:01:40, and the rest of the training about 0:04:10, not counting evaluations."),
    ],
)
def test_the_time_of_an_epoch_is_that_of_its_steps(caplog, monkeypatch, strategy, expected):
    assert report_of_time(caplog, monkeypatch, strategy) == f"A step takes 2.50 s, an epoch {expected}"


def test_the_time_of_an_epoch_of_unknown_length_is_not_reported(caplog, monkeypatch):
    text = "A step takes 2.50 s, and the rest of the training about 0:04:10, not counting evaluations."
    assert report_of_time(caplog, monkeypatch, loader=iter(range(80))) == text


@pytest.mark.parametrize(
    ("items", "options", "expected"),
    [
        (100_000, {}, True),
        (99_996, {}, False),
        (100_000, {"loss": "gbce"}, False),
        (100_000, {"repeat_head": True}, False),
        (100_000, {"num_followers": 2}, False),
    ],
)
def test_a_sampled_loss_is_advised_for_large_catalogs(caplog, monkeypatch, items, options, expected):
    with torch.device("meta"):
        model = Bert4RecForMaskedLM(small_config(items + 3, 8, hidden_size=3, **options))
    advice = "`Bert4RecConfig(loss='sampled_softmax')` (`--loss sampled_softmax`) is faster than `softmax`"
    assert (advice in report_of_time(caplog, monkeypatch, model=model)) is expected


@pytest.fixture
def free(monkeypatch):
    """Pretend that so many GB are free."""
    return lambda gigabytes: monkeypatch.setattr("hf_bert4rec.training.resources.free_memory", lambda device: gigabytes)


def test_training_that_may_not_fit_warns_with_advice_and_starts(cyclic_histories, tmp_path, free, caplog):
    estimate = estimate_memory(stock_trainer(cyclic_histories, tmp_path).model, 4, 6)
    for there in (estimate.total + 1e-9, estimate.total - estimate.parameters - 1e-9):
        free(there)
        stock_trainer(cyclic_histories, tmp_path, num_train_epochs=1).train()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    needed = format_memory(estimate.total)
    assert warnings == [
        f"Training may not fit into the free memory: it needs about {needed}, and {needed} are free. "
        f"Use {estimate.advice}."
    ]


def test_freed_memory_is_kept_except_with_checkpointing(cyclic_histories, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr("hf_bert4rec.training.resources.keep_freed_memory", kept.append)
    for checkpointing in (False, True):
        stock_trainer(cyclic_histories, tmp_path, num_train_epochs=1, gradient_checkpointing=checkpointing).train()
    assert kept == [True, False]


def test_rows_in_which_nothing_is_scored_change_nothing(cyclic_histories, tmp_path):
    splits, tokenizer = cyclic_histories
    rows = splits["train"].select_columns(["input_ids", "length"])
    rows = rows.add_column("labels", [[-100] * len(row) for row in rows["input_ids"]])
    options = {"weight_decay": 0.0, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    trainer = stock_trainer(({**splits, "train": rows}, tokenizer), tmp_path, num_train_epochs=1, **options)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    assert trainer.train().training_loss == 0
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_a_list_of_rows_can_be_trained_on(cyclic_histories, tmp_path):
    splits, tokenizer = cyclic_histories
    trainer = stock_trainer(({**splits, "train": list(splits["train"])}, tokenizer), tmp_path, num_train_epochs=1)
    trainer.train()
    assert trainer.state.global_step == 5


def test_memory_of_evaluation_is_logged_if_it_exceeds_that_of_training(cyclic_histories, tmp_path, caplog):
    trainer = stock_trainer(cyclic_histories, tmp_path, num_train_epochs=1, per_device_eval_batch_size=20_000_000)
    with caplog.at_level("INFO", logger="hf_bert4rec.training.callbacks"):
        trainer.train()
    text = "Evaluation needs up to 3.60 GB of memory. A lower `per_device_eval_batch_size` reduces this amount."
    assert caplog.messages[1] == text


def test_memory_of_evaluation_includes_the_weights_and_the_optimizer(cyclic_histories, tmp_path, caplog, monkeypatch):
    estimate = MemoryEstimate(2.0, 2.0, 4.0, 0.1, 0.1, "")
    monkeypatch.setattr(resources, "estimate_memory", lambda *_: estimate)
    trainer = stock_trainer(cyclic_histories, tmp_path, num_train_epochs=1, per_device_eval_batch_size=20_000_000)
    with caplog.at_level("INFO", logger="hf_bert4rec.training.callbacks"):
        trainer.train()
    assert caplog.messages[1].startswith("Evaluation needs up to 9.60 GB of memory.")


@pytest.mark.parametrize("loss", ["sampled_softmax", "gbce", "bce"])
def test_a_run_on_negatives_resumes_bit_equal(cyclic_histories, tmp_path, loss):
    def train(folder, callbacks=(), resume=None):
        trainer = stock_trainer(cyclic_histories, folder, callbacks, save_total_limit=None, save_strategy="no",
                               eval_strategy="no", load_best_model_at_end=False)  # fmt: skip
        trainer.model.config.loss, trainer.model.config.num_negatives = loss, 4
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model.state_dict()

    straight = train(tmp_path / "straight")
    train(tmp_path / "cut", [StopAt(7)])
    resumed = train(tmp_path / "cut", resume=str(tmp_path / "cut" / "checkpoint-7"))
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name
