"""Features of items: kinds of columns, their encoding as vectors, files, and tables that cannot be read."""

import ast
import json
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from hf_bert4rec import item_tokenizer, load_interactions, load_item_features
from hf_bert4rec.data.features import ItemFeatures
from hf_bert4rec.data.item_tables import load_new_items

SHOP = pd.DataFrame(
    {
        "sku": ["A 1", "A 2", "B 1", "B 2"],
        "brand": ["Acme", "Acme", "Bolt", "Bolt"],
        "tags": ["red|small", "red", "", None],
        "price": [1.0, 2.0, 3.0, None],
        "picture": [[3.0, 4.0], [0.0, 5.0], [1.0, 0.0], [0.0, 1.0]],
        "name": ["Anvil", "Axe", "Bolt", "Bucket"],
    }
)


class Encoder:
    """Stands for a model of sentence-transformers: length of the text, and its number of vowels."""

    def __init__(self, name: str, **options: Any) -> None:
        assert name == "org/encoder"
        assert options == {"trust_remote_code": False, "model_kwargs": {"use_safetensors": True}}

    def encode(self, texts: list[str], show_progress_bar: bool) -> np.ndarray:
        return np.array([[len(text), sum(letter in "aeiou" for letter in text.lower())] for text in texts], np.float32)


@pytest.fixture
def encoder(monkeypatch):
    module = ModuleType("sentence_transformers")
    module.SentenceTransformer = Encoder
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    return "org/encoder"


def test_kinds_follow_from_the_values(caplog):
    caplog.set_level("INFO", "hf_bert4rec")
    features = load_item_features(SHOP)
    kinds = {name: how["kind"] for name, how in features.columns.items()}
    assert kinds == {"brand": "categories", "tags": "categories", "price": "number", "picture": "vector"}
    assert (
        "'name' is not used, because fewer than half of its items share one of the 1,000 most frequent "
        "values. To use text such as titles, pass `text=['name']` and `encoder` (command line: "
        "`--feature_text name` and `--encoder`). To use dates, convert them to numbers."
    ) in caplog.text
    assert features.items.to_pylist() == ["A 1", "A 2", "B 1", "B 2"]


def test_vectors_of_each_kind():
    features = load_item_features(SHOP[["sku", "brand", "tags", "price"]])
    rows = features.vectors(pa.array(["B 2", "A 1", "unknown"]))
    edges = features.columns["price"]["edges"]
    price = np.eye(len(edges) + 1)[0]  # 1.0 is below all edges
    assert features.columns["brand"]["values"] == ["Acme", "Bolt"]
    assert features.columns["tags"]["values"] == ["red"]  # small belongs to one item
    np.testing.assert_allclose(rows[1], [1, 1, 0, 1, *price])
    np.testing.assert_allclose(rows[0], [1, 0, 1, 0, *np.zeros(len(edges) + 1)])  # neither tags nor price
    assert not rows[2].any()


def test_several_categories_and_vectors_are_scaled():
    genres = pd.DataFrame({"item": [1, 2], "genres": [["War", "Drama", "War"], ["Drama", "War"]]})
    np.testing.assert_allclose(
        load_item_features(genres).vectors(pa.array(["1"])), [[1, 0.5**0.5, 0.5**0.5]], rtol=1e-6
    )
    pictures = load_item_features(SHOP[["sku", "picture"]])  # lengths 5, 5, 1, 1
    np.testing.assert_allclose(pictures.vectors(pa.array(["A 1"])), [[1, 1, 4 / 3]], rtol=1e-6)


