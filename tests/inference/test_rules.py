"""Filters by attributes, rules that rerank, and the reason of a short list."""

import logging
import re

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from datasets import Dataset

import hf_bert4rec
from hf_bert4rec import ItemAttributes, NextItemRecommendationPipeline, at_most, boost, diversify, load_item_features
from tests.inference.conftest import items_of, scores_of
from tests.inference.test_pipeline import ITEMS
from tests.inference.test_vectors import usearch_index

PRODUCTS = pd.DataFrame(
    {
        "item": [*"abcdefgh", "unknown"],  # not i and j
        "category": ["tea", "tea", "coffee", "coffee", "tea", None, "sweets", "tea", "tea"],
        "tags": ["new|sale", "new", "", "sale", None, "old", "old|sale", "new", "new"],
        "price": [1, 2, 3, 4, 5, 6, 7, np.nan, 9],
        "in_stock": [True, False, True, True, True, True, False, True, True],
    }
)


SOLD = {"in_stock": False}


def best(recommender, history=(), **options) -> list[str]:
    return items_of(recommender([list(history)], top_k=10, **options))[0]


# ---- where -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "items"),
    [
        ({"in_stock": True}, "acdefh"),
        ({"category": "tea"}, "abeh"),
        ({"category": ["coffee", "sweets"]}, "cdg"),
        ({"tags": "sale"}, "adg"),
        ({"tags": ["old", "new"]}, "abfgh"),
        ({"price": lambda price: price < 4}, "abc"),
        ({"price": 3}, "c"),
        ({"category": lambda name: name.str.startswith("t")}, "abeh"),
        ({"in_stock": True, "category": "tea"}, "aeh"),
        ({"in_stock": "yes"}, ""),
        ({"category": []}, ""),
        ({"tags": {"sale", "old"}}, "adfg"),
        ({"tags": pd.Series(["sale"])}, "adg"),
        ({}, "abcdefghij"),
    ],
)
def test_only_items_that_match_are_recommended(recommender, where, items):
    everything = best(recommender)
    expected = [item for item in everything if item in items]
    assert best(recommender, attributes=PRODUCTS, where=where) == expected
    attributes = ItemAttributes(PRODUCTS)
    assert best(recommender, attributes=attributes, where=where) == expected
    assert items_of(recommender.fill([[None]], top_k=10, attributes=attributes, where=where)[0]) == [expected]
    index = usearch_index(recommender.index_vectors())
    assert best(recommender, attributes=attributes, where=where, index=index) == expected


@pytest.mark.parametrize("table", [Dataset.from_pandas, pa.Table.from_pandas, pl.from_pandas])
def test_any_table_is_read(recommender, table):
    products = table(PRODUCTS.rename(columns={"item": "sku"}))
    assert sorted(best(recommender, attributes=products, where={"tags": "sale", "price": [1, 4]})) == ["a", "d"]


def test_lists_in_cells_are_several_values(recommender):
    products = pa.table({"item": ["a", "b", "c"], "tags": [["x", "y|z"], [], None], "text": [" x |y||x", "", None]})
    assert best(recommender, attributes=products, where={"tags": "x"}) == ["a"]
    assert best(recommender, attributes=products, where={"tags": "y|z"}) == ["a"]
    attributes = ItemAttributes(products)
    assert attributes.values("tags") == {"a": ["x", "y|z"]}
    assert attributes.values("text") == {"a": ["x", "y"]}


def test_missing_values_change_no_types_and_dates_are_dates(recommender):
    large = 2**53 + 1
    days = pd.to_datetime(["2024-01-02", None, "2024-03-01"]).date
    products = pa.table({"item": ["a", "b", "c"], "number": [large, None, 1], "day": days})
    assert best(recommender, attributes=products, where={"number": large}) == ["a"]
    assert best(recommender, attributes=products, where={"day": days[2]}) == ["c"]
    recent = {"day": lambda day: day > pd.Timestamp("2024-02-01")}
    assert best(recommender, attributes=products, where=recent) == ["c"]
    kinds = pd.DataFrame({"item": ["a", "b"], "kind": pd.Categorical(["x", None]), "sold": pd.array([True, None])})
    assert best(recommender, attributes=kinds, where={"kind": "x", "sold": True}) == ["a"]


