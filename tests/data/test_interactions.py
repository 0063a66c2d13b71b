"""Interactions: what is dropped, filtered, reported and refused; titles; other IDs."""

import logging

import pandas as pd
import pytest
from datasets import Dataset

from hf_bert4rec import load_interactions, load_titles, rename_items
from hf_bert4rec.data.item_tables import load_item_ids
from tests.data.raw_logs import ORIGINAL_FORMS, rows

BAD_FILES = {
    "a missing column": ("log.csv", "who,item,when\nu,a,1\n", r"log\.csv: .*user.* found who, item, when"),
    "an empty file": ("log.csv", "", r"log\.csv: .*empty"),
    "a file of blank lines": ("log.jsonl", "\n \n", r"log\.jsonl: .*empty"),
    "a header and nothing else": ("log.csv", "user,item\n", r"log\.csv: found no rows"),
    "a wrong separator": ("log.csv", "user:item\nu:a\n", r"log\.csv: .*found user:item.*separator=':'"),
    "half a line": (
        "r.dat",
        "1::10::5::978300760\n1::11::5::978300761\n1::1\n1::12::5::978300762\n",
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
    "half a line at the end": ("u.data", "1\t2\t3\t978300760\n1\t2", r"u\.data, line 2: expected 4 columns, found 2"),
    "half a line of pairs": ("pairs.txt", "1 10\n1\n2 10\n", r"pairs\.txt, line 2: expected 2 columns, found 1"),
    "half a line of four": (
        "log.txt",
        "1 10 5 978300760\n1 11 5 978300761\n1 1\n1 12 5 978300762\n",
        r"log\.txt, line 3: expected 4 columns, found 2",
    ),
    "a sequence without items": (
        "s.txt",
        "1 10 11 12\n2\n3 11\n",
        r"s\.txt, line 2: expected a user and items, found only '2'",
    ),
    "too many columns": ("log.csv", "user,item\nu,a\nv,b,c\n", r"log\.csv, line 3: expected 2 columns, found 3"),
    "a quote that does not end": (
        "log.csv",
        'user,item\nu,a\n"v,b\nw,c\n',
        r"log\.csv, line 3: a quotation mark is not closed",
    ),
    "a quote that does not end in the last column": (
        "log.csv",
        'user,item\nu,"a\nv,b\n',
        r"log\.csv, line 2: a quotation mark is not closed",
    ),
    "a broken byte": ("log.csv", b"user,item\nu,a\n\nu,\xff\n", r"log\.csv, line 4: .*0xff.*encoding='cp1252'"),
    "a broken byte in JSON": ("log.jsonl", b'{"user": "u"}\n{"user": "\xe9"}\n', r"log\.jsonl, line 2: .*0xe9"),
    "a time that is no number": ("u.data", "1\t2\t3\t978300760\n1\t2\t3\tx\n", r"u\.data, line 2: .*found 'x'"),
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
    "a time that is not finite": ("log.csv", "user,item,timestamp\nu,a,1\nu,b,inf\n", r"log\.csv, line 3: .*'inf'"),
    "dates and numbers mixed": (
        "log.csv",
        "user,item,date\nu,a,2017-12-17\nu,b,yesterday\n",
        r"log\.csv, line 3: .*found 'yesterday'",
    ),
    "a date next to a time that is a date": (
        "log.csv",
        "user,item,date,event_time\nu,a,2017-12-17 10:00:00,2017-12-17 10:00:01\n",
        r"log\.csv, line 2: .*'date' and 'event_time' are joined as date.*name it: `timestamp='event_time'`",
    ),
    "a time that is no number in JSON": (
        "log.jsonl",
        '{"user": "u", "item": "a", "timestamp": 1}\n\n \n{"user": "u", "item": "b", "timestamp": "x"}\n',
        r"log\.jsonl, line 4: .*found 'x'",
    ),
    "a broken line of JSON": (
        "log.jsonl",
        '{"user": "u", "item": "a"}\n\n{"user": "u", "it\n{"user": "u", "item": "b"}\n',
        r"log\.jsonl, line 3: .*one complete JSON object per line, found '\{\"user\": \"u\", \"it'",
    ),
    "a first line that is no JSON": ("log.jsonl", '\nuser\n{"user": "u"}\n', r"log\.jsonl, line 2: .*found 'user'"),
    "a JSON list of lists": (
        "log.json",
        '[["u", "a"]]\n',
        r"log\.json: expected a JSON array .* found the element \['u', 'a'\]",
    ),
    "a cut JSON list": ("log.json", '[{"user": "u",\n', r"log\.json: cannot be read \(JSONDecodeError: .* line 2 "),
    "a Parquet file that is none": ("log.parquet", "user,item\n", r"log\.parquet: cannot be read"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_bad_file_is_refused_with_its_name_and_line(write, what):
    name, content, message = BAD_FILES[what]
    with pytest.raises(ValueError, match=message):
        load_interactions(write(name, content))


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("min_rating", "abc", "a number"),
        ("min_rating", float("nan"), "a number"),
        ("min_user_interactions", "2", "a number"),
        ("min_item_interactions", None, "a number"),
        ("keep_repeats", "no", "True or False"),
        ("format", 5, "text"),
        ("separator", 5, "text"),
        ("encoding", b"utf-8", "text"),
    ],
)
def test_an_option_of_another_type_is_refused_by_name(write, option, value, expected):
    path = write("log.csv", "user,item,rating\nu,a,5\n")
    with pytest.raises(ValueError, match=rf"^`{option}` must be {expected}, found {value!r}\.$"):
        load_interactions(path, **{option: value})


def test_rows_without_an_id_are_dropped_and_counted(write, caplog):
    path = write("log.csv", "user,item,timestamp\nu,a,1\n,b,2\nv,,\nw,c,4\n")
    with caplog.at_level(logging.INFO, "hf_bert4rec.data.interactions"):
        assert rows(load_interactions(path)) == [("u", "a", 1), ("w", "c", 4)]
    assert "dropped: 2 without user, item or timestamp" in caplog.text


def test_equal_timestamps_keep_the_order_of_the_file(write):
    path = write("log.csv", "user,item,timestamp\nu,c,5\nu,a,5\nu,b,4\nu,d,5\n")
    assert rows(load_interactions(path)) == [("u", "c", 5), ("u", "a", 5), ("u", "b", 4), ("u", "d", 5)]


def test_without_timestamps_the_row_numbers_are_the_times(write, caplog):
    with caplog.at_level(logging.INFO, "hf_bert4rec.data.interactions"):
        assert rows(load_interactions(write("log.csv", "user,item\nv,b\nu,a\n"))) == [("v", "b", 0), ("u", "a", 1)]
    assert "no timestamps; the rows are assumed to be in time order" in caplog.text
    assert "found no column of times" not in caplog.text


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
        "log.csv: 3 interactions of 3 users with 1 item; dropped: 1 without user, item, timestamp or rating, "
        "1 rated below 2, 1 repeated, 1 of users or items with too few interactions. More than 10 % of the rows are "
        "incomplete, so check the columns."
    ]


