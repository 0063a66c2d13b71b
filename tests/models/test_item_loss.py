"""The losses over items, compared with plain torch and with numbers computed by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, logsigmoid
from torch.profiler import ProfilerActivity, profile

from hf_bert4rec import Bert4RecConfig, Bert4RecForMaskedLM
from hf_bert4rec.models import item_loss as item_loss_module
from hf_bert4rec.models.item_loss import LOSSES, ItemLoss, item_loss, sampled_scores
from hf_bert4rec.models.layers import Dropout
from tests.conftest import small_config

SPECIALS = 3
PAD, MASK, UNK = 0, 1, 2
SAMPLED = ("sampled_softmax", "gbce", "bce")
EVERY_WAY = [("softmax", True), *((loss, share) for loss in SAMPLED for share in (True, False))]

every_loss = pytest.mark.parametrize("loss", LOSSES)
every_sharing = pytest.mark.parametrize("share", [True, False])
every_count_of_nothing = pytest.mark.parametrize("count", [None, 0, torch.tensor(0)])  # the last is the Trainer's
every_way = pytest.mark.parametrize(("loss", "share"), EVERY_WAY)


def of_items(items: int, **changes) -> Bert4RecConfig:
    return small_config(items + SPECIALS, **changes)


def problem(positions: int, items: int, width: int = 5, seed: int = 0) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Hidden states, table and bias in double precision, with loud special rows; and a label for each position."""
    generator = torch.Generator().manual_seed(seed)
    hidden, table, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((positions, width), (items + SPECIALS, width), (items + SPECIALS,))
    )
    bias[:SPECIALS] += 5
    labels = torch.randint(SPECIALS, items + SPECIALS, (positions,), generator=generator)
    return [tensor.requires_grad_() for tensor in (hidden, table, bias)], labels


def loss_and_gradients(config, inputs, labels, seed: int = 0, **options) -> list[torch.Tensor]:
    """The loss, and its gradients for hidden states, table and bias; the seed decides the negatives."""
    torch.manual_seed(seed)
    loss = item_loss(config, *inputs, labels, **options)
    return [loss, *torch.autograd.grad(loss, inputs)]


