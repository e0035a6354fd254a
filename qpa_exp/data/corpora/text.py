"""The user's own text: a file, a directory of ``*.txt``, or one with a file for each split."""

from __future__ import annotations

from qpa_exp.data.corpus import Corpus

ENTRY = Corpus("UTF-8 text", divisible=True)
