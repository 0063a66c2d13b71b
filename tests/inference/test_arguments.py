"""What users pass to the pipeline: every form that means the same gives the same answer, every other form a reason."""

import array
import decimal
import logging
import uuid
from collections import OrderedDict, deque

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, DatasetDict

import hf_bert4rec
from hf_bert4rec import Bert4RecForMaskedLM, NextItemRecommendationPipeline, item_tokenizer
from tests.conftest import lively, small_config
from tests.inference.conftest import items_of

ITEMS = [
    "1",
    "2",
    "3",
    "40",
    "2.5",
    "a b",
    "a",
    "b",
    "Ä",
    "日本",
    "😀",
    "0001",
    "-7",
    "9007199254740993",
    "None",
    "'",
    " 1",
]
LOGGER = "hf_bert4rec.inference.answers"
TABLE = {"history": [["1", "2"], ["3"]], "user": ["u", "v"]}


@pytest.fixture(scope="module")
def recommender() -> NextItemRecommendationPipeline:
    """17 items whose scores differ clearly, at most 5 positions."""
    tokenizer = item_tokenizer(ITEMS, max_length=5)
    model = lively(Bert4RecForMaskedLM(small_config(len(tokenizer), 5)), seed=2)
    return NextItemRecommendationPipeline(model=model, tokenizer=tokenizer, device="cpu")


# ---- histories -------------------------------------------------------------------------------------------------------

SAME_HISTORIES = [
    # what is passed, and the same as lists of text
    ([(1, 2), (3,)], [["1", "2"], ["3"]]),
    ([[1.0, 2.0], [3.0]], [["1", "2"], ["3"]]),
    ([[1, 2.0, "3"]], [["1", "2", "3"]]),
    ([[2.5, 40.0]], [["2.5", "40"]]),  # a fraction is kept as in a log
    ([[-7, -7.0]], [["-7", "-7"]]),
    ([[9007199254740993]], [["9007199254740993"]]),  # an int is exact, whatever its size
    ([["0001", 1]], [["0001", "1"]]),  # text is never read as a number
    ([[" 1", "1 "]], [[" 1"]]),  # a blank is part of the ID
    ([[""]], [[]]),
    ([["[MASK]", "[PAD]", "[UNK]", "1"]], [["1"]]),  # special tokens are not items
    ([["1", "2"] * 500], [["1", "2"] * 2]),
    ([np.array([1, 2]), np.array(["3"])], [["1", "2"], ["3"]]),
    (np.array([[1, 2], [3, 1]]), [["1", "2"], ["3", "1"]]),
    (np.array([[1.0, 2.0]]), [["1", "2"]]),
    (np.array([["1", "a b"]]), [["1", "a b"]]),
    (np.array([["1", 2], ["3", 1.0]], dtype=object), [["1", "2"], ["3", "1"]]),
    ([np.array([1, 2], np.uint8), np.array([3], np.float16)], [["1", "2"], ["3"]]),
    (np.empty((2, 0)), [[], []]),
    ([np.array([])], [[]]),
    (np.empty((0, 3)), []),
    ([[np.int64(1), np.float32(2), np.str_("3"), np.array(1)]], [["1", "2", "3", "1"]]),
    (torch.tensor([[1, 2]]), [["1", "2"]]),
    ([torch.tensor([1, 2]), torch.tensor([3.0])], [["1", "2"], ["3"]]),
    ([[torch.tensor(1), torch.tensor(2.0)]], [["1", "2"]]),
    (torch.tensor([[1, 2]]).bfloat16(), [["1", "2"]]),
    (pd.Series([["1", "2"], ["3"]]), [["1", "2"], ["3"]]),
    (pd.Series([["1", "2"], ["3"]], index=[7, 7]), [["1", "2"], ["3"]]),
    ([pd.Series([1, 2]), pd.Series(["3"], dtype="category")], [["1", "2"], ["3"]]),
    (pd.DataFrame(TABLE)["history"], [["1", "2"], ["3"]]),
    (pd.DataFrame({"item": ["1", "2", "3"], "user": [0, 0, 1]}).groupby("user")["item"].agg(list), [["1", "2"], ["3"]]),
    (pd.DataFrame(TABLE)["history"].to_numpy(), [["1", "2"], ["3"]]),
    ([pd.array([1, 2], dtype="Int64")], [["1", "2"]]),
    (pl.Series([["1", "2"], ["3"]]), [["1", "2"], ["3"]]),
    ([pl.Series([1, 2])], [["1", "2"]]),
    (pl.DataFrame(TABLE)["history"], [["1", "2"], ["3"]]),
    (pa.array([["1", "2"], ["3"]]), [["1", "2"], ["3"]]),
    (pa.chunked_array([[["1", "2"]], [["3"]]]), [["1", "2"], ["3"]]),
    (pa.table(TABLE)["history"], [["1", "2"], ["3"]]),
    ([pa.array([1, 2])], [["1", "2"]]),
    (Dataset.from_dict(TABLE)["history"], [["1", "2"], ["3"]]),
    (Dataset.from_dict(TABLE)[:]["history"], [["1", "2"], ["3"]]),
    (Dataset.from_dict({"history": [[1, 2]]}).with_format("torch")["history"], [["1", "2"]]),
    (Dataset.from_dict({"history": [[1, 2]]}).with_format("numpy")["history"], [["1", "2"]]),
    ((row["history"] for row in Dataset.from_dict(TABLE)), [["1", "2"], ["3"]]),
    (iter([iter(["1", "2"]), map(str, [3])]), [["1", "2"], ["3"]]),
    ((["1", "2"], ["3"]), [["1", "2"], ["3"]]),
    (deque([deque(["1", "2"])]), [["1", "2"]]),
    ([range(1, 4)], [["1", "2", "3"]]),
    ([array.array("q", [1, 2])], [["1", "2"]]),
    ({"u": ["1", "2"]}.values(), [["1", "2"]]),
    ([{"1": 5, "2": 3}.keys()], [["1", "2"]]),  # in the order of the dict
    (iter(()), []),
    ((), []),
    ([()], [[]]),
]


