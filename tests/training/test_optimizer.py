"""Muon and AdamW as one optimizer: which weights each trains, saved states, and resumption."""

import copy

import pytest
import torch
from transformers import TrainingArguments, get_linear_schedule_with_warmup

from hf_bert4rec import Bert4RecForMaskedLM, Gru4RecConfig, Gru4RecForMaskedLM, RecommendationTrainingArguments, muon
from tests.conftest import small_config


def make(model, tmp_path, rate=0.02, **options):
    args = RecommendationTrainingArguments(str(tmp_path), use_cpu=True, learning_rate=0.003, **options)
    factory, arguments = muon(args, rate)["optimizer_cls_and_kwargs"]
    return factory()(model, **arguments)


def step(model, optimizer, seed):
    input_ids = torch.randint(3, 29, (4, 7), generator=torch.Generator().manual_seed(seed))
    labels = input_ids.where(torch.arange(7) % 3 == 0, -100)
    loss = model(input_ids.where(labels == -100, 1), labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@pytest.fixture
def small_model():
    torch.manual_seed(0)
    return Bert4RecForMaskedLM(small_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).train()


@pytest.mark.parametrize("tied", [True, False])
def test_muon_trains_the_matrices_of_the_layers_and_adamw_all_other_weights(tmp_path, tied):
    model = Bert4RecForMaskedLM(small_config(tie_word_embeddings=tied, conv_kernel_size=3))
    decayed, plain, matrices = make(model, tmp_path, weight_decay=0.03).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [{names[id(parameter)] for parameter in group["params"]} for group in (matrices, decayed, plain)]
    layers = (
        "attention.query",
        "attention.key",
        "attention.value",
        "attention.output",
        "mlp.intermediate",
        "mlp.output",
    )
    assert found[0] == {f"model.layers.{i}.{name}.weight" for i in range(2) for name in layers} | {
        "prediction_head.dense.weight"
    }
    tables = {f"model.embeddings.{name}.weight" for name in ("item_embeddings", "position_embeddings", "convolution")}
    assert found[1] == tables | (set() if tied else {"lm_head.weight"})
    assert set().union(*found) == set(names.values())
    assert sum(map(len, found)) == len(names)
    assert [group["lr"] for group in (matrices, decayed, plain)] == [0.02, 0.003, 0.003]
    assert [group["weight_decay"] for group in (matrices, decayed, plain)] == [0.0, 0.03, 0.0]


def test_a_step_of_muon_turns_a_matrix_by_the_same_amount_whatever_the_size_of_its_gradient(small_model, tmp_path):
    weight = small_model.model.layers[0].attention.query.weight
    moves = []
    for scale in (1e-3, 1e3):
        optimizer = make(small_model, tmp_path)
        before = weight.detach().clone()
        gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        for parameter in small_model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        weight.grad = gradient * scale
        optimizer.step()
        moves.append(before - weight.detach())
    torch.testing.assert_close(moves[0], moves[1], atol=1e-3, rtol=0)  # the rounding of bfloat16
    singular = torch.linalg.svdvals(moves[0]) / 0.02  # an orthogonal matrix, nearly
    assert 0.5 < singular.min() <= singular.max() < 1.3


def test_it_learns(small_model, tmp_path):
    optimizer = make(small_model, tmp_path)
    losses = [step(small_model, optimizer, seed=0) for _ in range(30)]
    assert losses[-1] < 0.75 * losses[0]


def test_a_saved_state_continues_bit_equal(small_model, tmp_path):
    optimizer = make(small_model, tmp_path)
    for seed in range(3):
        step(small_model, optimizer, seed)
    other = copy.deepcopy(small_model)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    resumed = make(other, tmp_path)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for seed in range(3, 6):
        assert step(small_model, optimizer, seed) == step(other, resumed, seed)
    for one, two in zip(small_model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_schedule_applies_to_both_also_after_a_resumption(small_model, tmp_path):
    optimizer = make(small_model, tmp_path)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    schedule = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=0, num_training_steps=1)
    step(small_model, optimizer, 0)
    schedule.step()
    before = [parameter.detach().clone() for parameter in small_model.parameters()]
    step(small_model, optimizer, 1)  # at a learning rate of 0
    assert all(torch.equal(one, two) for one, two in zip(before, small_model.parameters(), strict=True))


def test_a_copy_continues_like_the_original(small_model, tmp_path):
    optimizer = make(small_model, tmp_path)
    step(small_model, optimizer, 0)
    other, copied = copy.deepcopy((small_model, optimizer))
    assert [step(small_model, optimizer, seed) for seed in (1, 2)] == [step(other, copied, seed) for seed in (1, 2)]


def test_new_parameters_raise(small_model, tmp_path):
    with pytest.raises(ValueError, match="MuonAdamW does not accept new parameters"):
        make(small_model, tmp_path).add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})


def test_another_optimizer_with_muon_raises(tmp_path):
    with pytest.raises(ValueError, match=r"(?i)optim=.*sgd.* cannot be combined with Muon"):
        make(None, tmp_path, optim="sgd")


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_a_learning_rate_that_is_not_positive_raises(tmp_path, rate):
    args = RecommendationTrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match=rf"must be above 0, found {rate}\. To train without Muon, set"):
        muon(args, rate)


@pytest.mark.parametrize("options", [{"adam_beta1": 1.5}, {"adam_epsilon": -1.0}, {"weight_decay": -0.1}])
def test_options_of_adamw_are_checked_with_muon_too(small_model, tmp_path, options):
    with pytest.raises(ValueError, match="Invalid"):
        make(small_model, tmp_path, **options)


@pytest.mark.parametrize("by", ["argument", "launcher"])
def test_muon_with_fsdp_raises_before_training(tmp_path, monkeypatch, by):
    if by == "launcher":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    options = {"use_cpu": True, "fsdp": "full_shard" if by == "argument" else None}
    with pytest.raises(
        ValueError,
        match=r"Muon needs whole matrices, but FSDP shards matrices\. Train without FSDP\. .* `muon_learning_rate`",
    ):
        RecommendationTrainingArguments(str(tmp_path), muon_learning_rate=0.01, **options)
    with pytest.raises(ValueError, match="Muon needs whole matrices"):
        muon(TrainingArguments(str(tmp_path), **options))
    assert RecommendationTrainingArguments(str(tmp_path), muon_learning_rate=None, **options).muon_learning_rate is None


def test_a_model_without_matrices_for_muon_is_reported(small_model, tmp_path, caplog):
    frozen = copy.deepcopy(small_model)
    for layer in frozen.modules():
        if isinstance(layer, torch.nn.Linear) and layer is not frozen.lm_head:
            layer.requires_grad_(False)
    make(frozen, tmp_path)
    assert "Bert4RecForMaskedLM has no trainable linear layers except the output" in caplog.messages.pop()
    caplog.clear()
    model = Gru4RecForMaskedLM(Gru4RecConfig(vocab_size=9, hidden_size=4))
    optimizer = make(model, tmp_path)
    assert [len(group["params"]) > 0 for group in optimizer.param_groups] == [True, True, False]
    assert caplog.messages == [
        "Gru4RecForMaskedLM has no trainable linear layers except the output, so AdamW trains all weights. "
        "To train without Muon, set `muon_learning_rate` to None, or omit `muon(args)`."
    ]