def test_true_is_no_condition_for_numbers(recommender):
    products = pd.DataFrame({"item": ["a", "b", "c"], "stock": [1, 7, 0], "flag": [1, 0, 1]})
    assert sorted(best(recommender, attributes=products, where={"flag": True})) == ["a", "c"]
    assert sorted(best(recommender, attributes=products, where={"stock": lambda stock: stock > 0})) == ["a", "b"]
    with pytest.raises(
        ValueError, match=r"'stock' is True, but the column has numbers other than 0 and 1\. Use a function, such as"
    ):
        best(recommender, attributes=products, where={"stock": True})


def test_a_value_that_no_item_has_is_reported_once(recommender, caplog):
    logging.Logger.warning_once.cache_clear()
    attributes = ItemAttributes(PRODUCTS)
    for _ in range(2):
        assert best(recommender, attributes=attributes, where={"price": "3"}) == []
        assert sorted(best(recommender, attributes=attributes, where={"price": [3, 99]})) == ["c"]
    best(recommender, attributes=attributes, where={"category": "tea|sweets"})
    text = "No item has the value {} in 'price'. First values: 1.0, 2.0, 3.0. For a range, pass `lambda it: it < 20`."
    assert caplog.messages[:2] == [text.format("'3'"), text.format("99")]
    assert re.search(r"'tea\|sweets' in 'category'\. First values: .*'\. Text is split at `\|`\.$", caplog.messages[2])


def test_a_table_of_few_items_of_the_model_is_reported(recommender, caplog):
    logging.Logger.warning_once.cache_clear()
    assert best(recommender, attributes=PRODUCTS.head(3), where={"in_stock": True})
    assert "only 3 of the 10 items of the model have attributes. The others match no condition." in caplog.text


def test_a_selective_condition_with_an_index_ranks_all_that_match(recommender):
    index = usearch_index(recommender.index_vectors())
    options = {"attributes": PRODUCTS, "where": {"category": "sweets"}}
    assert best(recommender, index=index, **options) == best(recommender, **options) == ["g"]
    assert best(recommender, index=index, allow=[]) == best(recommender, allow=[]) == []


def test_items_that_must_not_match(recommender):
    everything = best(recommender)
    found = best(recommender, attributes=PRODUCTS, where_not={"tags": "sale", "category": ["sweets", "tea"]})
    assert found == [item for item in everything if item in "cfij"]
    both = best(recommender, attributes=PRODUCTS, where={"in_stock": True}, where_not={"tags": "sale"})
    assert both == [item for item in everything if item in "cefh"]


def test_a_table_can_be_used_with_several_models(recommender):
    tokenizer = hf_bert4rec.item_tokenizer(["x", "h", "g"], max_length=5)
    config = recommender.model.config.to_diff_dict() | {"vocab_size": 6}
    model = hf_bert4rec.Bert4RecForMaskedLM(hf_bert4rec.Bert4RecConfig(**config))
    other = NextItemRecommendationPipeline(model=model, tokenizer=tokenizer)
    attributes = ItemAttributes(PRODUCTS)
    for _ in range(2):
        assert best(recommender, attributes=attributes, where={"category": "sweets"}) == ["g"]
        assert sorted(best(other, attributes=attributes, where={"category": ["tea", "sweets"]})) == ["g", "h"]


def test_where_allow_deny_and_history_hold_together(recommender):
    expected = [item for item in best(recommender, "a") if item in "ch"]
    options = {"attributes": PRODUCTS, "where": {"in_stock": True}, "allow": [*"abch"], "deny": ["d"]}
    assert best(recommender, "a", **options) == expected


