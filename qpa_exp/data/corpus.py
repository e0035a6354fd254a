"""What a corpus is: where its text comes from, what a document is, and how it is split.

Each corpus is a file of ``data/corpora``. Data is only ever read, never executed.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpa_exp.config import DataConfig
from qpa_exp.errors import InputError, one_line
from qpa_exp.files import read_bytes, typed_path
from qpa_exp.registry import Registry

if TYPE_CHECKING:
    from datasets import ReadInstruction

SPLITS = ("train", "validation", "test")
ALIASES = {"valid": "validation", "val": "validation", "dev": "validation"}
"""Other names of splits."""


@dataclass(frozen=True)
class HubDataset:
    """A dataset on the Hugging Face hub; ``folder`` is its directory of parquet files there."""

    id: str
    config: str | None
    revision: str
    folder: str


def lines_in(text: str) -> io.StringIO:
    """Iterate over lines with their newlines, as a file does.

    ``str.splitlines`` also cuts at form feeds and Unicode separators: not the hub's rows.
    """
    return io.StringIO(text)


def lines_of(documents: Iterable[str]) -> list[str]:
    """Every line of the documents, without its newline."""
    return [line.rstrip("\n") for document in documents for line in lines_in(document)]


def read_hub(hub: HubDataset) -> tuple[dict[str, list[str]], str]:
    """The rows of all splits, from the hub or its cache, and the name of their source."""
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
    columns = {name: _text_column(rows.column_names, source) for name, rows in loaded.items()}
    return {name: list(rows[columns[name]]) for name, rows in loaded.items()}, source


def _text_column(columns: Sequence[str], source: object) -> str:
    for column in ("text", "sentence"):
        if column in columns:
            return column
    raise InputError(
        f"{source} has no column 'text' or 'sentence', but {', '.join(map(repr, columns))}."
    )


# --- local files -----------------------------------------------------------------------------

# train.txt, wiki.valid.raw, ptb.test.txt, train-00000-of-00001.parquet, test/0000.parquet
_SPLIT_FILE = re.compile(
    r"(?:(?:wiki|ptb)\.)?(?P<split>train|validation|valid|val|dev|test)"
    r"(?:\.(?:txt|raw|tokens|parquet)|-\d{5}-of-(?P<shards>\d{5})\.parquet|/\d{4}\.parquet)"
)


def split_files(path: Path, folder: str | None = None) -> dict[str, list[Path]]:
    """Split name -> its files, from ``path`` or else its sub-directory named as on the hub."""
    roots = [path] if folder is None else [path, path / folder]
    for root in roots:
        found: dict[str, list[re.Match[str]]] = {}
        for file in sorted([*root.glob("*.*"), *root.glob("*/*.parquet")]):
            if match := _SPLIT_FILE.fullmatch(file.relative_to(root).as_posix()):
                split = ALIASES.get(match["split"], match["split"])
                found.setdefault(split, []).append(match)
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


def text_files(path: Path) -> list[Path]:
    """The file itself, or a directory's ``*.txt`` in sorted order."""
    if not path.is_dir():
        return [path]
    if files := sorted(path.glob("*.txt")):
        return files
    raise InputError(f"data.path={path} is a directory without .txt files.")


def read_documents(rows: Callable[[str], list[str]], files: Iterable[Path]) -> list[str]:
    """The documents of some files: parquet has them in a column, ``rows`` finds those of text."""
    documents: list[str] = []
    for file in files:
        if file.suffix == ".parquet":
            documents += _read_parquet(file)
        else:
            documents += rows(read_text(file))
    return documents


_MOST_BYTES = 64 * 2**30
"""Of one file; what is no ordinary file has no size and may never end."""

_LONGEST_LINE = 2**24
"""Characters of one line, which a tokenizer takes in one piece."""


def read_file(file: Path) -> bytes:
    """An ordinary file of the user's that is not empty."""
    data = read_bytes(file, _MOST_BYTES)
    if not data:
        raise InputError(f"{file} is empty (0 bytes).")
    return data


