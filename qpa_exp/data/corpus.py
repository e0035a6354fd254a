"""What a corpus is: where its text comes from, what a document is, and how it is split.

Each corpus is a file of ``data/corpora``. Data is only ever read, never executed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from qpa_exp.config import DataConfig
from qpa_exp.data.sources import (
    ALIASES,
    SPLITS,
    TEXT,
    Found,
    HubDataset,
    find,
    is_hub_id,
    lines_in,
    read_documents,
    read_tables,
    text_column,
    texts_in,
)
from qpa_exp.errors import InputError, one_line
from qpa_exp.registry import Registry

if TYPE_CHECKING:
    from datasets import Dataset, ReadInstruction


def lines_of(documents: Iterable[str]) -> list[str]:
    """Every line of the documents, without its newline."""
    return [line.rstrip("\n") for document in documents for line in lines_in(document)]


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


def divide_by_row(rows: Sequence[Any]) -> dict[str, list[Any]]:
    """First 80 % of the rows train, next 10 % validation, last 10 % test."""
    first, second = 8 * len(rows) // 10, 9 * len(rows) // 10
    parts = (rows[:first], rows[first:second], rows[second:])
    return {name: list(part) for name, part in zip(SPLITS, parts, strict=True)}


Documents = dict[str, list[str]]
"""A split's rows by its name."""


def table_texts(table: Dataset, config: DataConfig, source: str, kind: str) -> list[str]:
    """Return the texts of a table's rows, each a document. In CSV none may be empty: a row with
    too few cells reads like one.
    """
    column = text_column(table, config.column, source)
    return texts_in(table, column, source, blank=kind != "csv")


@dataclass(frozen=True)
class Corpus:
    """One corpus: an ``ENTRY`` of ``data/corpora``.

    Attributes:
        label: its name for people.
        rows: a text file's documents. A document is a line for the hub's datasets, else a file.
            None where plain text is nothing to read.
        rows_of_table: the same for a table, of its rows, the config, and the name and the kind of
            its source. Where it has ``class_names``, a row is a text and the name of its class.
        rows_are_lines: whether a document never has more than one line.
        join: how blocks join its documents where ``data.join`` is null; one of ``JOINS``.
        divisible: whether text without split files is divided: plain text by position, else by row.
        class_names: of the tables of the splits that are used, the config, and the names that
            their rows have, all classes in the order of their numbers; None where texts have none.
        instructs: whether a document is a record of instructions and answers.
        hub: where the Hugging Face hub has it; None where it does not.
        load_own: reads a corpus that comes from elsewhere: its documents, and what to call their
            source; it takes the config.
        reads: conditional config keys that it reads.

    Examples:
        >>> from qpa_exp.data.corpus import CORPORA
        >>> CORPORA["text"].rows("a file is a document"), CORPORA["ptb"].rows_are_lines
        (['a file is a document'], True)
    """

    label: str
    rows: Callable[[str], list[str]] | None = lambda text: [text]
    rows_of_table: Callable[[Dataset, DataConfig, str, str], list[Any]] = table_texts
    rows_are_lines: bool = False
    join: str = "eos"
    divisible: bool = False
    class_names: Callable[[Sequence[Dataset], DataConfig, set[str]], list[str]] | None = None
    instructs: bool = False
    hub: HubDataset | None = None
    load_own: Callable[[DataConfig], tuple[Documents, str]] | None = None
    reads: tuple[str, ...] = ("data.path",)

    def check(self, config: DataConfig) -> None:
        """Refuse a config that names nothing to read, a slice that is none, or another layout."""
        for key in ("train_split", "validation_split", "test_split", "split"):
            if (name := getattr(config, key)) is not None:
                parse_slice(name, f"data.{key}")
        layouts = ("lines", "packed") if self.instructs else ("lines", "blocks")
        if config.layout not in layouts:
            raise InputError(
                f"data.layout={config.layout} is none of data={config.name}: give one of "
                f"{', '.join(layouts)}."
            )
        if config.path is None and self.hub is None and self.load_own is None:
            raise InputError(
                f"data={config.name} needs data.path=<a file or a directory of {self.label}>."
            )