def test_removed_items_and_contradictory_rules(recommender):
    recommender.tokenizer.removed = ["c"]
    recommender = NextItemRecommendationPipeline(model=recommender.model, tokenizer=recommender.tokenizer)
    assert best(recommender, attributes=PRODUCTS, where={"category": "coffee"}) == ["d"]
    (nothing,) = recommender([["a"]], allow=["b", "d"], deny=["b"], attributes=PRODUCTS, where={"category": "tea"})
    assert nothing == []
    assert nothing.reason == (
        "Found 0 of 10 wanted items. Excluded from the 10 items of the catalog: 1 removed, 1 in the history, "
        "1 in `deny`, 6 not in `allow`, 1 by `where`."
    )
    (nothing,) = recommender([["a"]], allow=["c"])
    assert nothing == []
    assert nothing.reason == (
        "Found 0 of 10 wanted items. Excluded from the 10 items of the catalog: 1 removed, 1 in the history, "
        "8 not in `allow`."
    )


def test_the_features_of_the_model_are_attributes(recommender):
    with pytest.raises(
        ValueError, match=r"Attributes are missing\. Pass a table with one row per item as `attributes=`"
    ):
        best(recommender, where={"category": "tea"})
    recommender.tokenizer.features = load_item_features(PRODUCTS)
    recommender = NextItemRecommendationPipeline(model=recommender.model, tokenizer=recommender.tokenizer)
    assert sorted(best(recommender, where={"category": "tea"})) == [*"abeh"]
    assert sorted(best(recommender, where={"in_stock": True})) == [*"acdefh"]
    assert sorted(best(recommender, where={"price": lambda price: price < 3})) == [*"ab"]
    assert best(recommender, attributes=PRODUCTS, where={"category": "sweets"}) == ["g"]


def test_defaults_of_the_pipeline_hold_for_each_call(folder):
    with pytest.raises(ValueError, match="or a list of rules, found 3"):
        hf_bert4rec.pipeline(folder, device="cpu", rerank=3)
    with pytest.raises(ValueError, match="Unknown attribute 'colour'"):
        hf_bert4rec.pipeline(folder, device="cpu", attributes=PRODUCTS, where={"colour": "red"})
    recommender = hf_bert4rec.pipeline(folder, device="cpu", attributes=PRODUCTS, where={"category": "sweets"})
    assert best(recommender) == ["g"]
    assert len(best(recommender, where={})) == 10
    products = PRODUCTS.copy()
    recommender = hf_bert4rec.pipeline(folder, device="cpu", attributes=products, where={"in_stock": True})
    assert sorted(best(recommender)) == [*"acdefh"]
    products["in_stock"] = products["item"] == "b"  # stock changes between calls
    assert best(recommender) == best(recommender, attributes=products) == ["b"]
    assert sorted(best(recommender, where={"category": "coffee"})) == ["c", "d"]


def test_a_column_that_is_named_by_a_number_is_an_attribute(recommender):
    products = PRODUCTS.rename(columns={"category": 0})
    expected = best(recommender, attributes=PRODUCTS, where={"category": "coffee"})
    assert best(recommender, attributes=products, where={0: "coffee"}) == expected
    assert best(recommender, attributes=products, where={"0": "coffee"}) == expected


