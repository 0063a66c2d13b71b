"""The loss over items against plain torch and against values by hand, its negatives, and dropout from random words."""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, logsigmoid

from hf_bert4rec import Bert4RecConfig, Bert4RecForMaskedLM
from hf_bert4rec.item_loss import item_loss, sampled_scores
from hf_bert4rec.modeling_bert4rec import Dropout
from tests.conftest import small_config

SPECIALS, ITEMS, HIDDEN = 3, 11, 5
PAD, MASK, UNK = 0, 1, 2
SAMPLED = ["sampled_softmax", "gbce", "bce"]
KINDS = [("softmax", True), *((loss, share) for loss in SAMPLED for share in (True, False))]

every_kind = pytest.mark.parametrize(("loss", "share"), KINDS)
every_sharing = pytest.mark.parametrize("share", [True, False])


class Case(NamedTuple):
    """What the loss is made of, in the order of its arguments."""

    hidden: torch.Tensor
    table: torch.Tensor
    bias: torch.Tensor
    labels: torch.Tensor


def config_for(items: int = ITEMS, **changes) -> Bert4RecConfig:
    return small_config(items + SPECIALS, **{"num_negatives": 4, **changes})


def case_of(labels: list[list[int]], items: int = ITEMS, dtype: torch.dtype = torch.float64) -> Case:
    """Random leaves, scores a few units apart."""
    generator = torch.Generator().manual_seed(0)
    shapes = (len(labels), len(labels[0]), HIDDEN), (items + SPECIALS, HIDDEN), (items + SPECIALS,)
    leaves = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return Case(*(leaf.requires_grad_() for leaf in leaves), torch.tensor(labels))


@pytest.fixture
def case() -> Case:
    """Eight positions, five of them scored, one item twice."""
    return case_of([[3, -100, 13, 7], [PAD, 7, 5, UNK]])


def plain_softmax(case: Case) -> torch.Tensor:
    """Cross-entropy over the rows of items, of the positions whose label is one."""
    scored = case.labels >= SPECIALS
    logits = case.hidden[scored] @ case.table[SPECIALS:].T + case.bias[SPECIALS:]
    return cross_entropy(logits, case.labels[scored] - SPECIALS)


def value_and_gradients(loss: torch.Tensor, case: Case) -> tuple[torch.Tensor, ...]:
    return (loss.detach(), *torch.autograd.grad(loss, case[:3]))