OF_A_SOURCE = ("data.path", "data.subset", "data.revision", "data.split")
"""Keys that every corpus of the user's own reads."""

_CONDITIONAL = (
    "data.column", "data.text_column", "data.label_column", "data.prompt_column",
    "data.completion_column", "data.chat_template",
)  # fmt: skip

CORPORA: Registry[Corpus] = Registry(
    "data.name", "qpa_exp.data.corpora", decides=(*OF_A_SOURCE, *_CONDITIONAL)
)


@dataclass(frozen=True)
class Layout:
    """A value of ``data.layout``: the conditional config keys that it reads."""

    reads: tuple[str, ...] = ()


_OF_BLOCKS = ("data.join", "data.stride")
LAYOUTS: Registry[Layout] = Registry(
    "data.layout",
    {"lines": Layout(), "blocks": Layout(_OF_BLOCKS), "packed": Layout()},
    decides=_OF_BLOCKS,
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
"""Makes of a split's documents, at least one, the texts that an EOS token stands between."""


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

    splits: Documents
    sha256: str
    source: str
    classes: dict[str, list[int]] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)


def load_corpus(config: DataConfig) -> CorpusText:
    """Read the splits that ``config`` names; the others need not exist.

    Under layout ``lines`` every line of a document becomes a document of its own, without its
    newline, blank ones included; the row of a table stays whole.

    ``data.path`` for a corpus of the hub is a directory of split files (``train.txt``,
    ``wiki.valid.raw``, ``test-00000-of-00001.parquet`` and the like) and gives the hub's rows.
    For the user's own it is such a directory, or a file, a list of files, a glob, a directory of
    files taken in sorted order, what ``save_to_disk`` wrote, or a dataset of the hub. What has no
    splits is divided: the first 80 % train, the next 10 % validate, the last 10 % test, of plain
    text's characters, cut at line ends, else of the rows. ``data.split`` has one split divided so.

    A split may be a slice of one as ``datasets`` writes it, ``validation[:90%]``, and means what it
    means there: a row is a line, or the row of a table. A document that lies across its border is
    cut there.

    Raises:
        InputError: a path, a split, the hub or the text itself is not usable.
    """
    corpus, asked = CORPORA[config.name], _asked_splits(config)
    corpus.check(config)
    needed = [name for split in asked for name in splits_within(split)]
    wanted = needed if config.split is None else splits_within(config.split)
    read, source, whole, names = _read(config, corpus, list(dict.fromkeys(wanted)))
    splits = _divide(read, config, source, whole=whole)
    if config.split is not None or None in read:
        check_splits(needed, splits, source)
    for name in needed:
        if not splits[name]:
            raise InputError(
                f"The {name} split of {source} has no text: it is too short to be divided"
                f"{'' if whole else ' at line ends'}; give a directory with a file for each split."
            )
    taken = {split: take(splits, split, source, whole=whole) for split in asked}
    classes: dict[str, list[int]] = {}
    if names:
        if len(names) < 2:
            raise InputError(
                f"{source} has one class alone, {names[0]}: a classifier needs two classes or more."
            )
        classes = {split: [names.index(name) for _, name in rows] for split, rows in taken.items()}
        taken = {split: [text for text, _ in rows] for split, rows in taken.items()}
    for name, documents in taken.items():
        if not any(document.strip() for document in documents):
            raise InputError(
                f"The {name} split of {source} is blank: it has nothing to predict; give text."
            )
    digest = _sha256(taken, classes)
    if config.layout == "lines" and not whole:
        taken = {name: lines_of(documents) for name, documents in taken.items()}
    return CorpusText(taken, digest, source, classes, names)