def test_a_condition_may_return_bools_of_pandas_and_arrow(recommender):
    expected = best(recommender, attributes=PRODUCTS, where={"price": lambda price: price < 3})
    for kind in ("boolean", "bool[pyarrow]"):
        where = {"price": lambda price, kind=kind: (price < 3).astype(kind)}
        assert best(recommender, attributes=PRODUCTS, where=where) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": {"colour": 1}}, "Unknown attribute 'colour'. Choose from item, category, tags, price, in_stock"),
        ({"where": "in_stock"}, r"`where` must be a dict, such as \{'in_stock': True\}, found 'in_stock'"),
        (
            {"where": {"price": lambda price: price.head(2) > 1}},
            r"condition on 'price' .* one bool per value, found Series of bool with another index\. Fix",
        ),
        ({"where": {"price": lambda price: price.sort_values(ascending=False) > 1}}, "with the index of the column"),
        ({"where": {"price": lambda price: price - 1}}, "one bool per value, found Series of float64"),
        ({"where": {"price": lambda price: True}}, "one bool per value, found bool"),
        ({"where": []}, "`where` must be a dict"),
        ({"where_not": {"colour": 1}}, "Unknown attribute 'colour'"),
        ({"where": SOLD, "attributes": [1]}, r"attributes: expected a table \(.*\), found list\. .*`pandas"),
        ({"where": SOLD, "attributes": "products.csv"}, r"expected a table, found str\. Read the file .*`pd\.read_csv"),
        (
            {"where": SOLD, "attributes": {"item": ["a"]}},
            r"attributes: expected a table .*found dict with the keys item.* `pandas.DataFrame",
        ),
        (
            {"where": SOLD, "attributes": PRODUCTS.drop(columns="item")},
            r"expected a column for the item, .* In this call: `attributes=ItemAttributes\(table, item=\.\.\.\)`\.$",
        ),
        ({"where": SOLD, "attributes": pd.concat([PRODUCTS, PRODUCTS])}, r"several for 'a'.* Keep one row of each\.$"),
        (
            {"where": SOLD, "attributes": pd.concat([PRODUCTS, PRODUCTS["tags"]], axis=1)},
            r"2 columns named 'tags'\. Rename all but one\.$",
        ),
        (
            {"where": SOLD, "attributes": PRODUCTS.assign(item="SKU-" + PRODUCTS["item"])},
            r"no item of the table is in the model \(first ID of the table: 'SKU-a', of the model: 'a'\)",
        ),
        ({"rerank": at_most(1, "colour")}, "Unknown attribute 'colour'"),
        ({"rerank": 5}, r"`rerank` must be a rule, such as at_most\(2, 'category'\), or a list of rules, found 5"),
        ({"rerank": lambda candidates: [0, 0]}, "must return one finite float for each of the 9 candidates"),
        ({"rerank": lambda candidates: range(9)}, "must return one finite float for each"),
        ({"rerank": lambda candidates: candidates.items}, "must return one finite float for each"),
        ({"rerank": lambda candidates: candidates.logits[:, None]}, "must return one finite float for each"),
        ({"rerank": lambda candidates: candidates.logits[1:]}, "must return one finite float for each"),
        ({"rerank": lambda candidates: candidates.logits * np.nan}, "must return one finite float for each"),
        ({"rerank": lambda candidates: candidates.logits + np.inf}, "must return one finite float for each"),
        ({"rerank": lambda candidates: [-1e300] * 9}, r"one finite float .* Use floats below 3\.4e\+38"),
        ({"rerank": [at_most(9, "tags"), lambda candidates: 1]}, "Rule 2 of `rerank` must return"),
        ({"where": {"price": {"$lt": 5}}}, "condition on 'price' must be a value, a list of values, or a function"),
        ({"where": {"tags": [["new"]]}}, "condition on 'tags' must be a value, a list of values, or a function"),
        ({"rerank": lambda candidates: None}, "must return one finite float for each"),
        ({"rerank": lambda candidates: 0.5}, "must return one finite float for each"),
        (
            {"rerank": lambda candidates: pd.Series(candidates.logits).sort_values()},
            "Rule 1 of `rerank` returned a Series with another index",
        ),
        (
            {"rerank": lambda candidates: pd.Series(candidates.logits, candidates.items)[::-1]},
            "a Series with another index. Order the values as `candidates.items`",
        ),
        ({"rerank": lambda candidates: candidates.logits > 0}, "must return one finite float for each"),
        (
            {"where": {"tags": lambda it: it < 5}},
            r"'tags' failed with TypeError: .+\. Fix this function\. It gets the column, a Series of (object|str)\.$",
        ),
        ({"where": {"price": lambda it: {}["x"]}}, r"condition on 'price' failed with KeyError: 'x'\. Fix this"),
        ({"where": {"price": lambda: True}}, r"condition on 'price' failed with TypeError: .*argument"),
        (
            {"rerank": at_most},
            r"^Rule 1 of `rerank` failed with TypeError: at_most\(\) missing 1 required positional argument: "
            r"'attribute'\. Fix the rule or the call\. Example of a rule: at_most\(2, 'category'\)\.$",
        ),
        ({"rerank": [diversify(0.1), boost]}, r"Rule 2 of `rerank` failed with TypeError: boost\(\) missing 1 "),
        (
            {"rerank": lambda it: 1 / 0},
            "Rule 1 of `rerank` failed with ZeroDivisionError: division by zero. Fix the rule",
        ),
        (
            {"rerank": lambda it: [[1], [1, 2]]},
            "Rule 1 of `rerank` failed with ValueError: .* Fix the rule or the call",
        ),
        (
            {"rerank": diversify},
            r"`weight` must be a number from 0 to 1, as in `diversify\(0\.3\)`, found <hf_bert4rec",
        ),
        ({"candidates": 0}, "`candidates` must be a whole number of at least 1"),
    ],
)
def test_other_rules_are_refused(recommender, options, message):
    with pytest.raises(ValueError, match=message):
        recommender([["a"]], **{"attributes": PRODUCTS} | options)


