"""Sources: files as bytes and text, tables in memory, and errors of libraries."""

import bz2
import gzip
import lzma
import zlib
from datetime import date, datetime
from functools import partial

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hf_bert4rec import load_interactions
from hf_bert4rec.data.sources import SourceFile
from tests.data.raw_logs import ORIGINAL_FORMS, TABLE, TABLE_ROWS, TWO_ROWS, rows


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table, Dataset.from_dict])
def test_a_table_in_memory_is_read(make):
    assert rows(load_interactions(make(TABLE))) == TABLE_ROWS


def test_categories_of_pandas_and_polars_are_read():
    table = pd.DataFrame({"user": pd.Categorical(["u", "v"]), "item": pd.Categorical([8, 7]), "time": [20, 10]})
    assert rows(load_interactions(table)) == [("u", "8", 20), ("v", "7", 10)]
    polars = pl.DataFrame(TABLE, schema_overrides={"user": pl.Categorical, "item": pl.Enum(["b", "a"])})
    assert rows(load_interactions(polars)) == TABLE_ROWS


def test_dates_of_pandas_and_polars_are_read():
    table = pd.DataFrame({"user": ["u", "v"], "item": ["a", "b"], "date": ["2017-12-17 00:00:01.5", "2017-12-17"]})
    table["date"] = pd.to_datetime(table["date"], format="ISO8601")
    expected = [("u", "a", 1513468801.5), ("v", "b", 1513468800)]
    assert rows(load_interactions(table)) == expected
    assert rows(load_interactions(pl.from_pandas(table))) == expected


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("make", [pd.DataFrame, partial(pl.DataFrame, schema_overrides={"time": pl.Object})])
def test_dates_and_datetimes_in_one_column_keep_the_time_of_day(make, order):
    times = [date(2024, 1, 1), datetime(2024, 1, 1, 12)][::order]
    table = make({"user": ["u", "v"], "item": ["a", "b"], "time": times})
    assert load_interactions(table)["timestamp"][:] == [1704067200, 1704110400][::order]


@pytest.mark.parametrize(
    ("freq", "second"), [("M", 1706745600), ("Q", 1711929600), ("D", 1704153600), ("h", 1704070800)]
)
def test_periods_become_seconds_of_their_start(freq, second):
    periods = pd.period_range("2024-01-01", periods=2, freq=freq)
    frame = pd.DataFrame({"user": ["u", "v"], "item": ["a", "b"], "time": periods})
    for table in (frame, pa.Table.from_pandas(frame)):
        assert rows(load_interactions(table)) == [("u", "a", 1704067200), ("v", "b", second)]


def test_class_labels_of_a_dataset_become_their_names():
    features = Features(
        user=ClassLabel(names=["u", "v"]), item=ClassLabel(names=["tea", "pot"]), timestamp=Value("int64")
    )
    columns = {"user": [0, 1, 1], "item": [1, 0, -1], "timestamp": [20, 10, 5]}  # -1 is a missing label
    labels = Dataset.from_dict(columns, features=features)
    assert rows(load_interactions(labels)) == [("u", "pot", 20), ("v", "tea", 10)]
    assert rows(load_interactions(labels.select([1]))) == [("v", "tea", 10)]


def test_text_timestamps_of_pandas_and_polars_are_read():
    table = {"user": ["u", "v"], "item": ["a", "b"], "time": ["1700000000123", "7"]}
    expected = [("u", "a", 1700000000123), ("v", "b", 7)]
    assert rows(load_interactions(pd.DataFrame(table))) == expected
    assert rows(load_interactions(pl.DataFrame(table))) == expected


def test_a_selection_of_a_dataset_is_read_as_selected():
    assert rows(load_interactions(Dataset.from_dict(TABLE).select([1]))) == [("v", "b", 10)]


def test_what_load_interactions_gives_it_also_takes(write):
    interactions = load_interactions(write("u.data", ORIGINAL_FORMS["u.data"][0]))
    assert rows(load_interactions(interactions)) == TWO_ROWS


@pytest.mark.parametrize("source", [3, None, [("u", "a")], {"user": ["u"]}])
def test_a_source_of_a_wrong_type_is_refused_by_its_type(source):
    with pytest.raises(ValueError, match=f"Expected a path, a Hub ID or a table .*found {type(source).__name__}"):
        load_interactions(source)


def test_rows_without_names_become_a_table_as_the_error_says():
    with pytest.raises(
        ValueError, match=r"found list\. .*`pandas\.DataFrame\(source\)`; rows without column names need `columns="
    ):
        load_interactions([("u", "a")])
    assert len(load_interactions(pd.DataFrame([("u", "a")], columns=["user", "item"]))) == 1


