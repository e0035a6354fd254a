"""Reading text: the hub's datasets, and local files with or without splits."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qpa_exp.errors import InputError

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
    if path.is_file():
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
