"""The estimate of memory: as arithmetic, beside measurements, and what is said where it is not enough."""

import ctypes
import json
import re
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForMaskedLM

from hf_bert4rec import estimate_memory
from hf_bert4rec.models.registry import ARCHITECTURES
from hf_bert4rec.training.resources import check_memory, free_memory, keep_freed_memory

CPU = torch.device("cpu")
MEASURED = Path(__file__).parents[2] / "scripts" / "results" / "memory.jsonl"
MB = 1e-3  # of a GB


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


@given(
    st.integers(5, 40),
    st.integers(1, 30),
    st.fixed_dictionaries(
        {
            "tie_word_embeddings": st.booleans(),
            "num_hidden_layers": st.integers(1, 4),
            "num_attention_heads": st.integers(1, 3),
            "conv_kernel_size": st.sampled_from([None, 3, 5]),
            "prediction_head": st.booleans(),
        }
    ),
)
def test_parameters_are_counted_exactly(rows, length, settings):
    sizes = {"vocab_size": rows, "max_position_embeddings": length, "hidden_size": 12, "intermediate_size": 20}
    d, f, size = 12, 20, settings["conv_kernel_size"] or 0
    layer = 4 * (d * d + d) + 2 * d * f + f + d + 4 * d
    head = d * d + 3 * d if settings["prediction_head"] else 0
    tables = rows * d * (1 if settings["tie_word_embeddings"] else 2) + rows
    count = tables + (length + size + 2) * d + settings["num_hidden_layers"] * layer + head
    estimate = estimate_memory(shapes(**sizes, **settings), 2, length)
    assert estimate.parameters == pytest.approx(count * 4e-9, rel=1e-12)
    assert estimate.gradients == estimate.parameters
    assert estimate.optimizer_state == 2 * estimate.parameters


# Batch 256 × 200: 51,200 positions, a number at each of them is .2048 MB; .2 of them scored. A layer is
# 10 · 64 + 2 · 256 = 1,152 numbers, what is at work in it 768. Gaps of a quarter but with checkpointing.
POSITIONS = 0.2048 * MB


@pytest.mark.parametrize(
    ("options", "settings", "expected"),
    [
        ({}, {}, 1.25 * (256 + 1152 + 128 + 768 + 0.2 * 1152) * POSITIONS),
        ({}, {"num_hidden_layers": 5}, 1.25 * (256 + 4 * 1152 + 128 + 768 + 0.2 * 1152) * POSITIONS),
        ({}, {"conv_kernel_size": 3}, 1.25 * (384 + 1152 + 128 + 768 + 0.2 * 1152) * POSITIONS),
        ({"batch_size": 64}, {}, 1.25 * (256 + 1152 + 128 + 768 + 0.2 * 1152) * POSITIONS / 4),
        ({"scored_share": 0.5}, {}, 1.25 * (256 + 1152 + 128 + 768 + 0.5 * 1152) * POSITIONS),
        # attention weights: 2 heads × 200, three times with dropout on them
        ({}, {"attention": "eager"}, 1.25 * (256 + 1552 + 128 + 768 + 0.2 * 1552) * POSITIONS),
        ({}, {"attention_probs_dropout_prob": 0.1}, 1.25 * (256 + 2352 + 128 + 768 + 0.2 * 2352) * POSITIONS),
        # with checkpointing: four inputs of layers, one layer made again
        ({"gradient_checkpointing": True}, {"num_hidden_layers": 5}, (256 + 4 * 64 + 1152 + 256) * POSITIONS),
        ({"scored_share": 1.0}, {"architecture": "sasrec"}, 1.25 * (256 + 2 * 1152 + 128 + 768) * POSITIONS),
        (
            {"scored_share": 1.0},
            {"architecture": "gru4rec", "num_hidden_layers": 3},
            1.25 * (256 + 3 * 9 * 64) * POSITIONS,
        ),
    ],
)
def test_activations_are_those_counted_by_hand(options, settings, expected):
    estimate = estimate_memory(shapes(**settings), **{"batch_size": 256, "length": 200, **options})
    assert estimate.activations == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [  # the table and its bias are 3,419 × 65 numbers, scored are 10,240 positions
        ({}, 128 * 3419 + 2 * 222_235 + 10_240 * 2 * 64),
        ({"loss_chunk_size": 32}, 32 * 3419 + 2 * 222_235 + 10_240 * 2 * 64),
        ({"loss_chunk_size": 99_999}, 10_240 * 3419 + 2 * 222_235 + 10_240 * 2 * 64),
        ({"loss": "sampled_softmax"}, 4 * 10_240 * 256 + 222_235),
        ({"loss": "gbce", "num_negatives": 100}, 4 * 10_240 * 100 + 222_235),
        ({"loss": "bce", "share_negatives": False, "num_negatives": 16}, 2 * 10_240 * 16 * 64 + 222_235),
    ],
)
def test_the_loss_takes_what_is_counted_by_hand(settings, expected):
    assert estimate_memory(shapes(**settings), 256, 200).loss == pytest.approx(1.25 * 4e-9 * expected)


def test_the_total_is_the_sum_and_is_told_with_its_parts():
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


def test_what_cannot_be_done_is_not_advised():
    assert estimate_memory(shapes("gru4rec"), 256, 200, 1.0).advice == "a smaller `per_device_train_batch_size`"
    again = estimate_memory(shapes(num_hidden_layers=6), 256, 200, gradient_checkpointing=True)
    assert again.advice == "a smaller `per_device_train_batch_size`"


def test_a_catalogue_that_cannot_fit_is_refused_before_anything_is_allocated():
    estimate = estimate_memory(shapes(vocab_size=100_000_003), 8, 50)
    with pytest.raises(MemoryError, match=re.escape("need 26.00 GB, this machine has")):
        check_memory(estimate)


def test_processes_on_the_processor_share_its_memory(monkeypatch):
    memory = psutil.virtual_memory()._replace(available=8 * 10**9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert free_memory(CPU) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert free_memory(CPU) == 4


def test_freed_memory_is_kept_or_given_back_where_the_c_library_can(monkeypatch):
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
