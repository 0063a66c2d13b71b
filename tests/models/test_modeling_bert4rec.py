"""The encoder, the masked-item head and the configuration: against BERT, against plain torch, and round trips."""

import json
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, BertConfig, BertForMaskedLM, pipeline
from transformers import modeling_flash_attention_utils as flash_utils
from transformers.masking_utils import create_bidirectional_mask

from hf_bert4rec import Bert4RecConfig, Bert4RecForMaskedLM, Bert4RecModel
from hf_bert4rec.models import modeling_bert4rec
from hf_bert4rec.models.layers import rotate
from hf_bert4rec.models.modeling_sasrec import SasRecForMaskedLM
from hf_bert4rec.models.registry import ARCHITECTURES
from tests.conftest import lively, small_config

ROWS, LENGTH, SPECIALS = 29, 7, 3
KINDS = pytest.mark.parametrize(
    "settings", [{}, {"rope_theta": 9, "conv_kernel_size": 3, "prediction_head": False}], ids=["paper", "recipe"]
)
PAD, MASK, UNK = 0, 1, 2


def lively_model(**changes) -> Bert4RecForMaskedLM:
    attention = changes.pop("attn_implementation", "sdpa")
    return lively(Bert4RecForMaskedLM._from_config(small_config(**changes), attn_implementation=attention))


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Three histories of 7, 5 and 3 items with 3, 1 and 2 masks; the truth is in `labels`."""
    input_ids = torch.tensor([[4, 1, 9, 1, 28, 3, 1], [5, 1, 7, 8, 6, 0, 0], [1, 11, 1, 0, 0, 0, 0]])
    labels = torch.full_like(input_ids, -100)
    labels[input_ids == MASK] = torch.tensor([3, 12, 28, 20, 7, 7])
    return {"input_ids": input_ids, "attention_mask": (input_ids != PAD).long(), "labels": labels}


def inputs_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


# ---- the same numbers as BERT ----------------------------------------------------------------------------------------


def bert_name(name: str) -> str:
    """Our parameter's name → its name in transformers' BertForMaskedLM."""
    for ours, theirs in (
        ("model.embeddings.item_embeddings", "bert.embeddings.word_embeddings"),
        ("model.embeddings.position_embeddings", "bert.embeddings.position_embeddings"),
        ("model.embeddings.norm", "bert.embeddings.LayerNorm"),
        ("model.layers.", "bert.encoder.layer."),
        ("attention.query", "attention.self.query"),
        ("attention.key", "attention.self.key"),
        ("attention.value", "attention.self.value"),
        ("attention.output", "attention.output.dense"),
        ("attention_norm", "attention.output.LayerNorm"),
        ("mlp.intermediate", "intermediate.dense"),
        ("mlp.output", "output.dense"),
        ("mlp_norm", "output.LayerNorm"),
        ("prediction_head.dense", "cls.predictions.transform.dense"),
        ("prediction_head.norm", "cls.predictions.transform.LayerNorm"),
        ("lm_head.bias", "cls.predictions.bias"),
    ):
        name = name.replace(ours, theirs)
    return name


def bert_and_ours(**changes) -> tuple[BertForMaskedLM, Bert4RecForMaskedLM]:
    """A BERT with a token-type row that is not zero, and our model with its weights copied in."""
    config = small_config(**changes)
    shared = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    shared += ("hidden_act", "max_position_embeddings", "layer_norm_eps")
    bert = lively(BertForMaskedLM(BertConfig(**{name: getattr(config, name) for name in shared}))).double()
    ours = Bert4RecForMaskedLM(config).eval().double()
    theirs = dict(bert.named_parameters())
    used = {bert_name(name) for name, _ in ours.named_parameters()}
    assert set(theirs) - used == {"bert.embeddings.token_type_embeddings.weight"}
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(theirs[bert_name(name)])
        positions = ours.model.embeddings.position_embeddings.weight
        positions += theirs["bert.embeddings.token_type_embeddings.weight"][0]
    return bert, ours


@pytest.mark.parametrize("hidden_act", ["gelu", "relu"])
def test_logits_of_items_are_those_of_bert(batch, hidden_act):
    bert, ours = bert_and_ours(hidden_act=hidden_act)
    full = torch.randint(0, ROWS, (4, LENGTH), generator=torch.Generator().manual_seed(0))
    for inputs in ({"input_ids": full}, inputs_of(batch)):
        theirs = bert(**inputs).logits
        assert theirs.std() > 0.1
        real = inputs.get("attention_mask", torch.ones_like(full)).bool()
        torch.testing.assert_close(
            ours(**inputs).logits[real][:, SPECIALS:], theirs[real][:, SPECIALS:], atol=1e-9, rtol=0
        )


def test_gradients_of_the_loss_are_those_of_bert(batch):
    bert, ours = bert_and_ours()
    logits = bert(**inputs_of(batch)).logits[..., SPECIALS:]
    labels = torch.where(batch["labels"] == -100, -100, batch["labels"] - SPECIALS)
    cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    ours(**batch).loss.backward()
    theirs = gradients(bert)
    for name, gradient in gradients(ours).items():
        torch.testing.assert_close(gradient, theirs[bert_name(name)], atol=1e-9, rtol=1e-7, msg=name)


# ---- attention -------------------------------------------------------------------------------------------------------


def test_eager_attention_equals_sdpa(batch):
    keep = torch.tensor([[1, 6], [1, 4], [0, 2]])
    sdpa, eager = lively_model(), lively_model(attn_implementation="eager")
    for inputs in (inputs_of(batch), {**inputs_of(batch), "kept_positions": keep}):
        torch.testing.assert_close(eager(**inputs).logits, sdpa(**inputs).logits, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_flex_attention_equals_sdpa(batch):
    sizes = {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 2, "rope_theta": 9}
    sdpa, flex = lively_model(**sizes), lively_model(**sizes, attn_implementation="flex_attention")
    with torch.compiler.set_stance("force_eager"):  # compiling it takes 20 s
        logits = flex(**inputs_of(batch)).logits
        kept = flex(**inputs_of(batch), kept_positions=torch.tensor([[6], [4], [2]])).logits
    expected = sdpa(**inputs_of(batch)).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(logits[real], expected[real], atol=1e-4, rtol=0)
    torch.testing.assert_close(kept[:, 0], expected[range(3), [6, 4, 2]], atol=1e-4, rtol=0)


def flash_attention(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False
):
    """What flash-attn's function for packed rows computes (total, heads, head_dim), which runs on a GPU alone."""
    parts = []
    for number in range(len(cu_seqlens_q) - 1):
        rows, seen = slice(*cu_seqlens_q[number : number + 2]), slice(*cu_seqlens_k[number : number + 2])
        states = (state.transpose(0, 1) for state in (q[rows], k[seen], v[seen]))
        parts.append(scaled_dot_product_attention(*states, scale=softmax_scale, is_causal=causal).transpose(0, 1))
    return torch.cat(parts)


