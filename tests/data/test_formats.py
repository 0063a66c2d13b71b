"""Formats: every kind of file in its original form, recognized by its name and its first bytes."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from hf_bert4rec import load_interactions, load_titles
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
    path = write("log.csv", "user,item\nJosé,Ñandú\n", encoding="latin-1")
    assert rows(load_interactions(path, encoding="latin-1")) == [("José", "Ñandú", 0)]


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv: expected a file, a folder"):
        load_interactions(tmp_path / "nothing.csv")
    with pytest.raises(FileNotFoundError, match=r"expected one of ratings\.csv, .*u\.data in this folder"):
        load_interactions(tmp_path)


def test_an_unknown_format_is_refused_and_the_known_are_named(write):
    with pytest.raises(ValueError, match=r"log\.xlsx: unknown format 'xlsx'\. Name one of csv, tsv, .*format='csv'"):
        load_interactions(write("log.xlsx", "x"))
    with pytest.raises(ValueError, match=r"unknown format 'jsonlines'.*format='jsonl'"):
        load_interactions(write("log.txt", "x"), format="jsonlines")


def test_half_a_parquet_file_is_refused_by_name(tmp_path):
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table(TABLE), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"log\.parquet: cannot be read .*Parquet"):
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


def test_a_saved_dataset_dict_is_refused_with_the_split_to_pass(tmp_path):
    DatasetDict({"train": Dataset.from_dict(TABLE)}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"found DatasetDict of train\. Pass one of them: source\['train'\]"):
        load_interactions(tmp_path / "saved")
