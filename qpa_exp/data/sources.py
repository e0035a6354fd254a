"""Where ``data.path`` leads, and what is read there: files, folders, globs, the Hugging Face hub.

Plain text is read here; tables (JSON lines, CSV, parquet, Arrow, a saved dataset, one of the hub)
through Hugging Face's ``datasets``. Everything is data: no code that came with it is run, and
nothing of it is left behind in a cache, but for what the hub sends.
"""

from __future__ import annotations

import glob
import io
import itertools
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpa_exp.config import DataConfig
from qpa_exp.errors import InputError, first_line, one_line
from qpa_exp.files import plain_name, read_bytes, read_plain, typed_path

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
ALIASES = {
    "training": "train", "testing": "test",
    "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
"""Other names of splits."""

TEXT = "text"
KINDS = {
    ".txt": TEXT, ".md": TEXT, ".text": TEXT, ".rst": TEXT, ".raw": TEXT, ".tokens": TEXT,
    ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
"""How files with these ends are read; a single file with another end is plain text."""

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")

TABLES = "JSON lines, CSV, parquet or Arrow"


@dataclass(frozen=True)
class HubDataset:
    """A dataset on the Hugging Face hub; ``folder`` is its directory of parquet files there."""

    id: str
    config: str | None
    revision: str
    folder: str | None = None

    @property
    def source(self) -> str:
        """Its name for people."""
        return " ".join(filter(None, (self.id, self.config, f"({self.revision})")))


@dataclass(frozen=True)
class Found:
    """What ``data.path`` leads to.

    Attributes:
        source: for people.
        kind: how it is read: a value of ``KINDS``, ``saved`` or ``hub``.
        splits: the files of each split; those of ``None`` where no name tells a split.
        place: of what is ``saved``.
        hub: what is on the hub.
    """

    source: str
    kind: str
    splits: dict[str | None, list[Path]]
    place: Path = Path()
    hub: HubDataset | None = None

    def name_of(self, split: str | None) -> str:
        """Return what a sentence calls one of its splits."""
        files = self.splits.get(split, [])
        if len(files) == 1:
            return str(files[0])
        return self.source if split is None else f"{self.source} ({split})"


# --- finding ----------------------------------------------------------------------------------

_SPLIT = rf"(?P<split>{'|'.join((*SPLITS, *ALIASES))})"
_SPLIT_FILE = re.compile(
    rf"(?P<before>(?:[^/]*(?:[^\w/]|_))?){_SPLIT}(?P<after>(?:(?:[^\w/]|_)[^/]*?)??)"
    r"(?:-\d{5}-of-(?P<shards>\d{5}))?(?:-[0-9a-f]{16})?(?P<folder>/.+)?\.\w+",
    re.IGNORECASE,
)
"""``train.txt``, ``wiki.valid.raw``, ``train-00000-of-00001.parquet``, ``test/0000.parquet``; and
``alpaca_train.jsonl``, ``train_data.jsonl``, which are splits where there are several of them.
"""
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_NO_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What ``datasets`` writes beside data."""


def is_hub_id(path: Any) -> bool:
    """Whether this may name a dataset of the hub: ``owner/name``, and no such directory here."""
    if not isinstance(path, str) or not _HUB_ID.fullmatch(path):
        return False
    return Path(path).suffix.lower() not in KINDS and not os.path.exists(Path(path).parent)  # noqa: PTH110


def find(config: DataConfig, known: HubDataset | None) -> Found:
    """Return what ``data.path`` leads to, or what the hub has; nothing is read yet.

    Args:
        config: of the data.
        known: where the hub has the corpus, and the name of the directory that may hold its split
            files; None for a user's own, whose path may name a dataset of the hub.

    Raises:
        InputError: nothing is there, or what is there cannot be told apart.
    """
    hub = known if config.path is None else None
    if known is None and is_hub_id(config.path):
        hub = HubDataset(str(config.path), config.subset, config.revision or "main")
    if hub is not None:
        return Found(hub.source, "hub", {}, hub=hub)
    if isinstance(config.path, list):
        return _files([_existing(each) for each in config.path], ", ".join(config.path))
    text = str(config.path)
    if glob.has_magic(text) and not _is_there(text):
        matched = sorted(map(Path, glob.glob(str(typed_path(text)), recursive=True)))  # noqa: PTH207
        files = [file for file in matched if not file.is_dir()]
        if not files:
            raise InputError(f"data.path={text} matches no file.")
        return _files(files, text)
    path = _existing(text)
    if not path.is_dir():
        _refuse_compressed(path)
        return Found(str(path.resolve()), KINDS.get(path.suffix.lower(), TEXT), {None: [path]})
    if any((path / name).exists() for name in ("dataset_dict.json", "state.json")):
        return Found(str(path.resolve()), "saved", {}, place=path)
    return _in_folder(path, known.folder if known is not None else None)


def _is_there(text: str) -> bool:
    with suppress(OSError, ValueError):  # a name that is too long, a zero byte
        return typed_path(text).exists()
    return True  # what is wrong is said where it is opened


def _existing(text: str) -> Path:
    """Return a path that somebody typed, which is there.

    Raises:
        InputError: it is not, or it is no path.
    """
    path = typed_path(text)
    try:
        path.stat()
    except FileNotFoundError as error:
        raise InputError(f"data.path={path} does not exist.") from error
    except (OSError, ValueError) as error:  # a loop of links, a name that is too long, a zero byte
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"data.path={str(path)!r:.200} cannot be read: {reason}.") from error
    return path


def _refuse_compressed(*files: Path) -> None:
    """Refuse data that would have to be unpacked first, rather than leave it out."""
    for file in files:
        if file.suffix.lower() in COMPRESSED:
            raise InputError(f"data.path={file} is compressed: unpack it first.")


def _files(files: Sequence[Path], source: str) -> Found:
    """Files that were named: they are splits if their names say so, all or none."""
    if folders := [file for file in files if file.is_dir()]:
        raise InputError(f"data.path has {folders[0]} in a list of files: it is a directory.")
    if len(set(files)) < len(files):
        raise InputError(f"data.path={source} names a file twice.")
    _refuse_compressed(*files)
    named = _named({file: file.name for file in files}, source)
    if not named:
        return Found(source, _one_kind(files, source, named=True), {None: list(files)})
    if len(named) < len(files):
        raise _unnamed(source, next(file for file in files if file not in named))
    return _splits(source, named)


def _named(names: dict[Path, str], source: str) -> dict[Path, re.Match[str]]:
    """Return the files that are splits by their names.

    ``train.txt`` is one wherever it stands. ``how_to_train.md`` is one where there is a
    ``how_to_test.md``, and then each file must be.
    """
    found = {file: match for file, name in names.items() if (match := _SPLIT_FILE.fullmatch(name))}
    plain = ("", "wiki.", "ptb.")
    alone = {f: m for f, m in found.items() if m["before"].lower() in plain and not m["after"]}
    if alone:
        return alone
    splits: dict[tuple[str, ...], set[str]] = {}
    for match in found.values():
        splits.setdefault(match.group("before", "after"), set()).add(_split_of(match))
    named = {f: m for f, m in found.items() if len(splits[m.group("before", "after")]) > 1}
    if named and len(named) < len(names):
        raise _unnamed(source, next(file for file in names if file not in named))
    return named


def _split_of(match: re.Match[str]) -> str:
    name = match["split"].lower()
    return ALIASES.get(name, name)


def _unnamed(source: str, file: Path) -> InputError:
    return InputError(
        f"data.path={source} has files named after splits, and {file.name}, whose split cannot be "
        "told: give all such names (train, validation, test), or none."
    )


def _in_folder(root: Path, folder: str | None) -> Found:
    """Return what a directory holds: split files, which may lie in its ``data`` or ``folder``, or
    else documents.
    """
    for place in (root, root / "data", *([root / folder] if folder else [])):
        there = {file: file.relative_to(place).as_posix() for file in _readable(place)}
        if found := _named(there, str(root)):
            return _splits(str(root.resolve()), found)
    files, source = _readable(root), str(root.resolve())
    if not files:
        raise InputError(
            f"data.path={root} is a directory without files that can be read: give one with files "
            f"that end in {', '.join(KINDS)}."
        )
    for place in {file.parent: None for file in files}:
        for file in _named({each: each.name for each in files if each.parent == place}, str(place)):
            raise InputError(
                f"data.path={root} has the split file {file.relative_to(root)} further down: give "
                f"data.path={place}."
            )
    return Found(source, _one_kind(files, str(root)), {None: files})


def _readable(root: Path) -> list[Path]:
    """Return the files below that can be data, in sorted order; hidden ones are passed over."""
    there = [
        file
        for file in sorted(root.rglob("*"))
        if file.name not in _NO_DATA
        and not any(part.startswith(".") for part in file.relative_to(root).parts)
    ]
    _refuse_compressed(*(file for file in there if Path(file.stem).suffix.lower() in KINDS))
    files = [file for file in there if file.suffix.lower() in KINDS]
    others = [file for file in files if file.name != "README.md"]  # it describes what lies there
    return others if {file.suffix.lower() for file in others} - {".md"} else files


def _one_kind(files: Sequence[Path], source: str, *, named: bool = False) -> str:
    """How all the files are read; those that were ``named`` may have several ends of one kind."""
    ends = sorted({file.suffix.lower() for file in files})
    kinds = {KINDS.get(end, TEXT) for end in ends}
    if len(kinds) > 1 or (len(ends) > 1 and not named):
        raise InputError(
            f"{source} has files of more than one kind ({', '.join(ends)}), and which of them is "
            f"meant cannot be told: give one alone, for example "
            f"data.path='<directory>/**/*{ends[0]}'."
        )
    return kinds.pop()


def _splits(source: str, named: dict[Path, re.Match[str]]) -> Found:
    splits: dict[str | None, list[Path]] = {}
    for file, match in named.items():
        splits.setdefault(_split_of(match), []).append(file)
    for split, files in splits.items():
        shards = {named[file]["shards"] for file in files}
        folders = [named[file]["folder"] is not None for file in files]
        whole = all(folders) or len(files) == 1 if shards == {None} else True
        if shards != {None} and shards != {f"{len(files):05d}"}:
            whole = False
        if not whole:
            raise InputError(
                f"{source} must hold the {split} split once and whole, but it has"
                f" {', '.join(file.name for file in files)}."
            )
    kinds = {_one_kind(files, source) for files in splits.values()}
    if len(kinds) > 1:
        raise InputError(f"{source} has splits of more than one kind: {', '.join(sorted(kinds))}.")
    return Found(source, kinds.pop(), splits)


# --- plain text -------------------------------------------------------------------------------

_MOST_BYTES = 64 * 2**30
"""The most bytes of a file; what is no ordinary file has no size and may never end."""

_LONGEST_LINE = 2**24
"""Characters of one line, which a tokenizer takes in one piece."""


def lines_in(text: str) -> io.StringIO:
    """Iterate over lines with their newlines, as a file does.

    ``str.splitlines`` also cuts at form feeds and Unicode separators: not the hub's rows.
    """
    return io.StringIO(text)


def read_text(file: Path) -> str:
    """Return a UTF-8 file that is not empty, with its newlines made plain."""
    data = read_bytes(file, _MOST_BYTES)
    if not data:
        raise InputError(f"{file} is empty (0 bytes).")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: see byte offset {error.start}.") from error
    if "\0" in text:
        raise InputError(f"{file} is not text: it has bytes that are zero.")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def check_lines(documents: Iterable[str], source: object) -> None:
    """Refuse a line that would keep a tokenizer busy for hours."""
    for document in documents:
        if len(document) > _LONGEST_LINE:
            longest = max(map(len, lines_in(document)))
            if longest > _LONGEST_LINE:
                raise InputError(
                    f"{source} has a line of {longest:,} characters, more than the "
                    f"{_LONGEST_LINE:,} that are taken: break it into lines."
                )


def read_documents(rows: Callable[[str], list[str]], files: Iterable[Path]) -> list[str]:
    """Return the documents of some text files, each as ``rows`` finds them in a file's text."""
    documents: list[str] = []
    for file in files:
        text = read_text(file)
        check_lines([text], file)
        _refuse_json(text, file)
        documents += rows(text)
    return documents


def _refuse_json(text: str, file: Path) -> None:
    """Refuse a table under the name of a text: it would be trained with its braces."""
    if text.lstrip()[:1] in ("{", "[") and (_are_rows(_first_lines(text)) or _are_rows([text])):
        raise InputError(
            f"{file} holds JSON, not plain text: give it a name that ends in .jsonl or .json, and "
            "data.column=<the column of its text>."
        )


def _first_lines(text: str) -> list[str]:
    return list(itertools.islice((line for line in lines_in(text) if line.strip()), 2))


def _are_rows(texts: list[str]) -> bool:
    try:
        found = [json.loads(each) for each in texts]
    except (ValueError, RecursionError):
        return False
    rows = found[0] if len(found) == 1 and isinstance(found[0], list) else found
    return bool(rows) and all(isinstance(row, dict) for row in rows)


# --- tables -----------------------------------------------------------------------------------

_WHOLE = 2**31 - 1
"""Rows of a CSV file, and bytes of a JSON file, that are looked at together for their types."""

_OPTIONS: dict[str, dict[str, Any]] = {
    "json": {"parse_agent_traces": False, "on_mixed_types": None, "chunksize": _WHOLE},
    "csv": {"keep_default_na": False, "index_col": False, "chunksize": _WHOLE},
}


def read_tables(found: Found, splits: Iterable[str | None]) -> dict[str | None, Dataset]:
    """Return the rows of these splits at least; of ``None`` what has no splits.

    Raises:
        InputError: it is no such table, it is damaged, or the hub does not give it.
    """
    if found.kind == "hub":
        assert found.hub is not None
        loaded = _from_hub(found.hub)
    elif found.kind == "saved":
        loaded = _saved(found.place)
    else:
        return {split: _read(found.kind, found.splits[split]) for split in splits}
    return {ALIASES.get(str(name), name): rows for name, rows in loaded.items()}


def _from_hub(hub: HubDataset) -> dict[str | None, Dataset]:
    """All splits, from the hub or its cache; ``datasets`` runs no loading script any more."""
    # Imported here: slow, and neither pydoc nor local text needs them.
    import datasets

    try:
        loaded: Any = datasets.load_dataset(hub.id, hub.config, revision=hub.revision)
    except Exception as error:  # the hub's, httpx's and datasets' own, and built-in ones
        reason = one_line(f"{type(error).__name__}: {error}").rstrip(".")[:300]
        nowhere = "" if hub.folder else ", and there is no such path here"
        subset = " give data.subset=<one of them>;" if "Config name" in reason else ""
        raise InputError(
            f"The dataset {hub.source} could not be read from the Hugging Face hub ({reason})"
            f"{nowhere};{subset} without it, data.path=<directory with its split files> or "
            "data=pydoc work."
        ) from error
    return dict(loaded)


def _saved(place: Path) -> dict[str | None, Dataset]:
    """Return what ``save_to_disk`` wrote: a dataset, or one for each split."""
    import datasets

    for file in place.rglob("*"):
        if not (file.is_file() or file.is_dir()):
            raise InputError(f"{file} is no ordinary file.")
        if file.name == "state.json":
            state = read_plain(file)
            listed = state.get("_data_files") if isinstance(state, dict) else None
            for each in listed if isinstance(listed, list) else []:
                plain_name(each.get("filename") if isinstance(each, dict) else None, str(file))
    with _one_sentence(place, "a dataset that save_to_disk wrote"):
        loaded: Any = datasets.load_from_disk(str(place.resolve()))
        tables = loaded if isinstance(loaded, datasets.DatasetDict) else {None: loaded}
        return {name: _sound(rows.with_format(None)) for name, rows in tables.items()}


def _read(kind: str, files: Sequence[Path]) -> Dataset:
    """Return some files as one table. ``datasets`` converts them within a directory of ours, then
    gone.
    """
    import datasets
    import pandas as pd

    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # rows with too many cells
        tables = []
        for n, file in enumerate(files):
            plain = Path(place) / f"{n}{file.suffix.lower()}"  # no "*" and "::" in its name
            if kind in ("json", "csv"):
                plain.write_text(read_text(file), encoding="utf-8", newline="")
            else:
                _check_ordinary(file)
                plain.symlink_to(file.resolve())
            options = dict(_OPTIONS.get(kind, {}))
            if plain.suffix == ".tsv":
                options["sep"] = "\t"
            with _one_sentence(file, f"a readable {plain.suffix[1:]} file"):
                table = _sound(datasets.load_dataset(
                    kind, data_files=[str(plain)], split="train", cache_dir=f"{place}/cache",
                    keep_in_memory=True, **options,
                ))  # fmt: skip
            _check_table(table, file, kind)
            tables.append(table)
        with _one_sentence(files[0].parent, "a directory whose files have the same columns"):
            return datasets.concatenate_datasets(tables) if len(tables) > 1 else tables[0]


def _sound(table: Dataset) -> Dataset:
    """Give the table whose every cell is what its column says; text is UTF-8, for one."""
    table.data.validate(full=True)
    return table


def _check_ordinary(file: Path) -> None:
    if not file.is_file():
        raise InputError(f"{file} is no ordinary file.")
    if not file.stat().st_size:
        raise InputError(f"{file} is empty (0 bytes).")


def _check_table(table: Dataset, file: Path, kind: str) -> None:
    names = table.column_names
    if kind == "csv":
        if len(names) == 1 and re.search(r"[;\t|]", names[0]):
            raise InputError(
                f"{file} has one column, {names[0]!r:.100}: part its cells by commas, or give it a "
                "name that ends in .tsv if they are parted by tabs."
            )
        for name in names:
            if f"{name}.1" in names:
                raise InputError(f"{file} has two columns {name!r}: give each its own name.")


@contextmanager
def _one_sentence(source: Path, what: str) -> Iterator[None]:
    """Whatever the libraries meet within is said with the file's name, and is not logged."""
    import datasets

    logger = logging.getLogger("datasets")
    level, bars = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # pandas' parsers', pyarrow's, and what damage leads them to
        cause = error.__cause__ or error
        if any(words in str(cause) for words in _NO_ROWS):
            raise InputError(f"{source} has no rows.") from error
        if isinstance(cause, Warning):  # pandas' own, of a CSV file
            raise InputError(
                f"{source} has rows with more cells than its first line names columns."
            ) from error
        raise InputError(
            f"{source} is not {what}: {type(cause).__name__}: {first_line(cause)[:200]}"
        ) from error
    finally:
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


_NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0")


CHATS = ("messages", "conversations")
"""Columns that hold chats, unless ``data.column`` names another."""


def text_column(table: Dataset, asked: str | None, source: str, key: str = "data.column") -> str:
    """Return the column of a table that holds its text.

    Args:
        table: its rows.
        asked: the column that the config names; null is ``text``, ``sentence``, or else the only
            one that holds text.
        source: for the sentence.
        key: that names the column.

    Raises:
        InputError: there is none, or which one cannot be told.
    """
    names = list(table.column_names)
    has = f"but {', '.join(map(repr, names))}"
    if asked is not None:
        if asked not in names:
            raise InputError(f"{source} has no column {asked!r}, {has}: give {key}=<one of them>.")
        return asked
    for column in ("text", "sentence"):
        if column in names:
            return column
    if {"prompt", "completion"} <= set(names) or set(CHATS) & set(names):
        raise InputError(
            f"{source} holds instructions ({', '.join(map(repr, names))}): give data=instruct, or "
            f"{key}=<one of them> to train it as text."
        )
    texts = [name for name in names if _is_string(table.features[name])]
    if len(texts) == 1 and not any(char.isspace() for char in texts[0]):  # a line of text
        return texts[0]
    found = "several columns of text" if len(texts) > 1 else "no column 'text' or 'sentence'"
    raise InputError(f"{source} has {found}, {has}: give {key}=<one of them>.")


def _is_string(feature: Any) -> bool:
    return "string" in str(getattr(feature, "dtype", ""))


def texts_in(table: Dataset, column: str, source: str, *, blank: bool = True) -> list[str]:
    """Return the texts of a column.

    Args:
        table: its rows.
        column: of these.
        source: for the sentence.
        blank: whether a text may be empty.

    Raises:
        InputError: a row has none, or what it has is no text.
    """
    feature = table.features[column]
    if not _is_string(feature):
        dtype = getattr(feature, "dtype", None)
        held = "nothing" if dtype == "null" else dtype or "nested values"
        raise InputError(
            f"Column {column!r} of {source} holds {held}, and must hold text in every row."
        )
    texts: list[str] = table.with_format(None)[column][:]
    for row, text in enumerate(texts, 1):
        if text is None or not (text or blank):
            raise InputError(f"Row {row:,} of {source} has no {column!r}, which must be text.")
    if not any(texts):
        raise InputError(f"Column {column!r} of {source} is empty.")
    check_lines(texts, source)
    return texts


def cells_in(table: Dataset, column: str, source: str) -> list[str]:
    """Return the names in a column: its words, its numbers, or what the numbers stand for.

    Raises:
        InputError: a row has none, or something nested.
    """
    known = getattr(table.features[column], "names", None)
    found = table.with_format(None)[column][:]
    for row, cell in enumerate(found, 1):
        is_one = isinstance(cell, str | int | float | bool) and cell != ""
        if not is_one or cell != cell or (known is not None and not 0 <= cell < len(known)):
            raise InputError(
                f"Row {row:,} of {source} has no {column!r} ({cell!r:.100}): give each row its own."
            )
    if known is not None:
        return [known[number] for number in found]
    whole = (int(c) if isinstance(c, float) and c.is_integer() else c for c in found)
    return list(map(str, whole))
