"""Readers: every format in its original form, columns, filters, and what is said about bad input."""

import csv
import gzip
import io
import json
import logging
import re

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_bert4rec import load_interactions, load_titles, rename_items


@pytest.fixture
def write(tmp_path):
    """Write text or bytes to a file of tmp_path; gzipped where the name says so."""

    def write_file(name, content, encoding="utf-8"):
        data = content if isinstance(content, bytes) else content.encode(encoding)
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write_file


def rows(interactions):
    """(user, item, timestamp) of every row."""
    assert interactions.column_names == ["user", "item", "timestamp"]
    return [tuple(row.values()) for row in interactions.to_list()]


TWO_ROWS = [("1", "1193", 978300760), ("2", "661", 978302109)]

ORIGINAL_FORMS = {
    "ratings.dat": ("1::1193::5::978300760\n2::661::3::978302109\n", TWO_ROWS),
    "ratings.csv": ("userId,movieId,rating,timestamp\n1,1193,5.0,978300760\n2,661,3.5,978302109\n", TWO_ROWS),
    "u.data": ("1\t1193\t5\t978300760\n2\t661\t3\t978302109\n", TWO_ROWS),
    "ml.inter": (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t1193\t5\t978300760\n2\t661\t3\t978302109\n",
        TWO_ROWS,
    ),
    "log.tsv": ("timestamp\titem\tuser\n978300760\t1193\t1\n978302109\t661\t2\n", TWO_ROWS),
    "log.jsonl": (
        '{"user": 1, "item": "1193", "timestamp": 978300760}\n{"user": 2, "item": "661", "timestamp": 978302109}\n',
        TWO_ROWS,
    ),
    "reviews_5.json": (
        '{"reviewerID": "A2SUAM1J3GNN3B", "asin": "0000013714", "reviewerName": "J. \\"Mac\\"", "helpful": [0, 0], '
        '"reviewText": "good\\nbook", "overall": 5.0, "unixReviewTime": 1252800000, "reviewTime": "09 13, 2009"}\n'
        '{"reviewerID": "A14VAT5EAX3D9S", "asin": "B00002243X", "style": {"Size:": " L"}, "helpful": [1, 2], '
        '"reviewText": "", "overall": 2.0, "unixReviewTime": 1363392000, "reviewTime": "03 16, 2013"}\n',
        [("A2SUAM1J3GNN3B", "0000013714", 1252800000), ("A14VAT5EAX3D9S", "B00002243X", 1363392000)],
    ),
    "All_Beauty.jsonl.gz": (
        '{"rating": 5.0, "title": "x", "images": [], "asin": "B00YQ6X8EO", "parent_asin": "B00YQ6X8E0", '
        '"user_id": "AGKHLEW2SOWHNMFQIJGBECAF7INQ", "timestamp": 1588687728923, "verified_purchase": true}\n'
        '{"rating": 4.0, "title": "y", "images": [{"a": "b"}], "asin": "B081TJ8YS3", "parent_asin": "B081TJ8YS4", '
        '"user_id": "AGKHLEW2SOWHNMFQIJGBECAF7INQ", "timestamp": 1588615855070, "verified_purchase": true}\n',
        [
            ("AGKHLEW2SOWHNMFQIJGBECAF7INQ", "B00YQ6X8E0", 1588687728923),
            ("AGKHLEW2SOWHNMFQIJGBECAF7INQ", "B081TJ8YS4", 1588615855070),
        ],
    ),
    "ratings_Books.csv": (
        "AH2L9G3DQHHAJ,0000000116,4.0,1019865600\nA39HTATAQ9V7YF,0205616461,5.0,1369699200\n",
        [("AH2L9G3DQHHAJ", "0000000116", 1019865600), ("A39HTATAQ9V7YF", "0205616461", 1369699200)],
    ),
    "Books.csv": (
        "B000123456,A1B2C3D4E5F6G7,5.0,1369699200\n0001713353,A1REUF3A1YCPHM,4.0,1112140800\n",
        [("A1B2C3D4E5F6G7", "B000123456", 1369699200), ("A1REUF3A1YCPHM", "0001713353", 1112140800)],
    ),
    "steam_reviews.json.gz": (
        "{u'username': u'Chaoz', u'hours': 0.1, u'product_id': u'725280', u'date': u'2017-12-17', "
        'u\'text\': u"it\'s \\"fine\\""}\n'
        "{u'username': u'Ariman1', u'compensation': u'Free', u'product_id': u'328100', u'date': u'2017-08-02', "
        "u'text': u'\\xe9'}\n",
        [("Chaoz", "725280", 1513468800), ("Ariman1", "328100", 1501632000)],
    ),
    "pairs.txt": ("1 10\n1 11\n2 10\n", [("1", "10", 0), ("1", "11", 1), ("2", "10", 2)]),
    "sequences.txt": (
        "1 10 11 12 10\n2 11\n3 12 13\n",
        [
            ("1", "10", 0),
            ("1", "11", 1),
            ("1", "12", 2),
            ("1", "10", 3),
            ("2", "11", 4),
            ("3", "12", 5),
            ("3", "13", 6),
        ],
    ),
}