def test_the_report_says_when_nothing_was_dropped(write, caplog):
    with caplog.at_level(logging.INFO, "hf_bert4rec.data.interactions"):
        load_interactions(write("ratings.dat", ORIGINAL_FORMS["ratings.dat"][0]))
    assert caplog.messages == [
        "ratings.dat: 2 interactions of 2 users with 2 items (no header; user: column 0, item: column 1, timestamp: "
        "column 3); dropped: none."
    ]


def test_a_table_without_rows_is_refused():
    with pytest.raises(ValueError, match="DataFrame: found no rows"):
        load_interactions(pd.DataFrame({"user": [], "item": [], "timestamp": []}))


def test_filters_that_leave_nothing_are_refused_with_what_they_dropped(write):
    path = write("log.csv", "user,item,rating\nu,a,5\nv,b,1\n")
    with pytest.raises(
        ValueError, match=r"log\.csv: no interactions are left. Dropped: 1 rated below 2, 1 of users or items"
    ):
        load_interactions(path, min_rating=2, min_user_interactions=2)


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
    with pytest.raises(ValueError, match=r"items\.csv: expected a column for the title, found item, genre"):
        load_titles(write("items.csv", "item,genre\n1,Drama\n"))


def test_titles_are_converted_on_the_command_line_which_has_no_option_for_their_format(write):
    solution = r" \(command line: convert the file to CSV with commas, in UTF-8\)\.$"
    with pytest.raises(
        ValueError, match=r"unknown format, because the name has no suffix\. .*`format='csv'`" + solution
    ):
        load_titles(write("titles", "1,One\n"))
    with pytest.raises(ValueError, match=r"lines \(2\), or name another separator: `separator='\.\.\.'`" + solution):
        load_titles(write("titles.csv", "item,title\n1\n"))
    with pytest.raises(
        ValueError, match=r"\(command line: `--separator \.\.\.`\)\. For lines of 'user item item …', name"
    ):
        load_interactions(write("log.csv", "user,item\n1\n"))


