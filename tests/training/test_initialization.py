"""Item vectors and biases from counts: values of a small log, and what does not change."""

import math
import warnings

import pytest
import torch
from datasets import Dataset

from hf_bert4rec import (
    Bert4RecForMaskedLM,
    count_transitions,
    initialize_items,
    item_tokenizer,
    leave_one_out,
    train_on_all,
)
from hf_bert4rec.training.initialization import initialize_new_items
from tests.conftest import small_config
from tests.data.logs import A, B, C, D, E, log_of

GROUPS = [("u1", "a"), ("u1", "b"), ("u2", "a"), ("u2", "b"), ("u3", "c"), ("u3", "d"), ("u4", "c"), ("u4", "d")]


def initialized(pairs, items="abcde", **split):
    log = log_of(*((user, item, time) for time, (user, item) in enumerate(pairs)))
    tokenizer = item_tokenizer(list(items), max_length=6)
    torch.manual_seed(0)
    model = Bert4RecForMaskedLM(small_config(len(tokenizer), 6, initializer_range=1e-4))
    before = model.get_input_embeddings().weight.detach().clone()
    initialize_items(model, train_on_all(log, tokenizer, **split)["train"])
    return model, before


def test_items_of_the_same_users_get_the_same_vector_and_others_an_orthogonal_one():
    model, before = initialized(GROUPS)
    table = model.get_input_embeddings().weight.detach()
    similarity = torch.nn.functional.cosine_similarity(table[:, None], table[None], dim=-1)
    assert similarity[A, B].item() == pytest.approx(1, abs=1e-3)
    assert similarity[C, D].item() == pytest.approx(1, abs=1e-3)
    assert similarity[A, C].item() == pytest.approx(0, abs=1e-3)
    assert table[[A, B, C, D]].norm(dim=1).mean().item() == pytest.approx(0.05, abs=1e-3)
    assert table[E].norm().item() == pytest.approx(0.1 * before[E].norm().item(), abs=1e-6)  # nobody had it
    assert torch.equal(table[:3], before[:3])


@pytest.mark.parametrize(("items", "length"), [("abcd", 0.05), ("abcde", 0.2)])
def test_vectors_are_short_if_users_have_few_items(items, length):
    model, _ = initialized([(user, item) for user in ("u1", "u2") for item in items])
    table = model.get_input_embeddings().weight.detach()
    assert table[3 : 3 + len(items)].norm(dim=1).mean().item() == pytest.approx(length, abs=1e-3)


def test_biases_are_logarithms_of_the_numbers_of_users():
    bias = initialized([*GROUPS, ("u1", "a"), ("u5", "a")])[0].lm_head.bias.detach()
    assert (bias[A] - bias[B]).item() == pytest.approx(math.log(4 / 3), abs=1e-6)  # a repeated item counts once
    assert (bias[B] - bias[E]).item() == pytest.approx(math.log(3), abs=1e-6)
    assert bias[3:].mean().item() == pytest.approx(0, abs=1e-6)
    assert not bias[:3].any()


def test_a_bias_that_is_not_trained_stays_as_it_is():
    log = log_of(*((user, item, time) for time, (user, item) in enumerate(GROUPS)))
    tokenizer = item_tokenizer(list("abcde"), max_length=6)
    model = Bert4RecForMaskedLM(small_config(len(tokenizer), 6))
    model.lm_head.bias.requires_grad_(False)
    initialize_items(model, train_on_all(log, tokenizer)["train"])
    assert not model.lm_head.bias.any()


def test_rows_that_repeat_items_of_a_user_count_each_item_once():
    longer = [*GROUPS, ("u1", "e"), ("u1", "c"), ("u3", "a"), ("u3", "e"), ("u1", "d"), ("u1", "a"), ("u1", "b")]
    windows, prefixes = (initialized(longer, prefixes=value)[0] for value in (False, True))
    assert torch.equal(windows.lm_head.bias, prefixes.lm_head.bias)
    assert torch.allclose(windows.get_input_embeddings().weight, prefixes.get_input_embeddings().weight)


def test_untied_output_vectors_start_as_the_input_vectors_and_a_head_needs_no_bias():
    log = log_of(*((user, item, time) for time, (user, item) in enumerate(GROUPS)))
    tokenizer = item_tokenizer(list("abcde"), max_length=6)
    model = Bert4RecForMaskedLM(small_config(len(tokenizer), 6, tie_word_embeddings=False))
    model.lm_head.bias = None
    initialize_items(model, train_on_all(log, tokenizer)["train"])
    assert torch.equal(model.lm_head.weight[3:], model.get_input_embeddings().weight[3:])
    assert not torch.equal(model.lm_head.weight[:3], model.get_input_embeddings().weight[:3])


def test_rows_without_items_raise():
    model = Bert4RecForMaskedLM(small_config(8, 6))
    with pytest.raises(ValueError, match=r"The training rows have no known items\."):
        initialize_items(model, Dataset.from_dict({"user": ["u"], "input_ids": [[2]]}))