@pytest.mark.parametrize("header", ["who,what", "who,what,likes,when"])
def test_a_header_in_words_of_its_own_is_no_action(write, header):
    width = header.count(",") + 1
    path = write("log.csv", header + "\n" + "".join(f"u{n},{'7,5,9'[: 2 * width - 3]}\n" for n in range(3)))
    with pytest.raises(ValueError, match=f"a column for the user, found {header.replace(',', ', ')}. Name it"):
        load_interactions(path)
    assert rows(load_interactions(path, user="who", item=1)) == [(f"u{n}", "7", n) for n in range(3)]


def test_a_column_of_dates_tells_a_header_too(write):
    path = write("log.csv", "who,what,when\n" + "".join(f"u{n},i{n},2020-01-0{n} 10:00:00\n" for n in range(1, 4)))
    with pytest.raises(ValueError, match=r"a column for the user, found who, what, when\. Name it"):
        load_interactions(path)


def test_ids_of_letters_before_ids_of_digits_are_no_header(write):
    path = write("pairs.csv", "ann,7\nu1,8\nu2,9\n")
    assert rows(load_interactions(path)) == [("ann", "7", 0), ("u1", "8", 1), ("u2", "9", 2)]


@pytest.mark.parametrize("name", ORIGINAL_FORMS)
def test_a_file_in_its_original_form_is_read(write, name):
    content, expected = ORIGINAL_FORMS[name]
    assert rows(load_interactions(write(name, content))) == expected


@pytest.mark.parametrize("name", [name for name in ORIGINAL_FORMS if not name.endswith(".gz")])
def test_windows_line_ends_and_a_missing_last_line_end_change_nothing(write, name):
    content, expected = ORIGINAL_FORMS[name]
    assert rows(load_interactions(write(name, content.replace("\n", "\r\n")))) == expected
    assert rows(load_interactions(write(name, content.rstrip("\n")))) == expected


@pytest.mark.parametrize("name", ["ratings.csv", "u.data", "log.jsonl", "pairs.txt", "sequences.txt"])
def test_a_byte_order_mark_and_compression_change_nothing(write, name):
    content, expected = ORIGINAL_FORMS[name]
    assert rows(load_interactions(write(name, "\ufeff" + content))) == expected
    assert rows(load_interactions(write(name + ".gz", content))) == expected


def test_a_zstandard_file_is_read(tmp_path):
    content, expected = ORIGINAL_FORMS["ratings.csv"]
    with pa.output_stream(tmp_path / "ratings.csv.zst", compression="zstd") as stream:
        stream.write(content.encode())
    assert rows(load_interactions(tmp_path / "ratings.csv.zst")) == expected


def test_a_byte_order_mark_goes_whatever_utf_8_is_called(write):
    content, expected = ORIGINAL_FORMS["ratings.csv"]
    assert rows(load_interactions(write("ratings.csv", "\ufeff" + content), encoding="UTF8")) == expected


TABLE = {"user": ["u", "v"], "item": ["a", "b"], "timestamp": [20, 10]}
TABLE_ROWS = [("u", "a", 20), ("v", "b", 10)]


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


def test_text_timestamps_of_pandas_and_polars_are_read():
    table = {"user": ["u", "v"], "item": ["a", "b"], "time": ["1700000000123", "7"]}
    expected = [("u", "a", 1700000000123), ("v", "b", 7)]
    assert rows(load_interactions(pd.DataFrame(table))) == expected
    assert rows(load_interactions(pl.DataFrame(table))) == expected


def test_a_parquet_file_is_read(tmp_path):
    pq.write_table(pa.table(TABLE), tmp_path / "log.parquet")
    assert rows(load_interactions(tmp_path / "log.parquet")) == TABLE_ROWS


def test_a_folder_of_save_to_disk_is_read(tmp_path):
    Dataset.from_dict(TABLE).save_to_disk(tmp_path / "saved")
    assert rows(load_interactions(tmp_path / "saved")) == TABLE_ROWS


def test_a_selection_of_a_dataset_is_read_as_selected():
    assert rows(load_interactions(Dataset.from_dict(TABLE).select([1]))) == [("v", "b", 10)]