def assert_same(ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


# ---- what is scored --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_softmax_is_cross_entropy_over_the_items_alone_in_chunks_of_any_size(case, chunk):
    config = config_for(loss_chunk_size=chunk)
    assert_same(value_and_gradients(item_loss(config, *case), case), value_and_gradients(plain_softmax(case), case))


def test_softmax_is_not_made_in_one_piece(case, monkeypatch):
    # Its value cannot tell, and its memory only at sizes too slow for a test: look at what is passed on.
    sizes = []
    options = torch.nn.LinearCrossEntropyOptions
    monkeypatch.setattr(
        torch.nn,
        "LinearCrossEntropyOptions",
        lambda **given: sizes.append(given["batch_chunk_size"]) or options(**given),
    )
    item_loss(config_for(loss_chunk_size=3), *case)
    assert sizes == [3]


@every_kind
def test_only_positions_with_an_item_as_label_are_scored(case, loss, share):
    # All others are negatives where they are shared, so that the draws do not matter.
    config = config_for(loss=loss, share_negatives=share, num_negatives=ITEMS - 1)
    scored = case.labels >= SPECIALS
    hidden = case.hidden.detach().clone()
    hidden[~scored] = 1e3
    torch.manual_seed(0)
    expected = value_and_gradients(item_loss(config, *case), case)
    torch.manual_seed(0)
    torch.testing.assert_close(item_loss(config, hidden, *case[1:]), expected[0], atol=1e-12, rtol=1e-10)
    assert (expected[1][~scored] == 0).all()
    assert (expected[1][scored] != 0).any(dim=-1).all()
    if share:
        only = Case(case.hidden[scored], case.table, case.bias, case.labels[scored])
        assert_same(value_and_gradients(item_loss(config, *only), case), expected)


@every_kind
@pytest.mark.parametrize("label", [-100, PAD, MASK, UNK])
def test_nothing_scored_loses_nothing_and_teaches_nothing(loss, share, label):
    case = case_of([[label] * 3])
    value, *gradients = value_and_gradients(item_loss(config_for(loss=loss, share_negatives=share), *case), case)
    assert value == 0
    assert all((gradient == 0).all() for gradient in gradients)


@every_kind
def test_special_rows_take_no_part(case, loss, share):
    config = config_for(loss=loss, share_negatives=share)
    torch.manual_seed(0)
    expected = value_and_gradients(item_loss(config, *case), case)
    table, bias = case.table.detach().clone(), case.bias.detach().clone()
    table[:SPECIALS], bias[:SPECIALS] = 50, 1e4
    torch.manual_seed(0)
    torch.testing.assert_close(item_loss(config, case.hidden, table, bias, case.labels), expected[0])
    assert (expected[2][:SPECIALS] == 0).all()
    assert (expected[3][:SPECIALS] == 0).all()
    assert (expected[3][SPECIALS:] != 0).any()


@every_kind
@pytest.mark.parametrize("number", [20, torch.tensor(20)])
def test_the_scored_positions_of_the_whole_batch_divide_the_loss(case, loss, share, number):
    config = config_for(loss=loss, share_negatives=share)
    torch.manual_seed(0)
    alone = value_and_gradients(item_loss(config, *case), case)
    torch.manual_seed(0)
    part = value_and_gradients(item_loss(config, *case, number), case)
    assert_same(part, tuple(5 / 20 * tensor for tensor in alone))


@every_kind
def test_another_loss_than_the_configured_one_can_be_asked_for(case, loss, share):
    torch.manual_seed(0)
    expected = item_loss(config_for(loss=loss, share_negatives=share), *case)
    for configured in ("softmax", "bce"):
        torch.manual_seed(0)
        assert item_loss(config_for(loss=configured, share_negatives=share), *case, loss=loss) == expected


@every_kind
def test_the_loss_is_exact_where_hidden_states_arrive_in_bfloat16(loss, share):
    config = config_for(200, loss=loss, share_negatives=share, num_negatives=150)
    single = case_of([list(range(3, 203, 4))], 200, torch.float32)
    half = single._replace(hidden=single.hidden.detach().bfloat16().requires_grad_())
    double = Case(*(leaf.detach().double().requires_grad_() for leaf in half[:3]), half.labels)
    torch.manual_seed(0)
    expected = value_and_gradients(item_loss(config, *double), double)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = item_loss(config, *half)
    found = value_and_gradients(value, half)
    assert value.dtype == torch.float32
    # That of the hidden states is itself in bfloat16.
    for one, other, tolerance in zip(found, expected, (1e-6, 4e-3, 1e-6, 1e-6), strict=True):
        assert (one.double() - other).norm() < tolerance * other.norm()


@every_kind
def test_gradients_are_those_of_the_value(loss, share):
    config = config_for(loss=loss, share_negatives=share, loss_chunk_size=2)
    case = case_of([[3, -100, 13, 7, 7]])

    def seeded(*leaves: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return item_loss(config, *leaves, case.labels)

    # Torch's chunked softmax is differentiable once, and adds in an order of its own.
    assert torch.autograd.gradcheck(seeded, case[:3], check_undefined_grad=False, nondet_tol=1e-12)


@every_kind
def test_one_compiled_graph_gives_the_same_loss(case, loss, share):
    # Negatives of one score, so that it does not matter which are drawn.
    table = case.table.detach() * (loss == "softmax")
    bias = torch.zeros_like(case.bias)
    config = config_for(loss=loss, share_negatives=share, loss_chunk_size=3)
    leaves = Case(case.hidden, table.requires_grad_(), bias.requires_grad_(), case.labels)
    compiled = torch.compile(item_loss, backend="aot_eager", fullgraph=True)(config, *leaves)
    eager = item_loss(config, *leaves)
    torch.testing.assert_close(compiled, eager, atol=1e-12, rtol=1e-10)
    ours, theirs = value_and_gradients(compiled, leaves), value_and_gradients(eager, leaves)
    assert_same(ours[:2], theirs[:2])
    if loss == "softmax":
        assert_same(ours, theirs)
    torch.testing.assert_close(ours[3].sum(), theirs[3].sum(), atol=1e-12, rtol=1e-10)


# ---- losses on negatives ---------------------------------------------------------------------------------------------


def test_sampled_softmax_over_all_items_is_the_full_softmax(case):
    config = config_for(loss="sampled_softmax", num_negatives=ITEMS - 1)
    assert_same(value_and_gradients(item_loss(config, *case), case), value_and_gradients(plain_softmax(case), case))


@every_sharing
@pytest.mark.parametrize("negatives", [1, 4])
def test_sampled_softmax_estimates_the_sum_over_the_catalogue_without_bias(share, negatives):
    torch.manual_seed(0)
    config = config_for(loss="sampled_softmax", share_negatives=share, num_negatives=negatives)
    case = case_of([[5]])
    with torch.no_grad():
        scores = case.hidden[0, 0] @ case.table[SPECIALS:].T + case.bias[SPECIALS:]
        # The loss is the log of the estimated sum less the score of the target.
        sums = torch.stack([item_loss(config, *case) for _ in range(3000)]).add(scores[5 - SPECIALS]).exp()
    error = sums.std() / len(sums) ** 0.5
    assert error < 0.04 * scores.exp().sum()
    assert (sums.mean() - scores.exp().sum()).abs() < 4 * error


def by_probability(target: float, others: list[float]) -> Case:
    """One position whose items have these sigmoids of their scores, half by the table and half by the bias."""
    scores = torch.tensor([0.3] * SPECIALS + [target, *others], dtype=torch.float64).logit()
    hidden = torch.tensor([[2.0]], dtype=torch.float64)
    return Case(hidden, scores[:, None] / 4, scores / 2, torch.tensor([SPECIALS]))


def test_bce_over_all_items_is_the_value_by_hand():
    case = by_probability(0.75, [0.5, 0.2, 0.8])
    config = config_for(4, loss="bce", num_negatives=3)
    # All of 0.75, 1 - 0.5, 1 - 0.2 and 1 - 0.8 are to be 1.
    assert item_loss(config, *case).item() == pytest.approx(-math.log(0.75 * 0.5 * 0.8 * 0.2) / 4, rel=1e-12)
    assert item_loss(config, *case, loss="gbce").item() == pytest.approx(0.7033527, rel=1e-6)


@every_sharing
@pytest.mark.parametrize(
    ("calibration", "beta"),
    [(0, 1), (0.75, 0.625), (1, 0.5)],  # two of four others: alpha is a half
)
def test_gbce_raises_the_likelihood_of_the_target_to_the_power_by_hand(share, calibration, beta):
    case = by_probability(0.75, [0.6] * 4)  # of one score, so that it does not matter which two are drawn
    config = config_for(5, loss="gbce", num_negatives=2, share_negatives=share, gbce_calibration=calibration)
    expected = -(beta * math.log(0.75) + 2 * math.log(0.4)) / 3
    assert item_loss(config, *case).item() == pytest.approx(expected, rel=1e-12)


@every_sharing
@given(st.data())
def test_gbce_is_the_formula_of_gsasrec(share, data):
    items = data.draw(st.integers(2, 9))
    negatives, calibration = data.draw(st.integers(1, items - 1)), data.draw(st.floats(0, 1))
    config = config_for(
        items, loss="gbce", num_negatives=negatives, share_negatives=share, gbce_calibration=calibration
    )
    case = case_of([data.draw(st.lists(st.integers(SPECIALS, SPECIALS + items - 1), min_size=1, max_size=4))], items)
    torch.manual_seed(0)
    positive, negative = sampled_scores(config, case.hidden[0], case.table, case.bias, case.labels[0])
    alpha = negatives / (items - 1)
    beta = alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
    log_of_rest = logsigmoid(-negative).sum(dim=1)
    expected = -(beta * logsigmoid(positive) + log_of_rest).mean() / (negatives + 1)
    torch.manual_seed(0)
    torch.testing.assert_close(item_loss(config, *case), expected, atol=1e-12, rtol=1e-10)


@every_sharing
def test_bce_is_gbce_without_calibration(case, share):
    values = []
    for changes in ({"loss": "bce"}, {"loss": "gbce", "gbce_calibration": 0}, {"loss": "gbce"}):
        torch.manual_seed(0)
        values.append(item_loss(config_for(share_negatives=share, **changes), *case))
    assert values[0] == values[1]
    assert values[0] > values[2] + 1e-2


@every_sharing
@pytest.mark.parametrize("loss", SAMPLED)
def test_extreme_scores_lose_finite_amounts(case, loss, share):
    hidden = case.hidden.detach().mul(1e4).requires_grad_()
    extreme = case._replace(hidden=hidden)
    found = value_and_gradients(item_loss(config_for(loss=loss, share_negatives=share), *extreme), extreme)
    assert found[0] > 100
    assert all(tensor.isfinite().all() for tensor in found)


# ---- negatives -------------------------------------------------------------------------------------------------------


def drawn_rows(config: Bert4RecConfig, targets: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of targets and negatives, as scores: every row scores its number, by table and bias; -1 for none."""
    numbers = torch.arange(config.vocab_size, dtype=torch.float64)
    hidden = torch.ones(len(targets), 1, dtype=torch.float64)
    positive, negative = sampled_scores(config, hidden, numbers[:, None] * 3, numbers * -2, torch.tensor(targets))
    return positive, negative.masked_fill(negative == -torch.inf, -1)


@every_sharing
@given(st.data())
def test_negatives_are_other_items_and_as_many_as_asked_for(share, data):
    items = data.draw(st.integers(2, 7))
    negatives = data.draw(st.integers(1, items - 1))
    targets = data.draw(st.lists(st.integers(SPECIALS, SPECIALS + items - 1), min_size=1, max_size=9))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    positive, rows = drawn_rows(config_for(items, num_negatives=negatives, share_negatives=share), targets)
    assert positive.tolist() == targets
    for target, drawn in zip(targets, rows.tolist(), strict=True):
        numbers = [int(row) for row in drawn if row != -1]
        assert len(numbers) == negatives
        assert set(numbers) <= set(range(SPECIALS, SPECIALS + items)) - {target}
        if share:
            assert len(set(numbers)) == negatives


@every_sharing
@pytest.mark.parametrize("negatives", [1, 3, 5])
def test_negatives_are_uniform_over_the_other_items(share, negatives):
    torch.manual_seed(0)
    items, draws, targets = 6, 2000, [3, 5, 8, 5]
    config = config_for(items, num_negatives=negatives, share_negatives=share)
    counts = torch.zeros(len(targets), SPECIALS + items)
    for _ in range(draws):
        rows = drawn_rows(config, targets)[1].long()
        counts.scatter_add_(1, rows.clamp(min=0), (rows != -1).float())
    share_of_each = counts / draws
    expected = torch.full_like(counts, negatives / (items - 1))
    expected[:, :SPECIALS] = 0
    expected[range(len(targets)), targets] = 0
    # The deviation of a count is at most the root of its mean: four of them.
    assert ((share_of_each - expected).abs() <= 4 * (expected / draws) ** 0.5).all()


def test_positions_share_their_negatives_only_where_told_to():
    torch.manual_seed(0)
    targets = [4] * 50
    shared, own = (drawn_rows(config_for(40, share_negatives=share), targets)[1] for share in (True, False))
    assert (shared == shared[0]).all()
    assert len({tuple(rows) for rows in own.tolist()}) > 40


@every_sharing
def test_every_call_draws_anew(share):
    torch.manual_seed(0)
    config = config_for(1000, share_negatives=share)
    assert not torch.equal(drawn_rows(config, [4])[1], drawn_rows(config, [4])[1])


# ---- training and evaluation -----------------------------------------------------------------------------------------


def cycles(items: int) -> dict[str, torch.Tensor]:
    """Five items in a circle, starting anywhere, and a [MASK] for the sixth."""
    ids = (torch.arange(items)[:, None] + torch.arange(6)) % items + SPECIALS
    labels = torch.full_like(ids, -100)
    labels[:, -1] = ids[:, -1]
    ids[:, -1] = MASK
    return {"input_ids": ids, "labels": labels}


@every_kind
def test_every_loss_learns_what_comes_next(loss, share):
    torch.manual_seed(0)
    batch = cycles(26)
    model = Bert4RecForMaskedLM(small_config(loss=loss, share_negatives=share, num_negatives=6)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    with torch.no_grad():
        best = model.eval()(batch["input_ids"]).logits[:, -1].argmax(dim=-1)
    assert (best == batch["labels"][:, -1]).sum() >= 25


@every_kind
def test_evaluation_is_by_the_full_softmax_and_draws_nothing(loss, share):
    torch.manual_seed(0)
    batch = cycles(26)
    judged = Bert4RecForMaskedLM(small_config(loss=loss, share_negatives=share, num_negatives=6)).eval()
    full = Bert4RecForMaskedLM(small_config()).eval()
    full.load_state_dict(judged.state_dict())
    before = torch.get_rng_state()
    assert judged(**batch).loss == full(**batch).loss
    assert torch.equal(torch.get_rng_state(), before)
    logits = judged(**batch).logits[:, -1, SPECIALS:]
    torch.testing.assert_close(judged(**batch).loss, cross_entropy(logits, batch["labels"][:, -1] - SPECIALS))
    if loss != "softmax":
        assert (judged.train()(**batch).loss - full(**batch).loss).abs() > 1e-2


# ---- dropout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_zeroes_its_share_and_scales_the_rest(p):
    torch.manual_seed(0)
    kept = Dropout(p)(torch.ones(1000, 1000))
    # Apart, since four elements share a random word, and a row is a whole number of words.
    for quarter in range(4):
        assert (kept[:, quarter::4] == 0).float().mean().item() == pytest.approx(p, abs=0.004)
    torch.testing.assert_close(kept[kept != 0], torch.full_like(kept[kept != 0], 1 / (1 - p)), atol=0, rtol=1e-4)


def test_elements_are_dropped_independently_of_each_other():
    torch.manual_seed(0)
    dropped = (Dropout(0.5)(torch.ones(200_000)) == 0).double()
    for distance in range(1, 9):
        both = (dropped[distance:] * dropped[:-distance]).mean().item()
        assert both == pytest.approx(0.25, abs=0.005), distance


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (2, 3, 5), (0, 4), (4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dropout_keeps_shape_and_precision(shape, dtype):
    torch.manual_seed(0)
    inputs = torch.randn(shape, dtype=dtype)
    seen = torch.zeros(shape, dtype=torch.bool)
    for _ in range(50):
        outputs = Dropout(0.5)(inputs)
        assert (outputs.shape, outputs.dtype) == (inputs.shape, dtype)
        assert ((outputs == 0) | (outputs == 2 * inputs)).all()
        seen |= outputs != 0
    assert seen.all()


@pytest.mark.parametrize("dropout", [Dropout(0.5).eval(), Dropout(0.0), Dropout(0)], ids=["eval", "0.0", "0"])
def test_dropout_that_does_not_act_changes_and_draws_nothing(dropout):
    inputs, before = torch.randn(5, 7), torch.get_rng_state()
    after_inputs = torch.get_rng_state()
    assert torch.equal(dropout(inputs), inputs)
    assert torch.equal(torch.get_rng_state(), after_inputs)
    assert before is not after_inputs


def test_a_seed_fixes_the_dropped_elements_and_every_call_draws_anew():
    dropout, inputs = Dropout(0.5), torch.ones(101)
    torch.manual_seed(3)
    one, two = dropout(inputs), dropout(inputs)
    torch.manual_seed(3)
    assert torch.equal(dropout(inputs), one)
    assert not torch.equal(two, one)


def test_the_gradient_of_dropout_has_the_same_mask():
    torch.manual_seed(0)
    inputs = torch.randn(6, 7, dtype=torch.float64).T.requires_grad_()  # not contiguous
    outputs = Dropout(0.3)(inputs)
    (gradient,) = torch.autograd.grad(outputs.sum(), inputs)
    assert 0 < (gradient == 0).sum() < gradient.numel()
    torch.testing.assert_close(outputs, inputs * gradient, atol=0, rtol=1e-12)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_drops_the_same_elements_again(use_reentrant):
    torch.manual_seed(0)
    batch = cycles(26)
    config = small_config(num_hidden_layers=3, hidden_dropout_prob=0.3, loss="gbce", num_negatives=6)
    model = Bert4RecForMaskedLM(config).double().train()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
        torch.manual_seed(1)
        loss = model(**batch).loss
        model.zero_grad()
        loss.backward()
        found.append((loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())))
    assert_same(*found)