@pytest.mark.parametrize(("passed", "same"), SAME_HISTORIES)
def test_histories_of_any_form_give_the_same_answer_as_lists_of_text(recommender, passed, same):
    assert recommender(passed, exclude_history=False) == recommender(same, exclude_history=False)


FLAT, LIST, ID = "expected one list of item IDs per user", "histories: expected a list", "expected text or numbers"
MISSING = ID
WRONG_HISTORIES = [
    (None, f"{LIST}, found NoneType None"),
    (5, f"{LIST}, found int 5"),
    (True, LIST),
    ("1", f"{LIST}, found str '1'"),
    ("1 2", LIST),
    (b"12", LIST),
    (bytearray(b"12"), LIST),
    (np.array(5), LIST),
    (np.array("12"), LIST),
    (torch.tensor(5), LIST),
    (object(), LIST),
    (["1", "2"], r"found '1' at index 0\. Pass a list of lists, such as \[\['1', '6'\], \[\]\] for a user with"),
    (("1", "2"), FLAT),
    ([1, 2], FLAT),
    ([1.0, 2.0], FLAT),
    ([None], FLAT),
    ([["1"], "2"], rf"{FLAT}, found '2' at index 1\. Pass a list of lists, such as"),
    ([["1"], None], rf"{FLAT}, found None at index 1"),
    ([b"1", b"2"], FLAT),
    (np.array([1, 2]), FLAT),
    (np.array(["1", "2"]), FLAT),
    (torch.tensor([1, 2]), FLAT),
    ([torch.tensor(1)], FLAT),
    (pd.Series(["1", "2"]), FLAT),
    (pl.Series(["1", "2"]), FLAT),
    (pa.array(["1", "2"]), FLAT),
    ((item for item in "12"), FLAT),
    ({"1", "2"}, "A set has no order"),
    ([{"1", "2"}], "A set has no order"),
    ([frozenset("12")], "A set has no order"),
    ({"history": [["1", "2"]]}, r"found dict\. Pass one of its columns or values, such as data\['history'\]"),
    ([{"history": ["1", "2"]}], "found dict. Pass one of its columns or values"),
    (OrderedDict(a=["1"]), "Pass one of its columns or values"),
    (Dataset.from_dict(TABLE), "found Dataset. Pass one of its columns"),
    (DatasetDict(test=Dataset.from_dict(TABLE)), r"or data\['train'\]\['item'\]"),
    (Dataset.from_dict(TABLE).to_iterable_dataset(), "Pass one of its columns"),
    (list(Dataset.from_dict(TABLE)), "Pass one of its columns or values"),
    (pd.DataFrame(TABLE), "found DataFrame. Pass one of its columns"),
    (pd.DataFrame([["1", "2"]]), "Pass one of its columns"),
    (pl.DataFrame(TABLE), "Pass one of its columns"),
    (pa.table(TABLE), "found Table. Pass one of its columns"),
    (pa.array([{"history": ["1"]}]), "Pass one of its columns or values"),
    (
        [[["1", "2"]]],
        rf"histories: {ID}, found \['1', '2'\] \(list\)\. Convert other types to text, and pass no inner lists",
    ),
    ([[{"item": "1", "score": 0.5}]], "Pass the value of its key 'item'"),
    ([[("1", "2")]], ID),
    ([["1", ["2"]]], ID),
    (np.array([[[1, 2]]]), ID),
    (torch.ones(1, 2, 2), ID),
    (
        [[None]],
        rf"{MISSING}, found None \(NoneType\)\. Remove missing values\. Only `recommender\.fill` accepts them\.",
    ),
    ([["1", None]], MISSING),
    ([[float("nan")]], rf"{MISSING}, found nan \(float\)\. Remove missing values\."),
    ([[pd.NA]], rf"{MISSING}, found <NA> \(NAType\)\. Remove missing values\."),
    ([[torch.tensor(float("nan"))]], rf"{MISSING}, found tensor\(nan\) \(Tensor\)\. Remove missing values\."),
    ([[float("inf")]], r"expected text or a finite number, found inf\. Fix or remove this value"),
    (np.array([[1, np.nan]]), MISSING),
    ([pd.array([1, None], dtype="Int64")], MISSING),
    (pl.Series([["1", None]]), MISSING),
    (pa.array([["1", None]]), MISSING),
    (pa.array([["1"], None]), FLAT),
    ([[1e300]], "not exact"),
    ([[float(2**60)]], "not exact"),
    ([[True]], rf"{ID}, found True \(bool\)"),
    (np.array([[True, False]]), ID),
    ([[b"1"]], rf"{ID}, found b'1' \(bytes\)"),
    (np.array([[b"1"]]), ID),
    ([bytes(3)], "histories"),
    ([["1", "\ud800"]], r"'\\ud800' is not valid Unicode text"),
    ([[decimal.Decimal(1)]], ID),
    ([[uuid.UUID(int=1)]], ID),
    ([[1 + 0j]], ID),
    ([[object()]], ID),
    ([[{"item": "1"}]], ID),
    ([[np.datetime64("2020-01-01")]], ID),
]


