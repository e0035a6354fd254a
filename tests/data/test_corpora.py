from __future__ import annotations

import itertools
import platform
from pathlib import Path
from pydoc_data.topics import topics

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qpa_exp.config import DataConfig
from qpa_exp.data.corpora.pydoc import divide_topics, long_paragraphs
from qpa_exp.data.corpus import CORPORA, divide_by_position, load_corpus
from qpa_exp.errors import InputError


def config(name: str, path=None, **fields) -> DataConfig:
    return DataConfig(name=name, path=None if path is None else str(path), **fields)


def only(split: str) -> dict[str, str]:
    return {"train_split": split, "validation_split": split, "test_split": split}


# --- pydoc -----------------------------------------------------------------------------------


def test_no_paragraph_of_a_pydoc_split_is_in_another():
    splits = load_corpus(config("pydoc")).splits
    paragraphs = {s: set().union(*map(long_paragraphs, d)) for s, d in splits.items()}
    for a, b in itertools.combinations(paragraphs, 2):
        assert paragraphs[a]
        assert not paragraphs[a] & paragraphs[b]
    # The check is worth something only if topics do share paragraphs.
    assert long_paragraphs(topics["specialnames"]) & long_paragraphs(topics["attribute-access"])


def test_pydoc_splits_are_all_topics_once_in_sensible_shares():
    corpus = load_corpus(config("pydoc"))
    assert list(corpus.splits) == ["train", "validation", "test"]
    documents = [d for split in corpus.splits.values() for d in split]
    assert sorted(documents) == sorted(topics.values())
    size = {s: sum(map(len, d)) / sum(map(len, documents)) for s, d in corpus.splits.items()}
    assert size["train"] > 0.75
    assert 0.07 < size["validation"] <= 0.10
    assert 0.09 < size["test"] <= 0.12
    assert corpus.source == f"CPython {platform.python_version()} pydoc_data.topics"
    names = divide_topics(topics)
    assert all(list(n) == sorted(n) for n in names.values())
    assert corpus.splits["test"] == [topics[name] for name in names["test"]]


def test_dividing_topics_does_not_depend_on_their_order():
    assert divide_topics(dict(reversed(topics.items()))) == divide_topics(topics)


def test_sharing_is_transitive_and_ignores_white_space():
    long = {c: f"{c} " * 50 for c in "xyz"}
    chained = {
        "a": long["x"],
        "b": long["x"].replace(" ", "\n  ") + "\n\n" + long["y"],
        "c": "short\n \n" + long["y"],
    }
    others = {f"t{i}": f"{i} " * 50 for i in range(60)}
    for names in divide_topics(chained | others).values():
        assert len(chained.keys() & set(names)) in (0, 3)


def test_pydoc_lines_are_every_line_blank_ones_included():
    blocks = load_corpus(config("pydoc"))
    lines = load_corpus(config("pydoc", layout="lines"))
    text = "".join(blocks.splits["test"])
    assert lines.splits["test"] == text.removesuffix("\n").split("\n")
    assert "" in lines.splits["test"]
    assert lines.sha256 == blocks.sha256


def test_pydoc_refuses_a_path(tmp_path):
    with pytest.raises(InputError, match="data=text"):
        load_corpus(config("pydoc", tmp_path))


# --- WikiText-2 and Penn Treebank ------------------------------------------------------------

WIKITEXT = " \n = Title = \n \n One line , with \x0c and \u2028 in it . \n"
WIKITEXT_ROWS = ["", " = Title = \n", "", " One line , with \x0c and \u2028 in it . \n"]


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "valid.txt", "test.txt"),
        ("wiki.train.raw", "wiki.valid.raw", "wiki.test.raw"),
        ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
        ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"),
        ("train.txt", "val.txt", "test.txt"),
        ("train.txt", "dev.txt", "test.txt"),
        tuple(f"wikitext-2-raw-v1/{split}.txt" for split in ("train", "validation", "test")),
    ],
)
def test_wikitext_files_give_the_hubs_rows(tmp_path, names):
    for i, name in enumerate(names):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(WIKITEXT + f"{i} \n", encoding="utf-8")
    for layout in ("lines", "blocks"):
        corpus = load_corpus(config("wikitext2", tmp_path, layout=layout))
        assert list(corpus.splits) == ["train", "validation", "test"]
        assert [rows[:-1] for rows in corpus.splits.values()] == [WIKITEXT_ROWS] * 3
        assert [rows[-1] for rows in corpus.splits.values()] == ["0 \n", "1 \n", "2 \n"]
        assert corpus.source == str(tmp_path)


