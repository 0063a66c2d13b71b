"""Formats: every kind of file in its original form; separators, quotation marks, sequences, JSON, lines of errors."""

import csv
import gzip
import io
import json
import re

import datasets
import huggingface_hub
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_bert4rec import load_interactions, load_titles
from hf_bert4rec.data.formats import FORMATS
from tests.data.raw_logs import ORIGINAL_FORMS, TABLE, TABLE_ROWS, TWO_ROWS, rows


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


def test_a_parquet_file_is_read(tmp_path):
    pq.write_table(pa.table(TABLE), tmp_path / "log.parquet")
    assert rows(load_interactions(tmp_path / "log.parquet")) == TABLE_ROWS


def test_a_folder_of_save_to_disk_is_read(tmp_path):
    Dataset.from_dict(TABLE).save_to_disk(tmp_path / "saved")
    assert rows(load_interactions(tmp_path / "saved")) == TABLE_ROWS


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


def test_a_file_whose_ending_does_not_tell_is_read_as_told(write):
    path = write("log.unknown", ORIGINAL_FORMS["u.data"][0])
    assert rows(load_interactions(path, format="tsv")) == TWO_ROWS


def test_a_latin_1_file_is_read_with_its_encoding(write):
    for encoding in ("utf-8", "latin-1"):  # of the titles of MovieLens 10M, and of MovieLens 1M
        assert load_titles(write("movies.dat", "1::Misérables, Les::Drama\n", encoding)) == {"1": "Misérables, Les"}
    path = write("log.csv", "user,item\nJosé,Ñandú\n", encoding="latin-1")
    assert rows(load_interactions(path, encoding="latin-1")) == [("José", "Ñandú", 0)]


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv: found no such file or folder"):
        load_interactions(tmp_path / "nothing.csv")
    with pytest.raises(FileNotFoundError, match=r"expected ratings\.csv or .*u\.data in this folder, found none"):
        load_interactions(tmp_path)


def test_an_unknown_format_is_refused_and_the_known_are_named(write):
    with pytest.raises(ValueError, match=r"log\.xlsx: unknown format 'xlsx'\. Choose from csv, tsv, .*format='csv'"):
        load_interactions(write("log.xlsx", "x"))
    with pytest.raises(ValueError, match=r"unknown format 'jsonlines'.*format='jsonl'"):
        load_interactions(write("log.txt", "x"), format="jsonlines")


def test_half_a_parquet_file_is_refused_by_name(tmp_path):
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table(TABLE), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"log\.parquet: cannot be read .*Parquet"):
        load_interactions(path)