def _read(
    config: DataConfig, corpus: Corpus, needed: list[str]
) -> tuple[dict[str | None, list[Any]], str, bool, list[str]]:
    """Return the rows of each split that is needed, their source, whether a row stays whole, and
    the names of the classes.

    What has no splits is under None.
    """
    if corpus.load_own is not None:
        documents, source = corpus.load_own(config)
        check_splits(needed, documents, source)
        return dict(documents.items()), source, corpus.rows_are_lines, []
    found = find(config, corpus.hub)
    _refuse_unread(config, found)
    if None in found.splits and not corpus.divisible:
        raise InputError(
            f"data.path={config.path} is not a directory with split files for data={config.name}:"
            " train, validation and test, each .txt, .raw, .tokens or .parquet."
        )
    wanted: list[str | None] = [None] if None in found.splits else [*needed]
    if found.splits and None not in found.splits:
        check_splits(needed, found.splits, found.source)
    if found.kind == TEXT:
        if corpus.rows is None:
            raise InputError(f"{found.source} is no table: give {corpus.label}.")
        read = {name: read_documents(corpus.rows, found.splits[name]) for name in wanted}
        return read, found.source, corpus.rows_are_lines, []
    tables = read_tables(found, wanted)
    if None not in tables:
        check_splits(needed, tables, found.source)
        tables = {name: table for name, table in tables.items() if name in needed}
    rows = {
        name: corpus.rows_of_table(table, config, found.name_of(name), found.kind)
        for name, table in tables.items()
    }
    if corpus.class_names is None:
        return rows, found.source, True, []
    used = {name for of_split in rows.values() for _, name in of_split}
    return rows, found.source, True, corpus.class_names(list(tables.values()), config, used)


def _refuse_unread(config: DataConfig, found: Found) -> None:
    """Refuse keys that have no effect on what was found."""
    for key in ("subset", "revision"):
        if (value := getattr(config, key)) is not None and found.kind != "hub":
            raise InputError(
                f"data.{key}={value:.100} is for a dataset of the hub, and {found.source} lies "
                "here: leave it out."
            )
    if config.column is not None and found.kind == TEXT:
        raise InputError(
            f"data.column={config.column:.100} names a column of a table, and {found.source} is "
            "plain text: leave it out."
        )


def _divide(
    read: dict[str | None, list[Any]], config: DataConfig, source: str, *, whole: bool
) -> dict[str, list[Any]]:
    """Return the rows by split. What has no splits is divided, and so is ``data.split``."""
    named = {name or "train": rows for name, rows in read.items()}
    if config.split is not None:
        check_splits(splits_within(config.split), named, source)
        rows = take(named, split_name(config.split), source, whole=whole)
    elif None in read:
        rows = named["train"]
    else:
        return named
    return divide_by_row(rows) if whole else divide_by_position(rows)


def split_name(name: str) -> str:
    """Return the canonical name of a split or slice: ``valid``, ``val`` and ``dev`` are
    ``validation``.

    Examples:
        >>> split_name("dev[:90%]")
        'validation[:90%]'
    """
    parts = [part.strip().partition("[") for part in name.split("+")]
    return "+".join(ALIASES.get(split, split) + bracket + end for split, bracket, end in parts)


def splits_within(name: str) -> list[str]:
    """Return the splits that a slice is cut from; of a split, itself."""
    return [part.partition("[")[0] for part in split_name(name).split("+")]


def parse_slice(name: str, key: str = "a split") -> ReadInstruction | None:
    """Return a slice as ``datasets`` understands it; None of a split's plain name.

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
    """Return the rows of a split or slice.

    Unless they are taken whole, they are texts cut into lines.

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


def check_splits(needed: Iterable[str], available: Iterable[Any], source: str) -> None:
    """Refuse a split that is needed and not there."""
    have = sorted(map(str, available), key=lambda name: (*SPLITS, name).index(name))
    for name in needed:
        if name not in have:
            raise InputError(
                f"There is no split {name!r} in {source}, which has {', '.join(have)}: set"
                " data.train_split, data.validation_split and data.test_split to those, or to"
                f" slices of them, or data.split={have[0]} to have that one divided."
            )


def comes_from_the_hub(config: DataConfig) -> bool:
    """Whether reading this corpus may ask the network."""
    corpus = CORPORA[config.name]
    if config.path is None:
        return corpus.hub is not None
    return corpus.hub is None and corpus.load_own is None and is_hub_id(config.path)


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