def test_a_folder_as_movielens_unpacks_is_read(write):
    ratings = write("ml-1m/ratings.dat", ORIGINAL_FORMS["ratings.dat"][0])
    write("ml-1m/movies.dat", "1193::One Flew Over the Cuckoo's Nest (1975)::Drama\n")
    assert rows(load_interactions(ratings.parent)) == TWO_ROWS
    assert load_titles(ratings.parent) == {"1193": "One Flew Over the Cuckoo's Nest (1975)"}


def test_ml_latest_small_travels_with_the_package():
    interactions = load_interactions("ml-latest-small")
    assert len(interactions) == 100_004
    assert len(set(interactions["user"])) == 671
    assert len(set(interactions["item"])) == 9_066
    assert interactions[0] == {"user": "1", "item": "31", "timestamp": 1260759144}
    assert load_titles("ml-latest-small")["1"] == "Toy Story (1995)"


def test_what_load_interactions_gives_it_also_takes(write):
    interactions = load_interactions(write("u.data", ORIGINAL_FORMS["u.data"][0]))
    assert rows(load_interactions(interactions)) == TWO_ROWS


# --------------------------------------------------------------------------------------------------------- columns


def test_columns_are_taken_as_named(write):
    path = write("log.csv", "user,buyer,thing,item,when\nx,u,a,y,5\n")
    assert rows(load_interactions(path, user="buyer", item="thing", timestamp="when")) == [("u", "a", 5)]


def test_columns_are_taken_by_position(write):
    path = write("log.csv", "9,a,u,5\n8,b,v,6\n")
    assert rows(load_interactions(path, user=2, item=1, timestamp=3)) == [("u", "a", 5), ("v", "b", 6)]
    table = pd.DataFrame([["a", 5, "u"]])
    assert rows(load_interactions(table, user=2, item=0, timestamp=1)) == [("u", "a", 5)]


def test_a_file_whose_ending_does_not_tell_is_read_as_told(write):
    path = write("log.unknown", ORIGINAL_FORMS["u.data"][0])
    assert rows(load_interactions(path, format="tsv")) == TWO_ROWS


def test_a_csv_with_semicolons_is_read_with_the_separator(write):
    path = write("log.csv", "user;item;timestamp\nu;a,b;1\n")
    assert rows(load_interactions(path, separator=";")) == [("u", "a,b", 1)]


def test_quotes_work_with_semicolons_as_with_commas(write):
    path = write("BX-Book-Ratings.csv", '"user";"ISBN";"Book-Rating"\n"276725";"0345;04X";"0"\n')
    assert rows(load_interactions(path, separator=";", item="ISBN")) == [("276725", "0345;04X", 0)]


def test_a_separator_of_several_characters_is_taken(write):
    assert rows(load_interactions(write("log.csv", "user||item\nu||a|b\n"), separator="||")) == [("u", "a|b", 0)]


def test_quoted_fields_may_hold_commas_quotes_and_line_ends(write):
    path = write("log.csv", 'user,item,timestamp\n"Doe, Jane","a ""b""",1\n"two\nlines",c,2\n')
    assert rows(load_interactions(path)) == [("Doe, Jane", 'a "b"', 1), ("two\nlines", "c", 2)]


def test_quotes_are_plain_characters_in_tab_separated_files(write):
    path = write("log.tsv", 'user\titem\n"u\t5" nail\n')
    assert rows(load_interactions(path)) == [('"u', '5" nail', 0)]


def test_a_tab_separated_file_may_begin_with_an_unnamed_column(write):
    path = write("log.tsv", "\tuser\titem\n0\tu\ta\n1\tv\tb\n")
    assert rows(load_interactions(path)) == [("u", "a", 0), ("v", "b", 1)]


def test_blanks_may_repeat_between_user_and_item(write):
    assert rows(load_interactions(write("pairs.txt", "1  10\n2\t 11 \n"))) == [("1", "10", 0), ("2", "11", 1)]


def test_sequences_are_told_from_pairs_in_short_files_and_by_long_lines(write):
    assert len(load_interactions(write("short.txt", "u a b c\nv d"))) == 4
    assert len(load_interactions(write("long.txt", f"u {'item ' * 4000}\nv d\nw e f\n"))) == 4003


def test_blank_lines_are_passed_over(write):
    assert rows(load_interactions(write("a.csv", "\nuser,item\n\nu,a\n\n\nv,b\n\n"))) == [("u", "a", 0), ("v", "b", 1)]
    assert rows(load_interactions(write("b.dat", "\nu::a::1::5\n\nv::b::1::6\n"))) == [("u", "a", 5), ("v", "b", 6)]
    assert rows(
        load_interactions(write("c.jsonl", '\n{"user": "u", "item": "a"}\n\n{"user": "v", "item": "b"}\n'))
    ) == [("u", "a", 0), ("v", "b", 1)]
    assert rows(load_interactions(write("d.txt", "\nu a b c\n\nv d\n"))) == [
        ("u", "a", 0),
        ("u", "b", 1),
        ("u", "c", 2),
        ("v", "d", 3),
    ]