def test_text_becomes_vectors(encoder):
    features = load_item_features(SHOP[["sku", "name"]], text=["name"], encoder=encoder)
    assert features.table["name"].to_pylist()[:2] == [[5, 2], [3, 2]]
    new = pd.DataFrame({"sku": ["C"], "name": ["Auto"]})
    with pytest.raises(
        ValueError, match=r"needs an encoder of sentence-transformers\. Pass `encoder='org/encoder'` \(command line"
    ):
        load_item_features(new, like=features)
    with pytest.raises(ValueError, match=r"sentence-transformers, the same as in training, found 'org/other'\. Pass"):
        load_item_features(new, like=features, encoder="org/other")
    missing = pd.DataFrame({"sku": ["D", "C"], "name": [None, "Auto"]})
    assert load_item_features(missing, like=features, encoder=encoder).items.to_pylist() == ["C"]
    more = load_item_features(new, like=features, encoder=encoder)
    assert more.table["name"].to_pylist() == [[4, 3]]
    assert more.columns == features.columns


def test_what_is_saved_is_loaded(tmp_path):
    features = load_item_features(SHOP)
    features.save(tmp_path / "features.parquet")
    loaded = ItemFeatures.load(tmp_path / "features.parquet", 4)
    assert loaded.columns == features.columns
    assert loaded.table.equals(features.table)
    for number, damage in ((3, b""), (4, b"PAR1")):
        (tmp_path / "features.parquet").write_bytes(damage + (tmp_path / "features.parquet").read_bytes())
        with pytest.raises(ValueError, match="the features are damaged, or do not belong to the"):
            ItemFeatures.load(tmp_path / "features.parquet", number)


def test_files_are_read_like_data_frames(tmp_path):
    SHOP.drop(columns="picture").to_csv(tmp_path / "shop.csv", index=False)
    (tmp_path / "shop.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in SHOP.replace(np.nan, None).to_dict("records"))
    )
    SHOP.to_parquet(tmp_path / "shop.parquet")
    whole = load_item_features(SHOP).vectors(pa.array(["A 1", "B 2"]))
    for name in ("shop.jsonl", "shop.parquet"):
        np.testing.assert_array_equal(load_item_features(tmp_path / name).vectors(pa.array(["A 1", "B 2"])), whole)
    flat = load_item_features(SHOP.drop(columns="picture"))
    assert load_item_features(tmp_path / "shop.csv").columns == flat.columns


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ({"item": ["a", "a"], "kind": ["x", "x"]}, {}, "one row per item, found several for 'a'"),
        ({"item": ["a", None], "kind": ["x", "x"]}, {}, r"row 1 \(from 0\): the item ID is missing"),
        ({"kind": ["x", "x"]}, {}, "expected a column for the item"),
        (
            {"item": ["a", "b"], "v": [[1.0, 2.0], [1.0]]},
            {},
            r"row 1 \(from 0\): expected a list of 2 numbers in the column 'v', found 1",
        ),
        (
            {"item": ["a", "b"], "v": [[1.0], "[1.0]"]},
            {},
            r"row 1 .*: expected a list of 1 .* found '\[1\.0\]'\. .* JSON lines",
        ),
        (
            {"item": ["a", "b"], "v": [[1.0, np.nan], [1.0, 2.0]]},
            {},
            r"row 0 \(from 0\): expected finite numbers in the column 'v'",
        ),
        (
            {"item": ["a", "b"], "v": [[1.0, 1.0], [1e39, 2.0]]},
            {},
            r"row 1 \(from 0\): .*or a number above 3\.4e\+38\. Fix or",
        ),
        (
            {"item": ["a", "b", "c"], "price": ["1", "2", "cheap"]},
            {},
            r"row 2 \(from 0\): found 'cheap'.* Expected a finite number",
        ),
        ({"item": ["a", "b"], "name": ["x", "y"]}, {"text": ["name"]}, "the text of 'name' needs an encoder"),
        (
            {"item": ["a", "b"], "name": ["x", "y"]},
            {"text": ["title"]},
            r"expected a column 'title', named in `text` .* Add or rename it\.$",
        ),
        ({"item": ["a", "b"], "name": ["x", "y"]}, {}, "no column can be used as a feature, found item, name"),
    ],
)
def test_a_table_that_cannot_be_read(table, options, message):
    with pytest.raises(ValueError, match=message):
        load_item_features(pd.DataFrame(table), **options)


