"""The corpora: where their text comes from, what a document is, and how it is split.

The paper trains on WikiText-2 (Sec. 4.1) and Penn Treebank (Fig. 6), one text line = one example.
``pydoc`` is the language reference that every CPython carries, so that a run needs no network;
``text`` is whatever the user has. Data is only ever read, never executed.
"""

from __future__ import annotations

import hashlib
import io
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qpa_exp.config import DataConfig
from qpa_exp.errors import InputError

SPLITS = ("train", "validation", "test")
_ALIASES = {"valid": "validation", "val": "validation", "dev": "validation"}


@dataclass(frozen=True)
class CorpusText:
    """The splits that a run uses, each a list of documents, and what identifies them.

    ``sha256`` is of the text as it was read, split by split and document by document with their
    lengths, so that it does not depend on the layout and no two texts share it. ``source`` is for
    people: a hub id and revision, a path, or the version of CPython.
    """

    name: str
    splits: dict[str, list[str]]
    sha256: str
    source: str


@dataclass(frozen=True)
class _HubDataset:
    """A dataset on the Hugging Face hub; ``folder`` is its directory of parquet files there."""

    id: str
    config: str | None
    revision: str
    folder: str


_HUB = {
    "wikitext2": _HubDataset(
        "Salesforce/wikitext", "wikitext-2-raw-v1", "main", folder="wikitext-2-raw-v1"
    ),
    # The main branch holds only a loading script, which `datasets` no longer runs. The hub's own
    # conversion has the same rows, and one folder instead of a named config.
    "ptb": _HubDataset(
        "ptb-text-only/ptb_text_only", None, "refs/convert/parquet", folder="penn_treebank"
    ),
}


def load_corpus(config: DataConfig) -> CorpusText:
    """Read the splits that ``config`` names; the others need not exist.

    What a document is: a topic (``pydoc``); a row of the hub's dataset, that is a line, blank
    lines included (``wikitext2``, ``ptb``); a file (``text``). Under layout ``lines`` every line
    of a topic or file becomes a document of its own, without its newline, blank ones included.

    ``data.path`` for ``wikitext2`` and ``ptb`` is a directory of split files (``train.txt``,
    ``wiki.valid.raw``, ``test-00000-of-00001.parquet`` and the like) and gives the hub's rows.
    For ``text`` it is such a directory, or a file, or a directory of ``*.txt`` files taken in
    sorted order. The last two have no splits, so they are divided by position: the first 80 % of
    the characters train, the next 10 % validate, the last 10 % test, cut at line ends.

    Raises ``InputError`` where a path, a split, the hub or the text itself is not usable.
    """
    needed = _needed_splits(config)
    if config.name == "pydoc":
        splits, source = _load_pydoc(config)
    elif config.path is not None:
        splits, source = _load_local(config.name, Path(config.path).expanduser(), needed)
    elif config.name == "text":
        raise InputError("data=text needs data.path=<a UTF-8 text file or a directory of them>.")
    else:
        splits, source = _load_hub(_HUB[config.name], needed)
    _check_splits(needed, splits, source)
    for name in needed:
        if not splits[name]:
            raise InputError(
                f"The {name} split of {source} has no text: it is too short to be divided at line"
                " ends; give a directory with a file for each split."
            )
    splits = {name: splits[name] for name in needed}
    digest = _sha256(splits)
    if config.layout == "lines" and config.name not in _HUB:
        splits = {name: _lines_of(documents) for name, documents in splits.items()}
    return CorpusText(name=config.name, splits=splits, sha256=digest, source=source)


def comes_from_the_hub(config: DataConfig) -> bool:
    """Whether reading this corpus may ask the network."""
    return config.path is None and config.name in _HUB


def split_name(name: str) -> str:
    """The canonical name of a split: ``valid``, ``val`` and ``dev`` are ``validation``."""
    return _ALIASES.get(name, name)


def _needed_splits(config: DataConfig) -> list[str]:
    named = {
        split_name(s) for s in (config.train_split, config.validation_split, config.test_split)
    }
    return [s for s in SPLITS if s in named] + sorted(named - set(SPLITS))


def _check_splits(needed: Iterable[str], available: Iterable[str], source: str) -> None:
    have = [s for s in SPLITS if s in set(available)]
    for name in needed:
        if name not in have:
            raise InputError(
                f"There is no split {name!r} in {source}, which has {', '.join(have)}: set"
                " data.train_split, data.validation_split and data.test_split to those."
            )