def plain_softmax(hidden: torch.Tensor, table: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over the rows of items, of the positions whose label is an item."""
    scored = labels >= SPECIALS
    logits = hidden[scored] @ table[SPECIALS:].T + bias[SPECIALS:]
    return cross_entropy(logits, labels[scored] - SPECIALS)


def assert_same(found, expected, tolerance: float = 1e-12) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


# ---- what all losses share -------------------------------------------------------------------------------------------


@every_way
def test_positions_without_an_item_as_label_are_not_scored(loss, share):
    config = of_items(11, loss=loss, num_negatives=4, share_negatives=share)
    inputs, labels = problem(8, 11)
    labels[[0, 3, 4, 7]] = torch.tensor([-100, PAD, MASK, UNK])
    expected, *gradients = loss_and_gradients(config, inputs, labels)
    assert (gradients[0][[0, 3, 4, 7]] == 0).all()
    assert (gradients[0][[1, 2, 5, 6]] != 0).all()
    with torch.no_grad():
        inputs[0][[0, 3, 4, 7]] = 50
    torch.testing.assert_close(loss_and_gradients(config, inputs, labels)[0], expected)


@every_way
def test_the_loss_is_a_mean_over_scored_positions_or_those_of_the_whole_batch(loss, share):
    config = of_items(11, loss=loss, num_negatives=4, share_negatives=share)
    inputs, labels = problem(8, 11)
    labels[[0, 3]] = torch.tensor([-100, UNK])
    mean = loss_and_gradients(config, inputs, labels)
    for count in (30, torch.tensor(30)):
        part = loss_and_gradients(config, inputs, labels, num_items_in_batch=count)
        assert_same(part, [6 / 30 * number for number in mean])


@every_loss
@every_sharing
@every_count_of_nothing
@pytest.mark.parametrize("label", [-100, PAD, MASK, UNK])
def test_the_loss_without_scored_positions_is_zero(loss, share, label, count):
    config = of_items(11, loss=loss, num_negatives=4, share_negatives=share)
    inputs, labels = problem(8, 11)
    found = loss_and_gradients(config, inputs, labels.fill_(label), num_items_in_batch=count)
    assert all((number == 0).all() for number in found)


@every_loss
@every_sharing
@every_count_of_nothing
def test_the_loss_without_positions_is_zero(loss, share, count):
    config = of_items(11, loss=loss, num_negatives=4, share_negatives=share)
    found = loss_and_gradients(config, *problem(0, 11), num_items_in_batch=count)
    assert all((number == 0).all() for number in found)


@every_way
def test_labels_can_be_of_any_integer_type(loss, share):
    config = of_items(11, loss=loss, num_negatives=4, share_negatives=share)
    inputs, labels = problem(8, 11)
    expected = loss_and_gradients(config, inputs, labels)
    assert_same(loss_and_gradients(config, inputs, labels.to(torch.int32)), expected)


@every_way
def test_special_rows_take_no_part(loss, share):
    config = of_items(11, loss=loss, num_negatives=10, share_negatives=share)
    inputs, labels = problem(8, 11)
    expected, _, of_table, of_bias = loss_and_gradients(config, inputs, labels)
    assert (of_table[:SPECIALS] == 0).all()
    assert (of_bias[:SPECIALS] == 0).all()
    with torch.no_grad():
        inputs[1][:SPECIALS], inputs[2][:SPECIALS] = 70, 1000
    torch.testing.assert_close(loss_and_gradients(config, inputs, labels)[0], expected)


@every_way
def test_positions_can_come_in_any_shape(loss, share):
    config = of_items(11, loss=loss, num_negatives=4, share_negatives=share)
    (hidden, table, bias), labels = problem(6, 11)
    expected = loss_and_gradients(config, [hidden, table, bias], labels)[0]
    folded = [hidden.unflatten(0, (2, 3)), table, bias]
    torch.testing.assert_close(loss_and_gradients(config, folded, labels.unflatten(0, (2, 3)))[0], expected)


@every_way
def test_another_loss_than_that_of_the_configuration_can_be_asked_for(loss, share):
    inputs, labels = problem(6, 11)
    other = of_items(11, loss="bce" if loss == "softmax" else "softmax", num_negatives=4, share_negatives=share)
    config = of_items(11, loss=loss, num_negatives=4, share_negatives=share)
    expected = loss_and_gradients(config, inputs, labels)
    assert_same(loss_and_gradients(other, inputs, labels, loss=loss), expected)


@every_way
@pytest.mark.parametrize("autocast", [False, True])
def test_the_loss_of_hidden_states_in_bfloat16_is_in_single_precision(loss, share, autocast):
    """Against double precision; the gradient of the hidden states has their own precision and no other."""
    config = of_items(200, loss=loss, num_negatives=30, share_negatives=share)
    inputs, labels = problem(16, 200)
    coarse = [inputs[0].detach().bfloat16(), *(tensor.detach().float() for tensor in inputs[1:])]
    expected = loss_and_gradients(config, [tensor.double().requires_grad_() for tensor in coarse], labels)
    coarse = [tensor.requires_grad_() for tensor in coarse]
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = item_loss(config, *coarse, labels)
    found = [found, *torch.autograd.grad(found, coarse)]  # outside autocast, as in the Trainer
    assert [number.dtype for number in found] == [torch.float32, torch.bfloat16, torch.float32, torch.float32]
    found = [number.double() for number in found]
    torch.testing.assert_close(found[1], expected[1], atol=1e-6, rtol=2**-8)
    assert_same([found[0], *found[2:]], [expected[0], *expected[2:]], 1e-5)


@every_way
def test_gradients_are_the_slopes_of_the_loss(loss, share):
    config = of_items(5, loss=loss, num_negatives=3, share_negatives=share, loss_chunk_size=2)
    inputs, labels = problem(4, 5, width=3)
    labels[1] = -100

    def same_negatives(*inputs):
        torch.manual_seed(0)
        return item_loss(config, *inputs, labels)

    assert torch.autograd.gradcheck(same_negatives, inputs)


@pytest.mark.parametrize(("loss", "share"), [*((loss, True) for loss in LOSSES), ("sampled_softmax", False)])
def test_one_compiled_graph_has_the_same_loss(loss, share):
    config = of_items(11, loss=loss, num_negatives=4, share_negatives=share)
    inputs, labels = problem(8, 11)
    labels[2] = -100
    expected = loss_and_gradients(config, inputs, labels)
    torch.manual_seed(0)
    found = torch.compile(item_loss, backend="aot_eager", fullgraph=True)(config, *inputs, labels)
    assert_same([found, *torch.autograd.grad(found, inputs)], expected)


@every_way
def test_the_loss_of_extreme_scores_is_finite(loss, share):
    config = of_items(11, loss=loss, num_negatives=4, share_negatives=share)
    inputs, labels = problem(8, 11)
    with torch.no_grad():
        inputs[0] *= 1e4
    found = loss_and_gradients(config, inputs, labels)
    assert found[0] > 100
    assert all(number.isfinite().all() for number in found)


# ---- softmax ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_softmax_is_cross_entropy_over_the_items(chunk):
    inputs, labels = problem(10, 17)
    labels[[0, 4, 5, 9]] = torch.tensor([-100, PAD, MASK, UNK])
    expected = plain_softmax(*inputs, labels)
    expected = [expected, *torch.autograd.grad(expected, inputs)]
    assert_same(loss_and_gradients(of_items(17, loss_chunk_size=chunk), inputs, labels), expected)


def test_the_loss_of_equal_scores_is_the_log_of_the_catalog():
    inputs, labels = torch.zeros(4, 5), torch.tensor([3, 9, 9, 13])
    assert item_loss(of_items(11), inputs, torch.zeros(14, 5), torch.zeros(14), labels).item() == pytest.approx(
        2.3978953  # log 11
    )


def largest_allocation(chunk: int) -> int:
    """Bytes of the largest tensor that softmax makes of 256 positions and 5000 items, backward included."""
    inputs, labels = problem(256, 5000)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        item_loss(of_items(5000, loss_chunk_size=chunk), *inputs, labels).backward()
    return max(event.self_cpu_memory_usage for event in profiled.events())


def test_softmax_never_holds_more_than_a_chunk_of_logits():
    everything = 256 * 5003 * 8
    assert largest_allocation(256) >= everything
    assert largest_allocation(16) <= everything / 256 * 16 * 1.1


# ---- sampled softmax -------------------------------------------------------------------------------------------------


def test_sampled_softmax_on_all_other_items_is_the_full_softmax():
    inputs, labels = problem(9, 13)
    labels[[0, 5]] = torch.tensor([-100, UNK])
    sampled = of_items(13, loss="sampled_softmax", num_negatives=12)
    assert_same(loss_and_gradients(sampled, inputs, labels), loss_and_gradients(of_items(13), inputs, labels))


@every_sharing
def test_sampled_softmax_estimates_the_sum_over_the_catalog_without_bias(share):
    config = of_items(7, loss="sampled_softmax", num_negatives=3, share_negatives=share)
    (hidden, table, bias), labels = problem(1, 7, seed=3)
    with torch.no_grad():
        scores = (table @ hidden[0] + bias)[SPECIALS:] / 3
        rows = torch.cat([torch.zeros(SPECIALS, 1, dtype=torch.float64), scores[:, None]])
        one, bias = torch.ones(1, 1, dtype=torch.float64), torch.zeros(10, dtype=torch.float64)
        torch.manual_seed(0)
        sums = [(item_loss(config, one, rows, bias, labels) + rows[labels[0]]).exp() for _ in range(1500)]
    sums = torch.stack(sums)
    assert sums.std() > 0.05 * sums.mean()  # it does vary with what is drawn
    assert sums.mean().item() == pytest.approx(scores.exp().sum().item(), rel=0.02)


# ---- binary cross-entropy --------------------------------------------------------------------------------------------


def binary_loss(loss: str, scores: list[float], label: int, negatives: int, **changes) -> float:
    """The loss of one position at which the items have these scores, half of each from the bias."""
    table = torch.cat([torch.full((SPECIALS,), 9.0), torch.tensor(scores) / 2]).double()
    config = of_items(len(scores), loss=loss, num_negatives=negatives, **changes)
    return item_loss(config, torch.ones(1, 1).double(), table[:, None], table, torch.tensor([label])).item()


LOG_3, LOG_4 = 1.0986122887, 1.3862943611  # scores of likelihood 3/4 and 4/5


@pytest.mark.parametrize("loss", ["bce", "gbce"])
def test_binary_cross_entropy_is_that_of_the_target_and_all_others(loss):
    """With all others drawn gbce has nothing to calibrate. -log(3/4 · (1 - 1/2) · (1 - 1/5)) / 3 = log(10/3) / 3."""
    assert binary_loss(loss, [0.0, LOG_3, -LOG_4], label=4, negatives=2) == pytest.approx(0.4013242681)
    # The other way round the target is the least likely: -log(1/5 · 1/2 · 1/4) / 3 = log(40) / 3.
    assert binary_loss(loss, [0.0, LOG_3, -LOG_4], label=5, negatives=2) == pytest.approx(1.2296264847)


@every_sharing
@pytest.mark.parametrize(
    ("calibration", "expected"),
    [
        (0, 0.5579921453),  # β = 1: (log(4/3) + 2 log 2) / 3
        (0.75, 0.5220318863),  # β = 1 - 3/4 · (1 - 1/2) = 5/8
        (1, 0.5100451332),  # β = α = 1/2: (log(4/3) / 2 + 2 log 2) / 3
    ],
)
def test_gbce_raises_the_likelihood_of_the_target_to_a_power(share, calibration, expected):
    """Two of four others are drawn, and as all score 0, whichever are. The target has likelihood 3/4."""
    scores = [0.0, 0.0, LOG_3, 0.0, 0.0]
    found = binary_loss("gbce", scores, 5, 2, share_negatives=share, gbce_calibration=calibration)
    assert found == pytest.approx(expected)


@every_sharing
@settings(max_examples=30)
@given(st.data())
def test_gbce_is_the_formula_of_its_paper(share, data):
    items = data.draw(st.integers(2, 9), "items")
    negatives = data.draw(st.integers(1, items - 1), "negatives")
    calibration = data.draw(st.floats(0, 1), "calibration")
    config = of_items(items, loss="gbce", num_negatives=negatives, share_negatives=share, gbce_calibration=calibration)
    inputs, labels = problem(4, items)
    torch.manual_seed(0)
    positive, negative = sampled_scores(config, *inputs, labels)
    alpha = negatives / (items - 1)
    beta = alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)  # as there; ours is its short form
    likelihood = beta * logsigmoid(positive) + logsigmoid(-negative).sum(dim=1)
    torch.testing.assert_close(
        loss_and_gradients(config, inputs, labels)[0], -likelihood.mean() / (negatives + 1), atol=1e-12, rtol=1e-12
    )


@every_sharing
def test_gbce_without_calibration_is_bce(share):
    inputs, labels = problem(8, 11)
    bce = of_items(11, loss="bce", num_negatives=4, share_negatives=share)
    gbce = of_items(11, loss="gbce", num_negatives=4, share_negatives=share, gbce_calibration=0)
    assert_same(loss_and_gradients(gbce, inputs, labels), loss_and_gradients(bce, inputs, labels))


# ---- negatives -------------------------------------------------------------------------------------------------------


def drawn_rows(config: Bert4RecConfig, targets: torch.Tensor) -> torch.Tensor:
    """Rows of the negatives, (positions, drawn), or -inf: a row scores its own number, by table and bias together."""
    numbers = torch.arange(config.vocab_size, dtype=torch.float64)
    hidden = torch.ones(len(targets), 1, dtype=torch.float64)
    positive, negative = sampled_scores(config, hidden, 3 * numbers[:, None], -2 * numbers, targets)
    assert torch.equal(positive, targets.double())
    return negative


@given(st.data())
def test_negatives_are_other_items_and_as_many_as_asked_for(data):
    items = data.draw(st.integers(2, 9), "items")
    negatives = data.draw(st.integers(1, items - 1), "negatives")
    share = data.draw(st.booleans(), "share")
    targets = data.draw(st.lists(st.integers(SPECIALS, items + SPECIALS - 1), min_size=1, max_size=8), "targets")
    config = of_items(items, loss="bce", num_negatives=negatives, share_negatives=share)
    torch.manual_seed(data.draw(st.integers(0, 2**32), "seed"))
    rows = drawn_rows(config, torch.tensor(targets))
    for target, row in zip(targets, rows.tolist(), strict=True):
        drawn = [number for number in row if number != -torch.inf]
        assert len(drawn) == negatives
        assert target not in drawn
        assert set(drawn) <= set(range(SPECIALS, items + SPECIALS))
        assert not share or len(set(drawn)) == negatives


@every_sharing
def test_negatives_are_uniform_over_the_other_items(share):
    config = of_items(6, loss="bce", num_negatives=2, share_negatives=share)
    targets = torch.tensor([3, 5, 8])  # the first item, one amid, and the last
    torch.manual_seed(0)
    rows = torch.stack([drawn_rows(config, targets) for _ in range(2000)], dim=1)
    for target, drawn in zip(targets.tolist(), rows, strict=True):
        others = [row for row in range(SPECIALS, 9) if row != target]
        shares = [(drawn == row).sum().item() / 2000 for row in others]
        assert shares == pytest.approx([0.4] * 5, abs=0.055)  # two of five; five standard deviations


def test_positions_share_their_negatives_only_where_told_to():
    targets = torch.full((50,), 3)
    torch.manual_seed(0)
    shared, own = (
        drawn_rows(of_items(100, loss="bce", num_negatives=5, share_negatives=share), targets)
        for share in (True, False)
    )
    assert (shared == shared[0]).all()
    assert len(set(own.flatten().tolist())) > 80


@every_sharing
def test_negatives_are_drawn_anew_at_every_step(share):
    config = of_items(100, loss="bce", num_negatives=5, share_negatives=share)
    torch.manual_seed(0)
    one, other = (drawn_rows(config, torch.tensor([3, 4])) for _ in range(2))
    assert not torch.equal(one, other)


# ---- in the model ----------------------------------------------------------------------------------------------------


def cyclic_model(**changes) -> Bert4RecForMaskedLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 48}
    sizes |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    return Bert4RecForMaskedLM(of_items(12, **{**sizes, **changes}))


CYCLE = (torch.arange(12)[:, None] + torch.arange(4)) % 12 + SPECIALS  # each item followed by the next, 12 by the first
QUESTIONS = torch.where(torch.arange(4) == 3, MASK, CYCLE)
ANSWERS = torch.where(torch.arange(4) == 3, CYCLE, -100)


@pytest.mark.parametrize("loss", SAMPLED)
@every_sharing
def test_every_model_is_judged_by_the_full_softmax_and_without_chance(loss, share):
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3}
    model = cyclic_model(loss=loss, num_negatives=4, share_negatives=share, **still).eval()
    before = torch.get_rng_state()
    judged = model(QUESTIONS, labels=ANSWERS)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(judged.loss, cross_entropy(judged.logits[:, 0, SPECIALS:], CYCLE[:, 3] - SPECIALS))
    model.train()
    trained_by = [model(QUESTIONS, labels=ANSWERS).loss for _ in range(2)]
    assert trained_by[0] != trained_by[1]


@every_way
def test_every_loss_teaches_the_next_item(loss, share):
    sizes = {"num_negatives": 6, "share_negatives": share, "hidden_size": 48, "initializer_range": 0.1}
    model = cyclic_model(loss=loss, **sizes).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(100):  # all of 36 seeds learn it
        model(QUESTIONS, labels=ANSWERS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    best = model.eval()(QUESTIONS).logits[:, 3].argmax(dim=-1)
    assert (best == CYCLE[:, 3]).sum() >= 11


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_drops_the_same_again(use_reentrant):
    model = cyclic_model(num_hidden_layers=3, hidden_dropout_prob=0.4, initializer_range=0.3).train()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
        model.zero_grad()
        torch.manual_seed(0)
        loss = model(QUESTIONS, labels=ANSWERS).loss
        loss.backward()
        found.append([loss, *(parameter.grad.clone() for parameter in model.parameters())])
    assert_same(*found, tolerance=1e-6)


@pytest.mark.parametrize("positions", [0, 1, 300])
def test_the_softmax_of_older_versions_of_torch_is_the_same(monkeypatch, positions):
    config, found = of_items(30, loss_chunk_size=128), []
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 33, (positions,), generator=generator)  # special rows are not scored
    for function in (item_loss_module.linear_cross_entropy, None):
        monkeypatch.setattr(item_loss_module, "linear_cross_entropy", function)
        torch.manual_seed(1)
        inputs = [torch.randn(shape, requires_grad=True) for shape in ((positions, 12), (33, 12), (33,))]
        loss = item_loss(config, *inputs, labels)
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True) if positions else []
        found.append([loss.detach(), *gradients])
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


def test_an_entry_adds_a_loss(monkeypatch):
    def squared_loss(config, hidden_states, item_table, item_bias, targets):
        scored = targets >= SPECIALS
        scores = (hidden_states[scored] * item_table[targets[scored]]).sum(dim=1)
        return (1 - scores).square().sum()

    unknown = Bert4RecForMaskedLM(of_items(11, loss="squared"))  # can be evaluated, not trained
    batch = {"input_ids": torch.tensor([[3, 1]]), "labels": torch.tensor([[-100, 4]])}
    assert unknown.eval()(**batch).loss > 0
    with pytest.raises(ValueError, match=r"`loss` must be one of softmax, .*, found 'squared'"):
        unknown.train()(**batch)
    unknown.config.loss, unknown.config.num_negatives = "bce", 11
    with pytest.raises(ValueError, match=r"`num_negatives` must be from 1 to 10, .* found 11\. Change this option"):
        unknown.train()(**batch)
    monkeypatch.setitem(LOSSES, "squared", ItemLoss(squared_loss, samples_negatives=False))
    model = Bert4RecForMaskedLM(of_items(11, loss="squared", num_negatives=1000)).train()
    rows = torch.tensor([[3, 1, 5]])
    model(rows, labels=torch.tensor([[-100, 4, -100]])).loss.backward()
    table = model.get_input_embeddings().weight
    assert (table.grad[4] != 0).any()
    assert (table.grad[7] == 0).all()
    inputs, labels = [torch.tensor([[2.0]]), torch.tensor([[0.0]] * 4 + [[3.0]]), torch.zeros(5)], torch.tensor([4])
    assert item_loss(of_items(2, num_negatives=1, loss="squared"), *inputs, labels).item() == 25  # (1 - 2 · 3)²


# ---- dropout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "kept_at"),
    [(0.1, 1.1111186), (0.5, 2.0), (0.9, 9.9993896)],  # 2¹⁶ / (2¹⁶ - 6554), and 2¹⁶ / (2¹⁶ - 58982)
)
def test_dropout_drops_its_share_and_scales_up_the_rest_by_just_as_much(p, kept_at):
    torch.manual_seed(0)
    dropped = Dropout(p)(torch.ones(1_000_000, dtype=torch.float64))
    assert (dropped == 0).double().mean().item() == pytest.approx(p, abs=0.002)
    assert dropped[dropped != 0].unique().tolist() == pytest.approx([kept_at], rel=1e-7)
    assert dropped.mean().item() == pytest.approx(1, rel=5 * (p / (1 - p)) ** 0.5 / 1000)


@pytest.mark.parametrize("shape", [(200_000, 8), (8, 200_000)])  # close together, two words a row; and far apart
def test_dropout_drops_elements_independently_of_each_other(shape):
    torch.manual_seed(0)
    zeros = (Dropout(0.3)(torch.ones(shape)) == 0).float()
    zeros = zeros if shape[1] == 8 else zeros.T
    assert zeros.mean(dim=0).tolist() == pytest.approx([0.3] * 8, abs=0.006)
    together = zeros.T @ zeros / len(zeros)
    assert together[~torch.eye(8).bool()].tolist() == pytest.approx([0.09] * 56, abs=0.005)


def test_dropout_does_nothing_in_evaluation_or_without_a_probability():
    numbers = torch.randn(5, 7)
    before = torch.get_rng_state()
    assert torch.equal(Dropout(0.5).eval()(numbers), numbers)
    assert torch.equal(Dropout(0.0)(numbers), numbers)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_follows_the_seed_and_changes_with_every_call():
    numbers, dropout = torch.randn(100), Dropout(0.5)
    torch.manual_seed(0)
    first, second = dropout(numbers), dropout(numbers)
    torch.manual_seed(0)
    assert torch.equal(dropout(numbers), first)
    assert not torch.equal(first, second)


def test_dropout_drops_the_gradient_where_it_dropped_the_number():
    numbers = torch.randn(3, 50, dtype=torch.float64, requires_grad=True)
    dropped = Dropout(0.5)(numbers)
    dropped.sum().backward()
    assert {0.0, 2.0} == set(numbers.grad.flatten().tolist())
    assert torch.equal(numbers.grad * numbers, dropped)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2,), (3,), (4,), (5,), (3, 5, 7), (2, 0, 3)])
def test_dropout_takes_any_number_of_elements(shape):
    torch.manual_seed(0)
    many = torch.stack([Dropout(0.5)(torch.ones(shape)) for _ in range(300)])
    assert many.shape == (300, *shape)
    for share in (many == 0).float().mean(dim=0).flatten().tolist():
        assert share == pytest.approx(0.5, abs=0.15)


def test_dropout_takes_a_transposed_tensor():
    torch.manual_seed(0)
    numbers = torch.arange(1.0, 41).view(5, 8).T
    dropped = Dropout(0.5)(numbers)
    assert torch.equal(dropped, torch.where(dropped == 0, 0, 2 * numbers))
    assert 0 < (dropped == 0).sum() < 40


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dropout_keeps_the_precision(dtype):
    dropped = Dropout(0.5)(torch.ones(100, dtype=dtype))
    assert dropped.dtype == dtype
    assert set(dropped.tolist()) == {0.0, 2.0}


def test_dropout_can_be_compiled():
    compiled = torch.compile(Dropout(0.25), backend="aot_eager", fullgraph=True)
    torch.manual_seed(0)
    dropped = compiled(torch.ones(10_000))
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)


def test_the_evaluation_loss_is_a_mean_over_items_whatever_the_trainer_counts():
    torch.manual_seed(0)
    model = Bert4RecForMaskedLM(of_items(11)).eval()
    rows, labels = torch.tensor([[3, 1], [4, 1]]), torch.tensor([[-100, 5], [-100, UNK]])
    with torch.no_grad():
        expected = model(rows[:1], labels=labels[:1]).loss
        found = model(rows, labels=labels, num_items_in_batch=torch.tensor(2)).loss
    torch.testing.assert_close(found, expected)
