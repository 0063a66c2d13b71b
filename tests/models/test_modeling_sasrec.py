"""SASRec and GRU4Rec: nobody sees the item to predict, padding changes nothing, and the package works with them."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

import hf_bert4rec
from hf_bert4rec import (
    Bert4RecForMaskedLM,
    DataCollatorForNextItem,
    Gru4RecConfig,
    Gru4RecForMaskedLM,
    SasRecConfig,
    SasRecForMaskedLM,
)
from hf_bert4rec.cli.run import run
from tests.cli.test_run import recipe_for
from tests.conftest import small_config

KINDS = [(SasRecConfig, SasRecForMaskedLM), (Gru4RecConfig, Gru4RecForMaskedLM)]
SIZES = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
MASK = 1
LOWEST = torch.finfo(torch.float32).min


@pytest.fixture(params=KINDS, ids=["sasrec", "gru4rec"])
def model(request):
    torch.manual_seed(0)
    config, kind = request.param
    return kind(config(vocab_size=13, max_position_embeddings=6, initializer_range=0.5, **SIZES)).eval()


def test_an_item_is_seen_where_later_ones_are_predicted_and_nowhere_else(model):
    input_ids = torch.tensor([[3, 4, 5, 6, MASK]])
    other = torch.tensor([[3, 4, 9, 6, MASK]])
    changed = (model(input_ids).logits != model(other).logits).any(dim=2)
    assert changed.tolist() == [[False, False, False, True, True]]


def test_the_mask_of_a_query_is_not_read(model):
    asked, unasked = (model(torch.tensor([[3, 4, last]])).logits for last in (MASK, 7))
    assert torch.equal(asked, unasked)


def test_a_query_is_answered_as_in_training(model):
    row = torch.tensor([[3, 4, 5, 6]])
    every = model(row).logits
    for place in range(4):
        query = torch.cat([row[:, :place], torch.tensor([[MASK]])], dim=1)
        torch.testing.assert_close(model(query).logits[:, -1], every[:, place])


def test_padding_changes_nothing(model):
    alone = model(torch.tensor([[3, 4, MASK]])).logits
    input_ids = torch.tensor([[3, 4, MASK, 0, 0], [5, 6, 7, 8, MASK]])
    padded = model(input_ids, (input_ids != 0).long()).logits
    torch.testing.assert_close(padded[:1, :3], alone)


def test_kept_positions_are_those_of_all(model):
    input_ids, kept = torch.tensor([[3, 4, 5, MASK], [6, 7, 8, MASK]]), torch.tensor([[3, 0], [1, 3]])
    every = model(input_ids).logits
    torch.testing.assert_close(model(input_ids, kept_positions=kept).logits, every.take_along_dim(kept[..., None], 1))


def test_hidden_states_are_the_embeddings_and_one_a_layer(model):
    states = model(torch.tensor([[3, 4, MASK]]), output_hidden_states=True).hidden_states
    assert [tuple(state.shape) for state in states] == [(1, 3, 12)] * 3
    first = model(torch.tensor([[MASK]]), output_hidden_states=True).hidden_states[0]
    torch.testing.assert_close(states[0][:, :1], first)


def test_embeddings_can_be_given_instead_of_items(model):
    input_ids = torch.tensor([[3, 4, MASK]])
    embedded = model.get_input_embeddings()(input_ids)
    assert torch.equal(model(inputs_embeds=embedded).logits, model(input_ids).logits)
    with pytest.raises(ValueError, match="exactly one"):
        model(input_ids, inputs_embeds=embedded)


def test_the_loss_is_that_of_every_item_given_those_before_it(model):
    rows = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    labels = rows.masked_fill(rows == 0, -100)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        module.attention_dropout = 0.0
    loss = model(rows, (rows != 0).long(), labels=labels).loss
    model.eval()
    logits = model(rows, (rows != 0).long()).logits[labels != -100][:, 3:]
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, labels[labels != -100] - 3))


def test_attention_backends_agree():
    config = SasRecConfig(vocab_size=13, max_position_embeddings=6, **SIZES)
    model = SasRecForMaskedLM(config).eval()
    input_ids = torch.tensor([[3, 4, 5, MASK], [6, 7, MASK, 0]])
    expected = model(input_ids, (input_ids != 0).long()).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(input_ids, (input_ids != 0).long()).logits[0], expected[0])


def test_sasrec_is_bert4rec_but_for_what_it_sees():
    """The same weights, name by name; and a history of one place, of which both see the [MASK] alone, is the same."""
    torch.manual_seed(0)
    sasrec = SasRecForMaskedLM(SasRecConfig(vocab_size=13, max_position_embeddings=6, **SIZES)).eval()
    bert4rec = Bert4RecForMaskedLM(
        small_config(13, 6, prediction_head=False, learned_positions=False, rope_theta=200)
    ).eval()
    bert4rec.load_state_dict(sasrec.state_dict())
    alone = torch.tensor([[MASK]])
    states = [model.model(alone).last_hidden_state for model in (sasrec, bert4rec)]
    torch.testing.assert_close(*states)
    torch.testing.assert_close(sasrec(alone).logits, bert4rec.lm_head(states[1]).index_fill(2, torch.arange(3), LOWEST))


def test_the_recurrence_is_that_of_a_cell_step_by_step():
    torch.manual_seed(0)
    model = Gru4RecForMaskedLM(Gru4RecConfig(vocab_size=13, hidden_size=12, num_attention_heads=3)).eval()
    cell = nn.GRUCell(12, 12)
    cell.load_state_dict(
        {name.removesuffix("_l0"): value for name, value in model.model.layers[0].state_dict().items()}
    )
    table, state = model.get_input_embeddings(), torch.zeros(1, 12)
    for item in (MASK, 5, 7):
        state = cell(table(torch.tensor([item])), state)
    torch.testing.assert_close(model.model(torch.tensor([[5, 7, MASK]])).last_hidden_state[:, -1], state)


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (SasRecConfig, {"conv_kernel_size": 3}, "`conv_kernel_size` must be None for SASRec, .* found 3"),
        (Gru4RecConfig, {"conv_kernel_size": 3}, "`conv_kernel_size` must be None for GRU4Rec, found 3"),
        (Gru4RecConfig, {"rope_theta": 200}, "`rope_theta` must be None for GRU4Rec, found 200"),
    ],
)
def test_what_looks_ahead_or_is_not_read_is_refused(config, options, words):
    with pytest.raises((ValueError, StrictDataclassError), match=words):
        config(**options)


def test_every_item_of_a_training_row_is_its_own_label(tokenizer):
    batch = DataCollatorForNextItem(tokenizer)([{"input_ids": [3, 4, 5]}, {"input_ids": [6]}])
    assert batch["input_ids"].tolist() == [[3, 4, 5], [6, 0, 0]]
    assert batch["labels"].tolist() == [[3, 4, 5], [6, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("architecture", "name", "kind", "settings"),
    [
        ("sasrec", "SASRec", SasRecForMaskedLM, ["--prediction_head=true"]),
        ("gru4rec", "GRU4Rec", Gru4RecForMaskedLM, ["--initializer_range=0.3", "--prediction_head=false"]),
    ],
)
def test_a_recipe_trains_them_and_the_checkpoint_recommends(tmp_path, architecture, name, kind, settings):
    options = [
        "--architecture",
        architecture,
        "--num_train_epochs",
        "60",
        "--learning_rate=0.03",
        "--muon_learning_rate=none",
        "--eval_steps=0.5",
        *settings,
    ]
    folder = run(recipe_for(tmp_path, *options, "--eval_strategy=steps", "--save_strategy=steps", "--save_steps=0.5"))
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert isinstance(model, kind)
    assert isinstance(AutoModel.from_pretrained(folder), kind.base_class)
    assert len(tokenizer) == model.config.vocab_size
    # In this log item i is always followed by item i + 1.
    assert hf_bert4rec.pipeline(folder)([["i1", "i2", "i3"]], top_k=1)[0][0]["item"] == "i4"
    card = (folder / "README.md").read_text()
    assert f"A {name} sequential recommender" in card
    assert f"| {name} |" in card


def test_any_width_will_do_for_gru4rec():
    assert Gru4RecConfig(hidden_size=9).hidden_size == 9


def test_gru4rec_drops_inputs_and_outputs_in_training():
    config = Gru4RecConfig(vocab_size=12, hidden_size=8, hidden_dropout_prob=0.5, num_hidden_layers=1)
    model, dropped = Gru4RecForMaskedLM(config).train(), []
    model.model.dropout.register_forward_hook(lambda module, inputs, output: dropped.append(tuple(output.shape)))
    model(torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]]))
    assert dropped == [(1, 3, 8)] * 2
