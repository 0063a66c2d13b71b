"""JSON lines, Python literals and arrays."""

import pytest

from hf_bert4rec import load_interactions
from tests.data.raw_logs import rows


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
