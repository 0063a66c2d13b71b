"""Text files: separators, quotation marks, blank lines, sequences, and the line of an error."""

import csv
import io
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_bert4rec import load_interactions
from tests.data.raw_logs import rows


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
    assert rows(load_interactions(write("b.dat", "\nu::a::1::978300760\n\nv::b::1::978300761\n"))) == [
        ("u", "a", 978300760),
        ("v", "b", 978300761),
    ]
    assert rows(
        load_interactions(write("c.jsonl", '\n{"user": "u", "item": "a"}\n\n{"user": "v", "item": "b"}\n'))
    ) == [("u", "a", 0), ("v", "b", 1)]
    assert rows(load_interactions(write("d.txt", "\nu a b c\n\nv d\n"))) == [
        ("u", "a", 0),
        ("u", "b", 1),
        ("u", "c", 2),
        ("v", "d", 3),
    ]


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


def test_half_a_line_far_down_a_long_file_is_found(write):
    lines = [f"{number},{number % 7},5,{978300000 + number}\n" for number in range(150_000)]
    lines[130_000] = "130000,5\n"
    with pytest.raises(ValueError, match=r"log\.csv, line 130001: expected 4 columns, found 2"):
        load_interactions(write("log.csv", "".join(lines)))


def test_a_bad_line_is_shown_with_the_separator_it_was_read_with(write):
    with pytest.raises(ValueError, match=re.escape("line 2: expected 2 columns, found 3 in 'u||a||b'")):
        load_interactions(write("log.csv", "user||item\nu||a||b\n"), separator="||")
