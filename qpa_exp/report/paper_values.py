"""What the paper reports, to be shown beside our own numbers.

Tables 2, 3, 8 and 9 print values; the figures print none. Perplexities are the paper's, over padded
lines (``perplexity_padded``). Its tables give percentages of lm_head, not the settings behind them;
those are the ones whose exact counts give the printed percentage. "Gemma-2" has the shape, and so
the counts, of the first Gemma.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from qpa_exp.report.names import Row

METRIC = "perplexity_padded"
"""What the paper's perplexities are, by our name."""


@dataclass(frozen=True)
class Reported:
    """One value of the paper.

    Attributes:
        table: where it stands.
        model: as ``conf/model`` names it.
        generated: whether QPA makes the method's tensors.
        r: the rank, for the methods that have one.
        percent: trainable parameters in percent of lm_head, as printed.
        seconds: total execution time.
    """

    table: str
    model: str
    method: str
    generated: bool
    trainable_params: int
    r: int | None = None
    n_mlp: int | None = None
    percent: str | None = None
    perplexity_padded: float | None = None
    seconds: int | None = None


def _read() -> tuple[Reported, ...]:
    table = pd.read_csv(_FILE, dtype={"percent": str}).convert_dtypes().astype(object)
    plain = table.where(table.notna(), None)
    return tuple(Reported(**row) for row in plain.to_dict("records"))


_FILE = Path(__file__).with_suffix(".csv")
REPORTED = _read()


def reported(table: str) -> list[Reported]:
    """The values of one of the paper's tables."""
    return [row for row in REPORTED if row.table == table]


def reported_perplexities(model: str, method: str) -> list[Reported]:
    """Every perplexity on WikiText-2 that the paper prints for this model and method."""
    return [
        row
        for row in REPORTED
        if row.model == model and row.method == method and row.perplexity_padded is not None
    ]


PROTOCOL = {
    "data.name": ("wikitext2", "ptb"),
    "data.layout": ("lines",),
    "data.max_length": (512,),
    "data.batch_size": (1,),
    "trainer.max_steps": (-1,),
    "model.name": ("gpt2", "gpt2_xl", "gemma"),
    "qpa.variant": ("off", "paper", "released"),
}
"""The paper's protocol: for each key the values under which our perplexity is of the same kind."""


def protocol_differences(row: Row) -> list[str]:
    """What keeps a run's perplexity from being compared with the paper's."""
    return [f"{key}={row[key]}" for key, values in PROTOCOL.items() if row[key] not in values]


def differences(runs: pd.DataFrame) -> list[str]:
    """How these runs' settings differ from the paper's protocol, in sentences."""
    sentences = []
    for key, values in PROTOCOL.items():
        other = [str(value) for value in dict.fromkeys(runs[key]) if value not in values]
        if other:
            paper = " or ".join(map(str, values))
            sentences.append(f"{key} is {', '.join(other)}; the paper's is {paper}.")
    return sentences
