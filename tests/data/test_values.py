"""IDs, times and ratings from the values of a column."""

import re
from datetime import date, datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from hf_bert4rec import load_interactions
from hf_bert4rec.data.values import date_as_seconds
from tests.data.raw_logs import TABLE, rows


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table])
def test_whole_numbers_with_gaps_become_ids_without_a_fraction(make):
    table = make({"user": [1.0, float("nan"), 3.0], "item": [7, 8, 9]})
    assert rows(load_interactions(table)) == [("1", "7", 0), ("3", "9", 1)]


def test_whole_decimals_become_ids_without_a_fraction():
    decimals = pa.array([Decimal(77), Decimal("-1.0"), Decimal(10**27), None], pa.decimal128(38, 10))
    expected = [("77", "a"), ("-1", "b"), ("1" + 27 * "0", "c")]
    items = ["a", "b", "c", "d"]
    for table in (pa.table({"user": decimals, "item": items}), pd.DataFrame({"user": decimals, "item": items})):
        assert [row[:2] for row in rows(load_interactions(table))] == expected


@pytest.mark.parametrize("value", [float("inf"), np.float32("-inf"), Decimal("-Infinity")])
def test_infinity_is_not_an_id(value):
    frame = pd.DataFrame({"user": [1.0, value], "item": ["a", "b"]})
    with pytest.raises(
        ValueError,
        match=r"row 1 \(from 0\), user: expected text or a finite number, found .*(?i:inf).*\. Fix or remove",
    ):
        load_interactions(frame)


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
        (["31 Dec 2017 23:00:00 +0000", "Mon, 17-Dec-2018"], [1514761200, 1545004800], "int64"),
        (["01.01.1970 19.46", "1970-01-02 9.05.30"], [71160, 119130], "int64"),
        (["2014-04-07T10:51:09.277Z", "2014-04-07T12:51:10+02:00"], [1396867869.277, 1396867870.0], "float64"),
    ],
)
def test_timestamps_are_kept_and_dates_become_seconds(write, written, read, dtype):
    path = write("log.tsv", f"user\titem\ttime\nu\ta\t{written[0]}\nv\tb\t{written[1]}\n")
    interactions = load_interactions(path)
    assert rows(interactions) == [("u", "a", read[0]), ("v", "b", read[1])]
    assert interactions.features["timestamp"].dtype == dtype


@pytest.mark.parametrize("time", ["19.4", "19,4", "19.460", "9.4", "19:46.5", "1946.5"])
def test_fractions_of_hours_and_minutes_are_refused(write, time):
    path = write("log.tsv", f"user\titem\ttime\nu\ta\t2024-04-11 19.46\nv\tb\t2024-04-11 {time}\n")
    with pytest.raises(ValueError, match=rf"line 3: found '2024-04-11 {time}'.*Expected a date such as 2026-01-31"):
        load_interactions(path)


@pytest.mark.parametrize(
    "date", ["Mar 16 1978 04.31 PM", "Mar 16 1978 4,31pm", "4.31 PM 16 Mar 1978", "Mar 16 1978 16:31.10", "Mar 16,1978"]
)
def test_a_dot_or_comma_between_numbers_of_a_date_in_words_is_refused(date):
    for accepted in ("Mar 16 1978 04:31:10.5 PM", "4:31:10.5 pm, 16.Mar.1978", "Thu, Mar 16, 1978 16:31:10,5"):
        assert date_as_seconds(accepted) == 258913870.5
    with pytest.raises(ValueError, match="Expected an unambiguous date"):
        date_as_seconds(date)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_columns_of_dates_become_seconds_whatever_their_unit(unit):
    times = pa.array(np.array(["1970-01-02", "1970-01-01T00:00:03"], f"datetime64[{unit}]"))
    for column in (times, times.cast(pa.timestamp(unit, "UTC"))):
        table = pa.table({"user": ["u", "v"], "item": ["a", "b"], "time": column})
        assert rows(load_interactions(table)) == [("u", "a", 86_400), ("v", "b", 3)]


def test_nanoseconds_are_read_up_to_what_a_timestamp_can_hold():
    table = pa.table({"user": ["u"], "item": ["a"], "time": pa.array([1_500_000_001], pa.timestamp("ns"))})
    assert load_interactions(table)["timestamp"][0] == pytest.approx(1.500000001)


