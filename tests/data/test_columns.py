"""Columns: names, positions, headers, and what the values of a file without a header say."""

import logging
from contextlib import suppress

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from hf_bert4rec import load_interactions, load_item_features, load_titles
from tests.data.raw_logs import rows


@pytest.mark.parametrize("header", ["who,what", "who,what,likes,when"])
def test_a_header_in_words_of_its_own_is_no_action(write, header):
    width = header.count(",") + 1
    path = write("log.csv", header + "\n" + "".join(f"u{n},{'7,5,9'[: 2 * width - 3]}\n" for n in range(3)))
    with pytest.raises(ValueError, match=f"a column for the user, found {header.replace(',', ', ')}. Name the column"):
        load_interactions(path)
    assert rows(load_interactions(path, user="who", item=1)) == [(f"u{n}", "7", n) for n in range(3)]


def test_a_column_of_dates_tells_a_header_too(write):
    path = write("log.csv", "who,what,when\n" + "".join(f"u{n},i{n},2020-01-0{n} 10:00:00\n" for n in range(1, 4)))
    with pytest.raises(ValueError, match=r"a column for the user, found who, what, when\. Name the column"):
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
    path = write("kasse.csv", "Wer,Was,gekauft am\nu,a,2\nu,b,1\n")
    log = load_interactions(path, user="Wer", item="Was", timestamp="gekauft am")
    assert rows(log) == [("u", "a", 2), ("u", "b", 1)]
    assert load_titles(write("titel.csv", "Nr;Bezeichnung\na;Ah\n"), item="Nr", title="Bezeichnung", separator=";") == {
        "a": "Ah"
    }


def test_a_header_that_is_not_understood_is_shown(write):
    with pytest.raises(ValueError, match=r"found 0, 1, 2 \(.* 'Wer, Was, Wann' is not recog.* a header\)"):
        load_interactions(write("kasse.csv", "Wer,Was,Wann\nu,a,2\n"))


def test_a_column_that_may_hold_times_is_named(write, caplog):
    with caplog.at_level(logging.INFO, "hf_bert4rec.data.interactions"):
        load_interactions(write("log.csv", "user_id,item_id,rating,bought\nv,b,3,2\nu,a,1,1\n"))
    assert "If one of 'rating', 'bought' has the time, pass `timestamp='...'`" in caplog.text


@pytest.mark.parametrize("convert", [pd.DataFrame.copy, pl.from_pandas, pa.Table.from_pandas])
def test_the_only_column_of_dates_is_the_time(caplog, convert):
    dates = pd.to_datetime(["1970-01-02", "1970-01-01"])
    log = pd.DataFrame({"user": ["u", "u"], "item": ["a", "b"], "bought": dates, "price": [1.5, 2.5]})
    with caplog.at_level(logging.INFO, "hf_bert4rec.data.interactions"):
        assert rows(load_interactions(convert(log))) == [("u", "a", 86_400), ("u", "b", 0)]
    assert "(timestamp: column 'bought'); dropped: none." in caplog.text
    assert "'bought' is used as time, because it has dates. To confirm or change this, name the column" in caplog.text
    caplog.clear()
    load_interactions(convert(log), timestamp="bought")
    assert "is used as time" not in caplog.text
    log["paid"] = dates
    with pytest.raises(ValueError, match=r"'bought' .* and 'paid' .* fit the timestamp equally well"):
        load_interactions(convert(log))
    assert rows(load_interactions(convert(log), timestamp="paid"))[1] == ("u", "b", 0)


def test_min_rating_without_ratings_is_refused(write):
    with pytest.raises(
        ValueError,
        match=r"log\.csv: expected a column for the rating, found user, item\. .*without ratings, omit `min_rating`",
    ):
        load_interactions(write("log.csv", "user,item\nu,a\n"), min_rating=3)


@pytest.mark.parametrize(
    "line",
    [
        "1,1396860669,214536502,0",
        "1,1396860669000,214536502,0",
        "1396860669,1,214536502,0",
        "1,2014-04-07,214536502,0",
        "A12345678,1396860669,214536502,0",
        "A12345678,2014-04-07",
    ],
)
def test_a_second_column_that_may_be_the_time_is_refused_without_a_header(write, line):
    with pytest.raises(ValueError, match=r"column for the user, found 0, 1.* Name the column, .* the column of times"):
        load_interactions(write("log.csv", f"{line}\n{line}\n"))