ARCHIVES = (b"PK\x03\x04", b"Rar!\x1a", b"7z\xbc\xaf", bytes(257) + b"ustar")
BINARY = (b"SQLite format 3\0", b"\x89HDF", b"\x80\x04", b"ARROW1\0")


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\n<!DOCTYPE html><html><body>404</body></html>", r"an HTML page.*Download the data again"),
        (b"%PDF-1.7 text", r"a PDF document\. Export the data as CSV\.$"),
        *[(start, r"an archive\. Extract it and pass one of its files\.$") for start in ARCHIVES],
        *[(start, r"a binary file\. Export CSV, or pass a pandas data frame\.$") for start in BINARY],
        ("user,item\n".encode("utf-16-le"), r"null characters, .* pass `encoding='utf-16-le'`"),
        ("user,item\n".encode("utf-16-be"), r"null characters, .* pass `encoding='utf-16-be'`"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_advice_for_it(write, start, kind):
    with pytest.raises(ValueError, match=rf"^log\.csv: (the file is|found) {kind}"):
        load_interactions(write("log.csv", start))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_byte_order_mark_names_the_encoding(write, encoding):
    assert rows(load_interactions(write("log.csv", "user,item\nu,ä\n".encode(encoding)))) == [("u", "ä", 0)]


def test_a_dataset_dict_is_refused_with_the_split_to_pass():
    message = (
        r"found DatasetDict with the keys train, test\. Of a DatasetDict, pass one split, such as `source\['train'\]`"
    )
    with pytest.raises(ValueError, match=message):
        load_interactions(DatasetDict({"train": Dataset.from_dict(TABLE), "test": Dataset.from_dict(TABLE)}))


def test_an_unknown_encoding_is_named(tmp_path):
    (file := tmp_path / "log.csv").write_text("user,item\na,b\n")
    with pytest.raises(ValueError, match=r"log\.csv: unknown encoding 'latin-99'\. Name another, such as `encoding="):
        load_interactions(file, encoding="latin-99")


@pytest.mark.skipif(not hasattr(pl, "Int128"), reason="needs a newer version of Polars")
def test_a_type_that_arrow_lacks_is_refused_by_name():
    table = pl.DataFrame({"user": ["u"], "item": [7]}, schema_overrides={"item": pl.Int128})
    with pytest.raises(ValueError, match=r"^DataFrame: cannot be read .*Convert the columns to text, numbers or dates"):
        load_interactions(table)


LZMA = partial(lzma.compress, format=lzma.FORMAT_ALONE)


@pytest.mark.parametrize(
    ("name", "compressions", "kind"),
    [
        ("log.csv", [zlib.compress], "compressed with xz, zlib or lzma"),
        ("log.csv", [LZMA], "compressed with xz, zlib or lzma"),
        ("log.csv", [lzma.compress], "compressed with xz, zlib or lzma"),
        ("log.csv", [gzip.compress, gzip.compress], "compressed twice"),
        ("log.csv.gz", [gzip.compress], "compressed twice"),
        ("log.csv.gz", [bz2.compress], "compressed twice"),
        ("log.csv.gz", [zlib.compress], "compressed with xz, zlib or lzma"),
    ],
)
def test_a_file_that_stays_compressed_is_refused(write, name, compressions, kind):
    data = b"user,item\nu,a\n" * 99
    for compress in compressions:
        data = compress(data)
    with pytest.raises(ValueError, match=rf"^{name}: the file is {kind}\. Extract it\.$"):
        load_interactions(write(name, data))


@pytest.mark.parametrize(
    ("error", "advice"), [(PermissionError, "Check the permissions"), (MemoryError, "Free memory")]
)
def test_an_error_of_the_machine_is_not_taken_for_damage(write, monkeypatch, error, advice):
    def fail(*args):
        raise error("no")

    monkeypatch.setattr(SourceFile, "content", fail)
    with pytest.raises(ValueError, match=rf"^log\.csv: cannot be read \({error.__name__}: no\)\. {advice}"):
        load_interactions(write("log.csv", "user,item\nu,a\n"))


def test_an_index_of_dates_is_the_time():
    log = pd.DataFrame({"user": ["u", "u"], "item": ["a", "b"]}, index=pd.to_datetime(["1970-01-02", "1970-01-01"]))
    assert rows(load_interactions(log)) == [("u", "a", 86_400), ("u", "b", 0)]


def test_a_lazy_table_of_polars_is_read():
    assert rows(load_interactions(pl.LazyFrame(TABLE))) == TABLE_ROWS


def test_a_dataset_with_a_transform_is_refused():
    log = Dataset.from_dict(TABLE).with_transform(lambda batch: {**batch, "item": ["x"] * len(batch["item"])})
    with pytest.raises(ValueError, match=r"The transform of the Dataset would not be applied\. Use `map`"):
        load_interactions(log)


def test_the_parts_of_a_value_must_be_columns():
    with pytest.raises(ValueError, match=r"found \{'sku': 'a'\} \(dict\)\. Make columns of its parts"):
        load_interactions(pa.table({**TABLE, "item": [{"sku": "a"}] * len(TABLE["user"])}))