def test_a_missing_encoder_names_the_solution(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'hf-bert4rec\[features\]'"):
        load_item_features(SHOP, text=["name"], encoder="org/encoder")


@pytest.mark.parametrize(("factor", "warned"), [(1, False), (2, False), (20, True), (0.01, True), (0, False)])
def test_vectors_in_another_unit_than_those_of_the_training_are_a_warning(factor, warned, caplog):
    known = load_item_features(SHOP[["sku", "picture"]])
    new = pd.DataFrame({"item": ["C", "D"], "picture": [[factor * it for it in row] for row in SHOP["picture"][:2]]})
    load_new_items(new, known)
    assert ("too long vectors are recommended too often" in caplog.text) is warned


def test_features_of_new_items_need_the_same_columns_and_widths():
    known = load_item_features(SHOP[["sku", "brand", "picture"]])
    new = pd.DataFrame({"item": ["C"], "brand": ["Acme"], "picture": [[1.0, 2.0, 3.0]]})
    with pytest.raises(ValueError, match="expected vectors of 2 numbers in the column 'picture', found 3"):
        load_new_items(new, known)
    message = "a column 'picture', as in the training, whose features are brand, picture, .* with none of them"
    with pytest.raises(ValueError, match=message):
        load_new_items(new[["item", "brand"]], known)
    assert load_new_items(new[["item"]], known).features is None


def test_categories_that_the_training_lacked_are_reported(caplog):
    known = load_item_features(pd.DataFrame({"item": [*"abcd"], "brand": ["Acme", "Acme", "Best", "Best"]}))
    load_new_items(pd.DataFrame({"item": ["e", "f"], "brand": ["acme", "Best"]}), known)
    assert not caplog.messages
    load_new_items(pd.DataFrame({"item": ["e", "f"], "brand": ["acme", None]}), known)
    assert "none of the values of the column 'brand', such as 'acme', is in the features of the training" in caplog.text


def test_a_warning_about_the_ids_of_new_items_is_logged_once(caplog):
    known = load_item_features(pd.DataFrame({"item": [*"abcd"], "brand": ["Acme", "Acme", "Best", "Best"]}))
    load_new_items(pd.DataFrame({"item": ["1.0", "1.5"], "brand": ["Acme", "Best"]}), known)
    assert len([message for message in caplog.messages if "the item ID of" in message]) == 1


def test_new_items_with_titles_and_known_items_that_they_are_like():
    table = pd.DataFrame({"sku": [7, 8, 9], "title": ["Seven", None, None], "like": ["1 | 2", "", 3.0]})
    new = load_new_items(table, None)
    assert (new.items, new.titles) == (["7", "8", "9"], {"7": "Seven"})
    assert new.likes == {"7": ["1", "2"], "9": ["3"]}


@pytest.mark.parametrize("first", ["n4,Blue hat", "ware,text"])
def test_new_items_without_a_known_header_need_the_column_of_the_item(tmp_path, first):
    path = tmp_path / "new.csv"
    path.write_text(f"{first}\nn5,Fine shoe\nn6,Red hat\n")
    found = r"for the item, found 0, 1 \(positions, .*Name the column, by its name or position \(from 0\): "
    for load, option in ((lambda path: load_new_items(path, None), "item"), (load_item_features, "title_item")):
        with pytest.raises(ValueError, match=rf"{found}.*\(command line: `--{option} \.\.\.`\)\.$"):
            load(path)
    assert load_new_items(path, None, item=first.split(",")[0]).items == ["n5", "n6"]


def test_a_column_of_bytes_is_text():
    table = pa.table({"item": list("abcd"), "genre": pa.array([b"rock", b"rock", b"jazz", b"jazz"], pa.binary())})
    assert load_item_features(table).columns["genre"]["values"] == ["rock", "jazz"]
    times = pa.table({"user": ["u", "u"], "item": ["a", "b"], "timestamp": pa.array([b"2", b"1"], pa.binary())})
    assert load_interactions(times)["timestamp"][:] == [2, 1]


def test_features_of_no_item_are_zeros():
    columns = {"price": {"kind": "number", "edges": [1.0, 2.0]}, "kind": {"kind": "categories", "values": ["x"]}}
    columns |= {"picture": {"kind": "vector", "width": 2, "scale": 1.0}}
    kinds = {"price": pa.float64(), "kind": pa.list_(pa.string()), "picture": pa.list_(pa.float32(), 2)}
    table = pa.table({"item": pa.array([], pa.string()), **{name: pa.array([], kind) for name, kind in kinds.items()}})
    assert ItemFeatures(table, columns).vectors(pa.array(["a", "b"])).tolist() == [[0.0] * 7] * 2


def test_arguments_of_another_type_are_refused():
    with pytest.raises(ValueError, match=r"^text: expected a list, found str 'name'"):
        load_item_features(SHOP, text="name")
    for use in (lambda: load_item_features(SHOP, like=SHOP), lambda: item_tokenizer(["a"], features=SHOP)):
        with pytest.raises(ValueError, match="must be from `load_item_features`, found DataFrame"):
            use()


def test_a_tokenizer_has_the_items_of_its_features_and_saves_them(tmp_path, caplog):
    caplog.set_level("INFO", "hf_bert4rec")
    tokenizer = item_tokenizer(["B 2", "x"], features=load_item_features(SHOP))
    assert tokenizer.items.to_pylist() == ["B 2", "x", "A 1", "A 2", "B 1"]
    assert "1 items with interactions have features, 1 do not; 3 items have no interactions" in caplog.text
    tokenizer.removed = ["x"]
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    assert loaded.features.table.equals(tokenizer.features.table)
    assert loaded.removed == ["x"]
    loaded.save_pretrained(tmp_path)  # into the folder that it was loaded from
    assert type(tokenizer).from_pretrained(tmp_path).features is not None


def test_a_small_file_with_gigabytes_is_not_read(tmp_path):
    columns = {"kind": {"kind": "categories", "values": ["x"]}}
    table = pa.table({"item": [str(it) for it in range(2000)], "kind": [["x" * 200_000]] * 2000})
    ItemFeatures(table, columns).save(tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 1e6
    with pytest.raises(ValueError, match="do not belong to the 2000 items"):
        ItemFeatures.load(tmp_path / "bomb.parquet", 2000)


@pytest.mark.parametrize(("width", "length"), [(384, 130), (1536, 1000), (4, 20_000)])
def test_vectors_and_long_categories_are_loaded_again(tmp_path, width, length):
    vectors = list(np.random.default_rng(0).normal(size=(50, width)))
    table = pd.DataFrame({"item": [str(it) for it in range(50)], "v": vectors, "kind": ["x" * length, "y"] * 25})
    features = load_item_features(table)
    features.save(tmp_path / "features.parquet")
    assert ItemFeatures.load(tmp_path / "features.parquet", 50).table.equals(features.table)


def test_features_that_could_not_be_loaded_again_are_refused_when_they_are_read():
    table = pd.DataFrame({"item": ["a", "b"], "kind": ["x", "x"], "v": [np.ones(10_000)] * 2})
    message = r"25,000 bytes of features per item on average, found 40,0\d\d\. Shorten .* column 'v', or remove"
    with pytest.raises(ValueError, match=message):
        load_item_features(table)
    with pytest.raises(ValueError, match=r"on average, found 25,0\d\d\."):
        load_item_features(pd.DataFrame({"item": list("abc"), "v": [np.ones(6250)] * 3}))


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ([True, False, True], "booleans"),
        (["true", None, "true"], "booleans"),
        (pd.to_datetime(["2024-01-31", "2024-01-31", None]), "dates"),
        (["2024-01-31", "2024-02-01", "2024-01-31"], "dates"),
    ],
)
def test_booleans_and_dates_are_reported_as_categories(caplog, values, what):
    caplog.set_level("INFO", "hf_bert4rec")
    features = load_item_features(pd.DataFrame({"item": ["a", "b", "c"], "new": values}))
    assert [how["kind"] for how in features.columns.values()] == ["categories"]
    assert f"DataFrame: the {what} in the column 'new' are read as categories, without an order." in caplog.messages