def test_a_latin_1_file_is_read_with_its_encoding(write):
    path = write("log.csv", "user,item\nJosé,Ñandú\n", encoding="latin-1")
    assert rows(load_interactions(path, encoding="latin-1")) == [("José", "Ñandú", 0)]


unicode_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(pairs=st.lists(st.tuples(unicode_text, unicode_text), min_size=1, max_size=5))
def test_any_ids_come_back_from_csv_and_json_lines(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("log")
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("user", "item"), *pairs])
    (folder / "log.csv").write_bytes(text.getvalue().encode())
    lines = [json.dumps({"user": user, "item": item}, ensure_ascii=False) + "\n" for user, item in pairs]
    (folder / "log.jsonl").write_bytes("".join(lines).encode())
    expected = [(user, item, row) for row, (user, item) in enumerate(pairs)]
    assert rows(load_interactions(folder / "log.csv")) == expected
    assert rows(load_interactions(folder / "log.jsonl")) == expected


@pytest.mark.parametrize("character", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_only_line_ends_end_a_line_of_the_steam_dump(write, character):
    line = "{{u'username': u'u', u'product_id': u'{}', u'text': u'so{}so'}}\n"
    path = write("steam.json", "".join(line.format(item, character) for item in "ab"))
    assert rows(load_interactions(path)) == [("u", "a", 0), ("u", "b", 1)]


def test_fields_of_json_lines_may_change_their_type_or_be_missing(write):
    path = write(
        "log.jsonl",
        '{"user": 1, "item": "a", "timestamp": 1}\n'
        '{"user": "u2", "item": 7, "timestamp": 2.5}\n'
        '{"user": 3.0, "timestamp": 3}\n'
        '{"user": 4.0, "item": "b", "timestamp": "4"}\n',
    )
    assert rows(load_interactions(path)) == [("1", "a", 1), ("u2", "7", 2.5), ("4", "b", 4)]


# ------------------------------------------------------------------------------------------------------ ids and times


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table])
def test_whole_numbers_with_gaps_become_ids_without_a_fraction(make):
    table = make({"user": [1.0, float("nan"), 3.0], "item": [7, 8, 9]})
    assert rows(load_interactions(table)) == [("1", "7", 0), ("3", "9", 1)]


def test_rows_without_an_id_are_dropped_and_counted(write, caplog):
    path = write("log.csv", "user,item,timestamp\nu,a,1\n,b,2\nv,,\nw,c,4\n")
    with caplog.at_level(logging.INFO, "hf_bert4rec.data.interactions"):
        assert rows(load_interactions(path)) == [("u", "a", 1), ("w", "c", 4)]
    assert "dropped: 2 without an id" in caplog.text


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


def test_equal_timestamps_keep_the_order_of_the_file(write):
    path = write("log.csv", "user,item,timestamp\nu,c,5\nu,a,5\nu,b,4\nu,d,5\n")
    assert rows(load_interactions(path)) == [("u", "c", 5), ("u", "a", 5), ("u", "b", 4), ("u", "d", 5)]


def test_without_timestamps_the_row_numbers_are_the_times(write, caplog):
    with caplog.at_level(logging.INFO, "hf_bert4rec.data.interactions"):
        assert rows(load_interactions(write("log.csv", "user,item\nv,b\nu,a\n"))) == [("v", "b", 0), ("u", "a", 1)]
    assert "no timestamps: the order of the rows is the order in time" in caplog.text
    assert "no column is known to hold times" not in caplog.text


def test_a_column_that_may_hold_times_is_named(write, caplog):
    with caplog.at_level(logging.INFO, "hf_bert4rec.data.interactions"):
        load_interactions(write("log.csv", "user_id,item_id,rating,bought\nv,b,3,2\nu,a,1,1\n"))
    assert "If one of bought does, name it: timestamp=…" in caplog.text


# ------------------------------------------------------------------------------------------------------------ filters


def test_actions_rated_below_the_minimum_are_dropped(write):
    path = write("log.csv", "user,item,rating,timestamp\nu,a,3.5,1\nu,b,4,2\nu,c,4.5,3\n")
    assert rows(load_interactions(path, min_rating=4)) == [("u", "b", 2), ("u", "c", 3)]


def test_the_core_is_taken_until_nothing_more_falls(write):
    # z is rare; without it w has one action left, and without w item y is rare too.
    path = write("log.csv", "user,item\nu,x\nv,x\nu,a\nv,a\nw,y\nw,z\nu,y\n")
    core = load_interactions(path, min_user_interactions=2, min_item_interactions=2)
    assert rows(core) == [("u", "x", 0), ("v", "x", 1), ("u", "a", 2), ("v", "a", 3)]


