"""IDs, times and ratings from the values of a column."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from hf_bert4rec import load_interactions
from tests.data.raw_logs import TABLE, rows


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table])
def test_whole_numbers_with_gaps_become_ids_without_a_fraction(make):
    table = make({"user": [1.0, float("nan"), 3.0], "item": [7, 8, 9]})
    assert rows(load_interactions(table)) == [("1", "7", 0), ("3", "9", 1)]


@pytest.mark.parametrize(
    ("written", "read", "dtype"),
    [
        (["1700000000123", "1700000000124"], [1700000000123, 1700000000124], "int64"),
        (["1.5", "2"], [1.5, 2.0], "float64"),
        (["9007199254740993", "1"], [9007199254740993, 1], "int64"),
        (["20170102", "20170103"], [20170102, 20170103], "int64"),
        (["2017", "2018"], [2017, 2018], "int64"),
        (["-5", " 7 "], [-5, 7], "int64"),
        (["2017-12-17", "1970-01-01"], [1513468800, 0], "int64"),
        (["2017-12-17 00:00:01", "2017-12-17T00:00:02"], [1513468801, 1513468802], "int64"),
        (["1970-01-01 00:00:01.25", "1970-01-01 00:00:02"], [1.25, 2.0], "float64"),
        (["2014-04-07T10:51:09.277Z", "2014-04-07T12:51:10+02:00"], [1396867869.277, 1396867870.0], "float64"),
    ],
)
def test_timestamps_are_kept_and_dates_become_seconds(write, written, read, dtype):
    path = write("log.tsv", f"user\titem\ttime\nu\ta\t{written[0]}\nv\tb\t{written[1]}\n")
    interactions = load_interactions(path)
    assert rows(interactions) == [("u", "a", read[0]), ("v", "b", read[1])]
    assert interactions.features["timestamp"].dtype == dtype


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_columns_of_dates_become_seconds_whatever_their_unit(unit):
    times = pa.array(np.array(["1970-01-02", "1970-01-01T00:00:03"], f"datetime64[{unit}]"))
    for column in (times, times.cast(pa.timestamp(unit, "UTC"))):
        table = pa.table({"user": ["u", "v"], "item": ["a", "b"], "time": column})
        assert rows(load_interactions(table)) == [("u", "a", 86_400), ("v", "b", 3)]


def test_nanoseconds_are_read_up_to_what_a_timestamp_can_hold():
    table = pa.table({"user": ["u"], "item": ["a"], "time": pa.array([1_500_000_001], pa.timestamp("ns"))})
    assert load_interactions(table)["timestamp"][0] == pytest.approx(1.500000001)


def test_a_rating_that_is_no_number_is_refused_where_ratings_matter(write):
    path = write("log.csv", "user,item,rating\nu,a,5\nu,b,good\n")
    assert len(load_interactions(path)) == 2
    with pytest.raises(ValueError, match=r"log\.csv, line 3: found 'good' \(1 in all\)\. Expected a number as rating"):
        load_interactions(path, min_rating=3)


def test_a_bad_value_of_a_table_is_refused_with_its_row():
    with pytest.raises(ValueError, match=r"DataFrame, row 1: found 'x' .*Expected a number as timestamp"):
        load_interactions(pd.DataFrame({"user": ["u", "v"], "item": ["a", "b"], "timestamp": ["1", "x"]}))


@pytest.mark.parametrize("column", ["user", "item", "timestamp"])
def test_a_column_of_lists_is_refused_by_name(column):
    with pytest.raises(ValueError, match=r"Table, row 0.*found .?\['a', 'b'\].*"):
        load_interactions(pa.table({**TABLE, column: [["a", "b"], ["c"]]}))


def test_ids_with_blanks_around_them_are_told(tmp_path, caplog):
    (tmp_path / "log.csv").write_text("user,item,timestamp\nu1,a,1\nu1,a ,2\n u2,b,3\nu2,b c,4\n")
    items = load_interactions(tmp_path / "log.csv")["item"][:]
    assert items == ["a", "a ", "b", "b c"]
    assert caplog.messages[:2] == [
        "log.csv: the user of 1 rows (' u2') begins or ends with a blank: it is not the same ID as without the blank.",
        "log.csv: the item of 1 rows ('a ') begins or ends with a blank: it is not the same ID as without the blank.",
    ]