def test_ids_of_many_digits_are_not_times(write):
    path = write("log.csv", "A1B2C3D4E5F6G7,1400050000,5,1369699200\n214536502,214536500,4,1369699201\n")
    assert load_interactions(path)["item"][:] == ["1400050000", "214536500"]
    path = write("steam.csv", "76561198000000001,214536502,5,1369699200\n")
    assert rows(load_interactions(path)) == [("76561198000000001", "214536502", 1369699200)]


def test_a_column_that_may_be_the_time_is_named_without_a_header_too(write, caplog):
    path = write("log.csv", "1,1396860669,214536502,0\n1,1396860769,214536500,0\n")
    assert rows(load_interactions(path, user=0, item=2, timestamp=1))[0] == ("1", "214536502", 1396860669)
    assert not caplog.text
    load_interactions(path, user=0, item=2)
    assert "found no column of times, so the order of the rows is used. If one of '1', '3' has the time" in caplog.text


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("1100000000 5\n1100000001 6\n1100000002 7\n", ("1100000000", "5", 0)),
        ("0,1400000000\n0,1400000001\n0,1400000002\n", ("0", "1400000000", 0)),
        ("1100000000,7,3,1600000000\n1100000001,8,3,1600000001\n", ("1100000000", "7", 1600000000)),
    ],
)
def test_ids_without_a_header_may_look_like_times(write, text, first):
    assert rows(load_interactions(write("log.csv" if "," in text else "log.txt", text)))[0] == first


@pytest.mark.parametrize(
    "header",
    [
        "Kunde;Artikel;Datum",
        "Kundennummer;Artikel-Nr.;Bestelldatum",
        "kunden_id;Produkt;Zeitpunkt",
        "Käufer;artikel;zeit",
        "Benutzer;Artikelnummer;Zeitstempel",
    ],
)
def test_german_names_are_found(write, header):
    path = write("log.csv", f"{header}\n1;a;02.01.1970\n")
    assert rows(load_interactions(path, separator=";")) == [("1", "a", 86_400)]
    assert load_titles(write("titel.csv", "Artikelnummer,Bezeichnung\na,Ah\n")) == {"a": "Ah"}


def test_german_columns_of_date_and_time_of_day_are_the_time(write):
    path = write("log.csv", "Kunde,Artikel,Datum,Uhrzeit\n1,a,02.01.1970,00:01\n")
    assert rows(load_interactions(path)) == [("1", "a", 86_460)]


@pytest.mark.parametrize("name", ["listen_time", "playtime", "watch_time", "duration"])
def test_a_duration_is_no_timestamp(write, caplog, name):
    assert rows(load_interactions(write("log.csv", f"user,item,{name}\nu,a,200\nu,b,100\n")))[0] == ("u", "a", 0)
    assert f"so the order of the rows is used. If '{name}' has the time, pass" in caplog.text
    path = write("both.csv", f"user,item,{name},date\nu,a,200,2020-01-01\n")
    assert rows(load_interactions(path)) == [("u", "a", 1577836800)]


@pytest.mark.parametrize(
    "name", ["time", "review_time", "unixReviewTime", "event_time", "watched_at", "viewtime", "date_created"]
)
def test_a_time_is_a_timestamp(write, name):
    assert rows(load_interactions(write("log.csv", f"user,item,{name}\nu,a,200\n"))) == [("u", "a", 200)]


def test_the_separator_of_recbole_columns_is_named(write):
    with pytest.raises(ValueError, match=r"Name the separator: `separator=' '`"):
        load_interactions(write("log.inter", "user_id:token item_id:token\n1 2\n"))


def test_the_separator_is_advised_as_the_source_can_use_it(write):
    with pytest.raises(ValueError, match=r"found user item\. .*\(command line: `--separator ' '`\)\.$"):
        load_interactions(write("log.csv", "user item\nu a\n"))
    with pytest.raises(ValueError, match=r"Read the table .* `pandas\.read_csv\(path, sep=';'\)`\.$"):
        load_interactions(pd.DataFrame({"user;item": ["u;a"]}))


@pytest.mark.parametrize("separator", [";", "\t", "|", "::"])
@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.dat"])
def test_another_usual_separator_is_found_in_the_first_line(write, separator, name):
    lines = ["", "user,item,timestamp", "Ann Lee,x:1,7", "Ann Lee,y.2,8"]
    path = write(name, "\n".join(line.replace(",", separator) for line in lines))
    assert rows(load_interactions(path)) == [("Ann Lee", "x:1", 7), ("Ann Lee", "y.2", 8)]


