"""The memory estimate compared with measurements, its advice, and the settings of allocator and threads."""

import ctypes
import json
import re
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForMaskedLM

from hf_bert4rec import estimate_memory
from hf_bert4rec.models.registry import ARCHITECTURES
from hf_bert4rec.training.resources import check_memory, free_memory, keep_freed_memory, warn_about_spinning_threads

CPU = torch.device("cpu")
MEASURED = Path(__file__).parents[2] / "scripts" / "results" / "memory.jsonl"


def shapes(architecture="bert4rec", attention="sdpa", **settings):
    """A model without weights, by default the paper's: d 64, f 256, 2 layers, 2 heads, N 200, here without dropout."""
    settings = {
        "vocab_size": 3419,
        "attention_probs_dropout_prob": 0,
        "conv_kernel_size": None,
        "rope_theta": None,
        **settings,
    }
    settings.setdefault("max_position_embeddings", 200)
    settings.setdefault("prediction_head", architecture == "bert4rec")
    with torch.device("meta"):
        config = ARCHITECTURES[architecture].config_class.paper(**settings)
        return AutoModelForMaskedLM.from_config(config, attn_implementation=attention)


@pytest.mark.parametrize(
    "settings",
    [{}, {"tie_word_embeddings": False}, {"num_hidden_layers": 4, "conv_kernel_size": 5}, {"prediction_head": False}],
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parameters_are_those_of_the_model(architecture, settings):
    if architecture != "bert4rec":
        settings = {**settings, "conv_kernel_size": None}
    model = shapes(architecture, **settings)
    size = sum(weight.numel() * 4 for weight in {id(weight): weight for weight in model.parameters()}.values())
    estimate = estimate_memory(model, 2, 50)
    assert estimate.parameters == estimate.gradients == pytest.approx(size / 1e9)
    assert estimate.optimizer_state == pytest.approx(2 * size / 1e9)


@pytest.mark.parametrize("number", [-1, 0, float("nan"), 2.5])
@pytest.mark.parametrize("option", ["batch_size", "length"])
def test_rows_and_lengths_are_whole_numbers(option, number):
    with pytest.raises(ValueError, match=rf"^`{option}` must be a whole number of at least 1, found {number}\.$"):
        estimate_memory(shapes(), **{"batch_size": 2, "length": 50, option: number})


@pytest.mark.parametrize(
    ("options", "settings", "factor"),
    [
        ({"batch_size": 512}, {}, 2),
        ({"length": 100}, {}, 1 / 2),
        ({}, {"num_attention_heads": 4}, 1),  # without dropout on them, attention weights do not exist
    ],
)
def test_activations_grow_with_the_positions(options, settings, factor):
    base = estimate_memory(shapes(), 256, 200).activations
    changed = estimate_memory(shapes(**settings), **{"batch_size": 256, "length": 200, **options}).activations
    assert changed == pytest.approx(factor * base)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_hidden_layers": 5},
        {"conv_kernel_size": 3},
        {"attention": "eager"},
        {"attention_probs_dropout_prob": 0.1},
        {"hidden_size": 128},
    ],
)
def test_what_a_layer_keeps_for_the_backward_pass_is_added(settings):
    assert estimate_memory(shapes(**settings), 256, 200).activations > estimate_memory(shapes(), 256, 200).activations


@pytest.mark.parametrize(
    ("larger", "smaller"),
    [
        ({"loss_chunk_size": 512}, {}),
        ({}, {"vocab_size": 500}),
        ({"loss": "bce"}, {"loss": "bce", "num_negatives": 100}),
        ({"loss": "bce", "share_negatives": False}, {"loss": "bce"}),
    ],
)
def test_the_loss_shrinks_with_its_options(larger, smaller):
    assert estimate_memory(shapes(**smaller), 256, 200).loss < 0.8 * estimate_memory(shapes(**larger), 256, 200).loss


def test_the_total_is_the_sum_of_the_parts_and_its_text_names_them():
    estimate = estimate_memory(shapes(), 256, 200)
    parts = (estimate.parameters, estimate.gradients, estimate.optimizer_state, estimate.activations, estimate.loss)
    assert estimate.total == pytest.approx(sum(parts))
    beginning = f"{sum(parts):.2f} GB (parameters 1.4 MB, gradients 1.4 MB, optimizer state 2.7 MB, activations 0."
    assert str(estimate).startswith(beginning)


