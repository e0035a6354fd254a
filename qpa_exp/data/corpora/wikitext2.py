"""WikiText-2 raw (Merity et al. 2016; Sec. 4.1 of the paper): a document is a line."""

from __future__ import annotations

from qpa_exp.data.corpus import Corpus
from qpa_exp.data.sources import HubDataset, lines_in


def rows(text: str) -> list[str]:
    """Return the hub's rows: a line keeps its newline, but a blank one (a lone blank) is ``''``."""
    return [line if line.strip() else "" for line in lines_in(text)]


ENTRY = Corpus(
    "WikiText-2",
    rows=rows,
    rows_are_lines=True,
    join="text",
    hub=HubDataset("Salesforce/wikitext", "wikitext-2-raw-v1", "main", folder="wikitext-2-raw-v1"),
)