def whole_rows(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
    """The same for rows without padding (batch, length, heads, head_dim)."""
    states = (state.transpose(1, 2) for state in (q, k, v))
    return scaled_dot_product_attention(*states, scale=softmax_scale, is_causal=causal).transpose(1, 2)


@pytest.fixture
def flash(monkeypatch):
    """Transformers' own path to flash attention, with the above in place of the kernels."""
    functions = whole_rows, flash_attention, None, flash_utils._pad_input, flash_utils._unpad_input
    monkeypatch.setattr(flash_utils, "_lazy_imports", lambda *args, **kwargs: functions)
    monkeypatch.setattr(flash_utils, "_loaded_implementation", None)


@pytest.mark.parametrize("architecture", [Bert4RecForMaskedLM, SasRecForMaskedLM])
@pytest.mark.parametrize("kept", [[[6], [4], [2]], [[1, 6], [4, 1], [2, 0]], [[6, 5, 4, 3, 2, 1, 0]] * 3])
def test_flash_attention_equals_sdpa(batch, flash, architecture, kept):
    assert architecture._supports_flash_attn
    config = architecture.config_class(**small_config(rope_theta=9).to_diff_dict())
    model = lively(architecture(config))
    kept = torch.tensor(kept)
    expected = model(**inputs_of(batch), kept_positions=kept).logits
    everywhere = model(**inputs_of(batch)).logits
    loss = model(**batch).loss
    model.config._attn_implementation = "flash_attention_2"  # the public way asks for a GPU
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(model(**inputs_of(batch)).logits[real], everywhere[real], atol=1e-4, rtol=0)
    theirs = model(**inputs_of(batch), kept_positions=kept).logits
    scored = real.take_along_dim(kept, dim=1)
    torch.testing.assert_close(theirs[scored], expected[scored], atol=1e-4, rtol=0)
    torch.testing.assert_close(model(**batch).loss, loss, atol=1e-5, rtol=0)
    assert flash_utils._loaded_implementation == "flash_attention_2"


@pytest.mark.parametrize("settings", [{}, {"attn_implementation": "eager"}, {"conv_kernel_size": 5}])
def test_padding_changes_nothing(batch, settings):
    model = lively_model(**settings)
    inputs = inputs_of(batch)
    real = inputs["attention_mask"].bool()
    other = {**inputs, "input_ids": torch.where(real, inputs["input_ids"], 17)}
    torch.testing.assert_close(model(**other).logits[real], model(**inputs).logits[real], atol=1e-5, rtol=0)
    alone = model(inputs["input_ids"][2:, :3]).logits[0]
    torch.testing.assert_close(model(**inputs).logits[2, :3], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_one_row_of_the_mask_is_as_good_as_a_row_a_query(batch, implementation, monkeypatch):
    def whole(config, queries, hidden_states, attention_mask):
        return create_bidirectional_mask(config, queries, attention_mask, encoder_hidden_states=hidden_states)

    losses, slopes = [], []
    for mask in (modeling_bert4rec.padding_mask, whole):
        monkeypatch.setattr(modeling_bert4rec, "padding_mask", mask)
        model = lively_model(attn_implementation=implementation)
        loss = model(**batch).loss
        loss.backward()
        losses.append(loss.detach())
        slopes.append(gradients(model))
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(slopes[0], slopes[1], atol=1e-6, rtol=1e-5)


def test_the_attention_mask_is_used(batch):
    model = lively_model()
    keep = torch.tensor([[6], [4], [2]])
    for extra, query in (({}, 2), ({"kept_positions": keep}, 0)):
        masked, unmasked = model(**inputs_of(batch), **extra).logits, model(batch["input_ids"], **extra).logits
        assert (masked - unmasked)[2, query, SPECIALS:].abs().max() > 1e-2
        torch.testing.assert_close(masked[0], unmasked[0], atol=1e-5, rtol=0)  # has no padding


def test_every_position_sees_both_sides():
    model = lively_model()
    ids = torch.tensor([[4, 5, 6, 7, 8]])
    before = model(ids).logits[0, 2, SPECIALS:]
    for changed in (0, 4):
        other = ids.clone()
        other[0, changed] = 20
        assert (model(other).logits[0, 2, SPECIALS:] - before).abs().max() > 1e-2


def test_the_order_of_the_history_matters():
    model = lively_model()
    one, other = model(torch.tensor([[4, 5, 6, 1]])).logits, model(torch.tensor([[6, 5, 4, 1]])).logits
    assert (one - other)[0, 3, SPECIALS:].abs().max() > 1e-2


# ---- the head --------------------------------------------------------------------------------------------------------


def test_the_head_is_tied_and_saved_once(tmp_path):
    model = Bert4RecForMaskedLM(small_config())
    assert model.lm_head.weight.data_ptr() == model.model.embeddings.item_embeddings.weight.data_ptr()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        tables = [name for name in file.keys() if file.get_slice(name).get_shape() == [29, 12]]  # noqa: SIM118
    assert tables == ["model.embeddings.item_embeddings.weight"]
    loaded = Bert4RecForMaskedLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embeddings.item_embeddings.weight.data_ptr()


def test_the_head_can_be_untied(tmp_path):
    model = Bert4RecForMaskedLM(small_config(tie_word_embeddings=False))
    table = model.model.embeddings.item_embeddings.weight
    assert model.lm_head.weight.data_ptr() != table.data_ptr()
    assert not torch.equal(model.lm_head.weight, table)
    model.save_pretrained(tmp_path)
    loaded = Bert4RecForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert torch.equal(loaded.model.embeddings.item_embeddings.weight, table)


@pytest.mark.parametrize("head", [False, True])
def test_without_items_to_read_the_logits_are_the_biases(head):
    model = lively_model(prediction_head=head).eval()
    input_ids = torch.tensor([[MASK, PAD, PAD], [MASK, MASK, UNK], [5, MASK, PAD]])
    mask = (input_ids != PAD).long()
    with torch.no_grad():
        logits = model(input_ids, mask).logits[..., SPECIALS:]
        of_embeddings = model(inputs_embeds=model.get_input_embeddings()(input_ids), attention_mask=mask).logits
        alone = model(input_ids[:1, :1]).logits[..., SPECIALS:]
    biases = model.lm_head.bias[SPECIALS:]
    assert biases.std() > 0.1
    assert torch.equal(logits[:2], biases.expand_as(logits[:2]))
    assert torch.equal(alone, biases.expand_as(alone))
    torch.testing.assert_close(logits[2], of_embeddings[2, :, SPECIALS:])
    assert (logits[2] - biases).abs().max() > 0.1


def test_a_row_without_items_to_read_is_trained_like_any_other():
    model = lively_model().train()
    row = torch.tensor([[MASK, PAD]])
    model(row, (row != PAD).long(), labels=torch.tensor([[5, -100]])).loss.backward()
    assert model.get_input_embeddings().weight.grad[MASK].abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_special_rows_never_get_probability(batch, dtype):
    model = lively_model().to(dtype)
    with torch.no_grad():
        model.lm_head.bias[:SPECIALS] = 1000
    logits = model(**inputs_of(batch)).logits
    assert logits.isfinite().all()
    probabilities = logits.softmax(dim=-1)
    assert (probabilities[..., :SPECIALS] == 0).all()
    assert (probabilities[..., SPECIALS:] > 0).any(dim=-1).all()


def test_the_loss_teaches_special_rows_nothing(batch):
    model = lively_model()
    ids = torch.where(batch["input_ids"] == PAD, 9, batch["input_ids"])
    model(ids, labels=batch["labels"]).loss.backward()
    table = model.model.embeddings.item_embeddings.weight.grad
    assert (table[[PAD, UNK]] == 0).all()
    assert (table[MASK] != 0).any()
    assert (table[25] != 0).any()
    assert (model.lm_head.bias.grad[:SPECIALS] == 0).all()


# ---- the loss --------------------------------------------------------------------------------------------------------


def plain_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over the items alone, one label after the other."""
    losses = [
        -logits[row, position, SPECIALS:].log_softmax(dim=0)[labels[row, position] - SPECIALS]
        for row, position in (labels >= SPECIALS).nonzero().tolist()
    ]
    return torch.stack(losses).mean()


def test_loss_is_the_same_whichever_positions_are_kept(batch):
    model = lively_model()
    expected = model(**batch).loss
    everything = torch.arange(LENGTH).expand(3, -1)
    shuffled = torch.tensor([[6, 3, 1, 0], [1, 0, 2, 3], [2, 0, 1, 5]])
    for keep in (everything, shuffled):
        torch.testing.assert_close(model(**batch, kept_positions=keep).loss, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("training", [False, True])
def test_the_loss_of_a_batch_without_labels_is_zero(batch, training):
    model = lively_model().train(training)
    loss = model(**inputs_of(batch), labels=torch.full((3, LENGTH), -100)).loss
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_labels_that_are_special_rows_are_not_scored(batch):
    model = lively_model()
    labels = batch["labels"].clone()
    labels[0, 1], labels[0, 3], labels[2, 0] = PAD, MASK, UNK
    expected = plain_loss(model(**inputs_of(batch)).logits, labels)
    torch.testing.assert_close(model(**inputs_of(batch), labels=labels).loss, expected, atol=1e-5, rtol=0)
    only_special = torch.full_like(labels, -100)
    only_special[:, 0] = UNK
    assert model(**inputs_of(batch), labels=only_special).loss == 0


@pytest.mark.parametrize("as_tensor", [False, True])
def test_parts_of_a_batch_sum_to_the_whole(batch, as_tensor):
    model = lively_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    model(**batch).loss.backward()
    whole_loss, whole = model(**batch).loss, gradients(model)
    model.zero_grad()
    total = torch.tensor(6) if as_tensor else 6
    part_loss = 0
    for part in (slice(0, 1), slice(1, 3)):
        loss = model(**{name: tensor[part] for name, tensor in batch.items()}, num_items_in_batch=total).loss
        loss.backward()
        part_loss += loss
    torch.testing.assert_close(part_loss, whole_loss, atol=1e-5, rtol=0)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, whole[name], atol=1e-5, rtol=1e-4, msg=name)


def test_gradients_of_the_loss_are_those_of_plain_cross_entropy_over_several_chunks():
    model = lively_model(vocab_size=40).double()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 40, (30, 11), generator=generator)
    labels = torch.randint(SPECIALS, 40, ids.shape, generator=generator)  # 330 labels: three chunks of the loss
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = -100
    loss = model(ids, labels=labels).loss
    loss.backward()
    chunked = gradients(model)
    model.zero_grad()
    targets = torch.where(labels == -100, -100, labels - SPECIALS)
    plain = cross_entropy(model(ids).logits[..., SPECIALS:].flatten(0, 1), targets.flatten())
    plain.backward()
    torch.testing.assert_close(loss, plain, atol=1e-10, rtol=0)
    assert len(chunked) == len(list(model.parameters()))
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(chunked[name], gradient, atol=1e-10, rtol=1e-8, msg=name)


def test_training_makes_no_logits_and_evaluation_those_of_the_scored_positions(batch):
    model = lively_model()
    assert model.train()(**batch).logits is None
    assert model(**inputs_of(batch)).logits.shape == (3, LENGTH, ROWS)
    logits = model.eval()(**batch).logits
    everything = model(**inputs_of(batch)).logits
    assert logits.shape == (3, 3, ROWS)
    torch.testing.assert_close(logits[0], everything[0, [1, 3, 6]], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits[1, 0], everything[1, 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits[2, :2], everything[2, [0, 2]], atol=1e-5, rtol=0)


def test_history_is_passed_over(batch):
    model = lively_model()
    assert torch.equal(model(**batch, history=torch.tensor([[3], [4], [5]])).logits, model(**batch).logits)


# ---- the machinery of torch and transformers -------------------------------------------------------------------------


def undropped(**changes) -> Bert4RecForMaskedLM:
    return lively_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **changes)


@pytest.mark.parametrize("use_reentrant", [None, False, True])
@KINDS
def test_gradient_checkpointing_gives_the_same_gradients(batch, use_reentrant, settings):
    model = undropped(num_hidden_layers=3, **settings).train()
    model(**batch).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    options = None if use_reentrant is None else {"use_reentrant": use_reentrant}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    assert model.is_gradient_checkpointing
    model(**batch).loss.backward()
    assert gradients(model).keys() == expected.keys()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5, msg=name)


@KINDS
def test_one_compiled_graph_gives_the_same_logits(batch, settings):
    model = lively_model(**settings)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    keep = torch.tensor([[6], [4], [2]])
    with torch.no_grad():
        for inputs in (inputs_of(batch), {**inputs_of(batch), "kept_positions": keep}):
            torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=0)


@KINDS
def test_one_compiled_graph_trains_the_same(batch, settings):
    model = undropped(**settings).train()
    model(**batch).loss.backward()
    loss, expected = model(**batch).loss, gradients(model)
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled_loss = compiled(**batch).loss
    compiled_loss.backward()
    torch.testing.assert_close(compiled_loss, loss, atol=1e-5, rtol=0)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)


@KINDS
def test_an_exported_graph_gives_the_same_logits(batch, settings):
    model = lively_model(**settings)
    with torch.no_grad():
        exported = torch.export.export(model, (), inputs_of(batch))
        torch.testing.assert_close(
            exported.module()(**inputs_of(batch)).logits, model(**inputs_of(batch)).logits, atol=1e-5, rtol=0
        )


@KINDS
def test_half_precision_trains_with_finite_numbers(batch, settings):
    model = lively_model(**settings).bfloat16()
    outputs = model(**batch)
    outputs.loss.backward()
    assert outputs.logits.dtype == torch.bfloat16
    assert outputs.logits.isfinite().all()
    assert outputs.loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


def test_dropout_acts_in_training_only(batch):
    model = lively_model()
    assert torch.equal(model(**batch).loss, model(**batch).loss)
    model.train()
    assert model(**batch).loss != model(**batch).loss


@KINDS
def test_a_saved_model_gives_the_same_bits(batch, tmp_path, settings):
    model = lively_model(**settings)
    model.save_pretrained(tmp_path)
    loaded = Bert4RecForMaskedLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**inputs_of(batch)).logits, model(**inputs_of(batch)).logits)


def test_auto_classes_load_a_saved_model(batch, tmp_path):
    model = lively_model()
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is Bert4RecConfig
    head, encoder = AutoModelForMaskedLM.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
    assert type(head) is Bert4RecForMaskedLM
    assert type(encoder) is Bert4RecModel
    hidden = encoder.eval()(**inputs_of(batch)).last_hidden_state
    assert torch.equal(hidden, model.model(**inputs_of(batch)).last_hidden_state)


@pytest.fixture
def folder(model, tokenizer, tmp_path):
    lively(model).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


def test_the_stock_fill_mask_pipeline_recommends(folder, model):
    fill = pipeline("fill-mask", model=folder, device="cpu")
    probabilities = model(torch.tensor([[3, 4, MASK]])).logits[0, 2].softmax(dim=0)
    best = probabilities.topk(3)
    from_text = fill("a b [MASK]", top_k=3)
    from_list = fill([["a", "b", "[MASK]"]], top_k=3, tokenizer_kwargs={"is_split_into_words": True})
    for answers in (from_text, from_list):
        assert [answer["token"] for answer in answers] == best.indices.tolist()
        assert [answer["score"] for answer in answers] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert from_text[0]["token_str"] == "abcdefghij"[best.indices[0] - SPECIALS]


def test_the_stock_feature_extraction_pipeline_encodes(folder, model):
    features = pipeline("feature-extraction", model=folder, device="cpu")("a b c", return_tensors=True)
    expected = model.model(torch.tensor([[3, 4, 5]])).last_hidden_state
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


def test_an_input_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match=r"at most 11 positions \(`max_position_embeddings`\), found 12"):
        lively_model()(torch.full((1, 12), 5))


def test_exactly_one_kind_of_input_is_needed():
    model = lively_model()
    embeds = torch.zeros(1, 2, 12)
    for inputs in ({}, {"input_ids": torch.tensor([[3, 4]]), "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="exactly one of `input_ids` and `inputs_embeds`"):
            model(**inputs)


IDS = torch.tensor([[3, 4, MASK], [5, MASK, PAD]])
REAL = (IDS != PAD).long()


@pytest.mark.parametrize("model", [*map(ARCHITECTURES.get, ("bert4rec", "sasrec", "gru4rec"))], ids=lambda it: it.name)
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": IDS.tolist()}, "`input_ids` must be a tensor of shape (batch, length), found list."),
        ({"input_ids": IDS[0]}, "(batch, length), found shape (3,) of torch.int64."),
        ({"input_ids": IDS[:, :0]}, "The input is empty, found shape (2, 0) of torch.int64. Pass at least one token"),
        ({"input_ids": IDS + 99}, "`input_ids` must be from 0 to 18, found 102. Encode items with the tokenizer"),
        ({"input_ids": IDS - 4}, "`input_ids` must be from 0 to 18, found -1. "),
        ({"inputs_embeds": torch.zeros(2, 3)}, "(batch, length, hidden), found shape (2, 3) of torch.float32."),
        ({"input_ids": IDS, "attention_mask": REAL[:1]}, "`attention_mask` must be a tensor of shape (2, 3), one"),
        ({"input_ids": IDS, "attention_mask": REAL[:, None, None]}, "one value per position, found shape (2, 1, 1, 3)"),
        ({"input_ids": IDS, "attention_mask": REAL.tolist()}, "one value per position, found list."),
        ({"input_ids": IDS, "attention_mask": (1 - REAL) * -1e4}, "`attention_mask` must be 1 for items and 0 for"),
        ({"input_ids": IDS, "position_ids": REAL}, "`position_ids` is not supported: the position of an item is"),
        ({"input_ids": IDS, "labels": IDS[:, :1]}, "`labels` must be a tensor of shape (2, 3), one value per"),
        ({"input_ids": IDS, "labels": IDS * 0 - 1}, "`labels` must be -100 or from 0 to 18, found -1. Encode items"),
        ({"input_ids": IDS, "labels": IDS + 99}, "`labels` must be -100 or from 0 to 18, found 102. Encode items"),
        ({"input_ids": IDS, "kept_positions": torch.tensor([2, 1])}, "shape (batch, kept), found shape (2,) of"),
    ],
)  # fmt: skip
def test_inputs_of_another_shape_or_range_are_refused(model, inputs, message):
    sizes = {"vocab_size": 19, "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 12}
    with pytest.raises(ValueError, match=re.escape(message)):
        model.model_class(model.config_class(**sizes))(**inputs)


@KINDS
def test_inputs_embeds_are_rows_of_the_item_table(batch, settings):
    model = lively_model(**settings)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    with_embeds = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"], labels=batch["labels"])
    with_ids = model(**batch)
    torch.testing.assert_close(with_embeds.logits, with_ids.logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(with_embeds.loss, with_ids.loss, atol=1e-6, rtol=0)


def test_hidden_states_are_the_embeddings_and_one_a_layer(batch):
    model = lively_model(num_hidden_layers=3)
    outputs = model(**inputs_of(batch), output_hidden_states=True)
    assert [state.shape for state in outputs.hidden_states] == [(3, LENGTH, 12)] * 4
    assert torch.equal(outputs.hidden_states[0], model.model.embeddings(batch["input_ids"], None))
    assert torch.equal(outputs.hidden_states[-1], model.model(**inputs_of(batch)).last_hidden_state)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_only_the_last_hidden_state_is_of_the_kept_positions(batch, layers):
    model = lively_model(num_hidden_layers=layers)
    keep = torch.tensor([[6, 0], [4, 1], [0, 2]])
    states = model(**inputs_of(batch), kept_positions=keep, output_hidden_states=True).hidden_states
    assert [state.shape for state in states] == [(3, LENGTH, 12)] * layers + [(3, 2, 12)]


def test_rotary_positions_see_distances_alone():
    """With the learned positions at 0, items moved to later positions attend to each other as before."""
    model = lively_model(rope_theta=9)
    model.model.embeddings.position_embeddings.weight.data.zero_()
    items = torch.tensor([[4, 9, 28, 3]])
    moved = torch.tensor([[5, 6, 4, 9, 28, 3]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    torch.testing.assert_close(model(moved, mask).logits[:, 2:], model(items).logits, atol=1e-4, rtol=0)
    turned = model(items.flip(1)).logits.flip(1)
    assert (turned - model(items).logits)[..., SPECIALS:].abs().max() > 1e-2


def test_rotary_positions_are_told_apart_whatever_the_default_precision():
    states = torch.ones(1, 1, 200, 8)
    expected = rotate(states, torch.arange(200), theta=100.0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = rotate(states, torch.arange(200), theta=100.0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


def test_the_last_number_of_an_odd_width_is_not_rotated():
    states = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).expand(1, 1, 3, 5)
    turned = rotate(states, torch.tensor([0, 1, 5]), theta=100.0)
    assert torch.equal(turned[..., :4], rotate(states[..., :4], torch.tensor([0, 1, 5]), theta=100.0))
    assert (turned[..., 4] == 5).all()
    model = Bert4RecForMaskedLM(small_config(rope_theta=9, hidden_size=15))  # heads of width 5
    assert model(torch.tensor([[4, 1]])).logits.isfinite().all()


def test_the_rotation_of_a_vector_is_worked_out_by_hand():
    """A head of width 4 has wavelengths 2π and 2π √θ; 0 turns nothing, and lengths are kept."""
    states = torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(1, 1, 3, 4)
    turned = rotate(states, torch.tensor([0, 1, 5]), theta=100.0)[0, 0]
    torch.testing.assert_close(turned[0], states[0, 0, 0])
    for place, position in ((1, 1.0), (2, 5.0)):
        a, b = torch.tensor(position), torch.tensor(position / 10)
        by_hand = [a.cos() - 3 * a.sin(), 2 * b.cos() - 4 * b.sin(), 3 * a.cos() + a.sin(), 4 * b.cos() + 2 * b.sin()]
        torch.testing.assert_close(turned[place], torch.stack(by_hand))


def test_a_position_starts_from_its_neighbors():
    """Worked out by hand with a width of 2: oldest to newest 1, 2, 4, and channel 1 is ten times channel 0."""
    embeddings = Bert4RecModel(small_config(hidden_size=2, num_attention_heads=1, conv_kernel_size=3)).embeddings
    embeddings.position_embeddings.weight.data.zero_()
    embeddings.convolution.weight.data = torch.tensor([[[0.5, 1.0, 0.25]], [[0.0, 2.0, 1.0]]])
    embeddings.norm, embeddings.dropout = nn.Identity(), nn.Identity()
    items = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [4.0, 40.0], [9.0, 90.0]]])
    states = embeddings(None, items, torch.tensor([[1, 1, 1, 0]]))
    assert states[0, :3].tolist() == [[1.5, 40.0], [3.5, 80.0], [5.0, 80.0]]
    assert embeddings(None, items[:, :3])[0].tolist() == states[0, :3].tolist()


def test_the_convolution_takes_any_kind_of_two_dimensional_mask(batch):
    model = lively_model(conv_kernel_size=3)
    expected = model(**inputs_of(batch)).logits
    for kind in (torch.bool, torch.float64):
        mask = batch["attention_mask"].to(kind)
        torch.testing.assert_close(model(batch["input_ids"], mask).logits, expected)


def test_the_convolution_starts_as_the_item_and_a_quarter_of_those_beside_it():
    torch.manual_seed(0)
    weight = Bert4RecModel(small_config(conv_kernel_size=5)).embeddings.convolution.weight
    assert weight.tolist() == [[[0, 0.25, 1, 0.25, 0]]] * 12


def test_without_a_prediction_head_the_states_meet_the_item_table(batch):
    model = lively_model(prediction_head=False)
    states = model.model(**inputs_of(batch)).last_hidden_state
    by_hand = states @ model.lm_head.weight.T + model.lm_head.bias
    torch.testing.assert_close(model(**inputs_of(batch)).logits[..., SPECIALS:], by_hand[..., SPECIALS:])
    torch.testing.assert_close(model.score_items(states)[..., SPECIALS:], by_hand[..., SPECIALS:])
    assert not any("prediction_head" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("settings", [{}, {"rope_theta": 9}, {"conv_kernel_size": 3}])
def test_kept_queries_stand_at_their_own_positions(batch, settings):
    model, kept = lively_model(**settings), torch.tensor([[6, 1], [1, 0], [2, 2]])
    logits = model(**inputs_of(batch)).logits.take_along_dim(kept[..., None], 1)
    torch.testing.assert_close(model(**inputs_of(batch), kept_positions=kept).logits, logits, atol=1e-5, rtol=0)


def test_attentions_are_one_a_layer_and_spare_the_padding(batch):
    model = lively_model(attn_implementation="eager")
    attentions = model(**inputs_of(batch), output_attentions=True).attentions
    assert [weights.shape for weights in attentions] == [(3, 3, LENGTH, LENGTH)] * 2
    for weights in attentions:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 3, LENGTH))
        assert (weights[2, :, :3, 3:] == 0).all()
    kept = model(**inputs_of(batch), output_attentions=True, kept_positions=torch.tensor([[6], [4], [2]])).attentions
    torch.testing.assert_close(kept[1][2, :, 0], attentions[1][2, :, 2])


def test_a_grown_item_table_keeps_the_known_rows_and_stays_tied():
    model = lively_model()
    before = model(torch.tensor([[4, 5, MASK]])).logits
    model.resize_token_embeddings(ROWS + 2)
    after = model(torch.tensor([[4, 5, MASK]])).logits
    assert after.shape == (1, 3, ROWS + 2)
    torch.testing.assert_close(after[..., :ROWS], before, atol=1e-5, rtol=0)
    assert model.config.vocab_size == ROWS + 2
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_weights_start_from_a_truncated_normal_and_biases_from_zero():
    torch.manual_seed(0)
    model = Bert4RecForMaskedLM(small_config(vocab_size=2000, initializer_range=0.1))
    table = model.model.embeddings.item_embeddings.weight
    assert table.abs().max() <= 0.2
    assert table.std().item() == pytest.approx(0.1 * 0.8796, rel=0.03)  # a normal cut off at two deviations
    assert (table[PAD] != 0).any()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            assert 0 < parameter.abs().max() <= 0.2, name


# ---- the configuration -----------------------------------------------------------------------------------------------

# The ids of special tokens are left out: [PAD] is row 0 by contract and bos and eos are None, for other code to read;
# the model itself has the attention mask.
CONTRACT = {"pad_token_id", "bos_token_id", "eos_token_id"}
RANKING = {"exclude_history"}  # tried below, with the output `ranking`
POSITIONS = {"learned_positions"}  # tried below, with rotary positions
CHANGES = {
    "vocab_size": 37,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 28,
    "hidden_act": "relu",
    "hidden_dropout_prob": 0.7,
    "attention_probs_dropout_prob": 0.7,
    "max_position_embeddings": 13,
    "initializer_range": 0.5,
    "layer_norm_eps": 0.5,
    "rope_theta": 7,
    "conv_kernel_size": 3,
    "identity_attention": True,
    "prediction_head": False,
    "repeat_head": True,
    "num_followers": 4,
    "tie_word_embeddings": False,
    "loss": "sampled_softmax",
    "loss_chunk_size": 2,
    "num_negatives": 9,
    "share_negatives": False,
    "gbce_calibration": 0.1,
}
PRIVATE = {"model_type", "_auto_class", "_paper_settings"}
SHAPE_CHANGES = {
    "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings", "num_followers"
}  # fmt: skip


def test_every_field_of_the_configuration_is_tried():
    assert set(Bert4RecConfig.__annotations__) - PRIVATE == set(CHANGES) | CONTRACT | RANKING | POSITIONS


def test_a_typo_in_an_option_is_reported_with_the_near_name(caplog):
    assert Bert4RecConfig(output_hidden_states=True, my_own_remark="kept").my_own_remark == "kept"
    assert not caplog.messages
    Bert4RecConfig(rope_thta=200)
    assert caplog.messages == ["Unknown option 'rope_thta' of Bert4RecConfig. Did you mean 'rope_theta'?"]


def test_with_rotary_positions_alone_the_order_matters():
    model = lively_model(rope_theta=9, learned_positions=False)
    assert not [name for name, _ in model.named_parameters() if "position" in name]
    one, other = (model(torch.tensor([[first, second, MASK]])).logits for first, second in ((5, 7), (7, 5)))
    assert (one - other)[:, -1, SPECIALS:].abs().max() > 1e-2
    with pytest.raises(ValueError, match="at most 11 positions"):
        model(torch.full((1, 12), 5))


def test_a_model_without_positions_raises():
    with pytest.raises(StrictDataclassError, match="Expected `rope_theta` or `learned_positions`"):
        small_config(learned_positions=False)


@pytest.mark.parametrize("field", sorted(SHAPE_CHANGES))
def test_a_size_changes_the_shapes(field):
    one, other = (
        {name: tuple(parameter.shape) for name, parameter in Bert4RecForMaskedLM(config).named_parameters()}
        for config in (small_config(), small_config(**{field: CHANGES[field]}))
    )
    assert one != other


@pytest.mark.parametrize(
    "field",
    [
        "num_attention_heads",
        "hidden_act",
        "layer_norm_eps",
        "rope_theta",
        "conv_kernel_size",
        "prediction_head",
        "repeat_head",
    ],
)
def test_a_setting_changes_the_logits(batch, field):
    one, other = (lively_model(**changes) for changes in ({}, {field: CHANGES[field]}))
    difference = (one(**inputs_of(batch)).logits - other(**inputs_of(batch)).logits)[..., SPECIALS:]
    assert difference.abs().max() > 1e-2


@pytest.mark.parametrize("field", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_a_dropout_changes_the_training_loss(batch, field):
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    one, other = (lively_model(**{**still, **changes}).train() for changes in ({}, {field: CHANGES[field]}))
    assert one(**batch).loss == one(**batch).loss
    assert (one(**batch).loss - other(**batch).loss).abs() > 1e-3


@pytest.mark.parametrize("field", ["loss", "num_negatives", "share_negatives", "gbce_calibration"])
def test_a_setting_of_the_loss_changes_the_training_loss(batch, field):
    losses = []
    for changes in ({}, {}, {field: CHANGES[field]}):
        model = undropped(**{"loss": "gbce", "num_negatives": 5, **changes}).train()
        torch.manual_seed(0)
        losses.append(model(**batch).loss.item())
    assert losses[0] == losses[1]
    assert abs(losses[0] - losses[2]) > 1e-2


def test_the_chunks_of_the_loss_change_nothing(batch):
    one, other = (undropped(loss_chunk_size=size).double().train() for size in (128, CHANGES["loss_chunk_size"]))
    loss, other_loss = one(**batch).loss, other(**batch).loss
    torch.testing.assert_close(other_loss, loss, atol=1e-10, rtol=0)
    loss.backward()
    other_loss.backward()
    for name, gradient in gradients(other).items():
        torch.testing.assert_close(gradient, gradients(one)[name], atol=1e-10, rtol=1e-8, msg=name)


def test_identity_attention_adds_the_identity_to_the_first_values_and_outputs(tmp_path):
    torch.manual_seed(0)
    one = Bert4RecForMaskedLM(small_config())
    torch.manual_seed(0)
    other = Bert4RecForMaskedLM(small_config(identity_attention=True))
    for name, parameter in one.named_parameters():
        expected = torch.eye(12) if name.endswith(("attention.value.weight", "attention.output.weight")) else 0.0
        torch.testing.assert_close(other.get_parameter(name) - parameter, expected + torch.zeros_like(parameter))
    one.config.identity_attention = True
    one.save_pretrained(tmp_path)
    for name, parameter in Bert4RecForMaskedLM.from_pretrained(tmp_path).named_parameters():
        assert torch.equal(parameter, one.get_parameter(name)), name  # loaded weights stay as they are


def test_the_initializer_range_changes_the_weights():
    torch.manual_seed(0)
    one = Bert4RecForMaskedLM(small_config())
    torch.manual_seed(0)
    other = Bert4RecForMaskedLM(small_config(initializer_range=0.5))
    for name, parameter in one.named_parameters():
        if parameter.ndim == 2:
            assert other.get_parameter(name).std() > 10 * parameter.std(), name


def test_tying_changes_the_number_of_parameters():
    one, other = (Bert4RecForMaskedLM(small_config(tie_word_embeddings=tie)) for tie in (True, False))
    assert other.num_parameters() - one.num_parameters() == ROWS * 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 0}, "`num_hidden_layers` must be from 1 to 1000, found 0"),
        ({"num_attention_heads": 0}, "`num_attention_heads` must be at least 1, found 0"),
        ({"intermediate_size": -1}, "`intermediate_size` must be at least 1, found -1"),
        ({"max_position_embeddings": 0}, "`max_position_embeddings` must be at least 1, found 0"),
        ({"hidden_size": 64, "num_attention_heads": 3}, "multiple of `num_attention_heads`, found 64 and 3"),
        ({"hidden_size": 0}, "`hidden_size` must be a positive multiple"),
        ({"vocab_size": 3}, r"must be at least 4 \(.* and one item\), found 3\. Pass `vocab_size=len\(tokenizer\)`"),
        ({"rope_theta": 1}, "`rope_theta` must be above 1, or None, found 1"),
        ({"rope_theta": 9, "num_attention_heads": 0}, "`num_attention_heads` must be at least 1, found 0"),
        ({"conv_kernel_size": 4}, "`conv_kernel_size` must be odd and at least 3, or None, found 4"),
        ({"conv_kernel_size": 1}, "`conv_kernel_size` must be odd and at least 3, or None, found 1"),
        ({"loss_chunk_size": 0}, "`loss_chunk_size` must be at least 1, found 0"),
        ({"loss": "bce", "num_negatives": 0}, "`num_negatives` must be at least 1, found 0"),
        ({"loss": "bce", "vocab_size": 13, "num_negatives": 10}, "must be at most 9, .* found 10.*the loss `softmax`"),
        ({"initializer_range": 0.0}, "`initializer_range` must be above 0 and at most 10, found 0.0"),
        ({"layer_norm_eps": -1.0}, "`layer_norm_eps` must be above 0 and at most 10, found -1.0"),
        ({"layer_norm_eps": 1e300}, "`layer_norm_eps` must be above 0 and at most 10, found 1e\\+300"),
        ({"pad_token_id": 7}, "`pad_token_id` must be 0, the row of .PAD., found 7"),
        ({"gbce_calibration": -0.1}, "`gbce_calibration` must be from 0 to 1, found -0.1"),
        ({"hidden_dropout_prob": 1.0}, "must be at least 0 and below 1, found 1.0"),
        ({"num_followers": -1}, "must be from 0 to 1000, found -1"),
        ({"gbce_calibration": 1.1}, "`gbce_calibration` must be from 0 to 1, found 1.1"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(StrictDataclassError) as caught:
        Bert4RecConfig(**changes)
    assert isinstance(caught.value, ValueError) or isinstance(caught.value.__cause__, ValueError)
    caught.match(message)


def test_as_many_negatives_as_other_items_are_enough_and_the_full_softmax_needs_none():
    assert Bert4RecConfig(loss="bce", vocab_size=13, num_negatives=9).num_negatives == 9
    assert Bert4RecConfig(vocab_size=4).loss == "softmax"


@pytest.mark.parametrize(
    "changes", [{"hidden_size": "64"}, {"hidden_size": 64.0}, {"hidden_act": None}, {"hidden_dropout_prob": "0.1"}]
)
def test_a_value_of_the_wrong_type_is_refused(changes):
    with pytest.raises(StrictDataclassError, match=next(iter(changes))):
        Bert4RecConfig(**changes)


@pytest.mark.parametrize("field", CHANGES)
def test_a_configuration_survives_json(tmp_path, field):
    config = small_config(**{"num_negatives": 8, field: CHANGES[field]})
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "bert4rec"
    loaded = Bert4RecConfig.from_pretrained(tmp_path)
    for field in Bert4RecConfig.__annotations__:
        assert getattr(loaded, field) == getattr(config, field), field


def test_the_paper_settings_are_those_of_the_published_model_for_movielens():
    config = Bert4RecConfig.paper(3419)
    assert (config.rope_theta, config.conv_kernel_size, config.prediction_head) == (None, None, True)
    assert (config.attention_probs_dropout_prob, config.initializer_range) == (0.2, 0.02)
    shape = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    assert shape == (64, 2, 2, 256)
    assert (config.max_position_embeddings, config.hidden_dropout_prob, config.layer_norm_eps) == (200, 0.2, 1e-12)
    assert config.pad_token_id == 0
    assert config.tie_word_embeddings


def test_scores_are_single_precision_under_bfloat16_autocast(model):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(torch.tensor([[3, 4, 1]])).logits
    assert logits.dtype == torch.float32


def test_attention_stays_in_single_precision_under_autocast_on_a_cpu(batch, monkeypatch):
    seen = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def look(query, key, value, **options):
        seen.append({query.dtype, key.dtype, value.dtype})
        return plain(query, key, value, **options)

    model = lively_model()
    expected = model(**batch)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", look)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(**batch)
    assert seen == [{torch.float32}] * 2
    torch.testing.assert_close(found.logits, expected.logits, atol=0.1, rtol=0.05)
    torch.testing.assert_close(found.loss, expected.loss, atol=0.02, rtol=0)


# ---- transformers' logits_to_keep, padding, ranking and saved configurations -----------------------------------------


@pytest.mark.parametrize(
    ("logits_to_keep", "positions"), [(1, [6]), (3, [4, 5, 6]), (99, list(range(7))), (torch.tensor([2, 0]), [2, 0])]
)
def test_logits_to_keep_means_what_it_means_in_transformers(batch, logits_to_keep, positions):
    model = lively_model()
    everything = model(**inputs_of(batch)).logits
    kept = model(**inputs_of(batch), logits_to_keep=logits_to_keep).logits
    torch.testing.assert_close(kept, everything[:, positions], atol=1e-5, rtol=0)


def test_an_unusable_logits_to_keep_is_refused(batch):
    model, kept = lively_model(), torch.tensor([[6], [4], [2]])
    with pytest.raises(ValueError, match=r"found shape \(3, 1\)\. Pass positions of each row.*`kept_positions`"):
        model(**inputs_of(batch), logits_to_keep=kept)
    with pytest.raises(ValueError, match="must be at least 0, found -1"):
        model(**inputs_of(batch), logits_to_keep=-1)
    with pytest.raises(ValueError, match="at most one of `logits_to_keep` and `kept_positions`"):
        model(**inputs_of(batch), logits_to_keep=1, kept_positions=kept)


@pytest.mark.parametrize("architecture", ["sasrec", "gru4rec"])
def test_padding_on_the_left_is_refused_where_it_would_be_read(architecture):
    row = ARCHITECTURES[architecture]
    model = row.model_class(row.config_class(vocab_size=ROWS, hidden_size=12)).eval()
    for row in ([0, 1, 1], [0, 0, 0]):
        with pytest.raises(ValueError, match="begins with 0, so it is empty or padded on the left"):
            model(torch.tensor([[0, 4, 5], [4, 5, 6]]), torch.tensor([row, [1, 1, 1]]))


def test_evaluation_returns_what_a_ranking_needs(batch):
    model, history, candidates = lively_model(), torch.tensor([[3, 4], [5, -100], [6, -100]]), torch.ones(3, 2).long()
    ranking = model(**batch, history=history, candidates=candidates).ranking
    assert torch.equal(ranking["history"], history)
    assert torch.equal(ranking["candidates"], candidates)
    assert list(model(**batch, candidates=candidates).ranking) == ["candidates"]
    assert model(**batch).ranking is None
    assert torch.equal(model(**inputs_of(batch), history=history).ranking["history"], history)
    assert model.train()(**batch, history=history).ranking is None


def test_a_model_that_excludes_no_history_returns_an_empty_one(batch):
    model = lively_model(exclude_history=False)
    assert model(**batch, history=torch.tensor([[3, 4]] * 3)).ranking["history"].shape == (3, 0)
    assert model(**batch).ranking["history"].shape == (3, 0)
    assert model(**inputs_of(batch)).ranking is None


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_dynamically_quantized_model_scores_and_has_a_loss(batch):
    torch.manual_seed(0)
    model = Bert4RecForMaskedLM(small_config(hidden_size=48, initializer_range=0.1)).eval()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    expected, found = model(**batch), quantized(**batch)
    difference = (found.logits - expected.logits)[..., SPECIALS:].abs().mean()
    assert 0 < difference < 0.1 * expected.logits[..., SPECIALS:].std()
    torch.testing.assert_close(found.loss, expected.loss, atol=0.1, rtol=0)


def test_an_unknown_activation_is_refused_with_the_near_names():
    with pytest.raises(StrictDataclassError, match=r"found 'gleu'\. Did you mean 'gelu'"):
        Bert4RecConfig(hidden_act="gleu")


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 10**6}, {"num_labels": 2_000_000}, {"num_labels": "many"}])
def test_sizes_that_would_take_minutes_are_refused_at_once(changes):
    with pytest.raises((ValueError, StrictDataclassError), match=next(iter(changes))):
        Bert4RecConfig.from_dict({"vocab_size": 29, **changes})


def test_a_saved_configuration_names_every_option(tmp_path):
    Bert4RecConfig(vocab_size=29).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert set(Bert4RecConfig.__annotations__) - PRIVATE <= set(saved)


def test_a_configuration_saved_before_an_option_existed_has_the_published_settings(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "bert4rec", "vocab_size": 29, "rope_theta": 200.0, "hidden_dropout_prob": 0.15})
    )
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.rope_theta, config.hidden_dropout_prob) == (200.0, 0.15)
    assert (config.conv_kernel_size, config.prediction_head, config.initializer_range) == (None, True, 0.02)
    assert (config.max_position_embeddings, config.attention_probs_dropout_prob) == (200, 0.2)
    assert config.exclude_history
