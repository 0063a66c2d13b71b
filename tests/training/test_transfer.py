"""A model that starts from another: which rows it keeps, what new items start from, and what cannot be started from."""

import pandas as pd
import pytest
import torch

from hf_bert4rec import (
    Bert4RecForMaskedLM,
    Gru4RecConfig,
    Gru4RecForMaskedLM,
    item_tokenizer,
    load_item_features,
    train_on_all,
)
from hf_bert4rec.training.transfer import shared_items, transfer
from tests.conftest import small_config
from tests.data.logs import log_of

OLD = item_tokenizer(["a", "b", "c", "d"], titles={"a": "Alpha", "b": "Beta", "c": "Twin", "d": "Twin"}, max_length=6)
NEW = item_tokenizer(["x", "c", "a"], titles={"x": "Beta", "c": "Twin", "a": "Alpha"}, max_length=5)


@pytest.fixture
def model() -> Bert4RecForMaskedLM:
    torch.manual_seed(0)
    model = Bert4RecForMaskedLM(small_config(len(OLD), 6, conv_kernel_size=3)).eval()
    torch.nn.init.normal_(model.lm_head.bias)
    return model


def training_rows(tokenizer, pairs):
    log = log_of(*((user, item, time) for time, (user, item) in enumerate(pairs)))
    return train_on_all(log, tokenizer)["train"]


def test_items_are_matched_by_id_or_by_unique_title():
    assert [rows.tolist() for rows in shared_items(OLD, NEW, "id")] == [[4, 5], [5, 3]]  # c and a
    assert [rows.tolist() for rows in shared_items(OLD, NEW, "title")] == [[3, 5], [4, 3]]  # Beta and Alpha


@pytest.mark.parametrize("tied", [True, False])
def test_shared_items_keep_their_rows_and_new_ones_start_near_the_mean(tied):
    torch.manual_seed(0)
    model = Bert4RecForMaskedLM(small_config(len(OLD), 6, tie_word_embeddings=tied))
    torch.nn.init.normal_(model.lm_head.bias)
    new = transfer(model, OLD, NEW)
    for old_table, table in (
        (model.get_input_embeddings().weight, new.get_input_embeddings().weight),
        (model.lm_head.weight, new.lm_head.weight),
        (model.lm_head.bias, new.lm_head.bias),
    ):
        assert len(table) == 6
        assert torch.equal(table[:3], old_table[:3])
        assert torch.equal(table[4], old_table[5])
        assert torch.equal(table[5], old_table[3])
    mean = model.get_input_embeddings().weight[3:].mean(dim=0)
    apart = (new.get_input_embeddings().weight[3] - mean).abs()
    assert 0 < apart.max() <= 2 * model.config.initializer_range
    apart = (new.lm_head.weight[3] - model.lm_head.weight[3:].mean(dim=0)).abs()
    assert 0 < apart.max() <= 2 * model.config.initializer_range + 1e-6
    assert torch.equal(new.lm_head.weight[3], new.get_input_embeddings().weight[3]) is tied
    assert new.lm_head.bias[3] == model.lm_head.bias[3:].min()


def test_a_history_of_shared_items_is_read_as_before(model):
    new = transfer(model, OLD, NEW).eval()
    before = model.model(torch.tensor([[3, 5, 1]])).last_hidden_state
    after = new.model(torch.tensor([[5, 4, 1]])).last_hidden_state
    assert torch.equal(before, after)
    assert model.config.vocab_size == len(OLD)


def test_settings_can_change_and_sizes_cannot(model):
    assert transfer(model, OLD, NEW, hidden_dropout_prob=0.4).config.hidden_dropout_prob == 0.4
    with pytest.raises(ValueError, match=r"model\.layers\.2.* no such weight\. .* Changed are `num_hidden_layers`\."):
        transfer(model, OLD, NEW, num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"intermediate\S+ needs the shape \[24, 12\].* has the shape \[\d+, 12\]\. "):
        transfer(model, OLD, NEW, intermediate_size=24)
    longer = item_tokenizer(["a"], max_length=7)
    with pytest.raises(
        ValueError,
        match=r"The model has 6 positions, but `new_tokenizer` has a `model_max_length` of 7\. Build "
        r"`new_tokenizer` with `max_length=6` or less \(command line: `--max_length 6`\)\.",
    ):
        transfer(model, OLD, longer)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_can_get_an_output_matrix_of_its_own_or_lose_it(tied):
    torch.manual_seed(0)
    model = Bert4RecForMaskedLM(small_config(len(OLD), 6, tie_word_embeddings=tied))
    new = transfer(model, OLD, NEW, tie_word_embeddings=not tied)
    old_table, table = (it.get_input_embeddings().weight for it in (model, new))
    assert torch.equal(table[[4, 5]], old_table[[5, 3]])
    assert (new.lm_head.weight is table) is not tied
    assert torch.equal(new.lm_head.weight[[4, 5]], old_table[[5, 3]])


