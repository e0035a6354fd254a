"""Reading text: the hub's datasets, and local files with or without splits."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qpa_exp.errors import InputError

if TYPE_CHECKING:
    from qpa_exp.data.corpus import Corpus

SPLITS = ("train", "validation", "test")
_ALIASES = {"valid": "validation", "val": "validation", "dev": "validation"}


def split_name(name: str) -> str:
    """The canonical name of a split: ``valid``, ``val`` and ``dev`` are ``validation``."""
    return _ALIASES.get(name, name)


def check_splits(needed: Iterable[str], available: Iterable[str], source: str) -> None:
    """Refuse a split that is needed and not there."""
    have = [s for s in SPLITS if s in set(available)]
    for name in needed:
        if name not in have:
            raise InputError(
                f"There is no split {name!r} in {source}, which has {', '.join(have)}: set"
                " data.train_split, data.validation_split and data.test_split to those."
            )


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


def read_hub(hub: HubDataset, needed: Sequence[str]) -> tuple[dict[str, list[str]], str]:
    """The rows of the needed splits, from the hub or its cache, and the name of their source."""
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
    check_splits(needed, loaded, source)
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

# train.txt, wiki.valid.raw, ptb.test.txt, train-00000-of-00001.parquet, test/0000.parquet
_SPLIT_FILE = re.compile(
    r"(?:(?:wiki|ptb)\.)?(?P<split>train|validation|valid|val|dev|test)"
    r"(?:\.(?:txt|raw|tokens|parquet)|-\d{5}-of-(?P<shards>\d{5})\.parquet|/\d{4}\.parquet)"
)


def read_local(
    name: str, corpus: Corpus, path: Path, needed: Sequence[str]
) -> tuple[dict[str, list[str]], str]:
    """A corpus from a file or directory, and the name of its source."""
    if not path.exists():
        raise InputError(f"data.path={path} does not exist.")
    source = str(path.resolve())
    files = split_files(path, corpus.hub.folder if corpus.hub else None) if path.is_dir() else {}
    if files:
        check_splits(needed, files, source)
        return {split: _documents(corpus, files[split]) for split in needed}, source
    if corpus.divisible:
        return divide_by_position([read_text(file) for file in _text_files(path)]), source
    raise InputError(
        f"data.path={path} is not a directory with split files for data={name}: train,"
        " validation and test, each .txt, .raw, .tokens or .parquet."
    )


def split_files(path: Path, folder: str | None = None) -> dict[str, list[Path]]:
    """Split name -> its files, from ``path`` or else its sub-directory named as on the hub."""
    roots = [path] if folder is None else [path, path / folder]
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


def _documents(corpus: Corpus, files: Iterable[Path]) -> list[str]:
    documents: list[str] = []
    for file in files:
        if file.suffix == ".parquet":
            documents += _read_parquet(file)
        else:
            documents += corpus.rows(read_text(file))
    return documents


def read_text(file: Path) -> str:
    """A UTF-8 file with its newlines made plain."""
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
        for line in lines_in(document):
            tenth = 10 * position // total
            pieces["train" if tenth < 8 else "validation" if tenth < 9 else "test"].append(line)
            position += len(line)
        for name, lines in pieces.items():
            if lines:
                splits[name].append("".join(lines))
    return splits