def read_text(file: Path) -> str:
    """A UTF-8 file with its newlines made plain."""
    try:
        text = read_file(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: see byte offset {error.start}.") from error
    if "\0" in text:
        raise InputError(f"{file} is not text: it has bytes that are zero.")
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    check_lines([text], file)
    return text


def check_lines(documents: Iterable[str], file: Path) -> None:
    """Refuse a line that would keep a tokenizer busy for hours."""
    for document in documents:
        if len(document) > _LONGEST_LINE:
            longest = max(map(len, lines_in(document)))
            if longest > _LONGEST_LINE:
                raise InputError(
                    f"{file} has a line of {longest:,} characters, more than the "
                    f"{_LONGEST_LINE:,} that are taken: break it into lines."
                )


def _read_parquet(file: Path) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    data = io.BytesIO(read_file(file))
    try:
        column = _text_column(pyarrow.parquet.read_schema(data).names, file)
        rows = pyarrow.parquet.read_table(data, columns=[column])[column].to_pylist()
    except InputError:
        raise
    except Exception as error:  # Arrow's own, OSError, and what a damaged length leads to
        raise InputError(f"{file} is not a readable parquet file.") from error
    if not rows or not all(isinstance(row, str) for row in rows):
        raise InputError(f"Column {column!r} of {file} must hold text in every row.")
    check_lines(rows, file)
    return rows


def divide_by_position(documents: Sequence[str]) -> dict[str, list[str]]:
    """First 80 % of the characters train, next 10 % validation, last 10 % test.

    A line belongs where it starts; a document that lies across a border is cut there in two.
    """
    total, position = sum(map(len, documents)), 0
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    for document in documents:
        pieces: dict[str, list[str]] = {name: [] for name in SPLITS}
        for line in lines_in(document):
            tenth = 10 * position // total
            pieces["train" if tenth < 8 else "validation" if tenth < 9 else "test"].append(line)
            position += len(line)
        for name, lines in pieces.items():
            if lines:
                splits[name].append("".join(lines))
    return splits


Documents = dict[str, list[str]]
"""By split."""


@dataclass(frozen=True)
class Labelled:
    """Texts and the number of each one's class, by split, and the classes' names."""

    documents: Documents
    classes: dict[str, list[int]]
    names: list[str]


@dataclass(frozen=True)
class Corpus:
    """One corpus: an ``ENTRY`` of ``data/corpora``.

    Attributes:
        label: its name for people.
        rows: a text file's documents. A document is a line for the hub's datasets, else a file.
        rows_are_lines: whether a document never has more than one line.
        join: how blocks join its documents where ``data.join`` is null; one of ``JOINS``.
        divisible: whether text without split files is divided by position.
        hub: where the Hugging Face hub has it; None where it does not.
        load_own: reads a corpus that comes from elsewhere: its documents, and what to call their
            source; it takes the config and the splits that are needed.
        load_labelled: the same for texts with a class each.
        reads: conditional config keys that it reads.
    """

    label: str
    rows: Callable[[str], list[str]] = lambda text: [text]
    rows_are_lines: bool = False
    join: str = "eos"
    divisible: bool = False
    hub: HubDataset | None = None
    load_own: Callable[[DataConfig], tuple[Documents, str]] | None = None
    load_labelled: Callable[[DataConfig], tuple[Labelled, str]] | None = None
    reads: tuple[str, ...] = ("data.path",)

    def check(self, config: DataConfig) -> None:
        """Refuse a config that names nothing to read, or a slice that is none."""
        for key in ("train_split", "validation_split", "test_split"):
            parse_slice(getattr(config, key), f"data.{key}")
        if config.path is None and self.hub is None and self.load_own is None:
            raise InputError(
                f"data={config.name} needs data.path=<a file or a directory of {self.label}>."
            )


CORPORA: Registry[Corpus] = Registry(
    "data.name",
    "qpa_exp.data.corpora",
    decides=("data.path", "data.text_column", "data.label_column"),
)


@dataclass(frozen=True)
class Layout:
    """A value of ``data.layout``: the conditional config keys that it reads."""

    reads: tuple[str, ...] = ()


_OF_BLOCKS = ("data.join", "data.stride")
LAYOUTS: Registry[Layout] = Registry(
    "data.layout", {"lines": Layout(), "blocks": Layout(_OF_BLOCKS)}, decides=_OF_BLOCKS
)


def as_the_text_has_them(documents: Sequence[str]) -> list[str]:
    """One text: each document ended by its own newline, or by one where it has none.

    A row of the hub's that is ``''`` is a blank line.
    """
    *others, last = documents
    ended = (text if text.endswith("\n") else f"{text}\n" for text in others)
    return ["".join([*ended, last])]


JOINS: Mapping[str, Callable[[Sequence[str]], list[str]]] = {
    "text": as_the_text_has_them,
    "blank_line": lambda documents: ["\n\n".join(documents)],
    "eos": list,
}
"""From a split's documents, at least one, to the texts that an EOS token stands between."""


@dataclass(frozen=True)
class CorpusText:
    """The splits that a run uses, each a list of documents, and what identifies them.

    Attributes:
        sha256: of the text as it was read, split by split and document by document with their
            lengths, and of the classes where there are any: it does not depend on the layout, and
            no two texts share it.
        source: for people: a hub id and revision, a path, or the version of CPython.
        classes: for each document the number of its class; empty for plain text.
        class_names: in the order of their numbers.
    """

    name: str
    splits: Documents
    sha256: str
    source: str
    classes: dict[str, list[int]] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)