@pytest.mark.parametrize(
    ("times", "found"),
    [
        ([1.0, float("inf")], "inf"),
        ([1.0, float("-inf")], "-inf"),
        (["1", "Infinity"], "'Infinity'"),
        ([Decimal(1), Decimal("Infinity")], "'Infinity'"),
        (["2024-01-01", "infinity"], "'infinity'"),
    ],
)
def test_infinity_is_no_time(times, found):
    frame = pd.DataFrame({"user": ["u", "v"], "item": ["a", "b"], "time": times})
    expected = "a date such as 2026-01-31 or 31.01.2026" if times[0] == "2024-01-01" else "a finite number"
    message = f"row 1 (from 0): found {found} (number of rows: 1). Expected {expected} as timestamp. Fix or remove"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_interactions(frame)


def test_dates_are_read_up_to_the_year_9999():
    log = {"user": ["u", "u"], "item": ["a", "b"]}
    for last in (datetime(9999, 12, 31), date(9999, 12, 31), "9999-12-31"):
        first = "1970-01-02" if isinstance(last, str) else type(last)(1970, 1, 2)
        times = pd.Series([first, last], dtype=object)
        assert load_interactions(pd.DataFrame({**log, "time": times}))["timestamp"][:] == [86400, 253402214400]
    later = pa.array([2**55, 1], pa.int64()).cast(pa.timestamp("s"))
    with pytest.raises(ValueError, match=r"^Table: .*36028797018963968"):
        load_interactions(pa.table({**log, "time": later}))


def test_bools_are_no_times():
    with pytest.raises(ValueError, match=r"^DataFrame: expected dates or numbers as timestamp, found bool\. "):
        load_interactions(pd.DataFrame({"user": ["u"], "item": ["a"], "time": [True]}))


def test_a_rating_that_is_no_number_is_refused_where_ratings_matter(write):
    path = write("log.csv", "user,item,rating\nu,a,5\nu,b,good\n")
    assert len(load_interactions(path)) == 2
    with pytest.raises(
        ValueError, match=r"line 3: found 'good' \(number of rows: 1\)\. Expected a finite number as rating"
    ):
        load_interactions(path, min_rating=3)


def test_a_bad_value_of_a_table_is_refused_with_its_row():
    with pytest.raises(
        ValueError, match=r"DataFrame, row 1 \(from 0\): found 'x' .*Expected a finite number as timestamp"
    ):
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
        f"log.csv: the {found} begins or ends with whitespace or an invisible character. Remove the character, "
        "unless it is part of the ID."
        for found in ("user ID of 1 row (' u2')", "item ID of 1 row ('a ')")
    ]


@pytest.mark.parametrize("doubtful", ["a\u200b", "\ufeffa", '="007"', "'a'", '"a"'])
def test_ids_that_only_look_like_others_are_told(caplog, doubtful):
    frame = pd.DataFrame({"user": ["u", "u"], "item": ["a", doubtful], "timestamp": [1, 2]})
    assert load_interactions(frame)["item"][:] == ["a", doubtful]
    assert f"the item ID of 1 row ({doubtful!r})" in caplog.text


def test_integers_that_were_written_as_floats_are_other_ids_with_a_warning(tmp_path, caplog):
    (tmp_path / "log.csv").write_text("user,item,timestamp\n7,1.0,1\n7,-2.0,2\n7,1,3\n7,1.50,4\n7,01,5\n")
    assert load_interactions(tmp_path / "log.csv")["item"][:] == ["1.0", "-2.0", "1", "1.50", "01"]
    assert caplog.messages[0] == (
        "log.csv: the item ID of 2 rows ('1.0', '-2.0') ends in .0, so it differs from the ID without .0. If IDs are "
        "integers, export them without .0."
    )
    caplog.clear()
    frame = pd.DataFrame({"user": [7.0, 7.0], "item": [1.0, 2.0], "timestamp": [1, 2]})
    assert load_interactions(frame)["item"][:] == ["1", "2"]
    assert not caplog.messages


