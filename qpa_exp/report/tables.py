"""The tables of a study: its own runs, and the paper's tables with ours beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from qpa_exp.adapters.counts import plan_counts
from qpa_exp.cli import compose_config
from qpa_exp.registry import Registry
from qpa_exp.report.comparisons import (
    Row,
    aggregate,
    chosen,
    controls,
    digits,
    family,
    measured,
    ranked_by,
)  # fmt: skip
from qpa_exp.report.labels import named, plain
from qpa_exp.report.paired import holm, verdict

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

**The paper's own statements cannot all be true.** It says 4 to 11 qubits for every experiment, but
on Gemma's shape DoRA at r = 4 and n_mlp = 512 generates 1,288,192 values in 2,516 chunks, and FFA
at n_mlp = 1024 generates 2,099,712, its biases among them, in 2,051: both need 12 qubits. Eq. 10
prints r (d + k) + k for DoRA, but the percentages in Table 2 need r (d + k) + d, a magnitude for
each of the d rows of lm_head: that is what is counted here.
"""


def counts_page() -> str:
    """Markdown: each table of the paper, and the real Gemma-2's counts."""
    parts = [_INTRODUCTION]
    for table in dict.fromkeys(row.table for row in REPORTED):
        lines = [_line(row, row.model) for row in reported(table)]
        parts.append(f"## Table {table.removeprefix('table')}\n\n{_markdown(lines)}\n")
    head = ("parameters", "of lm_head")
    real = [_line(row, "gemma2", head) for row in reported("table2") if row.model == "gemma"]
    parts.append(f"## The real Gemma-2, at the settings of Table 2\n\n{_markdown(real)}\n")
    return "\n".join(parts)


def _markdown(lines: list[dict[str, str]]) -> str:
    frame = pd.DataFrame(lines)
    head = "| " + " | ".join(frame.columns) + " |\n" + "| --- " * len(frame.columns) + "|\n"
    return head + "\n".join("| " + " | ".join(row) + " |" for row in frame.astype(str).to_numpy())


def _line(
    row: Reported, model: str, head: tuple[str, str] = ("ours", "ours, of lm_head")
) -> dict[str, str]:
    line = {"model": model, "method": method_of(row), "setting": setting_of(row)}
    if model == row.model:
        line["paper"] = f"{row.percent} %" if row.percent else f"{row.trainable_params:,}"
    overrides = [f"model={model}", f"peft={row.method}", "data=wikitext2"]
    overrides.append("qpa=paper" if row.generated else "qpa=off")
    overrides += [f"peft.r={row.r}"] if row.r else []
    overrides += [f"qpa.n_mlp={row.n_mlp}"] if row.n_mlp else []
    counts = plan_counts(compose_config(overrides))
    ours = (f"{counts.trainable_params:,}", f"{counts.target_percent:.4f} %")
    return line | dict(zip(head, ours, strict=True))


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


_FILE = Path(__file__).with_name("paper_values.csv")
REPORTED = _read()


def reported(table: str) -> list[Reported]:
    """Return the values of one of the paper's tables."""
    return [row for row in REPORTED if row.table == table]


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
    """Return what keeps a run's perplexity from being compared with the paper's."""
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


def method_of(row: Reported) -> str:
    """Return the method's name as our own rows have it."""
    return family({"peft.method": row.method, "qpa.variant": "paper" if row.generated else "off"})


def setting_of(row: Reported) -> str:
    """Rank and n_mlp, where the row has them."""
    parts = [f"{key} = {value}" for key, value in (("r", row.r), ("n_mlp", row.n_mlp)) if value]
    return ", ".join(parts)


NOT_MEASURED, NOT_REPORTED = "not measured", "not reported"


@dataclass(frozen=True)
class Table:
    """A table with its caption."""

    name: str
    caption: str
    rows: pd.DataFrame


