"""The user's own text: files, a folder, a table with a column of text, or a dataset of the hub."""

from __future__ import annotations

from qpa_exp.data.corpus import OF_A_SOURCE, Corpus

ENTRY = Corpus("UTF-8 text", divisible=True, reads=(*OF_A_SOURCE, "data.column"))