def test_min_user_interactions_alone_leaves_rare_items(write):
    path = write("log.csv", "user,item\nu,a\nv,b\nu,c\n")
    assert rows(load_interactions(path, min_user_interactions=2)) == [("u", "a", 0), ("u", "c", 2)]


def test_without_repeats_the_first_in_time_is_kept(write):
    path = write("log.csv", "user,item,timestamp\nu,a,30\nv,a,5\nu,b,15\nu,a,10\nu,a,10\nu,b,15\n")
    expected = [("v", "a", 5), ("u", "b", 15), ("u", "a", 10)]
    assert rows(load_interactions(path, keep_repeats=False)) == expected
    assert len(load_interactions(path)) == 6


def test_repeats_and_low_ratings_do_not_count_for_the_core(write):
    path = write("log.csv", "user,item,rating\nu,a,5\nu,a,5\nv,b,5\nv,c,5\nw,d,5\nw,e,1\n")
    kept = load_interactions(path, min_rating=3, keep_repeats=False, min_user_interactions=2)
    assert rows(kept) == [("v", "b", 2), ("v", "c", 3)]


def test_one_line_reports_what_was_read_and_dropped(write, caplog):
    path = write(
        "log.csv", "user,item,rating,timestamp\nu,a,5,1\nu,a,5,2\nu,b,1,3\n,a,5,4\nv,a,5,5\nw,c,5,6\nw,a,4,7\n"
    )
    with caplog.at_level(logging.INFO, "hf_bert4rec.data.interactions"):
        load_interactions(path, min_rating=2, keep_repeats=False, min_item_interactions=2)
    assert [record.getMessage() for record in caplog.records] == [
        "log.csv: 3 interactions of 3 users with 1 items; dropped: 1 without an id, 1 rated below 2, 1 repeated, "
        "1 of users or items with too few."
    ]


def test_the_report_says_when_nothing_was_dropped(write, caplog):
    with caplog.at_level(logging.INFO, "hf_bert4rec.data.interactions"):
        load_interactions(write("ratings.dat", ORIGINAL_FORMS["ratings.dat"][0]))
    assert caplog.messages == [
        "ratings.dat: 2 interactions of 2 users with 2 items (no header: user, item, rating, timestamp); dropped: none."
    ]


# ------------------------------------------------------------------------------------------------------------- titles


@pytest.mark.parametrize(
    ("name", "content", "encoding"),
    [
        ("movies.csv", 'movieId,title,genres\n1,"Amélie, le film",Drama\n2,Heat,\n3,,Drama\n', "utf-8"),
        ("movies.dat", "1::Amélie, le film::Drama\n2::Heat::Action|Crime\n", "latin-1"),
        ("u.item", "1|Amélie, le film|01-Jan-1995||http://x|0\n2|Heat|01-Jan-1995||http://y|1\n", "latin-1"),
        ("items.tsv", "item\ttitle\n1\tAmélie, le film\n2\tHeat\n", "utf-8"),
        ("bare.tsv", "1\tAmélie, le film\n2\tHeat\n", "utf-8"),
        ("four.tsv", "1\tAmélie, le film\tx\ty\n2\tHeat\tx\ty\n", "utf-8"),
        ("ml.item", "item_id:token\tmovie_title:token_seq\n1\tAmélie, le film\n2\tHeat\n", "utf-8"),
        ("meta.json", '{"asin": "1", "title": "Amélie, le film"}\n{"asin": "2", "title": "Heat"}\n', "utf-8"),
        ("games.json", "{u'id': u'1', u'title': u'Am\\xe9lie, le film'}\n{u'id': u'2', u'title': u'Heat'}\n", "utf-8"),
    ],
)
def test_titles_are_read_by_raw_id(write, name, content, encoding):
    told = {"ml.item": {"format": "inter"}, "games.json": {"item": "id"}}.get(name, {})
    assert load_titles(write(name, content, encoding), **told) == {"1": "Amélie, le film", "2": "Heat"}


def test_titles_come_from_tables_too():
    assert load_titles(pd.DataFrame({"item": [1, 2], "name": ["One", None]})) == {"1": "One"}


def test_titles_without_a_column_for_them_are_refused(write):
    with pytest.raises(ValueError, match=r"items\.csv: expected columns for item and title, found item, genre"):
        load_titles(write("items.csv", "item,genre\n1,Drama\n"))


# ---------------------------------------------------------------------------------------------------------- bad input

