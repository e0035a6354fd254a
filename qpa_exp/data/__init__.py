"""Text in, padded lines or packed blocks of token ids out."""

from __future__ import annotations

from qpa_exp.data.corpora.corpora import CorpusText, load_corpus
from qpa_exp.data.datamodule import TextDataModule
from qpa_exp.data.layouts import Examples, lay_out

__all__ = ["CorpusText", "Examples", "TextDataModule", "lay_out", "load_corpus"]