@pytest.mark.parametrize(
    "date", ["Dec 31 23:00:00 +0000", "Dec 31 23:00:00.2019", "03-Feb-01 10:00:00 +0000", "03-Feb-01 10:00:00-0500"]
)
def test_a_date_without_a_year_of_four_digits_is_refused(date):
    table = pd.DataFrame({"user": ["u"], "item": ["a"], "time": [date]})
    with pytest.raises(ValueError, match=r"row 0 \(from 0\): found '.*Expected a date such as 2026-01-31"):
        load_interactions(table)


@pytest.mark.parametrize(
    ("times", "days"),
    [([31012019, 1022019], ["2019-01-31", "2019-02-01"]), ([1312019, 12312019], ["2019-01-31", "2019-12-31"])],
)
def test_dates_with_the_year_at_the_end_are_right_after_the_advised_conversion(caplog, times, days):
    log = pd.DataFrame({"user": ["u", "v"], "item": ["a", "b"], "time": times})
    load_interactions(log)
    call = re.search(r"`(.+)`, or with '%m%d%Y' if the month comes first", caplog.text)[1]
    call = call.replace("%d%m", "%m%d") if times[0] == 1312019 else call
    read = eval(call, {"pandas": pd, "column": log["time"]})
    assert read.dt.strftime("%Y-%m-%d").tolist() == days


SECONDS = 1546300800


@pytest.mark.parametrize(
    ("times", "warning"),
    [
        ([SECONDS * 1000, SECONDS + 86400], "in seconds (1546387200) and in milliseconds (1546300800000). Convert"),
        ([31012019, 1022019], "such as 31012019 seem to be dates with the year at the end"),
        ([1312019, 12312019], "such as 1312019 seem to be dates with the year at the end"),
        (["1546300800000000001.0", "1546300800000000000"], "such as 1.5463008e+18 may be rounded"),
        (["9300000000000000001", "1"], "such as 9.3e+18 may be rounded"),
        (np.array([2**63 + 5, 1], np.uint64), "such as 9.223372036854776e+18 may be rounded"),
        (np.array([SECONDS, SECONDS + 1], np.float32), "may be rounded and out of order"),
        (np.array([SECONDS * 10**9, np.nan]), "may be rounded"),
        ([20190131, 20190201], ""),
        (["1546300800000000001", "1546300800000000000"], ""),
        (np.array([SECONDS, SECONDS + 1], np.float64), ""),
        ([2019, 2020], ""),
        ([SECONDS, -1], ""),
        (pd.Series(pd.to_datetime(["2019-01-01", "1971-01-01"])), ""),
        (["1546300800", "1e300"], "such as 1e+300 may be rounded"),
    ],
)
def test_times_that_are_unlike_times_of_one_unit_are_reported(caplog, times, warning):
    read = load_interactions(pd.DataFrame({"user": ["u", "v"], "item": ["a", "b"], "time": times}))["timestamp"]
    assert warning in caplog.text
    assert bool(caplog.text) == bool(warning)
    assert read[0] == pytest.approx(SECONDS if isinstance(times, pd.Series) else float(times[0]))


def test_times_in_the_future_are_reported_unless_most_are(caplog):
    frame = pd.DataFrame({"user": [*"uvw"], "item": [*"abc"], "time": ["2019-01-01", "2019-01-02", "2099-12-31"]})
    assert load_interactions(frame)["timestamp"][2] == 4102358400
    assert "number of timestamps in the future: 1, up to 4102358400 (2099-12-31 00:00 UTC). Fix or" in caplog.text
    caplog.clear()
    load_interactions(frame.assign(time=["2098-01-01", "2098-01-02", "2099-12-31"]))
    load_interactions(frame.assign(time=["2019-01-01", "2019-01-02", "2019-12-31"]))
    assert "future" not in caplog.text


def test_the_unit_of_times_that_are_not_seconds_is_logged(caplog):
    caplog.set_level("INFO", "hf_bert4rec")
    log = pd.DataFrame({"user": ["u", "v"], "item": ["a", "b"], "time": [SECONDS * 1000, SECONDS * 1000 + 1]})
    assert load_interactions(log)["timestamp"][0] == SECONDS * 1000
    assert (
        "timestamps seem to be in milliseconds (1546300800000). In options such as `test_time`, use this" in caplog.text
    )