def test_the_usual_separator_takes_precedence(write):
    path = write("log.csv", "user;id,item;id\nu;1,a;1\n")
    assert rows(load_interactions(path, user=0, item=1)) == [("u;1", "a;1", 0)]


@pytest.mark.parametrize(
    ("name", "text", "right", "chosen"),
    [
        ("log.csv", "u;a;5,0;01.02.2024\nv;b;4,0;02.02.2024\n", ";", 2),  # decimal commas
        ("log.csv", "Kunde;Artikel;Preis (EUR, netto);Datum\nu;a;4,5;01.02.2024\n", ";", 2),
        ("log.csv", "u\ta;M\t5\t1700000000\nv\tb;L\t4\t1700000001\n", "\t", 2),
        ("log.dat", "u,a|M,5,1700000000\nv,b|S,4,1700000001\n", ",", 2),
        ("log.tsv", "u,a;M,5,1700000000\nv,b;S,4,1700000001\n", ",", 2),
        ("log.csv", "u;1::a;2::5::1700000000\nv;1::b;2::4::1700000001\n", "::", 3),
        ("log.txt", "u;a;5;2024-01-01 10:00\nv;b;4;2024-01-01 11:00\n", ";", 2),
    ],
)
def test_a_separator_that_fits_better_is_told(write, caplog, name, text, right, chosen):
    path = write(name, text)
    with suppress(ValueError):
        load_interactions(path)
    found = f" as separator, the first row has {chosen} columns. With {right!r}, each of the first rows has 4. "
    assert any(message.startswith(f"{name}: with ") and found in message for message in caplog.messages)
    caplog.clear()
    columns = {} if text.startswith("Kunde") else {"user": 0, "item": 1, "timestamp": 3}
    assert rows(load_interactions(path, separator=right, **columns))[0][0] in ("u", "u;1")
    assert "is the separator" not in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("log.csv", "user,item\nu,a;1\n", ("u", "a;1")),
        ("log.csv", 'u,"a;b;c"\nv,"d;e;f"\n', ("u", "a;b;c")),
        ("log.tsv", "Smith, Ann\tmug\nSmith, Bob\ttea\n", ("Smith, Ann", "mug")),
        ("log.csv", "shop|u,a\nshop|v,b\n", ("shop|u", "a")),
        ("log.txt", "u a|M b|S c|L\nv a|M d|S e|L\n", ("u", "a|M")),
        ("log.txt", "u\ta b c\nv\tb d\n", ("u", "a")),  # a user and items
        ("log.txt", "u\ta\tBig red mug\t1700000001\n" * 2 + "v\tb\tMug\t1700000000\n" * 900, ("u", "a")),
        ("log.txt", "".join(f"u{n}\ta x\tb\tc\td\n" for n in range(2000)), ("u0", "a x")),  # longer than the sample
    ],
)
def test_other_separators_in_cells_do_not_count(write, caplog, name, text, found):
    columns = {"user": 0, "item": 1} if "Big" in text else {}
    assert rows(load_interactions(write(name, text), **columns))[0][:2] == found
    assert "is the separator" not in caplog.text


def test_a_text_file_of_titles_is_separated_by_tabs(write):
    path = write("titles.txt", "1\tToy Story\n2\tHeat, or so\n")
    assert load_titles(path) == {"1": "Toy Story", "2": "Heat, or so"}


@pytest.mark.parametrize("name", ["log.txt", "log.sequences"])
def test_items_that_end_with_a_comma_are_refused(write, name):
    path = write(name, "ann, tea, cup, pot\nbob, tea, cup\n")
    with pytest.raises(
        ValueError, match=r"expected blanks between items, found 'tea,'\. Name the separator: `separator="
    ):
        load_interactions(path)
    path.write_text("ann tea\nbob tea; cup; pot;\neve x; y; z; w\n")
    with pytest.raises(ValueError, match=r"found 'tea;'.*`separator=';'` \(command line: `--separator ';'`\)"):
        load_interactions(path)
    path.write_text("ann, tea, cup, pot\nbob, tea, cup\n")
    read = load_interactions(path, format="sequences", separator=",")
    assert read["item"][:] == ["tea", "cup", "pot", "tea", "cup"]