@pytest.mark.skipif(not MEASURED.exists(), reason="measurements are in the repository alone")
def test_the_estimate_is_within_a_quarter_of_what_was_measured():
    lines = [json.loads(line) for line in MEASURED.read_text().splitlines()]
    assert len(lines) >= 12
    for line in lines:
        model = shapes(
            line.get("architecture", "bert4rec"),
            line.get("attention", "sdpa"),
            vocab_size=line["rows"],
            hidden_size=line["hidden"],
            num_hidden_layers=line["layers"],
            num_attention_heads=line["heads"],
            intermediate_size=4 * line["hidden"],
            max_position_embeddings=line["length"],
            attention_probs_dropout_prob=line["attention_dropout"],
            loss=line.get("loss", "softmax"),
            num_negatives=line.get("num_negatives", 256),
            share_negatives=not line.get("unshared", False),
        )
        checkpointing = line.get("gradient_checkpointing", False)
        estimate = estimate_memory(model, line["batch"], line["longest"], line["scored_share"], checkpointing)
        added, taken = estimate.total - estimate.parameters, line["training_peak_gb"] - line["before_gb"]
        assert 0.85 < (line["before_gb"] + added) / line["training_peak_gb"] < 1.25, line
        assert 0.75 < added / taken < 1.6, line  # without what the process held before


@pytest.mark.parametrize(
    ("settings", "lowered"),
    [
        ({}, {"batch_size": 64}),
        ({"num_hidden_layers": 6}, {"gradient_checkpointing": True}),
        ({"vocab_size": 1_000_003, "batch": 16}, {"loss": "sampled_softmax"}),
        ({"vocab_size": 1_000_003, "batch": 16}, {"loss_chunk_size": 32}),
        ({"vocab_size": 10_003, "loss": "bce", "num_negatives": 9000}, {"num_negatives": 900}),
        ({"loss": "bce", "num_negatives": 3000, "share_negatives": False}, {"share_negatives": True}),
        ({"vocab_size": 1_000_003, "loss": "gbce", "batch": 16}, {"hidden_size": 32}),
    ],
)
def test_what_is_advised_lowers_the_estimate(settings, lowered):
    def of(batch=256, batch_size=None, gradient_checkpointing=False, **config):
        return estimate_memory(
            shapes(**config), batch_size or batch, 200, gradient_checkpointing=gradient_checkpointing
        )

    before, after = of(**settings), of(**{**settings, **lowered})
    (name,) = lowered
    assert {"batch_size": "per_device_train_batch_size"}.get(name, name) in before.advice
    assert after.total < 0.8 * before.total


def test_advice_is_limited_to_what_the_model_supports():
    assert estimate_memory(shapes("gru4rec"), 256, 200, 1.0).advice == "a smaller `per_device_train_batch_size`"
    again = estimate_memory(shapes(num_hidden_layers=6), 256, 200, gradient_checkpointing=True)
    assert again.advice == "a smaller `per_device_train_batch_size`"


@pytest.mark.parametrize("head", [{"repeat_head": True}, {"num_followers": 1}])
def test_heads_that_need_the_softmax_are_not_advised_to_use_another_loss(head):
    model = shapes(vocab_size=1_000_003, **head)
    assert estimate_memory(model, 64, 200).advice == "a smaller `loss_chunk_size`"


def test_at_least_one_position_of_each_row_is_scored():
    assert estimate_memory(shapes(), 256, 4, 0.01) == estimate_memory(shapes(), 256, 4, 0.25)
    assert estimate_memory(shapes(), 256, 4, 0.01).loss < estimate_memory(shapes(), 256, 4, 0.5).loss


def test_parameters_that_exceed_the_memory_of_the_machine_raise_before_anything_is_allocated(monkeypatch):
    for name in ("virtual_memory", "swap_memory"):
        memory = getattr(psutil, name)()._replace(total=5 * 10**9)
        monkeypatch.setattr(psutil, name, lambda memory=memory: memory)
    with pytest.raises(MemoryError, match=re.escape("need 26.00 GB, but this machine has 10.00 GB of memory")):
        check_memory(estimate_memory(shapes(vocab_size=100_000_003), 8, 50))


def test_processes_on_a_cpu_share_its_memory(monkeypatch):
    memory = psutil.virtual_memory()._replace(available=8 * 10**9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert free_memory(CPU) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert free_memory(CPU) == 4


def test_freed_memory_is_kept_or_returned_with_glibc(monkeypatch):
    options = []

    class Library:
        def mallopt(self, option, value):
            options.append((option, value))

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    monkeypatch.setattr("sys.platform", "linux")
    keep_freed_memory()
    keep_freed_memory(False)
    assert options == [(-3, 2**31 - 1), (-1, 2**31 - 1), (-3, 2**20), (-1, 2**20)]

    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # musl
    keep_freed_memory()
    monkeypatch.setattr("sys.platform", "darwin")
    keep_freed_memory()
    assert len(options) == 4


@pytest.mark.parametrize(
    ("threads", "policy", "warnings"),
    [(4, None, 1), (4, "active", 1), (4, "PASSIVE", 0), (4, "passive", 0), (1, None, 0)],
)
def test_threads_that_spin_are_reported_once_per_process(monkeypatch, caplog, threads, policy, warnings):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    warn_about_spinning_threads.cache_clear()
    for _ in range(3):
        warn_about_spinning_threads()
    warn_about_spinning_threads.cache_clear()
    assert len(caplog.messages) == warnings
    assert all("OMP_WAIT_POLICY" in message for message in caplog.messages)
