"""A file is written whole, or not at all."""

from __future__ import annotations

import json

import pytest

from qpa_exp.files import read_json, whole_file, write_json, write_text


def test_a_file_takes_its_name_when_it_is_complete(tmp_path):
    place = tmp_path / "new" / "file.txt"
    with whole_file(place) as file:
        file.write(b"half")
        assert not place.exists()
        file.write(b" and half")
    assert place.read_bytes() == b"half and half"
    assert list(place.parent.iterdir()) == [place]


def test_what_goes_wrong_leaves_the_old_file_and_nothing_else(tmp_path):
    place = tmp_path / "file.json"
    write_json(place, {"old": 1})
    with pytest.raises(TypeError):
        write_json(place, {"new": object()})
    with pytest.raises(TypeError), whole_file(place) as file:
        file.write("text, not bytes")
    assert json.loads(place.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": ' * 9999, "\x00", "null"])
def test_what_is_no_json_object_reads_as_none(tmp_path, text):
    write_text(tmp_path / "x.json", text)
    assert read_json(tmp_path / "x.json") is None
    assert read_json(tmp_path / "missing.json") is None