def test_titles_without_a_header_are_read_where_the_positions_say(write):
    assert load_titles(write("titles.tsv", "Ah\ta\nBe\tb\n"), item=1, title=0) == {"a": "Ah", "b": "Be"}


def test_items_get_the_ids_of_the_catalog():
    log = Dataset.from_dict({"user": ["u", "u", "v"], "item": ["1", "2", "1"], "timestamp": [1, 2, 3]})
    renamed = rename_items(log, {"2": "b c", "1": "9", "3": "unused"})
    assert renamed.to_dict() == {"user": ["u", "u", "v"], "item": ["9", "b c", "9"], "timestamp": [1, 2, 3]}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"1": "9"}, "1 of 2 items have no new ID, such as '2'"),
        ({}, "2 of 2 items have no new ID, such as '1'"),
        ({"1": "9", "2": "9"}, r"items \['1', '2'\] have the same new ID '9'"),
    ],
)
def test_an_item_without_an_id_of_its_own_is_refused(names, message):
    log = Dataset.from_dict({"user": ["u", "u"], "item": ["1", "2"], "timestamp": [1, 2]})
    with pytest.raises(ValueError, match=message):
        rename_items(log, names)


def test_another_table_than_a_dataset_is_not_renamed():
    with pytest.raises(ValueError, match=r"^Expected a Dataset with item, found DataFrame\. Read the log with"):
        rename_items(pd.DataFrame({"user": ["u"], "item": ["a"]}), {"a": "b"})


def test_new_item_ids_are_read_and_two_for_one_item_are_refused(write):
    path = write("names.csv", "item,name\na,tea\nb,pot\na,tea\n")
    assert load_item_ids(path) == {"a": "tea", "b": "pot"}
    with pytest.raises(ValueError, match=r"^names\.csv: expected one new ID per item, found 'tea' and 'cup' for 'a'\."):
        load_item_ids(write("names.csv", "a,tea\nb,pot\na,cup\n"))
    with pytest.raises(ValueError, match=r"expected columns with the old and the new item ID, found old new\. Pass a"):
        load_item_ids(write("names.csv", "old new\na tea\n"))


def test_a_byte_that_the_named_encoding_lacks_is_reported_with_one_that_has_all(write):
    path = write("log.csv", b"user,item\nu,\x81\n")
    with pytest.raises(ValueError, match=r"line 2: expected cp1252 text, found the byte 0x81.*encoding='latin-1'"):
        load_interactions(path, encoding="cp1252")
    assert rows(load_interactions(path, encoding="latin-1")) == [("u", "\x81", 0)]
    with pytest.raises(ValueError, match=r"expected utf-8 text, found the byte 0x81.*encoding='cp1252'"):
        load_interactions(path, encoding="utf-8")


def test_users_that_differ_only_in_case_or_blanks_are_reported(caplog):
    log = pd.DataFrame({"user": ["Anja@shop.de", "Bo@shop.de", "anja@shop.de", "c"], "item": [*"abab"]})
    assert len({user for user, *_ in rows(load_interactions(log))}) == 4  # nothing is merged
    assert "1 user IDs differ from another ID only in case" in caplog.text
    assert "such as 'Anja@shop.de' and 'anja@shop.de'. If they are the same user" in caplog.text
