"""Columns: names, positions, headers, and what the values of a file without a header say."""

import logging

import pandas as pd
import pytest

from hf_bert4rec import load_interactions, load_titles
from tests.data.raw_logs import rows


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


def test_columns_are_taken_as_named(write):
    path = write("log.csv", "user,buyer,thing,item,when\nx,u,a,y,5\n")
    assert rows(load_interactions(path, user="buyer", item="thing", timestamp="when")) == [("u", "a", 5)]


def test_columns_are_taken_by_position(write):
    path = write("log.csv", "9,a,u,5\n8,b,v,6\n")
    assert rows(load_interactions(path, user=2, item=1, timestamp=3)) == [("u", "a", 5), ("v", "b", 6)]
    table = pd.DataFrame([["a", 5, "u"]])
    assert rows(load_interactions(table, user=2, item=0, timestamp=1)) == [("u", "a", 5)]


def test_a_named_column_that_is_not_there_is_refused_and_those_found_are_named(write):
    path = write("log.csv", "user,item\nu,a\n")
    with pytest.raises(ValueError, match=r"log\.csv: expected a column 'asin' for the item, found user, item"):
        load_interactions(path, item="asin")
    with pytest.raises(ValueError, match=r"log\.csv: expected a column 5 for the item, found user, item"):
        load_interactions(path, item=5)


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


def test_a_column_that_may_hold_times_is_named(write, caplog):
    with caplog.at_level(logging.INFO, "hf_bert4rec.data.interactions"):
        load_interactions(write("log.csv", "user_id,item_id,rating,bought\nv,b,3,2\nu,a,1,1\n"))
    assert "found no column of times. If one of rating, bought is the time, name it: `timestamp='...'`" in caplog.text


def test_min_rating_without_ratings_is_refused(write):
    with pytest.raises(
        ValueError,
        match=r"log\.csv: expected a column for the rating, found user, item\. Name it, by its name or position",
    ):
        load_interactions(write("log.csv", "user,item\nu,a\n"), min_rating=3)
