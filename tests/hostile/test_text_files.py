"""Text of the user's that is anything at all: it is read, or refused in one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qpa_exp.config import DataConfig
from qpa_exp.data.corpus import CorpusText, load_corpus
from qpa_exp.errors import InputError

GARBAGE = settings(max_examples=200, suppress_health_check=list(HealthCheck))
TEXT = "".join(f"line {i} of a text\n" for i in range(40))


def load(path: object, name: str = "text", layout: str = "blocks") -> CorpusText:
    return load_corpus(DataConfig(name=name, path=str(path), layout=layout))


def refusal(path: object, name: str = "text") -> str:
    with pytest.raises(InputError) as caught:
        load(path, name)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 700
    return sentence


def reads_or_is_refused(path: Path, name: str) -> None:
    sentence = str(path)
    try:
        load(path, name)
    except InputError as error:
        sentence = str(error)
    assert str(path) in sentence
    assert "\n" not in sentence


# --- garbage ------------------------------------------------------------------------------------


@GARBAGE
@given(content=st.one_of(st.binary(max_size=80), st.text(max_size=80).map(str.encode)))
def test_any_text_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    reads_or_is_refused(tmp_path / "a.txt", "text")


cells = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
rows = st.lists(
    st.dictionaries(
        st.sampled_from(["text", "label", "other"]), st.one_of(cells, st.lists(cells, max_size=2))
    ),
    max_size=12,
)


@GARBAGE
@given(
    content=st.one_of(
        st.binary(max_size=60),
        rows.map(lambda found: "\n".join(map(json.dumps, found)).encode()),
        st.lists(
            st.lists(st.sampled_from(["text", "label", "a", "", '"', "\n", "1"]), max_size=4),
            max_size=12,
        ).map(lambda table: "\n".join(map(",".join, table)).encode()),
    ),
    end=st.sampled_from([".csv", ".jsonl", ".parquet"]),
)
def test_any_table(tmp_path: Path, content: bytes, end: str) -> None:
    (tmp_path / f"a{end}").write_bytes(content)
    reads_or_is_refused(tmp_path / f"a{end}", "labelled")


@pytest.fixture
def proper() -> bytes:
    """A parquet file."""
    table = pyarrow.table({"text": [f"text {i}" for i in range(20)], "label": [0, 1] * 10})
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


@GARBAGE
@given(
    place=st.integers(0, 2000),
    more=st.binary(max_size=9),
    name=st.sampled_from(["text", "labelled"]),
)
def test_a_damaged_parquet_file(
    tmp_path: Path, proper: bytes, place: int, more: bytes, name: str
) -> None:
    content = proper[:place] + more + proper[place + len(more) :]
    (tmp_path / "a.parquet").write_bytes(content)
    reads_or_is_refused(tmp_path / "a.parquet", name)


# --- by kind ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["text", "labelled", "wikitext2"])
@pytest.mark.parametrize(
    "place", ["{}/loop", "{}/a\0b", "{}/" + "x" * 5000, "{}" + "/x" * 3000, "~no_such_user/a"]
)
def test_a_place_that_is_none(tmp_path: Path, place: str, name: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "data.path=" in refusal(place.format(tmp_path), name)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "directory"])
@pytest.mark.parametrize(
    ("name", "end"), [("text", ".txt"), ("labelled", ".csv"), ("labelled", ".parquet")]
)
def test_what_is_no_ordinary_file_hangs_nothing(
    tmp_path: Path, make: Callable[[Path], None], name: str, end: str
) -> None:
    for split in ("train", "validation", "test"):
        make(tmp_path / f"{split}{end}")
    assert "is no ordinary file" in refusal(tmp_path, name)
    if make is os.mkfifo:
        assert "is no ordinary file" in refusal(tmp_path / f"test{end}", name)


def test_a_device_is_no_text(tmp_path: Path) -> None:
    assert "/dev/zero is no ordinary file" in refusal("/dev/zero")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b" \n\t\n" * 90, "is blank"),
        (TEXT.encode("utf-16"), "is not UTF-8 text|bytes that are zero"),
        (TEXT.encode() + b"\0", "bytes that are zero"),
        (TEXT.encode() + b"\xff", "is not UTF-8 text"),
        (b"a" * 100_000_000, "a line of 100,000,000 characters"),
    ],
    ids=["empty", "blank", "utf-16", "zeros", "latin-1", "one line"],
)
def test_what_is_no_text(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        load(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("layout", ["lines", "blocks"])
def test_a_split_that_is_blank_is_refused(tmp_path: Path, layout: str) -> None:
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.txt").write_text(TEXT)
    (tmp_path / "validation.txt").write_text(" \n\n")
    with pytest.raises(InputError, match=r"validation split of .* is blank"):
        load(tmp_path, layout=layout)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "text,class\na,b\n", "has no column 'label'"),
        ("a.csv", "text,label\na\nb,1\n", "Row 1 .* no 'label'"),
        ("a.csv", "text,label\na,\nb,1\n", "Row 1 .* no 'label'"),
        ("a.csv", "text,label\na,0,1\nb,1,1\n", "more cells"),
        ("a.csv", "text,label\na,0\nb,1,1\n", "is not a readable csv"),
        ("a.csv", "text,label\n", "no rows"),
        ("a.csv", "text,label\n" + " ,0\n ,1\n" * 20, "is blank"),
        ("a.jsonl", '{"text": "a", "label": 0}\n{"text": "b"}\n', "Row 2 .* no 'label'"),
        ("a.jsonl", '{"text": ["a"], "label": 0}\n{"text": "b", "label": 1}\n', "array to string"),
        ("a.jsonl", "[" * 9999, "is not a readable jsonl"),
        ("a.txt", "a,b", "is no table"),
    ],
)
def test_a_table_that_is_none(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=says) as caught:
        load(tmp_path / name, "labelled")
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_as_people_have_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    place = tmp_path / "my texts" / "Bücher's = 1"
    place.mkdir(parents=True)
    (place / "a b.txt").write_text(TEXT)
    assert load("~/my texts/Bücher's = 1/a b.txt").splits["test"]
    assert load("~/my texts/Bücher's = 1").splits["test"]
