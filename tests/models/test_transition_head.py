"""The head for transitions: probabilities by hand, losses, gradients, and what changes its tables."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from torch.nn.functional import cross_entropy

from hf_bert4rec import (
    Bert4RecForMaskedLM,
    Bert4RecModel,
    count_transitions,
    initialize_items,
    item_tokenizer,
    transfer,
)
from hf_bert4rec.hub.checkpoint import check_folder
from hf_bert4rec.inference.pipeline import NextItemRecommendationPipeline
from hf_bert4rec.models.modeling_gru4rec import Gru4RecConfig, Gru4RecForMaskedLM
from hf_bert4rec.models.modeling_sasrec import SasRecConfig, SasRecForMaskedLM
from hf_bert4rec.training.catalog import append_items
from tests.conftest import lively, small_config
from tests.models.test_modeling_bert4rec import MASK, PAD, SPECIALS, UNK, lively_model

HISTORIES = torch.tensor([[5, 7, 9, MASK], [9, UNK, MASK, PAD], [MASK, PAD, PAD, PAD], [9, MASK, 7, MASK]])
INPUTS = {"input_ids": HISTORIES, "attention_mask": (HISTORIES != PAD).long()}
LAST = torch.tensor([[3], [2], [0], [3]])


@pytest.fixture
def model() -> Bert4RecForMaskedLM:
    """After item 9 came item 5 (4 users), 11 (2 users) and others (3 users); after item 7 item 9 (1 user)."""
    model = lively_model(num_followers=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    head = model.transition_head
    head.followers[9], head.counts[9], head.totals[9] = torch.tensor([5, 11]), torch.tensor([4, 2]), 9
    head.followers[7, 0], head.counts[7, 0], head.totals[7] = 9, 1, 1
    with torch.no_grad():
        head.powers[:] = torch.tensor([0.2, -0.3])
    return model


def test_probabilities_are_those_of_the_catalog_and_of_the_chain_together(model):
    with torch.no_grad():
        states = model.prediction_head(model.model(**INPUTS, kept_positions=LAST).last_hidden_state)
        mass = model.lm_head(states)[0, 0].exp()
        mass[:SPECIALS] = 0
        gate = math.exp(float(model.transition_head.gate(states[0, 0])))
        for item, count in ((5, 4), (11, 2)):
            mass[item] += gate * count**1.2 / 9**0.7
        found = model(**INPUTS, kept_positions=LAST).logits[0, 0].softmax(dim=0)
    torch.testing.assert_close(found, mass / mass.sum())


def test_only_followers_of_the_item_before_a_position_have_another_logit(model):
    states = model.model(**INPUTS, kept_positions=LAST).last_hidden_state
    logits, plain = model.score_items(states, HISTORIES, LAST), model.lm_head(model.query_vectors(states, HISTORIES))
    changed = (logits - plain).abs()[:, 0, SPECIALS:] > 1e-6
    assert [(row.nonzero()[:, 0] + SPECIALS).tolist() for row in changed] == [[5, 11], [], [], [9]]


def test_a_training_target_is_predicted_from_the_transitions_of_other_users(model):
    input_ids, labels = torch.tensor([[9, MASK], [7, MASK]]), torch.tensor([[-100, 5], [-100, 9]])
    mask = torch.ones_like(input_ids)
    states = model.prediction_head(model.model(input_ids, mask, kept_positions=torch.ones(2, 1).long())[0])
    plain = model.lm_head(states)[:, 0].masked_fill(torch.arange(29) < SPECIALS, -torch.inf)
    gate = model.transition_head.gate(states)[0, 0, 0].exp()
    first = plain[0].exp()
    first[5] += gate * 3**1.2 / 8**0.7  # one of four users fewer, of eight that continued after item 9
    first[11] += gate * 2**1.2 / 8**0.7
    # Nobody else took item 9 after item 7, so the second target has its score in the catalog only.
    expected = -(first[5] / first.sum()).log() - plain[1].log_softmax(dim=0)[9]
    found = model.train()(input_ids, mask, labels=labels).loss
    torch.testing.assert_close(found, expected / 2)
    found.backward()
    assert all(weight.grad.abs().max() > 1e-4 for weight in model.transition_head.parameters())
    logits = model.eval()(input_ids, mask).logits
    evaluated = model(input_ids, mask, labels=labels).loss
    torch.testing.assert_close(evaluated, cross_entropy(logits.flatten(0, 1), labels.flatten()))


def test_both_heads_together_have_the_loss_of_their_logits():
    model = lively_model(num_followers=2, repeat_head=True)
    model.transition_head.followers[:] = torch.tensor([9, 12])
    model.transition_head.counts[:], model.transition_head.totals[:] = 3, 8
    labels = torch.tensor([[-100, -100, -100, 9], [-100] * 4, [12, -100, -100, -100], [-100, 7, -100, 9]])
    logits = model(**INPUTS).logits
    by_hand = cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(model(**INPUTS, labels=labels).loss, by_hand)


def test_initialization_counts_each_pair_of_a_user_once():
    rows = {"user": ["u", "u", "v", "w"], "input_ids": [[3, 4], [3, 4, 5, 3, 4], [3, 4, UNK, 5], [3, 6]]}
    model = Bert4RecForMaskedLM(small_config(num_followers=2))
    initialize_items(model, Dataset.from_dict(rows))
    head = model.transition_head
    assert head.followers[3:6].tolist() == [[4, 6], [5, 0], [3, 0]]
    assert head.counts[3:6].tolist() == [[2, 1], [1, 0], [1, 0]]
    assert head.totals[3:8].tolist() == [3, 1, 1, 0, 0]


@pytest.mark.parametrize("catalog", ["items that always follow", "unrelated items"])
def test_the_gate_starts_at_the_share_of_transitions_that_follow_a_chain(catalog):
    random = np.random.default_rng(0)
    firsts = random.integers(3, 13, 2000)
    seconds = firsts + 10 if catalog == "items that always follow" else random.integers(3, 13, 2000)
    rows = Dataset.from_dict({"user": np.arange(2000), "input_ids": np.stack([firsts, seconds], axis=1).tolist()})
    model = Bert4RecForMaskedLM(small_config(num_followers=3)).eval()
    initialize_items(model, rows)
    logits = model(torch.tensor([[4, MASK]])).logits[0, 1].softmax(dim=0)
    if catalog == "unrelated items":
        assert logits[3:13].max() < 0.2
    else:
        assert logits[14] > 0.98


@pytest.mark.parametrize(
    ("architecture", "config"), [(SasRecForMaskedLM, SasRecConfig), (Gru4RecForMaskedLM, Gru4RecConfig)]
)
def test_models_that_read_the_left_side_only_have_the_same_followers(architecture, config):
    options = {"vocab_size": 29, "hidden_size": 12, "max_position_embeddings": 11, "num_followers": 1}
    model = lively(architecture(config(**options)))
    model.transition_head.followers[9, 0] = 5
    model.transition_head.counts[9, 0] = model.transition_head.totals[9] = 1
    logits, plain = model(HISTORIES[:1]).logits, model.lm_head(model.prediction_head(model.model(HISTORIES[:1])[0]))
    assert ((logits - plain).abs()[0, :, SPECIALS:] > 1e-6).nonzero().tolist() == [[3, 5 - SPECIALS]]


def test_it_needs_rows_and_the_softmax(model):
    with pytest.raises(ValueError, match="needs `input_ids`"):
        model(inputs_embeds=torch.zeros(1, 3, 12))
    with pytest.raises(StrictDataclassError, match="`num_followers` needs the loss 'softmax', found 'gbce'"):
        small_config(num_followers=1, loss="gbce")


def test_it_is_saved_and_loaded_also_by_the_encoder_alone(model, tmp_path, caplog):
    model.save_pretrained(tmp_path)
    loaded = Bert4RecForMaskedLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(loaded.transition_head.followers, model.transition_head.followers)
    assert torch.equal(loaded.transition_head.counts, model.transition_head.counts)
    assert torch.equal(Bert4RecForMaskedLM.from_pretrained(tmp_path)(**INPUTS).logits, model(**INPUTS).logits)
    Bert4RecModel.from_pretrained(tmp_path)
    assert "transition_head" not in caplog.text


@pytest.mark.parametrize("how", ["resize_token_embeddings", "append_items"])
def test_new_items_have_no_followers(how, model, tmp_path):
    before = model(**INPUTS).logits
    if how == "append_items":
        append_items(model, item_tokenizer(range(26)), item_tokenizer(range(30)), None)
    else:
        model.resize_token_embeddings(33, mean_resizing=False)
    model.save_pretrained(tmp_path)
    model = Bert4RecForMaskedLM.from_pretrained(tmp_path)
    torch.testing.assert_close(model(**INPUTS).logits[..., :29], before)
    assert model(torch.tensor([[32, MASK]])).logits.isfinite().all()


def test_a_transferred_model_counts_in_the_new_log(model):
    tokenizer = item_tokenizer(range(26), max_length=11)
    moved = transfer(model, tokenizer, item_tokenizer(range(5, 20), max_length=11))
    assert torch.equal(moved.transition_head.gate.weight, model.transition_head.gate.weight)
    assert not moved.transition_head.counts.any()
    vectors = moved.get_input_embeddings().weight.clone()
    for _ in range(2):  # the counts of the rows, not those of both calls
        count_transitions(moved, Dataset.from_dict({"user": ["u", "v"], "input_ids": [[3, 5], [3, 5]]}))
    assert moved.transition_head.counts[3].tolist() == [2, 0]
    assert moved.transition_head.totals.sum() == 2
    assert torch.equal(moved.get_input_embeddings().weight, vectors)


def test_new_interactions_are_added_to_the_counts(model):
    rows = {"user": ["u", "v"], "input_ids": [[9, 11, 9, 5], [9, 11]], "timestamps": [[1, 2, 5, 6], [4, 5]]}
    count_transitions(model, Dataset.from_dict(rows), since=5)
    head = model.transition_head  # new are 11 to 9 and 9 to 5 of u, and 9 to 11 of v
    assert (head.followers[9].tolist(), head.counts[9].tolist(), head.totals[9].item()) == ([5, 11], [5, 3], 11)
    assert (head.followers[11, 0].item(), head.totals[11].item()) == (9, 1)


def test_tables_that_a_checkpoint_lacks_start_at_zero(tmp_path):
    lively_model().save_pretrained(tmp_path)
    head = Bert4RecForMaskedLM.from_pretrained(tmp_path, num_followers=2).transition_head
    assert not any(tensor.any() for tensor in (head.followers, head.counts, head.totals, head.powers))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_large_counts_stay_finite_and_different_in_half_precision(model, kind):
    model.transition_head.counts[9], model.transition_head.totals[9] = torch.tensor([70_100, 70_000]), 90_000_000
    _, scores = model.to(kind).transition_head(torch.zeros(1, 1, 12, dtype=kind), HISTORIES[:1], LAST[:1])
    assert scores.isfinite().all()
    assert scores[0, 0, 0] > scores[0, 0, 1]


def test_one_row_of_positions_holds_for_all_histories(model):
    states = torch.zeros(4, 1, 12)
    logits = model.score_items(states, HISTORIES, torch.tensor([[3]]))
    torch.testing.assert_close(logits, model.score_items(states, HISTORIES, torch.full((4, 1), 3)))


def test_followers_outside_the_catalog_are_refused(model, tmp_path):
    model.transition_head.followers[9, 1] = 29
    model.save_pretrained(tmp_path)
    item_tokenizer(range(26), max_length=11).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"transition_head.followers in model.safetensors must be token IDs from 0 to 28"
    ):
        check_folder(tmp_path)


def test_an_index_finds_followers_too(model):
    usearch = pytest.importorskip("usearch.index")
    recommender = NextItemRecommendationPipeline(model=model, tokenizer=item_tokenizer(range(26), max_length=11))
    model.transition_head.gate.bias.data.fill_(9)
    index = usearch.Index(ndim=14, metric="ip")
    index.add(np.arange(26), recommender.index_vectors(), threads=1)
    history = [["2", "6"], ["3"], []]  # token IDs 5, 9 and 6
    for options in ({"top_k": 2}, {"top_k": 26}, {"top_k": 2, "allow": ["2", "4", "8", "9"]}):
        expected, found = recommender(history, **options), recommender(history, **options, index=index)
        for one, other in zip(expected, found, strict=True):
            assert [row["item"] for row in other] == [row["item"] for row in one]
    assert [row["item"] for row in recommender(history, top_k=1, index=index)[0]] == ["8"]


def test_an_index_searches_on_if_only_followers_are_left():
    usearch = pytest.importorskip("usearch.index")
    model = lively_model(vocab_size=503, num_followers=50)
    recommender = NextItemRecommendationPipeline(model=model, tokenizer=item_tokenizer(range(500), max_length=11))
    best = [row["item"] for row in recommender([["3"]], top_k=500)[0]]
    model.transition_head.followers[6] = torch.tensor([int(item) + 3 for item in best[-50:]])
    model.transition_head.counts[6], model.transition_head.totals[6] = 1, 50
    model.transition_head.gate.bias.data.fill_(-9)
    index = usearch.Index(ndim=14, metric="ip")
    index.add(np.arange(500), recommender.index_vectors(), threads=1)  # several threads give another graph each time
    options = {"top_k": 10, "deny": best[:40]}
    found, expected = recommender([["3"]], **options, index=index)[0], recommender([["3"]], **options)[0]
    assert [row["item"] for row in found] == [row["item"] for row in expected]