def test_catalogs_without_shared_items_raise(model):
    with pytest.raises(ValueError, match=r"share no item ID\. Use `match='title'`"):
        transfer(model, OLD, item_tokenizer(["y", "z"], max_length=5))
    with pytest.raises(ValueError, match=r"The new catalog has no titles\. Pass `titles` to `item_tokenizer`"):
        transfer(model, OLD, item_tokenizer(["a"], max_length=5), match="title")
    untitled = item_tokenizer(OLD.items.to_pylist(), max_length=OLD.model_max_length)
    with pytest.raises(ValueError, match=r"has no titles\. Add titles of its items with `add_items`"):
        transfer(model, untitled, NEW, match="title")


def test_a_tokenizer_of_another_catalog_raises(model):
    for other in (["a"], list("abcdefghijklmnop")):
        with pytest.raises(
            ValueError, match=r"rows in its item table, the tokenizer has \d+ tokens\. .*Otherwise take both"
        ):
            transfer(model, item_tokenizer(other, max_length=5), NEW)
    with pytest.raises(ValueError, match="`match` must be 'id' or 'title', found 'name'"):
        transfer(model, OLD, NEW, match="name")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_rows_new_items_start_from_the_other_items_of_their_users(model, dtype):
    tokenizer = item_tokenizer(["a", "c", "m", "n"], max_length=5)
    rows = training_rows(tokenizer, [("u", "a"), ("u", "n"), ("v", "c"), ("w", "m")])
    new = transfer(model.to(dtype), OLD, tokenizer, rows=rows)
    table, bias = new.get_input_embeddings().weight.float(), new.lm_head.bias
    assert torch.nn.functional.cosine_similarity(table[6], table[3], dim=0) > 0.999  # n, of the user of a
    assert torch.nn.functional.cosine_similarity(table[5], table[3], dim=0) < 0.99  # m, whose user has no other item
    assert bias[6] != model.lm_head.bias[3:].min()
    assert bias[5] == model.lm_head.bias[3:].min()
    old = model.get_input_embeddings().weight
    assert torch.equal(table[[3, 4]], old[[3, 5]].float())


def test_with_a_projection_new_items_start_from_their_features(model):
    described = pd.DataFrame({"item": ["a", "c", "n", "m"], "kind": ["x", "y", "x", "y"]})
    tokenizer = item_tokenizer(["a", "c", "m", "n", "o"], features=load_item_features(described), max_length=5)
    vectors = torch.from_numpy(tokenizer.features.vectors(tokenizer.items))
    projection = torch.randn(vectors.shape[1], model.config.hidden_size + 1)
    rows = training_rows(tokenizer, [("u", "a"), ("u", "n"), ("u", "o")])
    new = transfer(model, OLD, tokenizer, rows=rows, projection=projection)
    expected, table = vectors @ projection, new.get_input_embeddings().weight
    torch.testing.assert_close(table[[5, 6]], expected[[2, 3], :-1])  # m and n
    torch.testing.assert_close(new.lm_head.bias[[5, 6]], expected[[2, 3], -1])
    assert torch.equal(table[3], model.get_input_embeddings().weight[3])
    assert not torch.equal(table[7], table[3])  # o, from its user
    with pytest.raises(
        ValueError, match=r"has the shape \(2, 13\), but item_features\.parquet and the .* Use the files"
    ):
        transfer(model, OLD, tokenizer, projection=projection[:2])


def test_a_model_keeps_its_precision(model):
    new = transfer(model.bfloat16(), OLD, NEW)
    assert {parameter.dtype for parameter in new.parameters()} == {torch.bfloat16}


def test_other_architectures_can_be_transferred():
    torch.manual_seed(0)
    model = Gru4RecForMaskedLM(Gru4RecConfig(vocab_size=len(OLD), hidden_size=12, num_attention_heads=3)).eval()
    new = transfer(model, OLD, NEW).eval()
    before, after = (
        it.model(torch.tensor([row])).last_hidden_state for it, row in ((model, [3, 5, 1]), (new, [5, 4, 1]))
    )
    assert torch.equal(before, after)
