"""Penn Treebank in Mikolov's preparation (Fig. 6 of the paper): a document is a line."""

from __future__ import annotations

from qpa_exp.data.corpus import Corpus
from qpa_exp.data.sources import HubDataset, lines_in

# The main branch holds only a loading script, which `datasets` no longer runs. The hub's own
# conversion has the same rows, and one folder instead of a named config.
_CONVERTED = "refs/convert/parquet"

ENTRY = Corpus(
    "Penn Treebank",
    rows=lambda text: [line.strip() for line in lines_in(text)],
    rows_are_lines=True,
    join="text",
    hub=HubDataset("ptb-text-only/ptb_text_only", None, _CONVERTED, folder="penn_treebank"),
)