@pytest.mark.parametrize(("passed", "reason"), WRONG_HISTORIES)
def test_what_is_not_a_list_of_histories_is_refused_with_a_reason(recommender, passed, reason):
    with pytest.raises(ValueError, match=reason):
        recommender(passed)


# ---- allow and deny --------------------------------------------------------------------------------------------------

LISTS = [
    # what is passed for two histories, and the IDs that it means for each of them
    (["1", "2"], ["1", "2"], ["1", "2"]),
    ([1, 2.0], ["1", "2"], ["1", "2"]),
    ({"1", "2"}, ["1", "2"], ["1", "2"]),
    (frozenset({1}), ["1"], ["1"]),
    ({"1": 0}.keys(), ["1"], ["1"]),
    (np.array([1, 2]), ["1", "2"], ["1", "2"]),
    (torch.tensor([1.0, 2.0]), ["1", "2"], ["1", "2"]),
    (pd.Series([1, 2]), ["1", "2"], ["1", "2"]),
    (pl.Series(["1", "2"]), ["1", "2"], ["1", "2"]),
    (pa.array(["1", "2"]), ["1", "2"], ["1", "2"]),
    (["a b", "日本", "1", "1"], ["a b", "日本", "1"], ["a b", "日本", "1"]),
    (["[UNK]", "[PAD]", "zz", "1"], ["1"], ["1"]),
    ([], [], []),
    (["zz"], [], []),
    ([["1", "2"], ["3"]], ["1", "2"], ["3"]),
    ([[1, 2], [3.0]], ["1", "2"], ["3"]),
    ((["1"], {"2", "3"}), ["1"], ["2", "3"]),
    ([["1"], []], ["1"], []),
    ([[], []], [], []),
    (np.array([[1, 2], [3, 3]]), ["1", "2"], ["3"]),
    (pd.Series([["1"], ["2"]]), ["1"], ["2"]),
    ([ITEMS, ["1"]], ITEMS, ["1"]),
]