@pytest.mark.parametrize("separator", [";", "\t", "|", "::", "~"])
@pytest.mark.parametrize("read", [load_titles, load_item_features])
def test_the_separator_of_a_table_of_items_is_found_or_named(write, read, separator):
    lines = ["item,title,brand", "1,a,x", "2,b,x"]
    path = write("table.csv", "\n".join(line.replace(",", separator) for line in lines))
    result = read(path, separator=separator)
    if separator == "~":
        convert = r"separator='\.\.\.'` \(command line: convert the file to CSV with commas, in UTF-8\)\.$"
        for options in ({}, {"item": "item"}):
            with pytest.raises(ValueError, match=convert):
                read(path, **options)
    else:
        assert str(read(path)) == str(result)
    write("table.csv", "\n".join(lines))
    assert read(path)


def test_the_advice_for_an_unusable_column_works(write):
    path = write("log.csv", "user,item,item_list\nu,a,b\n")
    with pytest.raises(ValueError, match=r"'item_list' seem .*has one value, rename the column\..*`item="):
        load_interactions(path)
    assert load_interactions(path, item="item")["item"][:] == ["a"]
    with pytest.raises(ValueError, match=r"are both the column 'user'\. Name another column, such as `item='\.\.\.'`"):
        load_interactions(path, item="user")
    with pytest.raises(ValueError, match=r"^log\.csv: user and timestamp are both the column '1'\. .*`timestamp='"):
        load_interactions(write("log.csv", "u,5\n"), user=1, item=0, timestamp=1)
    with pytest.raises(ValueError, match=r"found no columns\. Check the source"):
        load_interactions(write("log.json", "[]"))


def test_a_number_is_the_label_of_a_data_frame_before_it_is_a_position():
    frame = pd.DataFrame({3: ["x", "y"], 1: ["ann", "bob"], 2: ["tea", "cup"]})
    assert rows(load_interactions(frame, user=1, item=2)) == [("ann", "tea", 0), ("bob", "cup", 1)]
    assert rows(load_interactions(frame, user=0, item="2")) == [("x", "tea", 0), ("y", "cup", 1)]


def test_numbers_of_columns_are_a_header_after_an_index(write, caplog):  # as pandas writes columns without names
    path = write("log.csv", ",0,1,2,3\n7,1,1193,5,978300760\n")
    with pytest.raises(ValueError, match=r"expected a column for the user, found , 0, 1, 2, 3\. Name the column"):
        load_interactions(path)
    assert rows(load_interactions(path, user="0", item="1", timestamp="3")) == [("1", "1193", 978300760)]
    numbered = write("log.csv", "0,1,2\n0,2,3\n")  # may be an interaction
    assert rows(load_interactions(numbered, user=0, item=1, timestamp=2)) == [("0", "1", 2), ("0", "2", 3)]
    assert "log.csv: the first line 0, 1, 2 was read as data. If these are numbers of columns, remove" in caplog.text
    assert len(load_interactions(write("log.txt", "0 1 2 3 4\n1 2 3 4 5\n"))) == 8


@pytest.mark.parametrize(
    ("header", "used"),
    [
        ("household_key,item,timestamp", ("household_key", "timestamp")),
        ("user_pseudo_id,session_id,item,timestamp", ("user_pseudo_id", "timestamp")),
        ("anonymous_id,item,timestamp,basket_id", ("anonymous_id", "timestamp")),
        ("visitor_email,item,timestamp", ("visitor_email", "timestamp")),
        ("user,item,date,time_ms", ("user", "time_ms")),
        ("user,item,created_at,timestamp_ms", ("user", "created_at")),
        ("user,item,session_timestamp", ("user", "session_timestamp")),
        ("user,item,date_add", ("user", "date_add")),
        ("user,item,date,order_dt", ("user", "date")),
        ("user,item,order_dt,dwell_time,stay_time", ("user", "order_dt")),
    ],
)
def test_usual_names_of_web_analytics_and_shops(write, caplog, header, used):
    caplog.set_level("INFO", "hf_bert4rec")
    load_interactions(write("log.csv", f"{header}\n" + ",".join("200000000" for _ in header.split(",")) + "\n"))
    user, timestamp = used
    assert user == "user" or f"user: column {user!r}" in caplog.text
    assert timestamp == "timestamp" or f"timestamp: column {timestamp!r}" in caplog.text