def runs_table(runs: pd.DataFrame, groups: Mapping[str, Mapping[str, Any]] | None = None) -> Table:
    """One row for each setting; metrics as mean ± standard deviation over its seeds.

    Args:
        runs: rows of runs.
        groups: settings whose names stand behind their group's, as a study's file has them.
    """
    table = aggregate(runs)
    share = 100 * table["trainable_params"] / table["target_params"]
    columns = {
        "setting": named(table, groups).map(plain),
        "method": [family(row) for _, row in table.iterrows()],
        "model": table["model.name"],
        "trainable": [f"{n:,.0f}" for n in table["trainable_params"]],
        "% of target": share.map("{:.3f}".format),
        "qubits": ["" if pd.isna(n) else f"{n:.0f}" for n in table["n_qubits"]],
    }
    metrics = measured(runs, restated=True)
    for metric in metrics:
        base = table[f"base_{metric.name}"]
        columns[f"base {metric.name}"] = ["" if pd.isna(x) else digits(x) for x in base]
        columns[metric.name] = [_with_spread(row, metric.name) for _, row in table.iterrows()]
    if "gradient_variance" in table and table["gradient_variance"].notna().any():
        columns["gradient variance"] = [f"{x:.3g}" for x in table["gradient_variance"]]
    if "train_seconds" in table and table["train_seconds"].notna().any():
        columns["seconds"] = [f"{x:,.0f}" for x in table["train_seconds"]]
    columns["runs"] = table["n"]
    if (table["label"] != columns["setting"]).any():
        columns["overrides"] = table["label"]
    meaning = ", ".join(f"'{metric.name}' is the {metric.label}" for metric in metrics)
    caption = (
        f"Every setting of this study, measured on the test split: {meaning}. ± is the standard "
        "deviation over seeds."
    )
    return Table("runs", caption, pd.DataFrame(columns))


def _with_spread(row: pd.Series, metric: str) -> str:
    mean, spread = row[metric], row[f"{metric}_std"]
    if pd.isna(mean):
        return ""
    if pd.isna(spread):
        return digits(mean)
    return f"{digits(mean)} ± {digits(spread, 2)}"


# --- beside the paper's -----------------------------------------------------------------------


def perplexity_table(name: str, runs: pd.DataFrame) -> Table:
    """Table 2 or 3 of the paper, with our runs of the same settings, else of the same method."""
    table = aggregate(runs)
    lines = [_perplexity_line(row, _ours(row, table)) for row in reported(name)]
    caption = (
        f"Table {name.removeprefix('table')} of the paper beside ours. It prints percentages of "
        "lm_head, some cut, some rounded, and the perplexity over padded lines. Where no run has "
        "the paper's model, our columns show the method's setting of lowest validation perplexity, "
        "and the last column says what differs. The paper's Gemma-2 has the shape of the first "
        "Gemma, model=gemma."
    )
    return Table(name, caption, pd.DataFrame(lines))


def _perplexity_line(row: Reported, ours: pd.Series | None) -> dict[str, str]:
    line = {
        "model": row.model,
        "method": method_of(row),
        "setting": setting_of(row),
        "paper: parameters": f"{row.trainable_params:,} ({row.percent} %)",
        "paper: perplexity_padded": f"{row.perplexity_padded:.3f}",
    }
    if ours is None:
        missing = ("ours: parameters", "ours: perplexity_padded", "ours: perplexity")
        return line | dict.fromkeys(missing, NOT_MEASURED) | {"counts": "", "perplexities": ""}
    percent = 100 * ours["trainable_params"] / ours["target_params"]
    line["ours: parameters"] = f"{ours['trainable_params']:,.0f} ({percent:.3f} %)"
    for metric in (METRIC, "perplexity"):
        known = metric in ours and not pd.isna(ours[metric])
        line[f"ours: {metric}"] = _with_spread(ours, metric) if known else NOT_MEASURED
    reasons = protocol_differences(ours)
    exact = ours["trainable_params"] == row.trainable_params
    line["counts"] = "exact" if exact else "another setting"
    line["perplexities"] = f"not comparable: {', '.join(reasons)}" if reasons else "comparable"
    return line


