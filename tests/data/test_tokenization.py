"""The item tokenizer: ids to rows and back, files that AutoTokenizer loads, titles, and appending items."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer

from hf_bert4rec import ItemTokenizer, extend_item_tokenizer, item_tokenizer
from hf_bert4rec.data.tokenization import check_tokenizer
from tests.conftest import needs

AWKWARD = [
    "x",
    "a b",
    " ",
    "\n",
    "[MASK]y",
    "x[PAD]",
    "the [MASK] item",
    "É",
    "e\u0301",
    "👩‍👩‍👧",
    "\x00",
    "X",
    "##x",
    "▁x",
]

unicode_id = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
    st.sampled_from(AWKWARD),
    st.sampled_from(["[MASK]", "[PAD]", "[UNK]"]).map(lambda token: f"{token} {token}"),
).filter(lambda item: item not in {"[PAD]", "[MASK]", "[UNK]"})
unicode_ids = st.lists(unicode_id, min_size=1, max_size=12)


def test_special_tokens_come_first_and_items_follow_in_order_of_first_appearance():
    tokenizer = item_tokenizer(["7", "x", "7", "3", "x"])
    assert tokenizer.get_vocab() == {"[PAD]": 0, "[MASK]": 1, "[UNK]": 2, "7": 3, "x": 4, "3": 5}
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.items.to_pylist() == ["7", "x", "3"]
    assert len(tokenizer) == 6


def test_items_may_come_from_the_column_of_a_dataset():
    interactions = Dataset.from_dict({"user": ["u", "v", "u"], "item": ["b", "a", "b"], "timestamp": [1, 2, 3]})
    assert item_tokenizer(interactions).items.to_pylist() == ["b", "a"]


@settings(max_examples=40, deadline=None)
@given(ids=unicode_ids)
def test_any_ids_round_trip_and_split_words_agree_with_bulk_encoding(ids):
    tokenizer = item_tokenizer(ids)
    rows = tokenizer.encode_items(ids)
    distinct = list(dict.fromkeys(ids))
    assert rows.dtype == np.int32
    assert rows.tolist() == [3 + distinct.index(item) for item in ids]
    assert tokenizer.decode_items(rows) == ids
    assert tokenizer(ids, is_split_into_words=True)["input_ids"] == rows.tolist()


@settings(max_examples=15, deadline=None)
@given(ids=unicode_ids)
def test_any_ids_survive_saving_and_loading(tmp_path_factory, ids):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = item_tokenizer(ids, titles={ids[0]: ids[-1]})
    tokenizer.save_pretrained(folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded.items.to_pylist() == tokenizer.items.to_pylist()
    assert loaded.titles == tokenizer.titles
    assert loaded(ids, is_split_into_words=True)["input_ids"] == tokenizer.encode_items(ids).tolist()


def test_bulk_encoding_agrees_with_the_tokenizer_on_a_thousand_ids():
    rng = np.random.default_rng(0)
    tokenizer = item_tokenizer([f"item {number}" for number in range(400)], max_length=2000)
    ids = [f"item {number}" for number in rng.integers(0, 500, 1000)]
    rows = tokenizer.encode_items(ids).tolist()
    assert tokenizer(ids, is_split_into_words=True)["input_ids"] == rows
    assert 100 < rows.count(2) < 300


def test_bulk_encoding_takes_arrow_arrays_and_an_empty_list(tokenizer):
    assert tokenizer.encode_items(pa.array(["b", "a"])).tolist() == [4, 3]
    assert tokenizer.encode_items(pa.chunked_array([["b"], ["a", "z"]])).tolist() == [4, 3, 2]
    assert tokenizer.encode_items([]).tolist() == []


@pytest.mark.parametrize("repeats", [1, 100])  # looked up one by one, and in a table of the catalog
def test_missing_unknown_and_special_ids_become_unk_in_few_and_many_ids(repeats):
    tokenizer = item_tokenizer(map(str, range(100)))
    ids = ["99", None, "", "zzz", "[PAD]", "[MASK]", "[UNK]", "0"]
    rows = tokenizer.encode_items(pa.array(ids * repeats))
    assert rows.dtype == np.int32
    assert rows.tolist() == [102, 2, 2, 2, 2, 2, 2, 3] * repeats


def test_special_rows_and_rows_past_the_end_have_no_id(tokenizer):
    for row in (0, 1, 2, 13):
        with pytest.raises(IndexError):
            tokenizer.decode_items([3, row])
    assert tokenizer.decode_items([]) == []


@pytest.mark.parametrize("token", ["[PAD]", "[MASK]", "[UNK]"])
def test_an_id_equal_to_a_special_token_is_refused_by_name(token):
    with pytest.raises(ValueError, match=rf"must not be special tokens, found '\[{token[1:-1]}\]'\. Rename"):
        item_tokenizer(["a", token])


@pytest.mark.parametrize(
    "items", [["a", ""], pa.array(["a", ""]), pa.array(["a", None]), Dataset.from_dict({"item": ["a", ""]})]
)
def test_an_empty_id_is_refused(items):
    with pytest.raises(ValueError, match="item IDs that are not empty, found ''"):
        item_tokenizer(items)


@pytest.mark.parametrize("items", [None, 5])
def test_items_that_are_no_list_are_refused(tokenizer, items):
    for build in (item_tokenizer, partial(extend_item_tokenizer, tokenizer), tokenizer.encode_items):
        with pytest.raises(ValueError, match="item IDs: expected a list, found "):
            build(items)


def test_a_catalog_without_items_is_refused():
    with pytest.raises(ValueError, match="`items` contains no item ID"):
        item_tokenizer([])


@pytest.mark.parametrize("max_length", [1, 20.0, "5", None])
def test_a_length_without_room_for_an_item_is_refused(max_length):
    with pytest.raises(ValueError, match=rf"max_length` must be an integer of at least 2.*found {max_length!r}"):
        item_tokenizer(["a"], max_length=max_length)


def test_text_with_the_mask_is_split_at_blanks_where_no_id_has_any(tokenizer):
    assert tokenizer("a b [MASK]")["input_ids"] == [3, 4, 1]
    assert tokenizer.decode([3, 4, 1]) == "a b [MASK]"


def test_ids_with_blanks_stay_one_token_as_split_words():
    tokenizer = item_tokenizer(["red shoe", "shoe", "red"])
    encoded = tokenizer(["red", "red shoe", "[MASK]"], is_split_into_words=True)
    assert encoded["input_ids"] == [5, 3, 1]
    assert encoded["attention_mask"] == [1, 1, 1]


def test_truncation_keeps_the_newest_and_padding_goes_right(tokenizer):
    batch = tokenizer(
        [["a", "b", "c", "d", "e", "f", "g"], ["a"]], is_split_into_words=True, truncation=True, padding=True
    )
    assert batch["input_ids"] == [[5, 6, 7, 8, 9], [3, 0, 0, 0, 0]]
    assert batch["attention_mask"] == [[1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    assert "token_type_ids" not in batch


def test_titles_follow_the_order_of_the_items_and_those_of_other_items_are_ignored():
    tokenizer = item_tokenizer(["b", "a", "c"], titles={"a": "Alpha", "b": "Beta", "other": "Z"})
    assert tokenizer.titles == ["Beta", "Alpha", None]
    assert item_tokenizer(["a"]).titles is None


def test_titles_of_the_wrong_number_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"expected 10 titles.*found 1"):
        tokenizer.set_titles(["Alpha"])


@pytest.mark.parametrize(
    ("titles", "message"),
    [
        (dict.fromkeys("abcdefghij"), r"expected a list, found a dict\. Pass `\[titles\.get\(item\) for item"),
        ("abcdefghij", "expected a list, found str 'abcdefghij'"),
        (set("abcdefghij"), "A set has no order"),
        ([*"abcdefghi", ["j"]], r"expected text or numbers, found \['j'\] \(list\)\. .* no inner lists\.$"),
        ([*"abcdefghi", float("inf")], r"found inf\. Fix or remove this value\.$"),
    ],
)
def test_titles_that_are_no_list_of_texts_are_refused(tokenizer, titles, message):
    with pytest.raises(ValueError, match=f"^titles: .*{message}"):
        tokenizer.set_titles(titles)


def test_a_saved_folder_loads_with_auto_tokenizer_as_item_tokenizer(tokenizer, tmp_path):
    files = tokenizer.save_pretrained(tmp_path)
    assert str(tmp_path / "items.parquet") in files
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is ItemTokenizer
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.titles == ["Alpha", "Beta", *[None] * 8]
    assert loaded.model_max_length == 5
    assert loaded("a b [MASK]")["input_ids"] == [3, 4, 1]
    assert loaded(list("abcdefg"), is_split_into_words=True, truncation=True)["input_ids"] == [5, 6, 7, 8, 9]


def test_a_loaded_tokenizer_can_be_saved_again(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "first")
    ItemTokenizer.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    again = ItemTokenizer.from_pretrained(tmp_path / "second")
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.titles == tokenizer.titles
    assert (
        Path(tmp_path, "first", "tokenizer.json").read_text() == Path(tmp_path, "second", "tokenizer.json").read_text()
    )


def test_a_pickled_tokenizer_keeps_rows_and_titles(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode_items(["j", "a"]).tolist() == [12, 3]
    assert copy.titles == tokenizer.titles


def test_without_this_package_auto_tokenizer_encodes_the_same(tmp_path):
    tokenizer = item_tokenizer(AWKWARD, titles={"x": "X"})
    tokenizer.save_pretrained(tmp_path)
    words = [*AWKWARD, "other", "[MASK]"]
    code = (
        "import sys; from transformers import AutoTokenizer\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(tmp_path)!r})\n"
        "assert 'hf_bert4rec' not in sys.modules\n"
        f"print(tokenizer({words!r}, is_split_into_words=True)['input_ids'])"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([*range(3, 3 + len(AWKWARD)), 2, 1])


def test_titles_of_another_save_are_refused_at_load(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    pq.write_table(pa.table({"title": ["Alpha", "Beta"]}), tmp_path / "items.parquet")
    message = (
        r"items\.parquet: expected 10 titles, one for each of `items` .*, found 2\. Download or save the tokenizer"
    )
    with pytest.raises(ValueError, match=message):
        AutoTokenizer.from_pretrained(tmp_path)
    titled = item_tokenizer(tokenizer.items[::-1].to_pylist(), titles={"a": "Alpha"})
    titled.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path)
    for file in (tmp_path / "other").iterdir():  # all but the list of items
        if file.name != "tokenizer.json":
            shutil.copy(file, tmp_path)
    with pytest.raises(ValueError, match=r"the titles belong to other items than those in tokenizer\.json\. Download"):
        AutoTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_string(),
        pytest.param(pa.string_view(), marks=needs("pyarrow", "20")),
        pa.dictionary(pa.int32(), pa.large_string()),
    ],
)
def test_titles_may_be_text_of_any_type(tokenizer, tmp_path, kind):
    tokenizer.save_pretrained(tmp_path)
    titles = [*"ABCDEFGHI", None]
    pq.write_table(pa.table({"title": pa.array(titles, pa.string()).cast(kind)}), tmp_path / "items.parquet")
    assert AutoTokenizer.from_pretrained(tmp_path).titles == titles


def test_saving_without_titles_removes_those_of_an_earlier_save(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    item_tokenizer(["a", "b"]).save_pretrained(tmp_path)
    assert not (tmp_path / "items.parquet").exists()
    assert AutoTokenizer.from_pretrained(tmp_path).titles is None


@settings(max_examples=40, deadline=None)
@given(old=unicode_ids, new=st.lists(unicode_id, max_size=12), data=st.data())
def test_extending_keeps_every_row_and_appends_whatever_the_order(old, new, data):
    tokenizer = item_tokenizer(old, max_length=7)
    extended = extend_item_tokenizer(tokenizer, data.draw(st.permutations([*old, *new])))
    known = tokenizer.items.to_pylist()
    assert extended.items.to_pylist()[: len(known)] == known
    assert sorted(extended.items.to_pylist()[len(known) :]) == sorted(set(new) - set(old))
    assert extended.encode_items(old).tolist() == tokenizer.encode_items(old).tolist()
    assert extended.model_max_length == 7


def test_extending_takes_a_dataset_keeps_titles_and_adds_new_ones(tokenizer):
    extended = extend_item_tokenizer(
        tokenizer, Dataset.from_dict({"item": ["z", "c", "k"]}), titles={"z": "Zeta", "c": "Gamma"}
    )
    assert extended.items.to_pylist() == [*"abcdefghij", "z", "k"]
    assert extended.titles == ["Alpha", "Beta", "Gamma", *[None] * 7, "Zeta", None]
    assert extend_item_tokenizer(item_tokenizer(["a"]), ["b"]).titles is None


def test_a_missing_titles_file_is_reported(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "items.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"found no items\.parquet, which contains the titles"):
        AutoTokenizer.from_pretrained(tmp_path)


def test_a_bare_string_is_not_split_into_items(tokenizer):
    for build in (item_tokenizer, lambda text: extend_item_tokenizer(tokenizer, text)):
        with pytest.raises(ValueError, match="expected a list, found str 'neu'"):
            build("neu")


# ---- rows of a saved tokenizer ---------------------------------------------------------------------------------------

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}


def vocabulary(**rows):
    """Rows of the tokens of a tokenizer.json with items a, b and c."""
    return {"[PAD]": 0, "[MASK]": 1, "[UNK]": 2, "a": 3, "b": 4, "c": 5} | rows


@pytest.mark.parametrize(
    ("file", "path", "value", "error"),
    [
        (TOKENIZER, "model.vocab", {"a": 0, "b": 1, "c": 2}, "with the token IDs 0, 1, 2"),
        (TOKENIZER, "model.vocab", {token: 5 - row for token, row in vocabulary().items()}, "found 0: 'c', 1: 'b'"),
        (TOKENIZER, "model.vocab", vocabulary(c=9), "one item for each token ID from 3 to 5, found .* 9: 'c'"),
        pytest.param(
            *(TOKENIZER, "model.vocab", vocabulary(c=4), "one item for each token ID from 3 to 5"),
            marks=needs("transformers", "5.17"),  # older ones drop one of the two before the package sees them
        ),
        (TOKENIZER, "model.vocab", vocabulary(a=0, **{"[PAD]": 3}), "with the token IDs 0, 1, 2"),
        (TOKENIZER, "model.vocab", vocabulary(c=-1), "invalid value"),
        (TOKENIZER, "model.unk_token", "a", r"Expected \[UNK\] as unk_token in tokenizer.json, found a"),
        (TOKENIZER, "model.unk_token", None, "invalid type: null"),
        (TOKENIZER, "normalizer", {"type": "Lowercase"}, "Expected None as normalizer"),
        (TOKENIZER, "added_tokens", [{"id": 6, "content": "d", **ADDED}], "added_tokens, found 6"),
        (CONFIG, "mask_token", "a", r"The special tokens of an ItemTokenizer are \[PAD\], \[MASK\], \[UNK\], found a"),
        (CONFIG, "mask_token", "[UNK]", r"Expected \[MASK\] as mask_token, found \[UNK\]"),
        (CONFIG, "unk_token", None, r"Expected \[UNK\] as unk_token, found None"),
        (CONFIG, "cls_token", "[CLS]", r"found \[CLS\]"),
        (CONFIG, "model_max_length", "many", "type of model_max_length"),
    ],
)
def test_rows_and_tokens_other_than_those_of_an_item_table_are_refused(tmp_path, file, path, value, error):
    item_tokenizer(list("abc")).save_pretrained(tmp_path)
    content = json.loads((tmp_path / file).read_text())
    *parents, name = path.split(".")
    (content[parents[0]] if parents else content)[name] = value
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{tmp_path}: the tokenizer cannot be loaded.*{error}"):
        AutoTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["", '{"version": ', "[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000])
def test_a_damaged_or_deep_tokenizer_file_is_refused(tmp_path, content):
    item_tokenizer(list("abc")).save_pretrained(tmp_path)
    (tmp_path / TOKENIZER).write_text(content)
    with pytest.raises(ValueError, match=r"the tokenizer cannot be loaded\. Check the path"):
        AutoTokenizer.from_pretrained(tmp_path)


def test_a_tokenizer_of_another_class_is_refused(tmp_path):
    item_tokenizer(list("abc")).save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(
        ValueError, match=r"Expected an ItemTokenizer, found .* import hf_bert4rec first.* `tokenizer_class` must be"
    ):
        check_tokenizer(AutoTokenizer.from_pretrained(tmp_path))


# ---- items added to a tokenizer --------------------------------------------------------------------------------------


def test_added_tokens_are_items_with_rows_of_their_own(tokenizer):
    assert tokenizer.items.to_pylist() == list("abcdefghij")
    assert tokenizer.add_tokens(["k", "a", "k", "l m"]) == 2
    assert tokenizer.add_tokens("k") == tokenizer.add_tokens(["", "[UNK]"]) == 0
    assert tokenizer.items.to_pylist() == [*"abcdefghij", "k", "l m"]
    assert len(tokenizer) == 15
    assert tokenizer.decode_items([13, 14]) == ["k", "l m"]
    assert tokenizer.encode_items(["l m", "k", "a"]).tolist() == [14, 13, 3]
    assert tokenizer.titles == ["Alpha", "Beta", *[None] * 10]
    check_tokenizer(tokenizer)


def test_an_added_item_is_not_cut_out_of_longer_ids(tokenizer):
    tokenizer.add_tokens(["k"])
    assert tokenizer(["k", "kk", "ak"], is_split_into_words=True)["input_ids"] == [13, 2, 2]


def test_a_tokenizer_with_added_items_loads_again(tokenizer, tmp_path):
    tokenizer.add_tokens(["k", "l m"])
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.items.to_pylist() == tokenizer.items.to_pylist()
    assert loaded.titles == tokenizer.titles
    assert loaded(["l m", "k"], is_split_into_words=True)["input_ids"] == [14, 13]


def test_further_special_tokens_are_refused(tokenizer):
    for add in (
        lambda: tokenizer.add_tokens(["[X]"], special_tokens=True),
        lambda: tokenizer.add_special_tokens({"cls_token": "[X]"}),
    ):
        with pytest.raises(ValueError, match=r"The special tokens of an ItemTokenizer are .*\[UNK\], found \[X\]"):
            add()
    assert len(tokenizer) == 13


# ---- types of ids and titles -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "items",
    [
        [1, 2],
        [1.0, 2.0],
        ["1", 2],
        np.array([1, 2]),
        np.array([1.0, 2.0]),
        torch.tensor([1, 2]),
        pa.array([1, 2]),
        pa.chunked_array([[1.0], [2.0]]),
        pa.array(["1", "2"]).dictionary_encode(),
        pa.array(["1", "2"], pa.large_string()),
        Dataset.from_dict({"item": [1, 2]}),
    ],
)
def test_numbers_as_ids_become_text(items):
    assert item_tokenizer(items).items.to_pylist() == ["1", "2"]
    assert item_tokenizer(["2", "1"]).encode_items(items).tolist() == [4, 3]


@pytest.mark.parametrize(
    ("items", "error"),
    [
        ([True], r"found True \(bool\)"),
        ([b"a"], r"found b'a' \(bytes\)"),
        (["a", None], r"found None \(NoneType\)"),
        ([float("nan")], r"expected text or numbers, found nan \(float\)\. Remove missing values\.$"),
        ([float("-inf")], r"expected text or a finite number, found -inf\. Fix or remove this value"),
        ([["a"]], r"found \['a'\] \(list\)"),
        (["\ud800"], "not valid Unicode"),
        ({"a": 1}, "expected a list, found dict"),
        (pa.table({"item": ["a"]}), "expected a list, found Table"),
        (Dataset.from_dict({"id": ["a"]}), r"Expected a Dataset with item, found id.*load_interactions"),
        (Dataset.from_dict({"item": [["a"]]}), "expected text or numbers, found \\["),
    ],
)
def test_ids_of_other_types_are_refused(tokenizer, items, error):
    for use in (item_tokenizer, tokenizer.encode_items, lambda items: extend_item_tokenizer(tokenizer, items)):
        with pytest.raises(ValueError, match=error):
            use(items)


def test_titles_may_have_numbers_as_keys_and_as_values():
    titles = {1: "One", 2.0: 1984, np.int64(3): None, 4: float("nan"), 5: "nan", 6: 0.5}
    tokenizer = item_tokenizer([1, 2, 3, 4, 5, 6], titles=titles)
    assert tokenizer.titles == ["One", "1984", None, None, "nan", "0.5"]


@pytest.mark.parametrize("title", [["Alpha"], b"Alpha", True, {"en": "Alpha"}, "\ud800"])
def test_titles_of_other_types_are_refused_at_once(title):
    with pytest.raises(ValueError, match="titles: "):
        item_tokenizer(["a"], titles={"a": title})


def test_a_title_that_could_not_be_loaded_again_is_not_accepted(tmp_path):
    item_tokenizer(["a"], titles={"a": "é" * 5000}).save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).titles == ["é" * 5000]
    with pytest.raises(ValueError, match="titles: expected titles of at most 10,000 bytes, found one of 10,002"):
        item_tokenizer(["a"], titles={"a": "é" * 5001})


def test_titles_must_be_a_mapping():
    with pytest.raises(ValueError, match="`titles` must be a dict, such as from `load_titles`, found list"):
        item_tokenizer(["a"], titles=["Alpha"])


def test_titles_that_belong_to_no_item_are_reported_with_examples(caplog):
    assert item_tokenizer(["1.0", "2.0"], titles={"1": "A", "2": "B"}).titles == [None, None]
    assert caplog.messages == [
        "None of the titles belongs to an item. Titles have IDs such as '1', '2'. Items have IDs such as '1.0', "
        "'2.0'. The IDs must be those of the log. Name the column of the item: `load_titles(..., item=...)` (command "
        "line: `--title_item`)."
    ]
    caplog.clear()
    item_tokenizer(["1", "2.0"], titles={"1": "A", "2": "B"})
    assert not caplog.messages


# ---- the titles file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "titles",
    [
        {"title": pa.array([["a"], ["b"], None])},
        {"title": pa.array([b"a", b"b", None])},
        {"title": pa.array([1, 2, 3])},
        {"title": pa.array([{"en": "a"}] * 3)},
        {"name": pa.array(["a", "b", "c"])},
    ],
)
def test_titles_files_of_another_kind_are_refused(tmp_path, titles):
    item_tokenizer(list("abc"), titles={"a": "A"}).save_pretrained(tmp_path)
    pq.write_table(pa.table(titles), tmp_path / "items.parquet")
    with pytest.raises(
        ValueError, match=r"items\.parquet: expected Parquet with a text column 'title', at most 10,000"
    ):
        AutoTokenizer.from_pretrained(tmp_path)


def test_a_file_with_a_title_that_is_too_long_is_refused(tmp_path):
    item_tokenizer(list("abc"), titles={"a": "A"}).save_pretrained(tmp_path)
    pq.write_table(pa.table({"title": ["a", "b", "c" * 20_000]}), tmp_path / "items.parquet")
    with pytest.raises(
        ValueError, match=r"items\.parquet: expected titles .* found one of 20,000, .* 'c{30}'\. Download or save"
    ):
        AutoTokenizer.from_pretrained(tmp_path)


COUNTED = pa.proxy_memory_pool(pa.default_memory_pool())


@pytest.mark.parametrize("number", [3, 20_000_000])
def test_titles_files_that_would_fill_the_memory_are_refused_unread(tmp_path, number):
    item_tokenizer(list("abc"), titles={"a": "A"}).save_pretrained(tmp_path)
    text = "x" * (5_000_000 if number == 3 else 1)
    titles = pa.DictionaryArray.from_arrays(pa.array(np.zeros(number, np.int32)), pa.array([text]))
    pq.write_table(pa.table({"title": titles}), tmp_path / "items.parquet", compression="zstd")
    assert (tmp_path / "items.parquet").stat().st_size < 100_000
    usual = pa.default_memory_pool()
    pa.set_memory_pool(COUNTED)
    try:
        with pytest.raises(ValueError, match=r"items\.parquet: expected"):
            AutoTokenizer.from_pretrained(tmp_path)
    finally:
        pa.set_memory_pool(usual)
    assert 0 < COUNTED.max_memory() < 1_000_000


@pytest.mark.parametrize("place", [5, -20])
def test_a_damaged_titles_file_is_refused(tmp_path, place):
    item_tokenizer(list("abc"), titles={"a": "A"}).save_pretrained(tmp_path)
    content = bytearray((tmp_path / "items.parquet").read_bytes())
    content[place] ^= 255
    (tmp_path / "items.parquet").write_bytes(content[: place if place < 0 else None])
    with pytest.raises(ValueError, match=r"items\.parquet: expected Parquet with a text column 'title'"):
        AutoTokenizer.from_pretrained(tmp_path)


def test_an_unknown_id_with_a_blank_is_one_unknown_token():
    tokenizer = item_tokenizer(["1", "2"], max_length=5)
    assert tokenizer(["1", "1 2"], is_split_into_words=True)["input_ids"] == [3, 2]
    assert tokenizer("1 2")["input_ids"] == [3, 4]


def test_threads_may_encode_text_and_words_at_once(tokenizer):
    with ThreadPoolExecutor(3) as threads:
        words = [threads.submit(tokenizer, ["a", "b"], is_split_into_words=True) for _ in range(600)]
        texts = list(threads.map(lambda _: tokenizer("a b")["input_ids"], range(600)))
    assert texts == [[3, 4]] * 600
    assert [future.result()["input_ids"] for future in words] == [[3, 4]] * 600
    assert tokenizer("a b")["input_ids"] == [3, 4]


def test_words_are_encoded_with_the_settings_of_the_tokenizer(tokenizer):
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [MASK]", special_tokens=[("[MASK]", 1)]
    )
    encoded = tokenizer([["a", "b c"], []], is_split_into_words=True, padding=True, return_special_tokens_mask=True)
    assert encoded["input_ids"] == [[3, 2, 1], [1, 0, 0]]
    assert encoded["special_tokens_mask"] == [[0, 0, 1], [1, 1, 1]]
    assert tokenizer(["x[PAD]"], is_split_into_words=True)["input_ids"] == [2, 1]
    assert 0 in tokenizer(["x[PAD]"], is_split_into_words=True, split_special_tokens=False)["input_ids"]
    for encoder in (deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        encoder.add_tokens(["b c"])
        assert encoder(["a", "b c"], is_split_into_words=True)["input_ids"] == [3, 13, 1]


@pytest.mark.parametrize(
    ("removed", "found"),
    [(None, "NoneType"), ("a", "str"), (0, "int"), ({}, "dict"), (["a", 1], "list of int, list of str")],
)
def test_removed_items_of_another_type_are_refused(tokenizer, tmp_path, removed, found):
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"removed_items": removed}))
    expected = "Expected list of str as `removed_items` in tokenizer_config.json"
    with pytest.raises(ValueError, match=f"{expected}, found {found}"):
        AutoTokenizer.from_pretrained(tmp_path)


def test_removed_items_are_ids(tokenizer):
    tokenizer.removed = {2, "a", 1.0}
    assert tokenizer.removed == ["1", "2", "a"]
    with pytest.raises(ValueError, match="removed: expected a list, found str 'ab'"):
        tokenizer.removed = "ab"


def test_ids_that_differ_only_in_case_blanks_or_unicode_form_are_reported(caplog):
    advice = "If they are the same item, use one spelling before training."
    tokenizer = item_tokenizer(["TEA 1", "KIT 2", "tea 1", "Kit 2 ", "x"])
    assert len(tokenizer.items) == 5  # nothing is merged
    text = "item IDs differ from another ID only in case, spaces or Unicode form, such as"
    assert caplog.messages == [f"2 {text} 'TEA 1' and 'tea 1'. {advice}"]
    caplog.clear()
    extend_item_tokenizer(tokenizer, ["y", "X"])  # known items are not reported again
    assert caplog.messages == [f"1 {text} 'x' and 'X'. {advice}"]
    for one, other in (
        ("K\u00c4 1", "KA\u0308 1"),
        ("a b", "a\u00a0b"),
        ("a b", "a  b"),
        ("a\tb", "a b"),
        ("1", "\uff11"),
    ):
        caplog.clear()
        item_tokenizer([one, other, "\u00df"])
        assert caplog.messages == [f"1 {text} {one!a} and {other!a}. {advice}"]