def test_windows_line_ends_make_no_difference(tmp_path):
    (tmp_path / "test.txt").write_bytes(WIKITEXT.replace("\n", "\r\n").encode())
    corpus = load_corpus(config("wikitext2", tmp_path, **only("test")))
    assert corpus.splits["test"] == WIKITEXT_ROWS


def test_ptb_files_give_stripped_sentences(tmp_path):
    (tmp_path / "ptb.valid.txt").write_text(" no it was n't \n\n <unk> N \n")
    corpus = load_corpus(config("ptb", tmp_path, **only("valid")))
    assert corpus.splits == {"validation": ["no it was n't", "", "<unk> N"]}


@pytest.mark.parametrize(
    ("corpus", "column", "pattern"),
    [
        ("wikitext2", "text", "wikitext-2-raw-v1/{}-00000-of-00001.parquet"),
        ("wikitext2", "text", "{}-00000-of-00001.parquet"),
        ("ptb", "sentence", "penn_treebank/{}/0000.parquet"),
        ("ptb", "sentence", "{}.parquet"),
    ],
)
def test_the_hubs_own_parquet_files_are_read_as_they_are(tmp_path, corpus, column, pattern):
    for split in ("train", "validation", "test"):
        file = tmp_path / pattern.format(split)
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"n": [1, 2], column: [f" {split} \n", ""]}), file)
    splits = load_corpus(config(corpus, tmp_path)).splits
    assert splits == {s: [f" {s} \n", ""] for s in ("train", "validation", "test")}


def test_parquet_shards_are_read_in_order_and_must_be_complete(tmp_path):
    for i in (1, 0):
        table = pa.table({"text": [str(i)]})
        pq.write_table(table, tmp_path / f"test-0000{i}-of-00002.parquet")
    wanted = config("wikitext2", tmp_path, **only("test"))
    assert load_corpus(wanted).splits == {"test": ["0", "1"]}
    (tmp_path / "test-00000-of-00002.parquet").unlink()
    with pytest.raises(InputError, match="once and whole"):
        load_corpus(wanted)


def test_two_files_for_one_split_are_refused(tmp_path):
    for name in ("test.txt", "wiki.test.raw"):
        (tmp_path / name).write_text("a\n")
    with pytest.raises(InputError, match=r"test\.txt, wiki\.test\.raw"):
        load_corpus(config("wikitext2", tmp_path, **only("test")))


@pytest.mark.parametrize("columns", [{"n": [1]}, {"text": [1]}, {"text": [None]}])
def test_parquet_without_text_is_refused(tmp_path, columns):
    pq.write_table(pa.table(columns), tmp_path / "test.parquet")
    with pytest.raises(InputError, match=r"test\.parquet"):
        load_corpus(config("wikitext2", tmp_path, **only("test")))


def test_broken_parquet_is_refused(tmp_path):
    (tmp_path / "test.parquet").write_text("no parquet")
    with pytest.raises(InputError, match="not a readable parquet"):
        load_corpus(config("ptb", tmp_path, **only("test")))


def test_only_the_named_splits_need_exist(tmp_path):
    (tmp_path / "valid.txt").write_text("v\n")
    (tmp_path / "test.txt").write_text("t\n")
    corpus = load_corpus(config("ptb", tmp_path, train_split="valid"))
    assert corpus.splits == {"validation": ["v"], "test": ["t"]}
    with pytest.raises(InputError, match=r"no split 'train' in .* has validation, test"):
        load_corpus(config("ptb", tmp_path))


@pytest.mark.parametrize("name", ["extra", ""])
def test_an_unknown_split_is_refused(name):
    with pytest.raises(InputError, match="which has train, validation, test"):
        load_corpus(config("pydoc", test_split=name))


@pytest.mark.parametrize("corpus", ["wikitext2", "ptb", "text"])
def test_unusable_paths_are_refused(tmp_path, corpus):
    with pytest.raises(InputError, match=r"missing does not exist"):
        load_corpus(config(corpus, tmp_path / "missing"))
    with pytest.raises(InputError, match=r"without files that|not a directory with split files"):
        load_corpus(config(corpus, tmp_path))
    for split in ("train", "valid"):
        (tmp_path / f"{split}.txt").write_text("a\n")
    (tmp_path / "test.txt").touch()
    with pytest.raises(InputError, match=r"test\.txt is empty"):
        load_corpus(config(corpus, tmp_path))
    (tmp_path / "test.txt").write_bytes("né".encode("latin-1"))
    with pytest.raises(InputError, match=r"test\.txt is not UTF-8 text: see byte offset 1"):
        load_corpus(config(corpus, tmp_path))