def time_table(name: str, runs: pd.DataFrame) -> Table:
    """Table 8 or 9 of the paper: parameters and seconds of training."""
    rows = reported(name)
    table = aggregate(runs[runs["peft.method"] == "lora"])
    table = table.sort_values(["qpa.variant", "trainable_params"])
    lines = []
    own = table[table["model.name"] == rows[0].model]
    for row in rows:
        ours = _ours(row, own)
        seconds = None if ours is None else ours["train_seconds"]
        lines.append(
            _time_line(row.model, method_of(row), row.trainable_params, row.seconds, seconds)
        )
    if own.empty:  # no run of the paper's model: ours by themselves
        for _, ours in table.iterrows():
            counts, seconds = ours["trainable_params"], ours["train_seconds"]
            lines.append(_time_line(ours["model.name"], family(ours), counts, None, seconds))
    caption = (
        f"Table {name.removeprefix('table')} of the paper: seconds of training in all. Counts are "
        "exact. The paper's times are of V100S and H100 machines, so only the ratio of QPA to LoRA "
        "on one machine can be compared."
    )
    return Table(name, caption, pd.DataFrame(lines))


def _time_line(
    model: str, method: str, count: float | int, paper: int | None, ours: float | None
) -> dict[str, str]:
    return {
        "model": model,
        "method": method,
        "parameters": f"{count:,.0f}",
        "paper: seconds": NOT_REPORTED if paper is None else f"{paper:,.0f}",
        "ours: seconds": NOT_MEASURED if ours is None else f"{ours:,.1f}",
    }


def _ours(row: Reported, table: pd.DataFrame) -> pd.Series | None:
    """Our setting that is the paper's; without a run of that model, the method's best."""
    generated = table["qpa.variant"] != "off"
    same = table[(table["peft.method"] == row.method) & (generated == row.generated)]
    exact = same[same["model.name"] == row.model]
    if exact.empty:
        others = same[~same["model.name"].isin(PROTOCOL["model.name"])]
        return None if others.empty else chosen(others)[0]
    for key, value in (("peft.r", row.r), ("qpa.n_mlp", row.n_mlp)):
        if value is not None:
            exact = exact[exact[key] == value]
    return None if exact.empty else exact.iloc[0]


def controls_table(name: str, runs: pd.DataFrame) -> Table:
    """Return the trained circuit against what is put in its place, seed by seed, with a verdict
    each.
    """
    found, metric = list(controls(runs)), ranked_by(runs)
    adjusted = holm([test.p for *_, test in found])
    lines = [
        {
            "trained circuit": f"{one.get('name', one['label'])} ({one['trainable_params']:,.0f})",
            "control": f"{other.get('name', other['label'])} ({other['trainable_params']:,.0f})",
            "seeds": test.n,
            f"change of {metric.name}": f"{test.change:+.2f} %",
            "95 % interval": f"{test.low:+.2f} % to {test.high:+.2f} %",
            "Hedges' g": f"{test.effect:+.2f}",
            "p (Holm)": f"{p:.2g}",
            "these seeds can see": f"{test.detectable:.2g} %",
            "verdict": verdict(test, p, smaller_is_better=metric.smaller_is_better),
        }
        for (one, other, test), p in zip(found, adjusted, strict=True)
    ]
    caption = (
        "The trained circuit against each control that is equal in all else, on the same seeds: "
        "Student's t on paired differences of logarithms, p adjusted by Holm for all rows. 'these "
        "seeds can see' is the smallest change that so many seeds show with power 0.8; 'equal "
        "within' is the bound of two one-sided tests at 5 %. In brackets: trainable parameters."
    )
    return Table(name, caption, pd.DataFrame(lines))


TABLES: Registry[Callable[[str, pd.DataFrame], Table]] = Registry(
    "tables",
    {
        "table2": perplexity_table,
        "table3": perplexity_table,
        "table8": time_table,
        "table9": time_table,
        "controls": controls_table,
    },
)
"""The paper's tables, each with ours beside it, and our own."""
