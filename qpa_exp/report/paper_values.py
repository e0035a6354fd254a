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

from qpa_exp.adapters.catalogue import Counts, plan_counts
from qpa_exp.cli import compose_config
from qpa_exp.report.comparisons import Row
from qpa_exp.report.tables import method_of, setting_of

TABLES = ("table2", "table3", "table8", "table9")

_INTRODUCTION = """\
# The paper's parameter counts

Every row of the paper's Tables 2, 3, 8 and 9, and what the same setting has here, counted by the
code that builds the model (`python -m qpa_exp.plan`). Tables 2 and 3 print percentages of lm_head
alone, some cut and some rounded; the settings beside them are those that give the percentages. It
is written by

    python -m qpa_exp.report counts=true > docs/counts.md

**Two models are called Gemma.** The paper's counts for "Gemma-2 (2B)" belong to a hidden size of
2048, so lm_head has 256,000 x 2,048 = 524,288,000 weights (its "0.52 B"): that is the first Gemma
2B, `model=gemma`. The real gemma-2-2b has 2,304, `model=gemma2`, and counts of its own; they stand
in the last table.

**What the paper's own statements cannot all be.** It says 4 to 11 qubits for every experiment, but
on Gemma's shape DoRA at r = 4 and n_mlp = 512 generates 1,288,192 values in 2,516 chunks, and FFA
at n_mlp = 1024 generates 2,099,712, its biases among them, in 2,051: both need 12 qubits. Eq. 10
prints r (d + k) + k for DoRA, but the percentages in Table 2 need r (d + k) + d, a magnitude for
each of the d rows of lm_head: that is what is counted here.
"""


def counts_page() -> str:
    """Markdown: each table of the paper, and the real Gemma-2's counts."""
    parts = [_INTRODUCTION]
    for table in TABLES:
        lines = [_line(row) for row in reported(table)]
        parts.append(f"## Table {table.removeprefix('table')}\n\n{_markdown(lines)}\n")
    real = [_real_gemma2(row) for row in reported("table2") if row.model == "gemma"]
    parts.append(f"## The real Gemma-2, at the settings of Table 2\n\n{_markdown(real)}\n")
    return "\n".join(parts)


def _markdown(lines: list[dict[str, str]]) -> str:
    frame = pd.DataFrame(lines)
    head = "| " + " | ".join(frame.columns) + " |\n" + "| --- " * len(frame.columns) + "|\n"
    return head + "\n".join("| " + " | ".join(row) + " |" for row in frame.astype(str).to_numpy())


def _line(row: Reported) -> dict[str, str]:
    counts = _count(row, row.model)
    line = {"model": row.model, "method": method_of(row), "setting": setting_of(row)}
    if row.percent is None:
        line["paper"] = f"{row.trainable_params:,}"
    else:
        line["paper"] = f"{row.percent} %"
    line["ours"] = f"{counts.trainable_params:,}"
    line["ours, of lm_head"] = f"{counts.target_percent:.4f} %"
    return line


def _real_gemma2(row: Reported) -> dict[str, str]:
    counts = _count(row, "gemma2")
    return {
        "model": "gemma2",
        "method": method_of(row),
        "setting": setting_of(row),
        "parameters": f"{counts.trainable_params:,}",
        "of lm_head": f"{counts.target_percent:.4f} %",
    }


def _count(row: Reported, model: str) -> Counts:
    overrides = [f"model={model}", f"peft={row.method}", "data=wikitext2"]
    overrides.append("qpa=paper" if row.generated else "qpa=off")
    overrides += [f"peft.r={row.r}"] if row.r else []
    overrides += [f"qpa.n_mlp={row.n_mlp}"] if row.n_mlp else []
    return plan_counts(compose_config(overrides))


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
    return tuple(
        Reported(**{str(k): v for k, v in row.items()}) for row in plain.to_dict("records")
    )


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