def test_transitions_of_a_model_without_followers_raise():
    model = Bert4RecForMaskedLM(small_config(8, 6))
    with pytest.raises(ValueError, match=r"`num_followers` of the model must be above 0, found 0"):
        count_transitions(model, Dataset.from_dict({"user": ["u"], "input_ids": [[3, 4]]}))


def test_more_factors_than_items_are_possible():
    model, _ = initialized([("u1", "a"), ("u1", "b"), ("u2", "a")], items="ab")
    assert model.get_input_embeddings().weight[3:].isfinite().all()
    assert model.config.hidden_size > 2


def test_held_out_items_are_not_counted():
    log = log_of(*(("u", item, time) for time, item in enumerate("abcde")))
    tokenizer = item_tokenizer(list("abcde"), max_length=6)
    model = Bert4RecForMaskedLM(small_config(len(tokenizer), 6))
    initialize_items(model, leave_one_out(log, tokenizer)["train"])
    assert model.lm_head.bias[[D, E]].unique().numel() == 1
    assert model.lm_head.bias[C] > model.lm_head.bias[D]


@pytest.mark.parametrize(("dtype", "tied"), [(torch.float32, True), (torch.float32, False), (torch.float16, True)])
def test_new_items_start_from_the_other_items_of_their_users(caplog, dtype, tied):
    rows = [("u1", "a"), ("u1", "n"), ("u2", "b"), ("u2", "n"), ("u3", "a"), ("u4", "m")]
    log = log_of(*((user, item, time) for time, (user, item) in enumerate(rows)))
    tokenizer = item_tokenizer(list("abnmo"), max_length=6)  # n, m and o are new
    model = Bert4RecForMaskedLM(small_config(len(tokenizer), 6, tie_word_embeddings=tied)).to(dtype)
    table, bias = model.get_input_embeddings().weight, model.lm_head.bias
    with torch.no_grad():
        table[3:] = torch.eye(5, table.shape[1])
        table[4] *= 3
        model.lm_head.weight.copy_(table)
        bias[3:] = torch.tensor([1.0, 2.0, -5.0, -5.0, -5.0])
    before = table.detach().clone()
    with caplog.at_level("INFO"):
        initialize_new_items(model, train_on_all(log, tokenizer)["train"], torch.tensor([5, 6, 7]))
    # Entries are 1 / sqrt(items of the user * users of the item): a 1/2 (u1), b 1/sqrt(2) (u2), n 1/2 (both users).
    expected, error = torch.tensor([0.5 * 0.5, 0.5 * 3 / math.sqrt(2)]), 1e-6 if dtype == torch.float32 else 1e-3
    assert torch.allclose(table[5, :2].float(), expected / expected.norm() * 2, atol=error)  # 2: mean of 1 and 3
    assert torch.equal(model.lm_head.weight, table)
    assert not table[5, 2:].any()
    assert bias[5].item() == pytest.approx(math.log(3) + (1 - math.log(3) + 2 - math.log(2)) / 2, abs=error)
    kept = [0, 1, 2, 3, 4, 6, 7]  # m has no user with other items, o has no user
    assert torch.equal(table[kept], before[kept])
    assert bias[[3, 4, 6, 7]].tolist() == [1, 2, -5, -5]
    assert "New items whose vectors start from items of the same users: 1 of 3." in caplog.text


def test_no_version_of_torch_warns_about_sparse_tensors(monkeypatch, recwarn):
    build = torch.sparse_coo_tensor

    def build_as_torch_2_11(*args, **options):  # which warns although `check_invariants` is given
        warnings.warn("Sparse invariant checks are implicitly disabled. Memory errors", UserWarning, stacklevel=2)
        return build(*args, **options)

    monkeypatch.setattr(torch, "sparse_coo_tensor", build_as_torch_2_11)
    initialized([("u1", "a"), ("u1", "b"), ("u2", "a")], items="ab")
    assert not recwarn.list


@pytest.mark.parametrize("function", [initialize_items, count_transitions])
def test_other_tables_than_training_rows_are_refused_by_name(function):
    log = log_of(*((user, item, time) for time, (user, item) in enumerate(GROUPS)))
    tokenizer = item_tokenizer(list("abcd"), max_length=6)
    model = Bert4RecForMaskedLM(small_config(len(tokenizer), 6, num_followers=2))
    with pytest.raises(ValueError, match=r"user and input_ids, found DatasetDict\. .* such as `data\['train'\]`\.$"):
        function(model, train_on_all(log, tokenizer))
    with pytest.raises(ValueError, match=r"found user, item, timestamp\. Pass a split that"):
        function(model, log)


@pytest.mark.parametrize(
    "function", [initialize_items, count_transitions, lambda *to: initialize_new_items(*to, torch.tensor([3]))]
)
def test_rows_of_another_tokenizer_raise(function):
    tokenizer = item_tokenizer(list("abcd"), max_length=6)
    rows = train_on_all(log_of(*((user, item, 0) for user, item in GROUPS)), tokenizer)["train"]
    model = Bert4RecForMaskedLM(small_config(len(tokenizer) - 1, 6, num_followers=2))
    with pytest.raises(
        ValueError, match=r"has the token ID 6, but the model has 6 tokens\. Build the training rows with"
    ):
        function(model, rows)