def test_a_column_without_values_is_reported(caplog):
    caplog.set_level("INFO", "hf_bert4rec")
    load_item_features(pd.DataFrame({"item": ["a", "b"], "p": [np.nan, np.nan], "kind": ["x", "x"]}))
    assert "'p' has no values, so it is not used." in caplog.text
    assert "belong to one item each" not in caplog.text


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"price": {"kind": "number", "edges": [0.0] * 100_000}},
        {"price": {"kind": "number", "edges": [float("nan")]}},
        {"price": {"kind": "other"}},
        {"price": {"kind": "vector", "width": 2, "scale": "x"}},
        [],
    ],
)
def test_a_damaged_encoding_is_an_error(tmp_path, columns):
    ItemFeatures(pa.table({"item": ["a"], "price": [1.0]}), columns).save(tmp_path / "features.parquet")
    with pytest.raises(ValueError, match="do not belong to the 5 items"):
        ItemFeatures.load(tmp_path / "features.parquet", 5)


def test_features_have_different_names():
    table = pd.DataFrame({"sku": ["1", "2"], "item": ["shirt", "shirt"]})
    with pytest.raises(ValueError, match="expected different names of features, found 'item' twice"):
        load_item_features(table, item="sku")
    with pytest.raises(ValueError, match="found 'c' twice"):
        load_item_features(pd.DataFrame([["1", 2, 3]], columns=["item", "c", "c"]))
    empty = pd.DataFrame([["1", "x", None, None], ["2", "x", None, None]], columns=["item", "c", "", ""])
    assert [*load_item_features(empty).columns] == ["c"]  # as Excel exports columns without names and values