@pytest.mark.parametrize(
    ("header", "row", "name", "role"),
    [
        ("session_id,sku,timestamp", "s,a,5", "session_id", "user"),
        ("user,sid,timestamp", "s,a,5", "sid", "item"),
        ("user,Document Number,timestamp", "s,a,5", "Document Number", "item"),
        ("user,item,view_time", "s,a,5", "view_time", "timestamp"),
    ],
)
def test_a_name_that_often_means_something_else_is_reported(write, caplog, header, row, name, role):
    path = write("log.csv", f"{header}\n{row}\n")
    assert rows(load_interactions(path)) == [("s", "a", 5)]
    assert f"log.csv: {name!r} is used as {role}. To confirm this, or to use another column, name it" in caplog.text
    caplog.clear()
    load_interactions(path, **{role: name})
    assert "is used as" not in caplog.text


def test_the_columns_that_were_used_are_logged(write, caplog):
    path = write("log.csv", "email,session_id,sku,order_date,timestamp_ms\na@b,s,x,2024-01-01,5\n")
    caplog.set_level("INFO", "hf_bert4rec")
    assert rows(load_interactions(path)) == [("a@b", "x", 5)]
    assert "(user: column 'email', item: column 'sku', timestamp: column 'timestamp_ms'); dropped: none." in caplog.text


@pytest.mark.parametrize("cell", ["1650498694", "20", "120.5"])
def test_a_number_is_no_time_of_day(write, cell):
    with pytest.raises(
        ValueError, match=rf"expected a time of day such as 17:30, found '{cell}'.* name it: `timestamp="
    ):
        load_interactions(write("log.csv", f"user,item,date,order_time\nu,a,2024-01-02,{cell}\n"))


@pytest.mark.parametrize("cells", [("2024.9", "2024.10"), ("12.2023", "01.2024"), ("31.01", "01.02")])
def test_months_and_days_that_are_read_as_numbers_are_reported(write, caplog, cells):
    load_interactions(write("log.csv", "user,item,date\n" + "".join(f"u,i,{cell}\n" for cell in cells)))
    assert f"timestamps such as {cells[0]!r} are read as decimal numbers. If they are months or days" in caplog.text
    caplog.clear()
    load_interactions(write("log.csv", "user,item,date\nu,i,2024.5\nu,j,2024.75\n"))
    assert "decimal" not in caplog.text


def test_several_ids_of_text_in_a_cell_are_reported(write, caplog):
    load_interactions(write("log.csv", 'user,item,timestamp\n1,"S1,S2,S3",1\n2,"S1,S3",2\n3,"S2,S9,S1",3\n'))
    assert (
        "3 item IDs such as 'S1,S2,S3' seem to contain several IDs, because the same parts are at several places"
        in caplog.text
    )
    caplog.clear()
    variants = [f"shirt {number}, {color}, {size}" for number in range(9) for color in ("red", "blue") for size in "SM"]
    frame = pd.DataFrame({"user": "u", "item": variants, "timestamp": range(len(variants))})
    load_interactions(frame)
    assert "several IDs" not in caplog.text


@pytest.mark.parametrize("date", ["04/01/2012", "Tue Apr 03 18:00:00 +0000 2012"])
def test_a_table_with_dates_of_another_form_is_not_read_as_sequences(write, date):
    path = write("log.txt", "".join(f"u{i}\ti{i % 7}\t{i % 5}\t{date}\n" for i in range(50)))
    with pytest.raises(ValueError, match="expected a column for the user, found 0, 1, 2, 3"):
        load_interactions(path)


def test_lines_that_are_read_as_sequences_are_logged(write, caplog):
    caplog.set_level("INFO", "hf_bert4rec")
    load_interactions(write("log.txt", "u a b c\nv d e f\n"))
    assert "log.txt: each line is read as a user and all items of this user. For a table with" in caplog.text


def test_a_date_with_a_short_name_is_joined_with_the_time_of_day(write):
    path = write("log.csv", "user,item,order_dt,order_time\nu,a,2024-01-02,10:00\nu,b,2024-01-03,09:00\n")
    assert [time for *_, time in rows(load_interactions(path))] == [1704189600, 1704272400]


def test_lines_that_begin_with_a_time_are_no_sequences(write):
    with pytest.raises(ValueError, match="expected a column for the user"):
        load_interactions(write("log.txt", "".join(f"{1700000000 + i} u{i} i{i % 5} 5\n" for i in range(30))))


def test_a_header_alone_has_no_rows(write):
    with pytest.raises(ValueError, match="found no rows"):
        load_interactions(write("log.csv", "user,item,timestamp\n"))


def test_values_that_look_like_names_are_no_header(write):
    path = write("log.csv", "cid,segment,page,when\n1,member,/product,5\n2,guest,/cart,6\n")
    assert len(load_interactions(path, user="cid", item="page", timestamp="when")) == 2
