"""The second head, for items that users take again: probabilities by hand, losses, gradients, and where it is used."""

import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn.functional import cross_entropy

from hf_bert4rec import Bert4RecForMaskedLM, Bert4RecModel, item_tokenizer, transfer
from hf_bert4rec.inference.pipeline import NextItemRecommendationPipeline
from hf_bert4rec.models.heads import add_repeats
from hf_bert4rec.models.modeling_gru4rec import Gru4RecConfig, Gru4RecForMaskedLM
from hf_bert4rec.models.modeling_sasrec import SasRecConfig, SasRecForMaskedLM
from tests.conftest import lively, small_config
from tests.models.test_modeling_bert4rec import MASK, PAD, SPECIALS, UNK, lively_model

HISTORIES = torch.tensor(
    [[5, 7, 5, UNK, 5, 9, MASK], [9, 9, MASK, PAD, PAD, PAD, PAD], [MASK, PAD, PAD, PAD, PAD, PAD, PAD]]
)
INPUTS = {"input_ids": HISTORIES, "attention_mask": (HISTORIES != PAD).long()}
LAST = torch.tensor([[6], [2], [0]])
LEFT_ONLY = pytest.mark.parametrize(
    ("architecture", "config"), [(SasRecForMaskedLM, SasRecConfig), (Gru4RecForMaskedLM, Gru4RecConfig)]
)


@pytest.fixture
def model() -> Bert4RecForMaskedLM:
    return lively_model(repeat_head=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def test_another_loss_is_refused_in_training(model):
    model.config.loss = "bce"  # after the check of the configuration
    with pytest.raises(ValueError, match="`repeat_head` and `num_followers` need the loss 'softmax', found 'bce'"):
        model.train()(**INPUTS, labels=HISTORIES)


def test_probabilities_are_those_of_the_catalog_and_of_the_history_together(model):
    with torch.no_grad():
        states = model.prediction_head(model.model(**INPUTS, kept_positions=LAST).last_hidden_state)
        scores = model.lm_head(states)[0, 0, SPECIALS:].tolist()
        head, vectors = model.repeat_head, model.get_input_embeddings().weight
        places = [0, 1, 2, 4, 5]  # not those of [UNK] and [MASK]
        weights = [
            math.exp(float(head.query(states[0, 0]) @ vectors[HISTORIES[0, place]] + head.distance.weight[6 - place]))
            for place in places
        ]
        gate = math.exp(float(head.gate(states[0, 0])))
        mass = [math.exp(score) for score in scores]
        for place, weight in zip(places, weights, strict=True):
            mass[int(HISTORIES[0, place]) - SPECIALS] += gate * weight / sum(weights)
        expected = torch.tensor(mass) / sum(mass)
        found = model(**INPUTS, kept_positions=LAST).logits[0, 0].softmax(dim=0)
    torch.testing.assert_close(found[SPECIALS:], expected)
    assert (found[:SPECIALS] == 0).all()


def test_items_outside_the_history_keep_the_inner_product_as_their_logit(model):
    states = model.model(**INPUTS, kept_positions=LAST).last_hidden_state
    logits, plain = model.score_items(states, HISTORIES, LAST), model.lm_head(model.query_vectors(states, HISTORIES))
    changed = (logits - plain).abs()[:, 0, SPECIALS:] > 1e-6
    assert [(row.nonzero()[:, 0] + SPECIALS).tolist() for row in changed] == [[5, 7, 9], [9], []]
    assert (logits >= plain - 1e-6)[..., SPECIALS:].all()


def test_padding_changes_nothing(model):
    short = HISTORIES[1:2, :3]
    one = model(short, torch.ones_like(short), kept_positions=LAST[1:2]).logits
    torch.testing.assert_close(model(**INPUTS, kept_positions=LAST).logits[1:2], one, atol=1e-5, rtol=0)


def test_the_training_loss_and_its_gradients_are_those_of_the_logits(model):
    model.train()
    input_ids = torch.tensor([[5, MASK, 5, 7, MASK], [MASK, 9, MASK, PAD, PAD]])
    labels = torch.tensor([[-100, 5, -100, -100, 11], [9, -100, 12, -100, -100]])
    mask = (input_ids != PAD).long()
    loss = model(input_ids, mask, labels=labels).loss
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    assert all(
        found[f"repeat_head.{name}"].abs().max() > 1e-4 for name in ("query.weight", "distance.weight", "gate.bias")
    )
    model.zero_grad()
    logits = model(input_ids, mask).logits
    by_hand = cross_entropy(logits.flatten(0, 1), labels.flatten())
    by_hand.backward()
    torch.testing.assert_close(loss, by_hand)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, atol=1e-5, rtol=1e-4)
    model.eval()
    torch.testing.assert_close(model(input_ids, mask, labels=labels).loss, by_hand)