def _sha256(splits: Mapping[str, Sequence[str]]) -> str:
    digest = hashlib.sha256()
    for name, documents in splits.items():
        digest.update(f"{name} {len(documents)}\n".encode())
        for document in documents:
            data = document.encode()
            digest.update(f"{len(data)}\n".encode())
            digest.update(data)
    return digest.hexdigest()


def _lines(text: str) -> io.StringIO:
    """Iterate over lines with their newlines, as a file does.

    ``str.splitlines`` also cuts at form feeds and Unicode separators: not the hub's rows.
    """
    return io.StringIO(text)


def _lines_of(documents: Iterable[str]) -> list[str]:
    return [line.rstrip("\n") for document in documents for line in _lines(document)]


# --- pydoc -----------------------------------------------------------------------------------


def _load_pydoc(config: DataConfig) -> tuple[dict[str, list[str]], str]:
    if config.path is not None:
        raise InputError(
            "data=pydoc comes with Python and reads no data.path; for text of your own set"
            f" data=text data.path={config.path}."
        )
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise InputError(
            "This Python was installed without pydoc_data.topics, which data=pydoc reads; set"
            " data=text data.path=<file> instead."
        ) from error
    names = divide_topics(topics)
    splits = {split: [topics[name] for name in names[split]] for split in SPLITS}
    return splits, f"CPython {platform.python_version()} pydoc_data.topics"


def divide_topics(topics: Mapping[str, str]) -> dict[str, list[str]]:
    """Divide topics into splits so that no long paragraph of one split occurs in another.

    Topics that share a paragraph stay together. The groups come in an order that looks random but
    depends on nothing but names (the hash of each group's first), and each goes where it still
    fits: test up to 12 % of the characters, then validation up to 10 %, then train. So a group
    larger than that, like the one around compound statements, trains.
    """
    left = {"test": 0.12, "validation": 0.10}
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    total = sum(map(len, topics.values()))
    for group in sorted(_groups(topics), key=lambda g: hashlib.sha256(g[0].encode()).digest()):
        share = sum(len(topics[name]) for name in group) / total
        split = next((s for s in left if share <= left[s]), "train")
        if split in left:
            left[split] -= share
        splits[split] += group
    return {split: sorted(names) for split, names in splits.items()}


def _groups(topics: Mapping[str, str]) -> list[list[str]]:
    """The connected components of "shares a paragraph", each sorted by name."""
    group = {name: {name} for name in topics}
    owner: dict[str, str] = {}
    for name in sorted(topics):
        for paragraph in long_paragraphs(topics[name]):
            other = owner.setdefault(paragraph, name)
            if group[other] is not group[name]:
                merged = group[other] | group[name]
                group.update(dict.fromkeys(merged, merged))
    return sorted({min(members): sorted(members) for members in group.values()}.values())


def long_paragraphs(text: str) -> set[str]:
    """The paragraphs of more than 80 characters, their white space made single blanks."""
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return {paragraph for paragraph in paragraphs if len(paragraph) > 80}


# --- the hub ---------------------------------------------------------------------------------


def _load_hub(hub: _HubDataset, needed: Sequence[str]) -> tuple[dict[str, list[str]], str]:
    # Imported here: slow, and neither pydoc nor local text needs them.
    import datasets
    import httpx

    source = " ".join(filter(None, (hub.id, hub.config, f"({hub.revision})")))
    try:
        loaded = datasets.load_dataset(hub.id, hub.config, revision=hub.revision)
    except (
        OSError,  # the built-in ConnectionError and FileNotFoundError, and huggingface_hub's errors
        httpx.HTTPError,
        datasets.exceptions.DatasetsError,
        ValueError,  # offline, with another config of the dataset in the cache
        RuntimeError,
    ) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
        raise InputError(
            f"The dataset {source} could not be read from the Hugging Face hub ({reason}); without"
            " it, data.path=<directory with its split files> or data=pydoc work."
        ) from error
    _check_splits(needed, loaded, source)
    column = _text_column(loaded[needed[0]].column_names, source)
    return {name: list(loaded[name][column]) for name in needed}, source


def _text_column(columns: Sequence[str], source: object) -> str:
    for column in ("text", "sentence"):
        if column in columns:
            return column
    raise InputError(
        f"{source} has no column 'text' or 'sentence', but {', '.join(map(repr, columns))}."
    )


# --- local files -----------------------------------------------------------------------------