def load_corpus(config: DataConfig) -> CorpusText:
    """Read the splits that ``config`` names; the others need not exist.

    Under layout ``lines`` every line of a document becomes a document of its own, without its
    newline, blank ones included; a labelled text stays whole.

    ``data.path`` for a corpus of the hub is a directory of split files (``train.txt``,
    ``wiki.valid.raw``, ``test-00000-of-00001.parquet`` and the like) and gives the hub's rows.
    For ``text`` it is such a directory, or a file, or a directory of ``*.txt`` files taken in
    sorted order. The last two have no splits, so they are divided by position: the first 80 % of
    the characters train, the next 10 % validate, the last 10 % test, cut at line ends.

    A split may be a slice of one as ``datasets`` writes it, ``validation[:90%]``, and means what it
    means there: a row is a line, or a labelled text. A document that lies across its border is
    cut there.

    Raises:
        InputError: a path, a split, the hub or the text itself is not usable.
    """
    corpus, asked = CORPORA[config.name], _asked_splits(config)
    corpus.check(config)
    needed = list(dict.fromkeys(name for split in asked for name in splits_within(split)))
    labelled: Labelled | None = None
    if corpus.load_labelled is not None:
        labelled, source = corpus.load_labelled(config)
        splits = labelled.documents
    elif corpus.load_own is not None:
        splits, source = corpus.load_own(config)
    elif config.path is not None:
        splits, source = _read_local(config, corpus, needed)
    else:
        assert corpus.hub is not None  # it has been checked
        splits, source = read_hub(corpus.hub)
    check_splits(needed, splits, source)
    for name in needed:
        if not splits[name]:
            raise InputError(
                f"The {name} split of {source} has no text: it is too short to be divided at line"
                " ends; give a directory with a file for each split."
            )
    whole = labelled is not None or corpus.rows_are_lines
    splits = {split: take(splits, split, source, whole=whole) for split in asked}
    for name, documents in splits.items():
        if not any(document.strip() for document in documents):
            raise InputError(
                f"The {name} split of {source} is blank: it has nothing to predict; give text."
            )
    classes = {}
    if labelled is not None:
        classes = {split: take(labelled.classes, split, source) for split in asked}
    digest = _sha256(splits, classes)
    if config.layout == "lines" and labelled is None and not corpus.rows_are_lines:
        splits = {name: lines_of(documents) for name, documents in splits.items()}
    names = [] if labelled is None else labelled.names
    return CorpusText(config.name, splits, digest, source, classes, names)


def data_path(config: DataConfig) -> Path:
    """``data.path``, which is there.

    Raises:
        InputError: it is not, or it is no path.
    """
    path = typed_path(str(config.path))
    try:
        path.stat()
    except FileNotFoundError as error:
        raise InputError(f"data.path={path} does not exist.") from error
    except (OSError, ValueError) as error:  # a loop of links, a name that is too long, a zero byte
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"data.path={str(path)!r:.200} cannot be read: {reason}.") from error
    return path


