"""The estimate of memory: as arithmetic, and what is said where it is not enough."""

import ctypes
import logging

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_bert4rec import Bert4RecConfig, Bert4RecForMaskedLM, estimate_memory
from hf_bert4rec.resources import check_memory, keep_freed_memory
from tests.conftest import small_config

CPU = torch.device("cpu")
ML_1M = Bert4RecConfig(vocab_size=3419, attention_probs_dropout_prob=0)  # d 64, f 256, 2 layers, 2 heads, N 200


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
    config = small_config(rows, length, **settings)
    expected = Bert4RecForMaskedLM(config).num_parameters() * 4e-9
    estimate = estimate_memory(config, 2, length)
    assert estimate.parameters == pytest.approx(expected, rel=1e-12)
    assert estimate.gradients == estimate.parameters
    assert estimate.optimizer_state == 2 * estimate.parameters


def test_activations_of_the_benchmark_are_those_counted_by_hand():
    positions, scored = 256 * 200, 256 * 200 * 0.2
    a_position = 4 * 64 + (10 * 64 + 2 * 256) + 2 * 64 + 3 * 256  # embeddings, first layer, last layer, at work
    weights = 2 * positions * 200 / 2
    expected = 4e-9 * (positions * a_position + scored * (10 * 64 + 2 * 256) + weights)
    assert estimate_memory(ML_1M, 256, 200, 0.2).activations == pytest.approx(expected)


def test_a_convolution_keeps_its_input_and_its_output():
    with_convolution = Bert4RecConfig(vocab_size=3419, attention_probs_dropout_prob=0, conv_kernel_size=3)
    one, other = (estimate_memory(config, 256, 200).activations for config in (ML_1M, with_convolution))
    assert other - one == pytest.approx(4e-9 * 256 * 200 * 2 * 64)


def test_the_full_softmax_takes_a_chunk_of_scores_and_two_tables():
    table, chunk, hidden = 3419 * 65, 128 * 3419, 2 * 64 * 256 * 200 * 0.2
    assert estimate_memory(ML_1M, 256, 200, 0.2).loss == pytest.approx(4e-9 * (chunk + 2 * table + hidden))


def test_the_total_is_the_sum_and_is_told_with_its_parts():
    estimate = estimate_memory(ML_1M, 256, 200)
    parts = (estimate.parameters, estimate.gradients, estimate.optimizer_state, estimate.activations, estimate.loss)
    assert estimate.total == pytest.approx(sum(parts))
    assert str(estimate).startswith(f"{sum(parts):.2f} GB (parameters 0.00, gradients 0.00, optimizer state 0.00, act")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"gradient_checkpointing": True, "num_hidden_layers": 6}, "activations"),
        ({"batch_size": 64}, "activations"),
        ({"length": 100}, "activations"),
        ({"loss": "sampled_softmax"}, "loss"),
        ({"loss_chunk_size": 32}, "loss"),
        ({"hidden_size": 32}, "parameters"),
    ],
)
def test_what_is_advised_lowers_what_it_is_advised_for(changes, part):
    def of(batch_size=256, length=200, gradient_checkpointing=False, **config):
        sizes = {"vocab_size": 1_000_003, "num_hidden_layers": changes.get("num_hidden_layers", 2)}
        config = Bert4RecConfig(**{**sizes, "attention_probs_dropout_prob": 0, **config})
        return estimate_memory(config, batch_size, length, gradient_checkpointing=gradient_checkpointing)

    assert getattr(of(**changes), part) < 0.9 * getattr(of(), part)


@pytest.fixture
def free(monkeypatch):
    """Pretend that so many GB are free."""

    def set_free(gigabytes):
        memory = psutil.virtual_memory()._replace(available=int(gigabytes * 1e9))
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)

    return set_free


def test_a_catalogue_that_cannot_fit_is_refused_before_anything_is_allocated(free):
    free(8)
    estimate = estimate_memory(Bert4RecConfig(vocab_size=100_000_003, hidden_size=64), 8, 50)
    with pytest.raises(MemoryError, match=r"take 104\.00 GB, 8\.00 GB are free: take a smaller hidden_size"):
        check_memory(estimate, CPU)


def test_what_may_not_fit_is_said_with_the_advice_for_its_largest_part(free, caplog):
    large_batch = estimate_memory(ML_1M, 4096, 200)
    large_catalogue = estimate_memory(Bert4RecConfig(vocab_size=1_000_003), 16, 50)
    with caplog.at_level(logging.WARNING):
        free(large_batch.total - 0.1)
        check_memory(large_batch, CPU)
        free(large_catalogue.total - 0.1)
        check_memory(large_catalogue, CPU)
    batch, catalogue = caplog.messages
    assert "a smaller per_device_train_batch_size, or gradient_checkpointing" in batch
    assert "loss='sampled_softmax', or a smaller loss_chunk_size" in catalogue


def test_what_fits_is_passed_over(free, caplog):
    estimate = estimate_memory(Bert4RecConfig(vocab_size=1_000_003), 16, 50)
    free(estimate.total + 0.01)
    check_memory(estimate, CPU)
    assert not caplog.messages


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch):
    options = []

    class Library:
        def mallopt(self, option, value):
            options.append((option, value))

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    monkeypatch.setattr("sys.platform", "linux")
    keep_freed_memory()
    assert options == [(-3, 2**31 - 1), (-1, 2**31 - 1)]

    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # musl
    keep_freed_memory()
    monkeypatch.setattr("sys.platform", "darwin")
    keep_freed_memory()
    assert len(options) == 2
