"""What ``data.path`` may be: every form gives the same documents, or is refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from qpa_exp.config import DataConfig, validate
from qpa_exp.data.corpus import comes_from_the_hub, load_corpus, split_name
from qpa_exp.data.sources import COMPRESSED, find
from qpa_exp.errors import InputError

TEXTS = [f"the circuit of row {i}, and what\nit measures" for i in range(20)]
ROWS = [{"id": i, "text": text, "url": f"a{i}"} for i, text in enumerate(TEXTS)]


def load(path, name: str = "text", **fields):
    return load_corpus(
        DataConfig(name=name, path=path if isinstance(path, list) else str(path), **fields)
    )


def table() -> datasets.Dataset:
    return datasets.Dataset.from_list(ROWS)


def _lines(file: Path, rows=ROWS) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(autouse=True)
def _no_bars():
    datasets.disable_progress_bars()


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": _lines,
    "a.JSONL": _lines,
    "a.ndjson": _lines,
    "a.json": lambda file: file.write_text(json.dumps(ROWS, indent=1)),
    "a.csv": lambda file: table().to_csv(file),
    "a.tsv": lambda file: table().to_csv(file, sep="\t"),
    "a.parquet": lambda file: table().to_parquet(file),
    "saved": lambda file: table().save_to_disk(file),
    "a[1] b::c.jsonl": _lines,
    "data-00000-of-00001.arrow": lambda file: (
        table().save_to_disk(file.parent / "s") or (file.parent / "s" / file.name).rename(file)
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_table_is_divided_row_by_row_whatever_its_form(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    corpus = load(tmp_path / name)
    assert [len(rows) for rows in corpus.splits.values()] == [16, 2, 2]
    assert [text for rows in corpus.splits.values() for text in rows] == TEXTS
    lines = load(tmp_path / name, layout="lines", column="text")
    assert lines.splits == corpus.splits
    assert lines.sha256 == corpus.sha256


@pytest.mark.parametrize(
    "pattern",
    [
        "{}.jsonl",
        "{}.csv",
        "data/{}-00000-of-00001.parquet",
        "{}/part.jsonl",
        "{}/deep/0.csv",
        "dict",
    ],
)
def test_files_and_folders_have_the_same_splits(tmp_path: Path, pattern: str) -> None:
    parts = {"train": ROWS[:10], "validation": ROWS[10:15], "test": ROWS[15:]}
    made = {split: datasets.Dataset.from_list(rows) for split, rows in parts.items()}
    if pattern == "dict":
        datasets.DatasetDict(made).save_to_disk(tmp_path)
    for split, rows in made.items():
        if pattern != "dict":
            file = tmp_path / pattern.format("dev" if split == "validation" else split)
            file.parent.mkdir(parents=True, exist_ok=True)
            getattr(rows, f"to_{file.suffix[1:].replace('jsonl', 'json')}")(file)
    (tmp_path / "README.md").write_text("# what it is\n")
    corpus = load(tmp_path)
    assert [len(rows) for rows in corpus.splits.values()] == [10, 5, 5]
    one = load(tmp_path, split="train")
    assert [len(rows) for rows in one.splits.values()] == [8, 1, 1]
    assert one.splits["train"] == TEXTS[:8]
    part = load(tmp_path, split="train[:50%]+test")
    assert sum(map(len, part.splits.values())) == 10
    sliced = load(tmp_path, validation_split="train[8:]", train_split="train[:8]")
    assert sliced.splits["train[8:]"] == TEXTS[8:10]


@pytest.mark.parametrize("end", [".md", ".txt"])
def test_folders_lists_and_globs_of_text(tmp_path: Path, end: str, monkeypatch) -> None:
    texts = {f"{name}{end}": f"{name}\n" * 4 for name in ("a", "deep/b", "deep/er/c", "README")}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    wanted = "".join(texts[name] for name in sorted(texts))
    files = [str(tmp_path / name) for name in sorted(texts)]
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, files, f"**/*{end}", f"{tmp_path}/**/*{end}"):
        splits = load(path).splits
        assert "".join(text for split in splits.values() for text in split) == wanted
    (tmp_path / "more.rst").write_text("more\n")
    with pytest.raises(InputError, match=r"more than one kind .* cannot be told"):
        load(tmp_path)
    assert len(load([*files, "more.rst"]).splits["test"]) == 1  # they were named


def test_a_dataset_of_the_hub_is_asked_for_by_its_id(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)

    def load_dataset(id, name, *, revision):
        assert (id, name, revision) == ("owner/name", "small", "main")
        return datasets.DatasetDict({"train_sft": table(), "test": table()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    given = {"subset": "small", "split": "train_sft"}
    assert load("owner/name", **given).splits["train"] == TEXTS[:16]
    assert load("owner/name", **given).source == "owner/name small (main)"
    with pytest.raises(InputError, match=r"no split 'train' .* data\.split=test"):
        load("owner/name", subset="small")
    assert comes_from_the_hub(DataConfig(name="text", path="owner/name"))
    (tmp_path / "owner").mkdir()
    _lines(tmp_path / "owner" / "name.jsonl")
    assert not comes_from_the_hub(DataConfig(name="text", path="owner/name.jsonl"))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"nobody/none .* could not be read .* no such path here"):
        load("nobody/none")
    with pytest.raises(InputError, match=r"owner/none does not exist"):
        load("owner/none")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"a": "x", "b": "y"}\n' * 9, r"several columns of text.*data\.column="),
        ("a.csv", "a,b\nx,y\n", r"several columns of text.*data\.column="),
        ("a.jsonl", '{"a": 1}\n' * 9, r"no column 'text' or 'sentence'"),
        ("a.jsonl", '{"text": {"en": "x"}}\n' * 9, "holds nested values"),
        ("a.jsonl", '{"text": ["x"]}\n' * 9, "holds nested values"),
        ("a.jsonl", '{"text": null}\n' * 9, "holds nothing"),
        ("a.jsonl", '{"text": ""}\n' * 9, "is empty"),
        ("a.jsonl", '{"text": "a"}\n{"other": "b"}\n', "Row 2 .* has no 'text'"),
        ("a.jsonl", '{"text": "a"}\n{"text": 5}\n', "not a readable jsonl file.*row 1"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b\n{"text": "c"}\n', "not a readable jsonl file"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b', "not a readable jsonl file"),
        ("a.jsonl", '{"text": "é"}\n'.encode("latin-1"), "is not UTF-8 text"),
        ("a.csv", "text\né\n".encode("utf-16"), "is not UTF-8 text|zero"),
        ("a.csv", "text,n\na,1\n,2\n", "Row 2 .* has no 'text'"),
        ("a.csv", "n,text\n1,a\n2\n", "Row 2 .* has no 'text'"),
        ("a.csv", "n,text\n1,a\n2,b,c\n", "not a readable csv file"),
        ("a.csv", "n,text\n1,a,b\n2,b,c\n", "more cells"),
        ("a.csv", 'text\n"a\nb\n', "not a readable csv file"),
        ("a.csv", "text;n\na;1\n", "one column, 'text;n': part its cells by commas"),
        ("a.csv", "text,text\na,b\n", "two columns 'text'"),
        ("a.csv", "It is a text without a header\nand so on\n", "no column 'text'"),
        ("a.csv", "text\n1\n2\n", "holds int64"),
        ("a.jsonl", "\n\n", "has no rows"),
        ("a.txt", '{"text": "a"}\n{"text": "b"}\n', r"holds JSON.*\.jsonl"),
        ("a.md", '[\n {"text": "a"}\n]', r"holds JSON.*\.jsonl"),
        ("a", '{"text": "a"}\n', r"holds JSON.*\.jsonl"),
        ("a.parquet", b"PAR1" * 9, "not a readable parquet file"),
        ("a.jsonl", '{"prompt": "a", "completion": "b"}\n', "data=instruct"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "b"}]}\n', "data=instruct"),
        ("saved/state.json", '{"_data_files": [{"filename": "../x"}]}', "is '../x'"),
        ("saved/dataset_dict.json", "{}", "not a dataset that save_to_disk wrote"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(
    tmp_path: Path, name: str, content, says: str
) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=says) as caught:
        load(file.parent if file.parent != tmp_path else file)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("files", "path", "says"),
    [
        ({"a.txt": "a\n", "b.jsonl": '{"text": "a"}\n'}, "{}", "more than one kind"),
        ({"train.csv": "text\na\n", "train.jsonl": '{"text": "a"}'}, "{}", "once and whole"),
        ({"train.csv": "text\na\n", "test.txt": "a"}, "{}", "splits of more than one kind"),
        ({"deep/train.txt": "a\n", "deep/test.txt": "b\n"}, "{}", r"give data\.path=.*deep"),
        ({"train.txt": "a\n", "b.txt": "b\n"}, "{}/*.txt", "whose split cannot be told"),
        ({"a.txt": "a\n"}, "{}/*.md", "matches no file"),
        ({"a.jsonl": '{"text": "a"}', "b.jsonl": '{"text": {"a": 1}}'}, "{}", "same columns"),
        ({"a/b.txt": "a\n"}, ["{}/a"], "is a directory"),
        ({"b.txt": "a\n"}, ["{}/b.txt", "{}/b.txt"], "twice"),
        ({"b.txt": "a\n"}, ["{}/b.txt", "{}/c.txt"], "c.txt does not exist"),
    ],
)
def test_files_that_cannot_be_told_apart_are_refused(tmp_path: Path, files, path, says) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    given = [p.format(tmp_path) for p in path] if isinstance(path, list) else path.format(tmp_path)
    with pytest.raises(InputError, match=says) as caught:
        load(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", [[], "", 5, ["a", 5], {"a": "b"}])
def test_a_path_that_is_none_is_refused(path) -> None:
    with pytest.raises(InputError, match="is no path"):
        validate(DataConfig(name="text", path=path), "data.")


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "tmp").mkdir()
    _lines(tmp_path / "a.jsonl")
    load(tmp_path / "a.jsonl")
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["a.jsonl", "tmp"]


# --- split files by whatever their names are made of -------------------------------------------

NAMES = [
    ("{}-00000-of-00001-a09b74b3ef9c3b56.parquet", ["train", "test"]),
    ("data/{}-00000-of-00001.parquet", ["train", "validation"]),
    ("wikitext-{}.arrow", ["train", "test"]),
    ("wikitext-{}-00000-of-00001.arrow", ["train", "test"]),
    ("{}_data.jsonl", ["train", "test"]),
    ("alpaca_{}.jsonl", ["train", "dev", "test"]),
    ("{}.csv", ["Train", "Test"]),
    ("{}.txt", ["training", "testing"]),
    ("en_{}/0.txt", ["train", "test"]),
    ("wiki.{}.tokens", ["train", "valid"]),
]


@pytest.mark.parametrize(("pattern", "names"), NAMES)
@pytest.mark.parametrize("listed", [False, True])
def test_what_is_tested_is_never_trained(tmp_path: Path, pattern: str, names, listed: bool) -> None:
    files = [tmp_path / pattern.format(name) for name in names]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text("x\n")
    if listed and "/0" in pattern:
        return  # files of one name
    path = [str(file) for file in files] if listed else str(tmp_path)
    found = find(DataConfig(name="text", path=path), None)
    assert {split: len(files) for split, files in found.splits.items()} == {
        split_name(name.lower()): 1 for name in names
    }


@pytest.mark.parametrize(
    "names",
    [["constraint.txt", "contest.txt"], ["test_a.md", "test_b.md"], ["to_train.md", "a.md"]],
)
def test_documents_may_have_such_words_in_their_names(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("x\n")
    assert set(find(DataConfig(name="text", path=str(tmp_path)), None).splits) == {None}


def test_what_stands_beside_such_splits_is_not_left_out(tmp_path: Path) -> None:
    for name in ("my_train.txt", "my_test.txt", "third.txt"):
        (tmp_path / name).write_text("x\n")
    with pytest.raises(InputError, match=r"third\.txt, whose split cannot be told"):
        load(tmp_path)


@pytest.mark.parametrize("end", COMPRESSED)
@pytest.mark.parametrize("form", ["file", "folder", "list"])
def test_compressed_data_is_not_left_out_either(tmp_path: Path, end: str, form: str) -> None:
    _lines(tmp_path / "a.jsonl")
    packed = tmp_path / f"b.jsonl{end}"
    packed.write_bytes(b"\x1f\x8b")
    path = {"file": packed, "folder": tmp_path, "list": [str(tmp_path / "a.jsonl"), str(packed)]}
    with pytest.raises(InputError, match=rf"b\.jsonl{end} is compressed: unpack it first"):
        load(path[form])


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("a.txt", {"column": "text"}),
        ("a.txt", {"subset": "en"}),
        ("a.jsonl", {"revision": "abc"}),
        ("a.jsonl", {"subset": "en"}),
    ],
)
def test_a_key_that_this_path_has_no_use_for_is_refused(tmp_path: Path, name, fields) -> None:
    _lines(tmp_path / "a.jsonl")
    (tmp_path / "a.txt").write_text("".join(f"line {i}\n" for i in range(30)))
    ((key, value),) = fields.items()
    with pytest.raises(InputError, match=f"^data.{key}={value} .*: leave it out"):
        load(tmp_path / name, **fields)


def test_a_table_in_one_line_is_as_long_as_its_texts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("qpa_exp.data.sources._LONGEST_LINE", 200)
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    assert load(tmp_path / "a.json").splits["train"] == TEXTS[:16]
    (tmp_path / "a.txt").write_text("a" * 201)
    with pytest.raises(InputError, match="has a line of 201 characters"):
        load(tmp_path / "a.txt")


# --- classes ------------------------------------------------------------------------------------


def _labelled(place: Path, labels, feature=None, split: str = "a") -> Path:
    rows = datasets.Dataset.from_list([{"text": f"text {i}", "label": x} for i, x in labels])
    file = place / f"{split}.parquet"
    (rows.cast_column("label", feature) if feature else rows).to_parquet(file)
    return file


def test_classes_have_the_order_of_their_dataset(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["world", "sports", "a third that no row has"])
    file = _labelled(tmp_path, enumerate([0, 1] * 10), names)
    corpus = load(file, "labelled", layout="lines")
    assert corpus.class_names == names.names
    assert corpus.classes["train"] == [0, 1] * 8


@pytest.mark.parametrize("kind", [int, float])
def test_numbers_are_sorted_as_numbers(tmp_path: Path, kind: type) -> None:
    file = _labelled(tmp_path, enumerate(map(kind, [*range(12)] * 10)))
    corpus = load(file, "labelled", layout="lines")
    assert corpus.class_names == [str(n) for n in range(12)]


@pytest.mark.parametrize(
    "names", [["1", "nan"], ["01", "1", "1.0"], ["-2", "inf"], ["10", "9", "a"], ["9", "10"]]
)
def test_classes_have_one_order_whatever_looks_like_a_number(tmp_path: Path, names) -> None:
    rows = [{"text": f"text {i}", "label": name} for i, name in enumerate(names[::-1] * 12)]
    _lines(tmp_path / "a.jsonl", rows)
    assert load(tmp_path / "a.jsonl", "labelled", layout="lines").class_names == names


@pytest.mark.parametrize("unlabelled", [-1, None])
def test_a_split_without_labels_may_be_there_unused(tmp_path: Path, unlabelled) -> None:
    names = datasets.ClassLabel(names=["bad", "good"])
    for split in ("train", "validation"):
        _labelled(tmp_path, enumerate([0, 1] * 10), names, split)
    rows = {"text": ["a", "b"], "label": [unlabelled] * 2}
    features = datasets.Features(text=datasets.Value("string"), label=names)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "test.parquet")
    used = {"test_split": "validation", "layout": "lines"}
    assert load(tmp_path, "labelled", **used).class_names == ["bad", "good"]
    with pytest.raises(
        InputError, match=rf"^Row 1 of .*test\.parquet has no 'label' \({unlabelled}"
    ):
        load(tmp_path, "labelled", layout="lines")
