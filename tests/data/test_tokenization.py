"""The item tokenizer: ids to rows and back, files that AutoTokenizer loads, titles, and appending items."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from hf_bert4rec import Bert4RecForMaskedLM, ItemTokenizer, extend_item_tokenizer, item_tokenizer
from tests.conftest import small_config

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


def test_an_unknown_id_becomes_unk(tokenizer):
    assert tokenizer.encode_items(["a", "zzz"]).tolist() == [3, 2]
    assert tokenizer(["a", "zzz"], is_split_into_words=True)["input_ids"] == [3, 2]


def test_special_rows_and_rows_past_the_end_have_no_id(tokenizer):
    for row in (0, 1, 2, 13):
        with pytest.raises(IndexError):
            tokenizer.decode_items([row])


@pytest.mark.parametrize("token", ["[PAD]", "[MASK]", "[UNK]"])
def test_an_id_equal_to_a_special_token_is_refused_by_name(token):
    with pytest.raises(ValueError, match=rf"\[{token[1:-1]}\].*special token"):
        item_tokenizer(["a", token])


def test_a_catalogue_without_items_is_refused():
    with pytest.raises(ValueError, match="at least one item"):
        item_tokenizer([])


def test_a_length_without_room_for_an_item_is_refused():
    with pytest.raises(ValueError, match=r"max_length of at least 2.*found 1"):
        item_tokenizer(["a"], max_length=1)


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


def test_titles_follow_the_order_of_the_items_and_strangers_are_passed_over():
    tokenizer = item_tokenizer(["b", "a", "c"], titles={"a": "Alpha", "b": "Beta", "stranger": "Z"})
    assert tokenizer.titles == ["Beta", "Alpha", None]
    assert item_tokenizer(["a"]).titles is None


def test_titles_of_the_wrong_number_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"expected 10 titles.*found 1"):
        tokenizer.set_titles(["Alpha"])


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
    words = [*AWKWARD, "stranger", "[MASK]"]
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
    with pytest.raises(ValueError, match=r"items\.parquet: expected 10 titles.*found 2"):
        AutoTokenizer.from_pretrained(tmp_path)


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


def test_a_model_resized_for_new_items_scores_the_old_ones_as_before(tokenizer):
    torch.manual_seed(1)
    model = Bert4RecForMaskedLM(small_config(len(tokenizer), 5)).eval()
    input_ids = torch.tensor([[3, 4, 12, 1]])
    with torch.no_grad():
        before = model(input_ids=input_ids).logits
        extended = extend_item_tokenizer(tokenizer, ["k", "l", "a"])
        model.resize_token_embeddings(len(extended))
        after = model(input_ids=input_ids).logits
    assert after.shape == (1, 4, 15)
    torch.testing.assert_close(after[..., :13], before)
    assert model.config.vocab_size == 15


def test_titles_that_went_missing_are_not_done_without_in_silence(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "items.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected items\.parquet next to the tokenizer"):
        AutoTokenizer.from_pretrained(tmp_path)


def test_a_bare_string_is_not_taken_apart_into_items(tokenizer):
    for build in (item_tokenizer, lambda text: extend_item_tokenizer(tokenizer, text)):
        with pytest.raises(ValueError, match="expected a list, found the str 'neu'"):
            build("neu")