# ---- rerank ----------------------------------------------------------------------------------------------------------


def test_at_most_n_items_of_a_value(recommender):
    everything = best(recommender)
    counts, expected = {}, []
    for item in everything:
        category = dict(zip(PRODUCTS["item"], PRODUCTS["category"], strict=True)).get(item)
        counts[category] = counts.get(category, 0) + 1
        if category is None or counts[category] <= 1:
            expected.append(item)
    assert best(recommender, attributes=PRODUCTS, rerank=at_most(1, "category")) == expected
    assert {"i", "j", "f"} <= set(expected)  # without a category, so without a limit
    answers = recommender([[]], top_k=10, attributes=PRODUCTS, rerank=at_most(1, "tags"))[0]
    assert sum(row["item"] in "abh" for row in answers) == 1
    assert sum(row["item"] in "adg" for row in answers) == 1


def test_a_value_that_is_repeated_in_a_cell_counts_once(recommender):
    everything = best(recommender)
    products = pa.table({"item": [*"ab"], "tags": [["x", "x"], ["x", "x"]]})
    assert best(recommender, attributes=products, rerank=at_most(2, "tags")) == everything


def test_a_boost_multiplies_the_probability(recommender):
    scores = {row["item"]: row["score"] for row in recommender([["a"]], top_k=10)[0]}
    boosted = {item: score * (3 if item in "bh" else 1) for item, score in scores.items()}
    answered = recommender([["a"]], top_k=10, attributes=PRODUCTS, rerank=boost({"tags": "new"}, 3))
    assert items_of(answered) == [sorted(boosted, key=boosted.get, reverse=True)]
    assert scores_of(answered) == pytest.approx([scores[item] for item in items_of(answered)[0]])


def test_rules_do_not_change_scores_with_an_index(recommender):
    def backwards(candidates):
        return np.negative(candidates.logits, out=candidates.logits)

    index = usearch_index(recommender.index_vectors())
    logits = {row["item"]: row["score"] for row in recommender([["a"]], top_k=10, index=index)[0]}
    for rule in (boost({"tags": "new"}, 3), backwards):
        answered = recommender([["a"]], top_k=10, attributes=PRODUCTS, rerank=rule, index=index)
        assert items_of(answered) != [[*logits]]
        assert scores_of(answered) == pytest.approx([logits[item] for item in items_of(answered)[0]])