@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize(("passed", "first", "second"), LISTS)
def test_items_are_denied_for_all_histories_or_for_each(recommender, passed, first, second, batch_size):
    histories = [["40"], ["a", "b", "40"]]  # the second is scored first
    answers = recommender(histories, top_k=20, deny=passed, batch_size=batch_size)
    assert [set(items) for items in items_of(answers)] == [
        set(ITEMS) - {*first, *histories[0]}, set(ITEMS) - {*second, *histories[1]}
    ]  # fmt: skip


@pytest.mark.parametrize(("passed", "first", "second"), LISTS)
def test_items_are_allowed_for_all_histories_or_for_each(recommender, passed, first, second):
    answers = recommender([["40"], ["a", "b", "40"]], top_k=20, allow=passed, deny=["2"])
    assert [set(items) for items in items_of(answers)] == [
        set(first) - {"2", "40"}, set(second) - {"2", "a", "b", "40"}
    ]  # fmt: skip


def test_allow_and_deny_per_history_leave_the_scores_as_they_are(recommender):
    plain = recommender([["1"], ["2"]], top_k=20)
    for batch_size in (1, 2):
        answers = recommender([["1"], ["2"]], top_k=20, batch_size=batch_size, allow=[["3", "a"], ["b"]], deny=["a"])
        expected = [{"3"}, {"b"}]
        assert answers == [
            [row for row in rows if row["item"] in own] for rows, own in zip(plain, expected, strict=True)
        ]


def test_one_list_per_history_may_stand_in_brackets_for_a_single_history(recommender):
    assert recommender([["1"]], deny=[["2", "3"]]) == recommender([["1"]], deny=["2", "3"])
    assert recommender([], deny=["1"]) == recommender([], deny=[]) == []


