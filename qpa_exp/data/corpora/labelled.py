"""The user's own labelled texts: tables with a text and a class in each row.

``data.path`` is a file, which is divided into splits row by row (80, 10 and 10 %, in the file's
order), a directory with one such file for each split, or whatever else ``data=text`` takes that has
columns. Classes have the order that the column itself names (``datasets.ClassLabel``), or else that
of their sorted names; numbers are sorted as numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qpa_exp.config import DataConfig
from qpa_exp.data.corpus import OF_A_SOURCE, Corpus
from qpa_exp.data.sources import TABLES, cells_in, text_column, texts_in

if TYPE_CHECKING:
    from datasets import Dataset


def rows(table: Dataset, config: DataConfig, source: str, kind: str) -> list[tuple[str, str]]:
    """Return the texts and the names of their classes."""
    column = text_column(table, config.text_column, source, "data.text_column")
    label = text_column(table, config.label_column, source, "data.label_column")
    return list(zip(texts_in(table, column, source), cells_in(table, label, source), strict=True))


def class_names(tables: Sequence[Dataset], config: DataConfig, found: set[str]) -> list[str]:
    """Return the names of all classes, in their order."""
    named = [getattr(table.features[config.label_column], "names", None) for table in tables]
    if named[0] is not None and all(names == named[0] for names in named):
        return list(named[0])
    numbers = all(re.fullmatch(r"-?\d+(\.\d+)?", name, re.ASCII) for name in found)
    return sorted(found, key=lambda name: (float(name) if numbers else 0.0, name))


ENTRY = Corpus(
    f"labelled texts, as {TABLES}",
    rows=None,
    rows_of_table=rows,
    divisible=True,
    class_names=class_names,
    reads=(*OF_A_SOURCE, "data.text_column", "data.label_column"),
)