def test_half_a_gzip_file_and_one_that_is_none_are_refused_by_name(tmp_path):
    text = "".join(f"{n},{n * 7919 % 1000},5,{n}\n" for n in range(2000)).encode()
    whole = gzip.compress(text)
    for content in (whole[: len(whole) // 2], text):
        (tmp_path / "ratings.csv.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"^ratings\.csv\.gz: cannot be read .*Save or download it again"):
            load_interactions(tmp_path / "ratings.csv.gz")


def test_a_dataset_of_the_hub_is_read(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    huggingface_hub.create_repo("org/log", repo_type="dataset")
    upload = {"repo_id": "org/log", "repo_type": "dataset", "path_in_repo": "train.csv"}
    huggingface_hub.upload_file(path_or_fileobj=b"user,item,timestamp\nu,a,1\n", **upload)
    assert rows(load_interactions("org/log")) == [("u", "a", 1)]
    with pytest.raises(ValueError, match=r"^org/nothing: cannot be read .*the path or the Hub ID\. .* the network too"):
        load_interactions("org/nothing")


def test_a_saved_dataset_dict_is_refused_with_the_split_to_pass(tmp_path):
    DatasetDict({"train": Dataset.from_dict(TABLE)}).save_to_disk(tmp_path / "saved")
    with pytest.raises(
        ValueError,
        match=r"found DatasetDict with the keys train\. Of a DatasetDict, pass one split, .* or its saved subfolder",
    ):
        load_interactions(tmp_path / "saved")


# ---- text ------------------------------------------------------------------------------------------------------------


def test_a_comma_in_a_field_of_a_csv_with_semicolons_is_kept(write):
    path = write("log.csv", "user;item;timestamp\nu;a,b;1\n")
    assert rows(load_interactions(path)) == rows(load_interactions(path, separator=";")) == [("u", "a,b", 1)]


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


@pytest.mark.parametrize(
    "content",
    [
        *('{"user": "u"}\n', "{u'user': u'u'}\n", '[\n {"user": "u"}]', "{'user': 'u'}"),
        *('[{"user": null}, {"user": [1]}]', '[{"user": "u"},\n{"user": "v"}]', '{\n  "user": "u",\n  "item": 1\n}\n'),
    ],
)
@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.txt", "log.sequences"])
def test_json_in_a_file_of_rows_is_refused_with_its_format(write, name, content):
    with pytest.raises(ValueError, match=r"^log\..*: the file contains JSON\. Name the format: `format='jsonl'`"):
        load_interactions(write(name, content))


def test_ids_in_braces_are_no_json(write):
    assert rows(load_interactions(write("log.csv", "{0A-1},a\n{0A-2},b\n")))[0] == ("{0A-1}", "a", 0)
    for cell in ('{"x": 1}', '{"x'):
        assert rows(load_interactions(write("log.tsv", f"{cell}\ta\n{cell}\tb\n")))[0] == (cell, "a", 0)


def test_the_advice_for_sequences_with_commas_works(write):
    path = write("log.csv", "u1,a,b\nu2,a,b,c,d\n" * 10)
    with pytest.raises(ValueError, match=r"\(2, 4, .*18 and 1 more\).*name separator and format: `format='sequences'`"):
        load_interactions(path, user=0, item=1)
    with pytest.raises(ValueError, match=r"expected a user and items, found only 'u1,a,b'.* name the separator"):
        load_interactions(path, format="sequences")
    with pytest.raises(ValueError, match=r"name the separator of the file: `separator='\.\.\.'`"):
        load_interactions(write("one.csv", "u1,a\nu2\n"), format="sequences", separator=",")
    assert rows(load_interactions(path, format="sequences", separator=","))[:3] == [
        ("u1", "a", 0),
        ("u1", "b", 1),
        ("u2", "a", 2),
    ]


def test_a_header_in_the_middle_is_refused_with_its_line(write):
    with pytest.raises(ValueError, match=r"line 4: expected values, found the header again\..*\(number of lines: 2\)"):
        load_interactions(write("log.csv", "user,item\nu,a\n\nuser,item\nu,b\nuser,item\n"))
    assert len(load_interactions(write("same.csv", "user,item\nuser,a\nu,item\n"))) == 2


@pytest.mark.parametrize(("name", "text"), [("log.csv", "sep=;\n"), ("log.txt", "\n" * 1200 + "user\n")])
def test_a_file_without_rows_has_an_error_of_its_own(write, name, text):
    with pytest.raises(ValueError, match=rf"^{name}.*(found no rows|expected a column for the item)"):
        load_interactions(write(name, text))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("line", ["sep=;", "SEP=;", '"sep=;"'])
def test_the_first_line_of_excel_names_the_separator(write, end, line):
    path = write("log.csv", end.join([line, "user;item;timestamp", "u;a,b;1", '"v;w";c;2', ""]))
    assert rows(load_interactions(path)) == [("u", "a,b", 1), ("v;w", "c", 2)]
    with pytest.raises(ValueError, match=r"log\.csv, line 3: found 'x'"):
        load_interactions(write("log.csv", end.join(["sep=,", "user,item,timestamp", "u,a,x", ""])))


@pytest.mark.parametrize("name", ["log.tsv", "log.csv"])
def test_a_quoted_header_shows_that_cells_are_quoted(write, name):  # as R writes tables
    path = write(name, '"user_id"\t"item"\t"timestamp"\n"u"\t"a\tb"\t5\n')
    assert rows(load_interactions(path)) == [("u", "a\tb", 5)]
    path = write(name, '"user_id"\t"item"\t"timestamp"\nu\t"Heroes\t5\nv\tBlack "\t6\n')  # only the header is quoted
    if name == "log.tsv":  # cells of csv may always be quoted
        assert rows(load_interactions(path)) == [("u", '"Heroes', 5), ("v", 'Black "', 6)]
    path = write(name, '"user_id"\t"item"\t"timestamp"\n1\tNA\t4\n2\t"a"\t5\n')
    assert rows(load_interactions(path)) == [("1", "NA", 4), ("2", "a", 5)]


def test_a_long_separator_may_be_part_of_a_quoted_cell(write):
    path = write("log.csv", 'user::item::timestamp\n"u::v"::a::5\n')
    assert rows(load_interactions(path, separator="::")) == [("u::v", "a", 5)]


@pytest.mark.parametrize(("name", "separator"), [("log.tsv", "\t"), ("log.txt", " ")])
def test_ids_in_quotation_marks_are_reported(write, caplog, name, separator):
    header = f'user{separator}"item"' if name == "log.tsv" else '"user" "item"'
    path = write(name, f'{header}\n"u"{separator}"a"\n')
    assert rows(load_interactions(path)) == [('"u"', '"a"', 0)]
    assert """the user ID of 1 row ('"u"') is in quotation marks""" in caplog.text
    assert "remove them. For a text file other than csv, `format='csv'` with `separator` does this" in caplog.text
    assert rows(load_interactions(path, format="csv", separator=separator)) == [("u", "a", 0)]


def test_a_tab_separated_file_may_begin_with_an_unnamed_column(write):
    path = write("log.tsv", "\tuser\titem\n0\tu\ta\n1\tv\tb\n")
    assert rows(load_interactions(path)) == [("u", "a", 0), ("v", "b", 1)]


def test_blanks_may_repeat_between_user_and_item(write):
    assert rows(load_interactions(write("pairs.txt", "1  10\n2\t 11 \n"))) == [("1", "10", 0), ("2", "11", 1)]


def test_sequences_are_told_from_pairs_in_short_files_and_by_long_lines(write):
    assert len(load_interactions(write("short.txt", "u a b c\nv d"))) == 4
    assert len(load_interactions(write("long.txt", f"u {'item ' * 4000}\nv d\nw e f\n"))) == 4003


@pytest.mark.parametrize("text", ["user_id item_id timestamp rating\n1 a 5\n", "user item\n1 a b c\n"])
def test_a_header_is_no_sequence(write, text):
    with pytest.raises(ValueError, match=r"^log\.txt, line 1: expected a user and items, found a header\. Remove this"):
        load_interactions(write("log.txt", text))
    rest = write("rest.txt", text.partition("\n")[2])
    assert load_interactions(rest, format="sequences")["user"][0] == "1"


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


# ---- JSON ------------------------------------------------------------------------------------------------------------


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


def test_a_key_that_the_first_json_line_lacks_is_read_all_the_same(write):
    path = write("log.jsonl", '{"user": "u", "item": "a"}\n{"user": "u", "item": "b", "timestamp": 7}\n')
    assert rows(load_interactions(path)) == [("u", "b", 7)]


def test_json_lines_are_read_once_if_the_column_of_the_time_is_named(write, monkeypatch):
    parsed = []
    monkeypatch.setattr(
        "hf_bert4rec.data.json_objects.parse_literal", lambda text: parsed.append(text) or json.loads(text)
    )
    path = write("log.jsonl", "".join(f'{{"user": "u", "item": "a", "zeit": {row}}}\n' for row in range(1500)))
    assert len(load_interactions(path, timestamp="zeit")) == 1500
    assert len(parsed) == 1000  # Arrow reads the rows; these were read for the names of the columns


def test_a_time_that_the_first_1000_json_lines_lack_is_read_all_the_same(write):
    lines = ['{"user": "u", "item": "a"}\n'] * 1500 + ['{"user": "u", "item": "b", "timestamp": 7}\n']
    assert rows(load_interactions(write("log.jsonl", "".join(lines)))) == [("u", "b", 7)]


def test_a_format_of_ones_own_must_return_a_table(write, monkeypatch):
    path = write("log.shop", "anything")
    monkeypatch.setitem(FORMATS, "Shop", lambda file: pa.table(TABLE))
    assert rows(load_interactions(path, format="Shop")) == TABLE_ROWS
    monkeypatch.setitem(FORMATS, "shop", lambda file: list(TABLE))
    with pytest.raises(ValueError, match=r"^log\.shop: expected a table from the format 'shop' \(.*, found list\. "):
        load_interactions(path)


def test_lines_before_the_header_are_an_error(write):  # as in exports of web analytics
    text = "# Report\n# 20240101-20240131\n\nuser_id,item_id,timestamp\n1,a,3\n"
    with pytest.raises(
        ValueError, match=r"log\.csv: found the usual names of columns in line 4, below other lines\. If"
    ):
        load_interactions(write("log.csv", text))


@pytest.mark.parametrize("orient", ["columns", "index", "split"])
def test_json_that_is_not_one_object_per_row_names_how_to_write_it(write, orient):
    frame = pd.DataFrame({"user": ["u"], "item": ["i"], "timestamp": [1]})
    with pytest.raises(ValueError, match=r"expected one object per row, found one object with the keys .*lines=True"):
        load_interactions(write("log.json", frame.to_json(orient=orient)))
    assert len(load_interactions(write("log.json", frame.to_json(orient="records")))) == 1
    assert len(load_interactions(write("log.ndjson", frame.to_json(orient="records", lines=True)))) == 1