def test_very_large_scores_stay_finite():
    repeats = torch.tensor([[[500.0, -500.0]]], requires_grad=True)
    logits = torch.tensor([[[torch.finfo(torch.float32).min] * 3 + [0.0, 300.0, -1000.0]]], requires_grad=True)
    found = add_repeats(logits, torch.tensor([[[3, 5]]]), repeats)
    assert found[0, 0, 3:5].tolist() == [500, 300]
    assert found[0, 0, 5] == -500
    found[..., 3:].sum().backward()
    assert repeats.grad.isfinite().all()


@LEFT_ONLY
def test_models_that_read_the_left_side_only_repeat_items_of_the_left_side_only(architecture, config):
    changes = {"rope_theta": None, "conv_kernel_size": None, "repeat_head": True, "prediction_head": False}
    shared = {name: getattr(small_config(), name) for name in ("vocab_size", "hidden_size", "max_position_embeddings")}
    model = lively(architecture(config(**shared, **changes, learned_positions=True, num_attention_heads=2)))
    one = torch.tensor([[5, 7, 5, 9, 11]])
    other = torch.tensor([[5, 7, 5, 12, 5]])
    logits, others = model(one).logits, model(other).logits
    torch.testing.assert_close(logits[:, :4], others[:, :4])
    plain = model.lm_head(model.model(one).last_hidden_state)
    changed = (logits - plain).abs()[0, :, SPECIALS:] > 1e-6
    assert [(row.nonzero()[:, 0] + SPECIALS).tolist() for row in changed] == [[], [5], [5, 7], [5, 7], [5, 7, 9]]


def test_it_needs_rows_and_the_softmax(model):
    with pytest.raises(ValueError, match="needs `input_ids`"):
        model(inputs_embeds=torch.zeros(1, 3, 12))
    with pytest.raises(StrictDataclassError, match="`repeat_head` needs the loss 'softmax', found 'gbce'"):
        small_config(repeat_head=True, loss="gbce")


def test_it_is_saved_and_loaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = Bert4RecForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(**INPUTS).logits, model(**INPUTS).logits)


def test_an_index_has_no_scores_of_the_repeat_head(model):
    usearch = pytest.importorskip("usearch.index")
    recommender = NextItemRecommendationPipeline(model=model, tokenizer=item_tokenizer(range(26), max_length=11))
    index = usearch.Index(ndim=14, metric="ip")
    index.add(np.arange(26), recommender.index_vectors(), threads=1)
    history = [["2", "4", "2"]]
    expected = recommender(history, top_k=3, exclude_history=True)[0]
    found = recommender(history, top_k=3, exclude_history=True, index=index)[0]
    assert [row["item"] for row in found] == [row["item"] for row in expected]
    with pytest.raises(ValueError, match="does not contain the scores of the model's `repeat_head`"):
        recommender(history, exclude_history=False, index=index)
    own = recommender(history, exclude_history=False, top_k=26)[0]
    assert sum(row["score"] for row in own) == pytest.approx(1)


def test_at_first_catalog_and_history_are_about_equally_likely():
    torch.manual_seed(0)
    model = Bert4RecForMaskedLM(small_config(repeat_head=True)).eval()
    shares = model(**INPUTS, kept_positions=LAST).logits.softmax(dim=-1)[0, 0, [5, 7, 9]].sum()
    assert 0.4 < shares < 0.6


def test_a_larger_catalog_changes_no_score_of_the_history(model, tmp_path):
    before = model(**INPUTS, kept_positions=LAST).logits[..., SPECIALS:]
    model.resize_token_embeddings(model.config.vocab_size + 100)
    model.save_pretrained(tmp_path)
    after = Bert4RecForMaskedLM.from_pretrained(tmp_path)(**INPUTS, kept_positions=LAST).logits[..., SPECIALS:]
    torch.testing.assert_close(after[..., : before.shape[-1]], before)


def test_autocast_makes_no_ties_among_items_of_the_history(model):
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(**INPUTS, kept_positions=LAST).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model(**INPUTS, kept_positions=LAST).logits, atol=0.1, rtol=0.05)


def test_fewer_positions_keep_the_nearest_distances(model):
    tokenizer, shorter = (item_tokenizer(range(26), max_length=length) for length in (11, 6))
    assert torch.equal(
        transfer(model, tokenizer, shorter).repeat_head.distance.weight, model.repeat_head.distance.weight[:6]
    )


def test_the_encoder_alone_loads_without_a_report_of_the_head(model, tmp_path, caplog):
    model.save_pretrained(tmp_path)
    Bert4RecModel.from_pretrained(tmp_path)
    assert "repeat_head" not in caplog.text


def test_a_recurrent_model_reads_more_positions_than_it_has_distances():
    options = {"hidden_size": 8, "max_position_embeddings": 4, "repeat_head": True}
    model = Gru4RecForMaskedLM(Gru4RecConfig(vocab_size=20, **options)).eval()
    assert model(torch.arange(3, 13)[None]).logits.isfinite().all()
