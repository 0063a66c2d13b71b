"""Filling gaps, surprise and explanations, compared with brute force: one forward pass without padding per answer."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_bert4rec
from hf_bert4rec import NextItemRecommendationPipeline, SasRecConfig, SasRecForMaskedLM, diversify
from tests.conftest import small_config, small_facts
from tests.inference.conftest import items_of, scores_of
from tests.inference.test_pipeline import FIRST_ITEM, HISTORIES, ITEMS, MASK, level
from tests.inference.test_vectors import usearch_index


@torch.no_grad()
def probabilities(model, history: list[str | None], place: int) -> dict[str, float]:
    """Probability of each item at one place of a history of at most five entries; None is a gap."""
    rows = [MASK if item is None else FIRST_ITEM + ITEMS.index(item) for item in history]
    rows[place] = MASK
    logits = model(torch.tensor([rows])).logits[0, place, FIRST_ITEM:]
    return dict(zip(ITEMS, logits.softmax(dim=0).tolist(), strict=True))


def best_of(found: dict[str, float], excluded: list[str | None]) -> list[str]:
    return sorted((item for item in found if item not in excluded), key=found.get, reverse=True)


# ---- fill ------------------------------------------------------------------------------------------------------------


def test_gaps_are_filled_with_the_items_of_brute_force(recommender, model):
    histories = [["a", None, "b"], [None, "c"], ["a", "b"], ["d", None, "e", None], [None, None]]
    answers = recommender.fill(histories, top_k=10)
    assert list(map(len, answers)) == [1, 1, 0, 2, 2]
    for history, answered in zip(histories, answers, strict=True):
        gaps = [place for place, item in enumerate(history) if item is None]
        for place, items in zip(gaps, answered, strict=True):
            expected = probabilities(model, history, place)
            assert items_of([items]) == [best_of(expected, history)]
            assert scores_of([items]) == pytest.approx([expected[row["item"]] for row in items], abs=1e-5)
    assert answers[1][0][0].keys() == {"item", "title", "score"}


def test_the_last_gap_is_the_next_item(recommender):
    (found,) = recommender.fill([["a", "b", None]])[0]
    assert found == recommender([["a", "b"]])[0]


def test_of_a_longer_history_the_part_around_the_gap_is_read(recommender, model):
    history = ["a", "b", "c", "d", None, "e", "f", "g", "h"]  # the model reads five
    (found,) = recommender.fill([history], top_k=10)[0]
    expected = probabilities(model, ["c", "d", None, "e", "f"], 2)
    assert items_of([found]) == [best_of(expected, history)]
    first, last = recommender.fill([[None, *"abcdefg", None]], top_k=10)[0]
    assert items_of([first]) == [best_of(probabilities(model, [None, *"abcd"], 0), list("abcdefg"))]
    assert items_of([last]) == [best_of(probabilities(model, [*"defg", None], 4), list("abcdefg"))]


def test_options_hold_for_gaps(recommender, model):
    history = ["a", None, "b"]
    expected = probabilities(model, history, 1)
    assert items_of(recommender.fill([history], allow=["c", "d", "a"])[0]) == [best_of(expected, [*"abefghij"])]
    assert items_of(recommender.fill([history], deny=["c"], top_k=10)[0]) == [best_of(expected, ["a", "b", "c"])]
    assert items_of(recommender.fill([history], exclude_history=False, top_k=10)[0]) == [best_of(expected, [])]
    two = recommender.fill([[None], [None, None]], allow=[["c"], ["d"]])
    assert [items_of(of) for of in two] == [[["c"]], [["d"], ["d"]]]
    with pytest.raises(
        ValueError, match=r"Unknown option 'index'\. The options are top_k, exclude_history, allow, deny"
    ):
        recommender.fill([history], index=1)


def test_unknown_items_are_skipped_and_gaps_stay(recommender, caplog):
    assert recommender.fill([["x", "a", None, "y", "b"]]) == recommender.fill([["a", None, "b"]])
    assert "histories: 2 of 4 IDs are unknown and skipped, such as 'x', 'y'." in caplog.text


def test_missing_values_of_pandas_are_gaps(recommender):
    expected = recommender.fill([["a", None, "b"]])
    for gap in (float("nan"), np.float32("nan"), pd.NA, pd.NaT):
        assert recommender.fill([["a", gap, "b"]]) == expected
    assert recommender.fill([pd.Series(["a", None, "b"])]) == expected


def test_a_pipeline_with_an_index_fills_gaps_without_it(recommender):
    index = usearch_index(recommender.index_vectors())
    indexed = NextItemRecommendationPipeline(model=recommender.model, tokenizer=recommender.tokenizer, index=index)
    assert indexed.fill([["a", None]]) == recommender.fill([["a", None]])


def test_half_precision_and_several_threads(folder, recommender):
    half = hf_bert4rec.pipeline(folder, device="cpu", dtype=torch.bfloat16)
    expected = recommender.surprise([["a", "b", "c"]])[0]
    for row, other in zip(half.surprise([["a", "b", "c"]])[0], expected, strict=True):
        assert row["log_probability"] == pytest.approx(other["log_probability"], abs=0.3)
    assert len(half.fill([["a", None]], top_k=3, rerank=diversify(0.3))[0][0]) == 3
    histories = [[*"ab", None], [None, "c"], [*"defg", None, "h"]] * 4
    expected = recommender.fill(histories)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda history: recommender.fill([history])[0], histories))
    assert [items_of(of) for of in found] == [items_of(of) for of in expected]


def test_a_model_of_last_items_warns_once_that_it_has_not_learned_gaps(folder, caplog):
    small_facts(recipe={"seed": 1, "last_item_probability": 1.0}).save(folder)
    recommender = hf_bert4rec.pipeline(folder, device="cpu")
    recommender([["a"]])
    assert "last items only" not in caplog.text
    recommender.surprise([["a"]])
    recommender.fill([[None]])
    assert caplog.text.count("The model was trained on last items only") == 1


def test_run_facts_of_a_later_version_do_not_stop_recommending(folder):
    small_facts().save(folder)
    file = Path(folder, "run_facts.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 1000}))
    assert hf_bert4rec.pipeline(folder, device="cpu")([["a"]], top_k=1)[0]


@pytest.mark.parametrize("histories", [["a", None], [None], None])
def test_other_histories_are_refused(recommender, histories):
    with pytest.raises(ValueError, match="histories"):
        recommender.fill(histories)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.sampled_from([*"abcxy", None]), max_size=9), max_size=6))
def test_the_answer_does_not_depend_on_the_batch(small_pipeline, histories):
    expected = small_pipeline.fill(histories)
    one_by_one = [small_pipeline.fill([history], batch_size=1)[0] for history in histories]
    assert [items_of(of) for of in one_by_one] == [items_of(of) for of in expected]
    assert [len(of) for of in expected] == [history.count(None) for history in histories]


@pytest.fixture(scope="module")
def small_pipeline():
    tokenizer = hf_bert4rec.item_tokenizer([*ITEMS], max_length=5)
    config = hf_bert4rec.Bert4RecConfig(
        vocab_size=13, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=5
    )
    torch.manual_seed(0)
    return NextItemRecommendationPipeline(model=hf_bert4rec.Bert4RecForMaskedLM(config), tokenizer=tokenizer)


def test_a_causal_model_reads_the_left_side_only(tokenizer):
    torch.manual_seed(0)
    sasrec = SasRecForMaskedLM(SasRecConfig(**small_config().to_diff_dict() | {"vocab_size": 13}))
    found = NextItemRecommendationPipeline(model=sasrec, tokenizer=tokenizer)
    left, both = found.fill([["a", "b", None], ["a", "b", None, "c"]], exclude_history=False)
    assert items_of(both) == items_of(left)


# ---- surprise --------------------------------------------------------------------------------------------------------


def test_surprise_is_the_probability_given_all_other_items(recommender, model):
    histories = [history for history in HISTORIES if len(history) <= 5]
    for history, answered in zip(histories, recommender.surprise(histories), strict=True):
        assert [row["item"] for row in answered] == history
        for place, row in enumerate(answered):
            expected = probabilities(model, history, place)
            assert row["log_probability"] == pytest.approx(math.log(expected[history[place]]), abs=1e-4)
            others = [item for item in history if item != history[place]]
            assert row["rank"] == 1 + best_of(expected, others).index(history[place])
            assert row["title"] == {"a": "Alpha", "b": "Beta"}.get(row["item"])


def test_the_rank_is_the_place_in_the_list_of_fill(recommender):
    (filled,) = recommender.fill([["a", None, "b"]], top_k=10)[0]
    for item in "cde":
        row = recommender.surprise([["a", item, "b"]])[0][1]
        assert items_of([filled])[0][row["rank"] - 1] == item
    recommender.model.config.exclude_history = False
    (ranks,) = recommender.surprise([["a", "c", "b"]])
    (filled,) = recommender.fill([["a", None, "b"]], top_k=10, exclude_history=False)[0]
    assert items_of([filled])[0][ranks[1]["rank"] - 1] == "c"


def test_ties_count_half_a_place_and_removed_items_do_not(recommender):
    level(recommender.model)
    recommender.tokenizer.removed = ["j"]
    recommender = NextItemRecommendationPipeline(model=recommender.model, tokenizer=recommender.tokenizer)
    (row,) = recommender.surprise([["a"]])[0]
    assert row["log_probability"] == pytest.approx(-math.log(10), abs=1e-5)
    assert row["rank"] == 5  # of the nine items that are left, the middle one
    (removed,) = recommender.surprise([["j"]])[0]
    assert removed["rank"] == 6  # 5.5 of ten


def test_an_unknown_item_has_no_surprise_and_changes_none(recommender):
    found, expected = recommender.surprise([["a", "x", "c"], ["a", "c"]])
    assert found[1] == {"item": "x", "title": None, "log_probability": None, "rank": None}
    assert [found[0], found[2]] == expected
    assert recommender.surprise([[], ["x"]])[0] == []


# ---- explain ---------------------------------------------------------------------------------------------------------


def test_a_contribution_is_the_loss_of_log_probability_without_the_item(recommender, model):
    history = ["a", "b", "a", "c"]
    whole = probabilities(model, [*history, None], 4)["e"]
    answered = recommender.explain(history, "e")
    assert [(row["item"], row["title"]) for row in answered] == [
        ("a", "Alpha"), ("b", "Beta"), ("a", "Alpha"), ("c", None)
    ]  # fmt: skip
    for place, row in enumerate(answered):
        rest = history[:place] + history[place + 1 :]
        without = probabilities(model, [*rest, None], 3)["e"]
        assert row["contribution"] == pytest.approx(math.log(whole / without), abs=1e-4)


def test_items_that_the_model_does_not_read_contribute_nothing(recommender):
    answered = recommender.explain(["a", "x", "b", "c", "d", "e"], "f")  # the model reads the newest four
    assert [row["contribution"] for row in answered[:2]] == [0, 0]
    assert 0 not in [row["contribution"] for row in answered[2:]]
    assert recommender.explain([], "f") == []
    assert recommender.explain(["x"], "f") == [{"item": "x", "title": None, "contribution": 0.0}]


def test_an_item_of_the_history_is_explained_too(recommender):
    assert len(recommender.explain(["a", "b"], "b")) == 2


@pytest.mark.parametrize(
    ("history", "item", "message"),
    [
        (["a"], "x", "item: the model has no item 'x'"),
        (["a"], None, "item"),
        ("a", "b", "history: expected a list, found str 'a'"),
        (
            *([["a"]], "b"),
            r"history: expected text or numbers, found \['a'\] \(list\)\. "
            "Convert other types to text, and pass no inner lists",
        ),
    ],
)
def test_what_cannot_be_explained_is_refused(recommender, history, item, message):
    with pytest.raises(ValueError, match=message):
        recommender.explain(history, item)


def test_damaged_weights_give_an_error(recommender):
    with torch.no_grad():
        recommender.model.lm_head.bias.fill_(torch.nan)
    for call in (
        lambda: recommender.fill([[None]]),
        lambda: recommender.surprise([["a"]]),
        lambda: recommender.explain(["a"], "b"),
    ):
        with pytest.raises(ValueError, match="scores are NaN or infinite"):
            call()
