"""The user's own labelled texts: tables with a text and a class in each row.

``data.path`` is a CSV, JSON-lines or parquet file, which is divided into splits row by row (80, 10
and 10 %, in the file's order), or a directory with one such file for each split: ``train.csv``,
``validation.csv``, ``test.csv``. Classes are numbered in the order of their sorted names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qpa_exp.config import DataConfig
from qpa_exp.data.corpus import (
    SPLITS,
    Corpus,
    Labelled,
    check_lines,
    data_path,
    read_file,
    split_name,
)
from qpa_exp.errors import InputError, first_line

if TYPE_CHECKING:
    import pandas as pd


def _readers() -> Mapping[str, Callable[[BytesIO], pd.DataFrame]]:
    import pandas as pd

    return {
        ".csv": lambda data: pd.read_csv(data, keep_default_na=False),
        ".jsonl": lambda data: pd.read_json(data, lines=True, dtype=False),
        ".parquet": lambda data: pd.read_parquet(data),
    }


def load(config: DataConfig) -> tuple[Labelled, str]:
    """The texts and classes of every split, and the name of their source."""
    path = data_path(config)
    columns = [config.text_column, config.label_column]
    tables = (
        {split: _read(file, columns) for split, file in _split_files(path).items()}
        if path.is_dir()
        else _divided(_read(path, columns))
    )
    names = sorted({str(name) for table in tables.values() for name in table[columns[1]]})
    if len(names) < 2:
        found = f"one class alone, {names[0]}" if names else "no rows"
        raise InputError(f"{path} has {found}: a classifier needs two classes or more.")
    documents = {split: [str(text) for text in t[columns[0]]] for split, t in tables.items()}
    for texts in documents.values():
        check_lines(texts, path)
    classes = {s: [names.index(str(name)) for name in t[columns[1]]] for s, t in tables.items()}
    return Labelled(documents, classes, names), str(path.resolve())


def _split_files(path: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        split = split_name(file.stem)
        if file.suffix in _readers() and split in SPLITS:
            if split in found:
                raise InputError(
                    f"{path} must hold the {split} split once, but it has {found[split].name} and "
                    f"{file.name}."
                )
            found[split] = file
    if not found:
        raise InputError(
            f"data.path={path} has no train, validation or test file that ends in "
            f"{', '.join(_readers())}."
        )
    return found


def _read(file: Path, columns: list[str]) -> Any:
    reader = _readers().get(file.suffix)
    if reader is None:
        raise InputError(f"{file} is no table: give one that ends in {', '.join(_readers())}.")
    data = BytesIO(read_file(file))
    try:
        table = reader(data)
    except Exception as error:  # pandas' parsers', pyarrow's, and what damage leads them to
        raise InputError(f"{file} cannot be read: {first_line(error)[:300]}") from error
    if type(table.index).__name__ != "RangeIndex" and file.suffix == ".csv":
        raise InputError(f"{file} has rows with more cells than its first line names columns.")
    for key, column in zip(("text", "label"), columns, strict=True):
        if column not in table:
            raise InputError(
                f"{file} has no column {column!r}, but {', '.join(map(repr, table.columns))}: give "
                f"data.{key}_column=<one of them>."
            )
    chosen = table[columns]
    nested = chosen.map(lambda cell: isinstance(cell, list | dict | np.ndarray))
    unlabelled = (chosen[columns[1]].astype(str) == "").any()  # a row that ends too soon
    if chosen.isna().any(axis=None) or nested.any(axis=None) or unlabelled:
        raise InputError(f"{file} has rows without a {columns[0]!r} or {columns[1]!r}.")
    return table


def _divided(table: Any) -> dict[str, Any]:
    first, second = 8 * len(table) // 10, 9 * len(table) // 10
    return dict(zip(SPLITS, (table[:first], table[first:second], table[second:]), strict=True))


ENTRY = Corpus(
    "labelled texts, as CSV, JSON lines or parquet",
    load_labelled=load,
    reads=("data.path", "data.text_column", "data.label_column"),
)