def test_diversity_by_hand(recommender):
    candidates = [row["item"] for row in recommender([["a"]], top_k=10)[0]]
    vectors = recommender.item_vectors()[[ITEMS.index(item) for item in candidates], :-1].astype(float)
    cosines = vectors @ vectors.T / np.outer(*[np.linalg.norm(vectors, axis=1)] * 2)
    logits = np.log([row["score"] for row in recommender([["a"]], top_k=10)[0]])
    relevance = (logits - logits.min()) / np.ptp(logits)
    order = [0]
    while len(order) < len(candidates):
        value = {
            place: 0.4 * relevance[place] - 0.6 * max(cosines[place, above] for above in order)
            for place in range(len(candidates))
            if place not in order
        }
        order.append(max(value, key=value.get))
    assert order != sorted(order)
    assert best(recommender, "a", rerank=diversify(0.6)) == [candidates[place] for place in order]
    assert best(recommender, "a", rerank=diversify(0)) == candidates


def test_boosts_multiply_and_respect_the_order_of_other_rules(recommender):
    scores = {row["item"]: row["score"] for row in recommender([[]], top_k=10)[0]}
    factors = {"tags": 30, "in_stock": 4}
    boosted = {
        item: score * (30 if item in "abh" else 1) * (4 if item in "acdefh" else 1) for item, score in scores.items()
    }
    rules = [boost({"tags": "new"}, factors["tags"]), boost({"in_stock": True}, factors["in_stock"])]
    assert best(recommender, attributes=PRODUCTS, rerank=rules) == sorted(boosted, key=boosted.get, reverse=True)
    backwards = [lambda candidates: -candidates.logits, boost({"tags": "new"}, 1 + 1e-9)]
    assert best(recommender, attributes=PRODUCTS, rerank=backwards) == [*scores][::-1]


def test_a_rule_cannot_change_the_answer_but_by_its_order(recommender):
    def spoil(candidates):
        logits = candidates.logits.copy()
        candidates.items.sort()
        candidates.logits[:] = candidates.vectors[:] = 0
        for values in candidates.values("tags"):
            values.clear()
        return logits

    attributes = ItemAttributes(PRODUCTS)
    assert best(recommender, "a", attributes=attributes, rerank=spoil) == best(recommender, "a")
    expected = best(recommender, "a", attributes=PRODUCTS, rerank=[diversify(0.5), at_most(1, "tags")])
    assert best(recommender, "a", attributes=PRODUCTS, rerank=[spoil, diversify(0.5), at_most(1, "tags")]) == expected
    expected = best(recommender, attributes=PRODUCTS, rerank=at_most(1, "tags"))
    assert best(recommender, attributes=attributes, rerank=at_most(1, "tags")) == expected


def test_a_boost_by_an_iterator_of_values_holds_for_several_tables(recommender):
    rule = boost({"tags": iter(["new"])}, 30)
    tables = [PRODUCTS, PRODUCTS.copy()]
    first, second = (best(recommender, attributes=table, rerank=rule) for table in tables)
    assert first == second != best(recommender)


@pytest.mark.parametrize("value", [10**30, object(), 1j])
def test_a_condition_of_another_type_matches_nothing_or_is_refused_by_name(recommender, value):
    try:  # pandas 2 finds no such item, and pandas 3 raises errors
        assert best(recommender, attributes=PRODUCTS, where={"category": value}) == []
    except ValueError as error:
        assert "The condition on 'category' failed with " in str(error)


@pytest.mark.parametrize("index", [list, lambda items: range(len(items))])
def test_a_rule_may_return_a_series_in_the_order_of_the_candidates(recommender, index):
    def rule(candidates):
        return pd.Series(-candidates.logits, index(candidates.items))

    assert best(recommender, rerank=rule, candidates=10) == best(recommender)[::-1]