@pytest.mark.parametrize("name", ["allow", "deny"])
@pytest.mark.parametrize(
    ("passed", "reason"),
    [
        (5, r"expected a list, found int 5\. Pass a list, such as \['1', '6'\]\."),
        (2.5, "expected a list"),
        (True, "expected a list"),
        ("1", "expected a list, found str '1'"),
        (b"1", "expected a list"),
        (np.array("1"), "expected a list"),
        ({"1": "title"}, "Pass one of its columns or values"),
        (pd.DataFrame({"item": ["1"]}), "Pass one of its columns"),
        (Dataset.from_dict({"item": ["1"]}), "Pass one of its columns"),
        ([None], MISSING),
        ([b"1"], ID),
        ([True], ID),
        ([float("nan")], MISSING),
        (["\ud800"], "not valid Unicode"),
        ([["1"], "2"], "found lists and single IDs"),
        ([["1"], None], "found lists and single IDs"),
        ([["1"]], r"one list per history \(2 in total\), found a list of 1 lists"),
        ([["1"], ["2"], ["3"]], "found a list of 3 lists"),
        ([[["1"]], [["2"]]], rf"{ID}, found \['1'\] \(list\)"),
        ([["1"], [None]], MISSING),
        ([{"1": 1}, ["2"]], "Pass one of its columns or values"),
    ],
)
def test_other_forms_of_allow_and_deny_are_refused_with_a_reason(recommender, name, passed, reason):
    with pytest.raises(ValueError, match=rf"(?s){name}: .*{reason}"):
        recommender([["1"], ["2"]], **{name: passed})


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["top_k", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 2.5, 5.0, "5", "", True, np.True_, [5], float("nan"), b"5", torch.tensor(5)])
def test_a_count_that_is_not_a_whole_number_above_zero_is_refused(recommender, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a whole number of at least 1, found "):
        recommender([["1"]], **{name: value})
    with pytest.raises(ValueError, match=f"`{name}` must be a whole number of at least 1, found "):
        NextItemRecommendationPipeline(
            model=recommender.model, tokenizer=recommender.tokenizer, device="cpu", **{name: value}
        )


@pytest.mark.parametrize("value", ["no", "False", 0, 1, 0.0, [], [True], "auto"])
def test_exclude_history_that_is_not_a_bool_is_refused(recommender, value):
    with pytest.raises(ValueError, match="`exclude_history` must be True or False, found "):
        recommender([["1"]], exclude_history=value)


def test_counts_and_flags_may_be_those_of_numpy(recommender):
    expected = recommender([["1"]], top_k=3, exclude_history=False)
    assert recommender([["1"]], top_k=np.int64(3), batch_size=np.int32(1), exclude_history=np.False_) == expected


def test_none_stands_for_the_default(recommender):
    options = dict.fromkeys(["top_k", "exclude_history", "allow", "deny", "batch_size"])
    assert recommender([["1"]], **options) == recommender([["1"]])


@pytest.mark.parametrize("top_k", [17, 18, 10**6, 10**30])
def test_top_k_above_the_catalog_gives_every_item_that_is_left(recommender, top_k):
    assert [len(items) for items in items_of(recommender([[], ["1"], ITEMS], top_k=top_k))] == [17, 16, 0]


@pytest.mark.parametrize("deny", [ITEMS, [ITEMS]])
def test_denying_everything_gives_nothing(recommender, deny):
    assert recommender([["1"]], deny=deny) == [[]]


def test_an_unknown_option_is_refused(recommender):
    for options in ({"topk": 3}, {"denylist": ["1"]}, {"num_workers": 1}):
        reason = f"Unknown option '{next(iter(options))}'. The options are top_k, exclude_history, allow, deny, where,"
        with pytest.raises(ValueError, match=reason):
            recommender([["1"]], **options)
    with pytest.raises(ValueError, match="Unknown option 'topk'"):
        NextItemRecommendationPipeline(model=recommender.model, tokenizer=recommender.tokenizer, device="cpu", topk=3)


def test_defaults_may_be_iterators_and_lists_per_history(recommender):
    options = {"deny": (item for item in "12"), "allow": [["1", "3", "a"], ["2", "b"]]}
    other = NextItemRecommendationPipeline(
        model=recommender.model, tokenizer=recommender.tokenizer, device="cpu", **options
    )
    for _ in range(2):
        assert [set(items) for items in items_of(other([[], []]))] == [{"3", "a"}, {"b"}]
    assert [set(items) for items in items_of(other([["a"]], allow=["3", "a", "1"]))] == [{"3"}]
    with pytest.raises(ValueError, match=r"allow: .* one list per history \(1 in total\)"):
        other([["1"]])


# ---- unknown IDs -----------------------------------------------------------------------------------------------------


def messages_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


def test_an_unknown_id_is_reported_once_however_many_calls_name_it(recommender, caplog):
    fresh = NextItemRecommendationPipeline(model=recommender.model, tokenizer=recommender.tokenizer, device="cpu")
    with caplog.at_level(logging.WARNING, LOGGER):
        for _ in range(3):
            fresh([["1"], ["2"], ["3"]], allow=["1", "2", "old", "older"], batch_size=1)
    assert messages_of(caplog) == ["allow: 2 of 4 IDs are unknown and skipped, such as 'old', 'older'."]
    caplog.clear()
    with caplog.at_level(logging.WARNING, LOGGER):
        fresh([["1"]], deny=[["1", "newer"]])  # one that was not reported yet
    assert messages_of(caplog) == ["deny: 1 of 2 IDs are unknown and skipped, such as 'newer'."]


def test_unknown_ids_per_history_are_counted_over_the_call(recommender, caplog):
    fresh = NextItemRecommendationPipeline(model=recommender.model, tokenizer=recommender.tokenizer, device="cpu")
    with caplog.at_level(logging.WARNING, LOGGER):
        fresh([["1", "1.0"], ["A\u0308"]], deny=[["v", "1"], ["w", "w"]])  # in Unicode, Ä has another spelling
    assert sorted(messages_of(caplog)) == [
        "deny: 3 of 4 IDs are unknown and skipped, such as 'v', 'w'.",
        "histories: 2 of 3 IDs are unknown and skipped, such as '1.0', 'A\u0308'.",
    ]


# ---- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [None, 5, ["folder"], b"folder"])
def test_a_checkpoint_that_is_not_named_by_text_or_a_path_is_refused(model):
    with pytest.raises(ValueError, match="`model` must be a checkpoint folder or a Hub ID, found"):
        hf_bert4rec.pipeline(model)


def test_a_model_object_is_refused_with_the_class_to_use(recommender):
    with pytest.raises(ValueError, match=r"found Bert4RecForMaskedLM\. .*`NextItemRecommendationPipeline\(model="):
        hf_bert4rec.pipeline(recommender.model, tokenizer=recommender.tokenizer)