def _read_local(config: DataConfig, corpus: Corpus, needed: Sequence[str]) -> tuple[Documents, str]:
    path = data_path(config)
    source = str(path.resolve())
    files = split_files(path, corpus.hub.folder if corpus.hub else None) if path.is_dir() else {}
    if files:
        check_splits(needed, files, source)
        return {name: read_documents(corpus.rows, files[name]) for name in needed}, source
    if corpus.divisible:
        return divide_by_position([read_text(file) for file in text_files(path)]), source
    raise InputError(
        f"data.path={path} is not a directory with split files for data={config.name}: train,"
        " validation and test, each .txt, .raw, .tokens or .parquet."
    )


def split_name(name: str) -> str:
    """The canonical name of a split or slice: ``valid``, ``val`` and ``dev`` are ``validation``.

    Example:
        >>> split_name("dev[:90%]")
        'validation[:90%]'
    """
    parts = [part.strip().partition("[") for part in name.split("+")]
    return "+".join(ALIASES.get(split, split) + bracket + end for split, bracket, end in parts)


def splits_within(name: str) -> list[str]:
    """The splits that a slice is cut from; of a split, itself."""
    return [part.partition("[")[0] for part in split_name(name).split("+")]


def parse_slice(name: str, key: str = "a split") -> ReadInstruction | None:
    """A slice as ``datasets`` understands it; None of a split's plain name.

    Args:
        name: ``validation[90%:]``, ``test[:500]``, or several with ``+`` between them.
        key: the config key, for the sentence.

    Raises:
        InputError: it is none.
    """
    if "[" not in name and "+" not in name:
        return None
    from datasets import ReadInstruction  # slow

    try:
        return ReadInstruction.from_spec(split_name(name))
    except ValueError as error:  # its percentages, too
        raise InputError(
            f"{key}={name:.100} is no slice of a split: give one like validation[:90%], "
            "validation[90%:] or train[:500]."
        ) from error


def take(
    splits: Mapping[str, list[Any]], name: str, source: str, *, whole: bool = True
) -> list[Any]:
    """The rows of a split or slice; unless they are taken whole, they are texts cut into lines.

    Raises:
        InputError: the slice is empty, or cannot be cut from so few rows.
    """
    instruction = parse_slice(name)
    if instruction is None:
        return splits[name]
    rows = {
        split: [
            (place, row)
            for place, document in enumerate(splits[split])
            for row in ([document] if whole else lines_in(document))
        ]
        for split in splits_within(name)
    }
    try:
        cuts = instruction.to_absolute({split: len(found) for split, found in rows.items()})
    except ValueError as error:
        raise InputError(f"{name} cannot be cut from {source}: {one_line(error)}") from error
    taken: list[Any] = []
    for cut in cuts:
        for _, piece in groupby(rows[cut.splitname][cut.from_ : cut.to], key=itemgetter(0)):
            found = [row for _, row in piece]
            taken += found if whole else ["".join(found)]
    if not taken:
        have = ", ".join(f"{len(found):,} in {split}" for split, found in rows.items())
        raise InputError(f"{name} of {source} is empty: there are {have}.")
    return taken


def check_splits(needed: Iterable[str], available: Iterable[str], source: str) -> None:
    """Refuse a split that is needed and not there."""
    have = [s for s in SPLITS if s in set(available)]
    for name in needed:
        if name not in have:
            raise InputError(
                f"There is no split {name!r} in {source}, which has {', '.join(have)}: set"
                " data.train_split, data.validation_split and data.test_split to those."
            )


def comes_from_the_hub(config: DataConfig) -> bool:
    """Whether reading this corpus may ask the network."""
    return config.path is None and CORPORA[config.name].hub is not None


def _asked_splits(config: DataConfig) -> list[str]:
    named = {
        split_name(s) for s in (config.train_split, config.validation_split, config.test_split)
    }
    return [s for s in SPLITS if s in named] + sorted(named - set(SPLITS))


def _sha256(splits: Mapping[str, Sequence[str]], classes: Mapping[str, Sequence[int]]) -> str:
    digest = hashlib.sha256()
    for name, documents in splits.items():
        digest.update(f"{name} {len(documents)}\n".encode())
        for document in documents:
            data = document.encode()
            digest.update(f"{len(data)}\n".encode())
            digest.update(data)
        if name in classes:
            digest.update(repr(list(classes[name])).encode())
    return digest.hexdigest()