def test_rules_follow_each_other_and_see_only_the_candidates(recommender):
    everything = best(recommender)
    drop = lambda candidates: np.where(np.arange(len(candidates.items)) < 3, -candidates.logits, -np.inf)  # noqa: E731
    rules = [drop, lambda candidates: [0.5, 1.0, float("-inf")]]
    assert best(recommender, rerank=rules) == [everything[1], everything[2]]
    nothing = lambda candidates: np.full(len(candidates.items), -np.inf)  # noqa: E731
    assert best(recommender, rerank=[nothing, diversify(0.5)]) == []
    assert best(recommender, rerank=lambda candidates: torch.zeros(10)) == everything
    seen = []
    rule = lambda candidates: seen.append(candidates.items) or candidates.logits  # noqa: E731
    recommender([[]], top_k=2, rerank=rule, candidates=4)
    recommender([[]], top_k=3, rerank=rule, candidates=1)
    assert seen == [everything[:4], everything[:3]]


@pytest.mark.parametrize("rule", [at_most(1, "tags"), diversify(0.5), boost({"tags": "new"}, 3)])
def test_rules_hold_in_any_batch_and_with_an_index(recommender, rule):
    histories = [["a"], [], [*"bcdefghij"], [*"abcdefghij"]]
    options = {"attributes": PRODUCTS, "rerank": rule, "top_k": 3}
    expected = items_of(recommender(histories, **options))
    assert [items_of(recommender([history], **options))[0] for history in histories] == expected
    assert expected[2:] == [["a"], []]
    index = usearch_index(recommender.index_vectors())
    assert items_of(recommender(histories, **options, index=index)) == expected


@pytest.mark.parametrize(
    "make", [lambda: at_most(0, "x"), lambda: diversify(1.5), lambda: boost({}, 0), lambda: boost({}, float("inf"))]
)
def test_settings_of_rules_are_checked(make):
    with pytest.raises(ValueError, match="must be"):
        make()


# ---- the reason ------------------------------------------------------------------------------------------------------


def only_the_first(candidates):
    return [0.0, *[float("-inf")] * (len(candidates.items) - 1)]


@pytest.mark.parametrize(
    ("options", "left", "excluded"),
    [
        ({}, 9, "1 in the history"),
        ({"deny": ["a", "b", "c"]}, 7, "1 in the history, 2 in `deny`"),
        ({"allow": ["a", "b"]}, 1, "1 in the history, 8 not in `allow`"),
        ({"where": {"in_stock": True}, "attributes": PRODUCTS}, 5, "1 in the history, 4 by `where`"),
        (
            {"where": {"in_stock": True}, "allow": ["b"], "attributes": PRODUCTS},
            0,
            "1 in the history, 8 not in `allow`, 1 by `where`",
        ),
        (
            {"where": {"in_stock": True}, "where_not": {"category": "coffee"}, "attributes": PRODUCTS},
            3,
            "1 in the history, 4 by `where`, 2 by `where_not`",
        ),
        ({"rerank": only_the_first, "exclude_history": False}, 1, "9 dropped by `rerank`"),
        (
            {"rerank": only_the_first, "candidates": 4, "top_k": 2},
            1,
            "1 in the history, 5 not among the best 4 (`candidates`), 3 dropped by `rerank`",
        ),
    ],
)
def test_a_short_list_says_why(recommender, options, left, excluded):
    (answered,) = recommender([["a"]], **{"top_k": 10} | options)
    wanted = options.get("top_k", 10)
    assert (
        answered.reason
        == f"Found {left} of {wanted} wanted items. Excluded from the 10 items of the catalog: {excluded}."
    )
    assert recommender([["a"]], top_k=1, exclude_history=False)[0].reason is None


def test_a_catalog_with_fewer_items_than_asked_for_is_a_reason(recommender):
    assert recommender([["a"]], top_k=11, exclude_history=False)[0].reason == "The catalog has only 10 items."
