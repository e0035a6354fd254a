"""The tables of a study: its own runs, and the paper's tables with ours beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from qpa_exp.registry import Registry
from qpa_exp.report.comparisons import aggregate, chosen, family, measured
from qpa_exp.report.paper_values import METRIC, PROTOCOL, Reported, protocol_differences, reported

NOT_MEASURED, NOT_REPORTED = "not measured", "not reported"


@dataclass(frozen=True)
class Table:
    """A table with its caption."""

    name: str
    caption: str
    rows: pd.DataFrame


def runs_table(runs: pd.DataFrame) -> Table:
    """One row for each setting; metrics as mean ± standard deviation over its seeds."""
    table = aggregate(runs)
    columns = {
        "setting": table["label"],
        "method": [family(row) for _, row in table.iterrows()],
        "model": table["model.name"],
        "trainable": [f"{n:,.0f}" for n in table["trainable_params"]],
        "% of target": [
            f"{100 * row['trainable_params'] / row['target_params']:.3f}"
            for _, row in table.iterrows()
        ],
        "qubits": ["" if pd.isna(n) else f"{n:.0f}" for n in table["n_qubits"]],
    }
    for metric in measured(runs):
        columns[f"base {metric.name}"] = [f"{x:.4g}" for x in table[f"base_{metric.name}"]]
        columns[metric.name] = [_with_spread(row, metric.name) for _, row in table.iterrows()]
    if "gradient_variance" in table and table["gradient_variance"].notna().any():
        columns["gradient variance"] = [f"{x:.3g}" for x in table["gradient_variance"]]
    if "train_seconds" in table and table["train_seconds"].notna().any():
        columns["seconds"] = [f"{x:,.0f}" for x in table["train_seconds"]]
    columns["runs"] = table["n"]
    meaning = ", ".join(f"'{metric.name}' is the {metric.label}" for metric in measured(runs))
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
        return f"{mean:.4g}"
    return f"{_digits(mean, 4)} ± {_digits(spread, 2)}"


def _digits(value: float, digits: int) -> str:
    """So many digits, trailing zeros among them; whole where there are more before the point."""
    whole = value >= 10 ** (digits - 1)
    return f"{value:,.0f}" if whole else f"{value:#.{digits}g}"


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
        return None if others.empty else chosen(others)
    for key, value in (("peft.r", row.r), ("qpa.n_mlp", row.n_mlp)):
        if value is not None:
            exact = exact[exact[key] == value]
    return None if exact.empty else exact.iloc[0]


def method_of(row: Reported) -> str:
    """The method's name as our own rows have it."""
    return family({"peft.method": row.method, "qpa.variant": "paper" if row.generated else "off"})


def setting_of(row: Reported) -> str:
    """Rank and n_mlp, where the row has them."""
    parts = [f"{key} = {value}" for key, value in (("r", row.r), ("n_mlp", row.n_mlp)) if value]
    return ", ".join(parts)


TABLES: Registry[Callable[[str, pd.DataFrame], Table]] = Registry(
    "tables",
    {
        "table2": perplexity_table,
        "table3": perplexity_table,
        "table8": time_table,
        "table9": time_table,
    },
)
"""The paper's tables, each with ours beside it."""