@pytest.mark.parametrize(
    ("corpus", "name"),
    [("wikitext2", "Salesforce/wikitext"), ("ptb", "ptb-text-only/ptb_text_only")],
)
def test_an_unreachable_hub_is_said_so(tmp_path, monkeypatch, corpus, name):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(InputError, match=rf"{name}.*data\.path=<directory.*data=pydoc"):
        load_corpus(config(corpus))


@pytest.mark.parametrize(
    ("corpus", "asked", "column"),
    [
        ("wikitext2", ("Salesforce/wikitext", "wikitext-2-raw-v1", "main"), "text"),
        ("ptb", ("ptb-text-only/ptb_text_only", None, "refs/convert/parquet"), "sentence"),
    ],
)
def test_what_the_hub_is_asked_for(monkeypatch, corpus, asked, column):
    rows = {"validation": [" v \n", ""], "test": [" t \n"]}

    def load_dataset(id, name, *, revision):
        assert (id, name, revision) == asked
        return datasets.DatasetDict(
            {s: datasets.Dataset.from_dict({column: r}) for s, r in rows.items()}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    loaded = load_corpus(config(corpus, train_split="validation"))
    assert loaded.splits == rows
    assert asked[0] in loaded.source
    assert asked[2] in loaded.source
    with pytest.raises(InputError, match="no split 'train'"):
        load_corpus(config(corpus))


# --- slices ----------------------------------------------------------------------------------

SLICES = [
    "validation[:90%]", "validation[90%:]", "validation[33%:67%]", "validation[-12%:]",
    "validation[:-7%]", "validation[:1%]", "validation[101:]",
    "validation[-5:-2]", "validation[:1000]", "validation[7:7]", "validation[10:20%]",
    "validation[:15%](pct1_dropremainder)", "validation[:3]+test[1:]", "test+validation[98%:]",
    "test[:10%](pct1_dropremainder)", "validation[:5%]+test[:4]",
]  # fmt: skip


@pytest.mark.parametrize("n", [3, 27, 133])
def test_a_slice_is_what_datasets_makes_of_it(tmp_path, n):
    datasets.disable_progress_bars()
    rows = {"validation": [f"v{i}" for i in range(n)], "test": list("abcdefg")}
    files = {split: str(tmp_path / f"{split}.txt") for split in rows}
    for split, found in rows.items():
        Path(files[split]).write_text("".join(f"{row}\n" for row in found))
    compared = 0
    for spec in SLICES:
        try:
            expected = datasets.load_dataset(
                "text", data_files=files, split=spec, cache_dir=str(tmp_path / "cache")
            )["text"][:]
        except ValueError:
            expected = []
        for corpus in ("ptb", "text"):  # a row is a document there, and a line here
            wanted = config(corpus, tmp_path, **only(spec))
            if expected:
                wanted.layout = "lines"
                assert load_corpus(wanted).splits[spec] == expected
                compared += 1
            else:
                with pytest.raises(InputError):
                    load_corpus(wanted)
    assert compared > len(SLICES)


def test_a_document_is_cut_where_the_slice_ends(tmp_path):
    (tmp_path / "test.txt").write_text("a\n\nb\nc\n")
    fields = only("test") | {"train_split": "test[:3]", "validation_split": "test[3:]+test[:1]"}
    splits = load_corpus(config("text", tmp_path, **fields)).splits
    assert splits["test[:3]"] == ["a\n\nb\n"]
    assert splits["test[3:]+test[:1]"] == ["c\n", "a\n"]


def test_a_split_may_be_divided_into_what_is_trained_and_what_is_measured(tmp_path):
    for split in ("valid", "test"):
        (tmp_path / f"{split}.txt").write_text("".join(f"{split} {i}\n" for i in range(10)))
    fields = {"train_split": "validation[:90%]", "validation_split": "valid[90%:]"}
    for name in ("ptb", "text"):
        corpus = load_corpus(config(name, tmp_path, layout="lines", **fields))
        parts = [corpus.splits[s] for s in ("validation[:90%]", "validation[90%:]", "test")]
        assert [len(part) for part in parts] == [9, 1, 10]
        assert parts[1] == ["valid 9"]


def test_a_slice_of_labelled_texts_keeps_their_classes(tmp_path):
    rows = "".join(f"text {i},{'odd' if i % 2 else 'even'}\n" for i in range(10))
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"text,label\n{rows}")
    fields = only("test") | {"train_split": "train[:30%]", "validation_split": "train[-7:]"}
    loaded = load_corpus(config("labelled", tmp_path, layout="lines", **fields))
    assert loaded.splits["train[-7:]"] == [f"text {i}" for i in range(3, 10)]
    assert loaded.classes["train[:30%]"] == [0, 1, 0]
    assert loaded.classes["train[-7:]"] == [1, 0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    "spec",
    ["validation[", "validation[1]", "validation[:120%]", "validation[::2]", "test+", "[:3]",
     "test[:9](closest)", "test[:" + "9" * 5000 + "]"],
)  # fmt: skip
def test_a_slice_that_is_none_is_one_sentence_before_anything_is_read(tmp_path, spec):
    fields = {"validation_split": spec}
    with pytest.raises(InputError, match=r"^data\.validation_split=.* give one like validation"):
        CORPORA["ptb"].check(config("ptb", tmp_path / "missing", **fields))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("test[5:]", "is empty: there are 2 in test"),
        ("test[2:1]", "is empty: there are 2 in test"),
        ("test[:5%](pct1_dropremainder)", "cannot be cut from"),
        ("tests[:5]", "There is no split 'tests'"),
        ("test[:1]", "is blank"),
    ],
)
def test_a_slice_without_text_is_one_sentence(tmp_path, spec, says):
    (tmp_path / "test.txt").write_text("\na\n")
    with pytest.raises(InputError, match=says):
        load_corpus(config("ptb", tmp_path, **only(spec)))