def _wikitext_rows(text: str) -> list[str]:
    # The hub's rows keep their newline, except that a blank line (a lone blank, in the files) is ''
    return [line if line.strip() else "" for line in _lines(text)]


def _ptb_rows(text: str) -> list[str]:
    return [line.strip() for line in _lines(text)]


_DOCUMENTS: dict[str, Callable[[str], list[str]]] = {
    "wikitext2": _wikitext_rows,
    "ptb": _ptb_rows,
    "text": lambda text: [text],
}

# train.txt, wiki.valid.raw, ptb.test.txt, train-00000-of-00001.parquet, test/0000.parquet
_SPLIT_FILE = re.compile(
    r"(?:(?:wiki|ptb)\.)?(?P<split>train|validation|valid|val|dev|test)"
    r"(?:\.(?:txt|raw|tokens|parquet)|-\d{5}-of-(?P<shards>\d{5})\.parquet|/\d{4}\.parquet)"
)


def _load_local(corpus: str, path: Path, needed: Sequence[str]) -> tuple[dict[str, list[str]], str]:
    if not path.exists():
        raise InputError(f"data.path={path} does not exist.")
    source = str(path.resolve())
    files = _split_files(corpus, path) if path.is_dir() else {}
    if files:
        _check_splits(needed, files, source)
        return {name: _read_documents(corpus, files[name]) for name in needed}, source
    if corpus == "text":
        return divide_by_position([_read_text(file) for file in _text_files(path)]), source
    raise InputError(
        f"data.path={path} is not a directory with split files for data={corpus}: train,"
        " validation and test, each .txt, .raw, .tokens or .parquet."
    )


def _split_files(corpus: str, path: Path) -> dict[str, list[Path]]:
    """Split name -> its files, from ``path`` or else its sub-directory named as on the hub."""
    roots = [path, path / _HUB[corpus].folder] if corpus in _HUB else [path]
    for root in roots:
        found: dict[str, list[re.Match[str]]] = {}
        for file in sorted([*root.glob("*.*"), *root.glob("*/*.parquet")]):
            if match := _SPLIT_FILE.fullmatch(file.relative_to(root).as_posix()):
                found.setdefault(split_name(match["split"]), []).append(match)
        if found:
            return {split: _one_source(root, split, names) for split, names in found.items()}
    return {}


def _one_source(root: Path, split: str, names: list[re.Match[str]]) -> list[Path]:
    """The files of one split, which are one file or all the shards of one."""
    files = [root / name.string for name in names]
    shards = {name["shards"] for name in names}
    if shards == {None}:
        whole = len(files) == 1 or all("/" in name.string for name in names)
    else:
        whole = shards == {f"{len(files):05d}"}
    if whole:
        return files
    raise InputError(
        f"{root} must hold the {split} split once and whole, but it has"
        f" {', '.join(file.name for file in files)}."
    )


def _text_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if files := sorted(path.glob("*.txt")):
        return files
    raise InputError(f"data.path={path} is a directory without .txt files.")


def _read_documents(corpus: str, files: Iterable[Path]) -> list[str]:
    documents: list[str] = []
    for file in files:
        if file.suffix == ".parquet":
            documents += _read_parquet(file)
        else:
            documents += _DOCUMENTS[corpus](_read_text(file))
    return documents


def _read_text(file: Path) -> str:
    data = file.read_bytes()
    if not data:
        raise InputError(f"{file} is empty (0 bytes).")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: see byte offset {error.start}.") from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _read_parquet(file: Path) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        column = _text_column(pyarrow.parquet.read_schema(file).names, file)
        rows = pyarrow.parquet.read_table(file, columns=[column])[column].to_pylist()
    except pyarrow.ArrowException as error:
        raise InputError(f"{file} is not a readable parquet file.") from error
    if not rows or not all(isinstance(row, str) for row in rows):
        raise InputError(f"Column {column!r} of {file} must hold text in every row.")
    return rows


def divide_by_position(documents: Sequence[str]) -> dict[str, list[str]]:
    """First 80 % of the characters train, next 10 % validation, last 10 % test.

    A line belongs where it starts; a document that lies across a border is cut there in two.
    """
    total, position = sum(map(len, documents)), 0
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    for document in documents:
        pieces: dict[str, list[str]] = {name: [] for name in SPLITS}
        for line in _lines(document):
            tenth = 10 * position // total
            pieces["train" if tenth < 8 else "validation" if tenth < 9 else "test"].append(line)
            position += len(line)
        for name, lines in pieces.items():
            if lines:
                splits[name].append("".join(lines))
    return splits