def test_a_column_of_lists_is_a_vector_only_with_numbers():
    table = pd.DataFrame({"item": ["1", "2"], "images": [[{"url": "a"}]] * 2, "tags": [[], ["a"]], "c": ["x", "x"]})
    assert {name: how["kind"] for name, how in load_item_features(table).columns.items()} == {
        "images": "categories", "c": "categories"
    }  # fmt: skip
    with pytest.raises(
        ValueError, match=r"row 0 \(from 0\): expected a list of 2 numbers in the column 'v', found \[\]"
    ):
        load_item_features(pd.DataFrame({"item": ["1", "2"], "v": [[], [0.1, 0.2]]}))


def test_lists_that_are_text_are_reported(caplog):
    table = pd.DataFrame({"item": ["1", "2"], "tags": ["['a', 'b']", "['b']"]})
    with pytest.raises(ValueError, match="no column can be used as a feature"):
        load_item_features(table)
    assert "in the column 'tags' is not read as a list. Convert it (pandas: `frame['tags'].map(ast.lit" in caplog.text
    lists = table.assign(tags=table["tags"].map(ast.literal_eval))
    assert load_item_features(lists).columns["tags"]["values"] == ["b"]


def test_decimal_commas_are_reported(caplog):
    table = pd.DataFrame({"item": ["1", "2"], "price": ["3,50", "12,99"]})
    with pytest.raises(ValueError, match="no column can be used as a feature"):
        load_item_features(table)
    assert "text such as '3,50' in the column 'price' is not read as a number. Convert it (pandas: " in caplog.text
    numbers = table.assign(price=table["price"].str.replace(",", ".").astype(float))  # as the message says
    assert load_item_features(numbers).columns["price"]["kind"] == "number"


def test_numbers_that_are_separated_in_a_cell_are_categories():
    features = load_item_features(pd.DataFrame({"item": ["1", "2", "3"], "genre_ids": ["1|2", "2", "1"]}))
    assert features.columns["genre_ids"] == {"kind": "categories", "values": ["1", "2"]}