# --- the user's own text ---------------------------------------------------------------------


def test_one_file_is_divided_by_position(tmp_path):
    file = tmp_path / "notes.md"
    lines = [f"line {i}\n" for i in range(10)]
    file.write_text("".join(lines))
    splits = load_corpus(config("text", file)).splits
    assert splits == {"train": ["".join(lines[:8])], "validation": lines[8:9], "test": lines[9:]}
    splits = load_corpus(config("text", file, layout="lines")).splits
    assert splits["train"] == [line.rstrip("\n") for line in lines[:8]]


def test_text_files_are_documents_in_sorted_order(tmp_path):
    for name, text in {"b": "b\n" * 5, "a": "a\n" * 4, "c": "c"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "README.md").write_text("no")
    (tmp_path / ".hidden.txt").write_text("no")
    splits = load_corpus(config("text", tmp_path)).splits
    assert splits == {"train": ["a\n" * 4, "b\n" * 4], "validation": ["b\n"], "test": ["c"]}


def test_split_files_of_the_users_own_are_one_document_each(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text(f"{split} 1\n\n{split} 2\n")
    splits = load_corpus(config("text", tmp_path)).splits
    assert splits["validation"] == ["valid 1\n\nvalid 2\n"]
    splits = load_corpus(config("text", tmp_path, layout="lines")).splits
    assert splits["validation"] == ["valid 1", "", "valid 2"]


def test_text_too_short_to_divide_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("one line")
    with pytest.raises(InputError, match="too short to be divided"):
        load_corpus(config("text", tmp_path / "a.txt"))


def test_text_needs_a_path():
    with pytest.raises(InputError, match=r"data\.path="):
        load_corpus(config("text"))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.text("ab\n\r\x0c", min_size=1, max_size=40), min_size=1, max_size=5))
def test_dividing_by_position_loses_nothing_and_cuts_at_line_ends(documents):
    splits = divide_by_position(documents)
    text = "".join(documents)
    assert "".join(itertools.chain(*splits.values())) == text
    train = len("".join(splits["train"]))
    assert train >= 0.8 * len(text)
    assert train in {0, len(text)} | {
        len("".join(documents[:i])) + j + 1
        for i, d in enumerate(documents)
        for j, c in enumerate(d)
        if c == "\n" or j + 1 == len(d)
    }


# --- the fingerprint -------------------------------------------------------------------------


def test_the_fingerprint_tells_texts_and_their_division_apart(tmp_path):
    seen = set()
    for name, text in {"a": "ab\nc\n", "b": "a\nbc\n", "c": "ab\nc\n\n", "d": "abc\n"}.items():
        path = tmp_path / name
        path.mkdir()
        (path / "test.txt").write_text(text)
        seen.add(load_corpus(config("ptb", path, **only("test"))).sha256)
    assert len(seen) == 4
    (path / "test.txt").rename(path / "dev.txt")
    seen.add(load_corpus(config("ptb", path, **only("dev"))).sha256)
    assert len(seen) == 5
    again = load_corpus(config("ptb", tmp_path / "a", **only("test"))).sha256
    assert again in seen
    assert len(again) == 64