BAD_FILES = {
    "a missing column": ("log.csv", "buyer,item,when\nu,a,1\n", r"log\.csv: .*user.* found buyer, item, when"),
    "an empty file": ("log.csv", "", r"log\.csv: .*empty"),
    "a file of blank lines": ("log.jsonl", "\n \n", r"log\.jsonl: .*empty"),
    "a header and nothing else": ("log.csv", "user,item\n", r"log\.csv: .*found none"),
    "a wrong separator": ("log.csv", "user;item\nu;a\n", r"log\.csv: .*found user;item.*separator=';'"),
    "half a line": (
        "r.dat",
        "1::10::5::97\n1::11::5::98\n1::1\n1::12::5::99\n",
        r"r\.dat, line 3: .*4 columns, found 2",
    ),
    "half a line after blank lines": (
        "log.csv",
        "user,item,timestamp\n\nu,a,1\n\nu,b\nu,c,3\n",
        r"log\.csv, line 5: expected 3 columns, found 2",
    ),
    "half a line after a field of two lines": (
        "log.csv",
        'user,item\n"u\nu",a\nv\n',
        r"log\.csv, line 4: expected 2 columns, found 1",
    ),
    "half a line at the end": ("u.data", "1\t2\t3\t4\n1\t2", r"u\.data, line 2: expected 4 columns, found 2"),
    "half a line of pairs": ("pairs.txt", "1 10\n1\n2 10\n", r"pairs\.txt, line 2: expected 2 columns, found 1"),
    "half a line of four": (
        "log.txt",
        "1 10 5 97\n1 11 5 98\n1 1\n1 12 5 99\n",
        r"log\.txt, line 3: expected 4 columns, found 2",
    ),
    "a sequence without items": ("s.txt", "1 10 11 12\n2\n3 11\n", r"s\.txt, line 2: .*user item item"),
    "too many columns": ("log.csv", "user,item\nu,a\nv,b,c\n", r"log\.csv, line 3: expected 2 columns, found 3"),
    "a quote that does not end": ("log.csv", 'user,item\nu,a\n"v,b\nw,c\n', r"log\.csv, line 3"),
    "a broken byte": ("log.csv", b"user,item\nu,a\n\nu,\xff\n", r"log\.csv, line 4: .*0xff.*encoding='latin-1'"),
    "a broken byte in JSON": ("log.jsonl", b'{"user": "u"}\n{"user": "\xe9"}\n', r"log\.jsonl, line 2: .*0xe9"),
    "a time that is no number": ("u.data", "1\t2\t3\t4\n1\t2\t3\tx\n", r"u\.data, line 2: .*found 'x'"),
    "a time that is no number after a header": (
        "log.csv",
        "user,item,timestamp\nu,a,1\nu,b,soon\n",
        r"log\.csv, line 3: .*found 'soon'",
    ),
    "a time that is no number after blank lines": (
        "log.csv",
        "user,item,timestamp\n\nu,a,1\n\n\nu,b,soon\n",
        r"log\.csv, line 6: .*found 'soon'",
    ),
    "a time that is no number after blank lines before the header": (
        "log.csv",
        "\n\nuser,item,timestamp\nu,a,1\nu,b,soon\n",
        r"log\.csv, line 5: .*found 'soon'",
    ),
    "a time that is no number after a dropped row": (
        "log.csv",
        "user,item,timestamp\n,a,1\nu,b,soon\n",
        r"log\.csv, line 3: .*found 'soon'",
    ),
    "a time that is no number after a row of nothing": (
        "log.tsv",
        "user\titem\ttimestamp\n\t\t\nu\tb\tsoon\n",
        r"log\.tsv, line 3: .*found 'soon'",
    ),
    "a time that is no number after a field of two lines": (
        "log.csv",
        'user,item,timestamp\n"u\nu",a,1\nu,b,soon\n',
        r"log\.csv, line 4: .*found 'soon'",
    ),
    "no time": ("log.csv", "user,item,timestamp\nu,a,1\nu,b,\n", r"log\.csv, line 3: .*timestamp"),
    "a time that is not finite": ("log.csv", "user,item,timestamp\nu,a,1\nu,b,inf\n", r"log\.csv, line 3: .*'inf'"),
    "dates and numbers mixed": (
        "log.csv",
        "user,item,date\nu,a,2017-12-17\nu,b,yesterday\n",
        r"log\.csv, line 3: .*found 'yesterday'",
    ),
    "a time that is no number in JSON": (
        "log.jsonl",
        '{"user": "u", "item": "a", "timestamp": 1}\n\n \n{"user": "u", "item": "b", "timestamp": "x"}\n',
        r"log\.jsonl, line 4: .*found 'x'",
    ),
    "a broken line of JSON": (
        "log.jsonl",
        '{"user": "u", "item": "a"}\n\n{"user": "u", "it\n{"user": "u", "item": "b"}\n',
        r"log\.jsonl, line 3: .*one JSON object, found '\{\"user\": \"u\", \"it'",
    ),
    "a first line that is no JSON": ("log.jsonl", '\nuser\n{"user": "u"}\n', r"log\.jsonl, line 2: .*found 'user'"),
    "a JSON list": ("log.json", '[{"user": "u", "item": "a"}]\n', r"log\.json, line 1: expected one JSON object"),
    "a Parquet file that is none": ("log.parquet", "user,item\n", r"log\.parquet: expected a Parquet file"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_bad_file_is_refused_with_its_name_and_line(write, what):
    name, content, message = BAD_FILES[what]
    with pytest.raises(ValueError, match=message):
        load_interactions(write(name, content))


def test_half_a_line_far_down_a_long_file_is_found(write):
    lines = [f"{number},{number % 7},5,{number}\n" for number in range(150_000)]
    lines[130_000] = "130000,5\n"
    with pytest.raises(ValueError, match=r"log\.csv, line 130001: expected 4 columns, found 2"):
        load_interactions(write("log.csv", "".join(lines)))


def test_a_bad_line_is_shown_with_the_separator_it_was_read_with(write):
    with pytest.raises(ValueError, match=re.escape("line 2: expected 2 columns, found 3 in 'u||a||b'")):
        load_interactions(write("log.csv", "user||item\nu||a||b\n"), separator="||")


def test_a_rating_that_is_no_number_is_refused_where_ratings_matter(write):
    path = write("log.csv", "user,item,rating\nu,a,5\nu,b,good\n")
    assert len(load_interactions(path)) == 2
    with pytest.raises(ValueError, match=r"log\.csv, line 3: expected a rating, found 'good'"):
        load_interactions(path, min_rating=3)


def test_a_bad_value_of_a_table_is_refused_with_its_row():
    with pytest.raises(ValueError, match=r"DataFrame, row 1: .*timestamp, found 'x'"):
        load_interactions(pd.DataFrame({"user": ["u", "v"], "item": ["a", "b"], "timestamp": ["1", "x"]}))
    with pytest.raises(ValueError, match=r"Table, row 1: .*timestamp, found None"):
        load_interactions(pa.table({"user": ["u", "v"], "item": ["a", "b"], "timestamp": [1, None]}))


@pytest.mark.parametrize("column", ["user", "item", "timestamp"])
def test_a_column_of_lists_is_refused_by_name(column):
    with pytest.raises(ValueError, match=rf"Table.*{column}.*(list|found \['a', 'b'\])"):
        load_interactions(pa.table({**TABLE, column: [["a", "b"], ["c"]]}))


def test_a_named_column_that_is_not_there_is_refused_and_those_found_are_named(write):
    path = write("log.csv", "user,item\nu,a\n")
    with pytest.raises(ValueError, match=r"log\.csv: expected a column 'asin' for item, found user, item"):
        load_interactions(path, item="asin")
    with pytest.raises(ValueError, match=r"log\.csv: expected a column 5 for item, found 0 to 1"):
        load_interactions(path, item=5)


def test_min_rating_without_ratings_is_refused(write):
    with pytest.raises(ValueError, match=r"log\.csv: min_rating needs a rating, found user, item"):
        load_interactions(write("log.csv", "user,item\nu,a\n"), min_rating=3)


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv: expected a file, a folder"):
        load_interactions(tmp_path / "nothing.csv")
    with pytest.raises(FileNotFoundError, match=r"expected one of ratings\.csv, .*u\.data in this folder, found none"):
        load_interactions(tmp_path)


def test_an_unknown_format_is_refused_and_the_known_are_named(write):
    with pytest.raises(ValueError, match=r"log\.xlsx: expected a format among csv, tsv, .* found 'xlsx'"):
        load_interactions(write("log.xlsx", "x"))
    with pytest.raises(ValueError, match=r"found 'jsonlines'.*format='jsonl'"):
        load_interactions(write("log.txt", "x"), format="jsonlines")


@pytest.mark.parametrize("source", [3, None, [("u", "a")], {"user": ["u"]}])
def test_a_source_of_a_wrong_type_is_refused_by_its_type(source):
    with pytest.raises(ValueError, match=f"Expected a path, a Hub id or a table .*found {type(source).__name__}"):
        load_interactions(source)


def test_a_dataset_dict_is_refused_with_the_split_to_pass():
    with pytest.raises(ValueError, match=r"one split of a data set, found train, test: pass source\['train'\]"):
        load_interactions(DatasetDict({"train": Dataset.from_dict(TABLE), "test": Dataset.from_dict(TABLE)}))


def test_a_saved_dataset_dict_is_refused_with_the_split_to_pass(tmp_path):
    DatasetDict({"train": Dataset.from_dict(TABLE)}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="one split of a data set, found train"):
        load_interactions(tmp_path / "saved")


def test_a_table_without_rows_is_refused():
    with pytest.raises(ValueError, match="DataFrame: expected interactions, found none"):
        load_interactions(pd.DataFrame({"user": [], "item": [], "timestamp": []}))


def test_half_a_parquet_file_is_refused_by_name(tmp_path):
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table(TABLE), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"log\.parquet: expected a Parquet file"):
        load_interactions(path)


def test_half_a_gzip_file_is_refused_by_name(tmp_path):
    whole = gzip.compress("".join(f"{n},{n * 7919 % 1000},5,{n}\n" for n in range(2000)).encode())
    (tmp_path / "ratings.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"ratings\.csv\.gz"):
        load_interactions(tmp_path / "ratings.csv.gz")


def test_a_file_that_only_claims_to_be_gzip_is_refused_by_name(tmp_path):
    (tmp_path / "ratings.csv.gz").write_text("user,item\nu,a\n")
    with pytest.raises(ValueError, match=r"ratings\.csv\.gz"):
        load_interactions(tmp_path / "ratings.csv.gz")


def test_filters_that_leave_nothing_are_refused_with_what_they_dropped(write):
    path = write("log.csv", "user,item,rating\nu,a,5\nv,b,1\n")
    with pytest.raises(ValueError, match=r"log\.csv: .*found none after dropping 1 rated below 2, 1 of users or items"):
        load_interactions(path, min_rating=2, min_user_interactions=2)


def test_a_position_may_come_as_text_from_a_command_line(write):
    path = write("log.csv", "u,x,a,7\nv,y,b,8\n")
    assert load_interactions(path, user="0", item="2", timestamp="3")["item"][:] == ["a", "b"]


def test_columns_with_no_usual_name_are_read_where_the_user_names_them(write):
    path = write("kasse.csv", "Käufer,Artikel,gekauft am\nu,a,2\nu,b,1\n")
    log = load_interactions(path, user="Käufer", item="Artikel", timestamp="gekauft am")
    assert rows(log) == [("u", "a", 2), ("u", "b", 1)]
    assert load_titles(write("titel.csv", "Nr;Bezeichnung\na;Ah\n"), item="Nr", title="Bezeichnung", separator=";") == {
        "a": "Ah"
    }


def test_a_header_that_is_not_understood_is_shown(write):
    with pytest.raises(ValueError, match=r"found 0, 1, 2 \(no header; the first line is 'Käufer, Artikel, Zeit'\)"):
        load_interactions(write("kasse.csv", "Käufer,Artikel,Zeit\nu,a,2\n"))


def test_a_key_that_the_first_json_line_lacks_is_read_all_the_same(write):
    path = write("log.jsonl", '{"user": "u", "item": "a"}\n{"user": "u", "item": "b", "timestamp": 0}\n')
    with pytest.raises(ValueError, match="line 1: expected a number or an ISO date"):
        load_interactions(path)


def test_titles_without_a_header_are_read_where_the_positions_say(write):
    assert load_titles(write("titles.tsv", "Ah\ta\nBe\tb\n"), item=1, title=0) == {"a": "Ah", "b": "Be"}


# ---- other ids -------------------------------------------------------------------------------------------------------


def test_items_get_the_ids_of_the_catalogue():
    log = Dataset.from_dict({"user": ["u", "u", "v"], "item": ["1", "2", "1"], "timestamp": [1, 2, 3]})
    renamed = rename_items(log, {"2": "b c", "1": "9", "3": "unused"})
    assert renamed.to_dict() == {"user": ["u", "u", "v"], "item": ["9", "b c", "9"], "timestamp": [1, 2, 3]}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"1": "9"}, "a new id for every item of the log, found none for '2'"),
        ({}, "found none for '1'"),
        ({"1": "9", "2": "9"}, r"a new id of its own for every item of the log, found '9' for \['1', '2'\]"),
    ],
)
def test_an_item_without_an_id_of_its_own_is_refused(names, message):
    log = Dataset.from_dict({"user": ["u", "u"], "item": ["1", "2"], "timestamp": [1, 2]})
    with pytest.raises(ValueError, match=message):
        rename_items(log, names)


def test_ids_with_blanks_around_them_are_told(tmp_path, caplog):
    (tmp_path / "log.csv").write_text("user,item,timestamp\nu1,a,1\nu1,a ,2\n u2,b,3\nu2,b c,4\n")
    items = load_interactions(tmp_path / "log.csv")["item"][:]
    assert items == ["a", "a ", "b", "b c"]
    assert caplog.messages[:2] == [
        "log.csv: 1 ids of the user begin or end with a blank, such as ' u2': they are not those without.",
        "log.csv: 1 ids of the item begin or end with a blank, such as 'a ': they are not those without.",
    ]
