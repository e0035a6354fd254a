"""QPA at its best against the classical method, and a trained circuit against its controls."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from qpa_exp.adapters.catalogue import METHODS
from qpa_exp.circuits.ansatz import ANSATZE
from qpa_exp.generator.rules import VARIANTS
from qpa_exp.report.collect import tells_settings_apart
from qpa_exp.report.paired import PairedTest, paired_test, percent
from qpa_exp.runs.directory import validation_key
from qpa_exp.task import TASKS, Metric

Row = pd.Series | Mapping[str, Any]
"""One run, or one setting, by the config's dotted keys."""


CIRCUIT = ("qpa.ansatz", "qpa.n_layers", "qpa.variant", "optim.theta_lr")
"""The keys in which a trained circuit and its control may differ; all others are equal."""


def is_generated(row: Row) -> bool:
    """Whether a generator makes the method's tensors."""
    return bool(row["qpa.variant"] != "off")


def has_trained_circuit(row: Row) -> bool:
    """Whether a circuit that entangles, and whose angles are trained, has a part in them."""
    circuit = VARIANTS[row["qpa.variant"]].circuit
    return circuit and ANSATZE[row["qpa.ansatz"]].is_whole


def family(row: Row) -> str:
    """``LoRA``; ``QPA LoRA`` or ``random-feature LoRA`` where a generator makes its tensors."""
    return VARIANTS[row["qpa.variant"]].family + METHODS[row["peft.method"]].label


def ranked_by(runs: pd.DataFrame) -> Metric:
    """Return the metric by which runs of this task are chosen."""
    return TASKS[runs["task"].iloc[0]].ranked_by()


def digits(value: float, count: int = 4) -> str:
    """Return a number with so many digits; whole where it has as many before the point.

    Examples:
        >>> [digits(value) for value in (0.25, 99.9999, 999.96, 12345.6)]
        ['0.2500', '100.0', '1,000', '12,346']
    """
    rounded = f"{value:#.{count}g}"
    return f"{value:,.0f}" if abs(float(rounded)) >= 10 ** (count - 1) else rounded


def measured(runs: pd.DataFrame, *, restated: bool = False) -> list[Metric]:
    """Return the metrics of these runs' tasks that any of them has.

    Args:
        runs: rows of runs.
        restated: whether those that restate another one are among them.
    """
    tasks: Sequence[str] = list(dict.fromkeys(runs["task"]))
    metrics = dict.fromkeys(metric for task in tasks for metric in TASKS[task].metrics)
    there = [m for m in metrics if m.name in runs and runs[m.name].notna().any()]
    return [m for m in there if restated or m.restates is None]


def aggregate(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each setting: what its runs share, and their figures' mean over the seeds.

    Adds ``n`` (runs), and ``<figure>_std``, the sample standard deviation (NaN for one run).
    """
    numbers = map(str, runs.select_dtypes("number"))
    constant = ("seed", "n_qubits", "n_chunks")
    figures = [name for name in numbers if name not in constant and "." not in name]
    grouped = runs.groupby("setting", sort=False)
    table = grouped.first()
    table[figures] = grouped[figures].mean()
    spread = grouped[figures].std().add_suffix("_std")
    table = table.join(spread).join(grouped.size().rename("n"))
    return table.copy().reset_index()  # a copy lies in one piece


def chosen(table: pd.DataFrame) -> tuple[pd.Series, str]:
    """Return the setting that is best on validation, and in words by what it was chosen.

    Where the validation split was not measured for each, it is the smallest: never by the test
    split.
    """
    metric = ranked_by(table)
    column = validation_key(metric.name)
    if column not in table or table[column].isna().any():
        return table.sort_values("trainable_params").iloc[0], "lowest trainable params"
    end = "lowest" if metric.smaller_is_better else "highest"
    return best(table, metric, column), f"{end} {column}".replace("_", " ")


def best(table: pd.DataFrame, metric: Metric, column: str | None = None) -> pd.Series:
    """Return the row with the metric's best value, or with that of ``column``, which holds the
    same.
    """
    return table.sort_values(column or metric.name, ascending=metric.smaller_is_better).iloc[0]


def pareto(table: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Return the settings that no other beats in both parameters and the metric, fewest first."""
    loss = table[metric.name] * (1 if metric.smaller_is_better else -1)
    ordered = table.assign(_loss=loss).sort_values(["trainable_params", "_loss"])
    best_before = ordered["_loss"].cummin().shift(fill_value=math.inf)
    return ordered[ordered["_loss"] < best_before].drop(columns="_loss")


@dataclass(frozen=True)
class Comparison:
    """Two settings, the second against the first.

    Attributes:
        share: trainable parameters of the second in those of the first.
        change: change of the metric in percent.
        low: lower end of the 95 % interval of ``change``; NaN for one run each.
        high: its upper end.
        n: runs of each that take part.
        paired: whether the runs are compared seed by seed.
        candidates: settings that ``second`` was chosen from.
        chosen_by: in words, by what.
    """

    first: pd.Series
    second: pd.Series
    metric: Metric
    share: float
    change: float
    low: float
    high: float
    n: tuple[int, int]
    paired: bool
    candidates: int = 1
    chosen_by: str = ""

    def sentence(self) -> str:
        """Return the result in words, with its uncertainty."""
        one, two, name = self.first, self.second, self.metric.name
        counts = f"{two['trainable_params']:,.0f} of {one['trainable_params']:,.0f}"
        words = (
            f"{one['model.name']}: {family(two)}{_details(two)} trains {100 * self.share:.2f} % of "
            f"the parameters of {family(one)}{_details(one)} ({counts}) at "
            f"{abs(self.change):.2f} % {'lower' if self.change < 0 else 'higher'} {name} "
            f"({digits(two[name])} against {digits(one[name])}; {self._uncertainty()})."
        )
        if self.candidates > 1:
            words += f" Chosen from {self.candidates} settings by the {self.chosen_by}."
        return words

    def _uncertainty(self) -> str:
        if math.isnan(self.low):
            return "one run each: how far runs scatter has not been measured"
        how = f"{self.n[0]} seeds, paired" if self.paired else f"{self.n[0]} and {self.n[1]} seeds"
        return f"95 % interval of the change {self.low:+.2f} % to {self.high:+.2f} %, {how}"


def _details(row: pd.Series) -> str:
    rank = row.get("peft.r")
    parts = [] if rank is None or pd.isna(rank) else [f"r = {rank:.0f}"]
    if is_generated(row):
        parts.append(f"n_mlp = {row['qpa.n_mlp']:,.0f}")
    return f" ({', '.join(parts)})" if parts else ""


def comparisons(runs: pd.DataFrame) -> Iterator[Comparison]:
    """Compare QPA at its best with the classical method, for each task, model, text and method.

    The classical run has the rank that is generated, as in the paper. QPA's setting is the best on
    validation among those with fewer parameters and a circuit that is trained; so is the classical
    one among those of its size. The test split is only reported.
    """
    table = aggregate(runs)
    keys = ["task", "model.name", "data.name", "data.layout", "peft.method"]
    for _, group in table.groupby(keys):
        classical = group[group["qpa.variant"] == "off"]
        generated = group[group.apply(has_trained_circuit, axis=1)]
        for _, of_size in classical.groupby("trainable_params", sort=False):
            first, _ = chosen(of_size)
            rank = first.get("peft.r")
            rivals = generated[generated["trainable_params"] < first["trainable_params"]]
            if rank is not None and not pd.isna(rank):
                rivals = rivals[rivals["peft.r"] == rank]
            if rivals.empty:
                continue
            second, by = chosen(rivals)
            for metric in measured(group):
                if not (group[metric.name].dropna() > 0).all():
                    continue  # a ratio to zero says nothing
                found = compare(runs, first, second, metric)
                yield replace(found, candidates=len(rivals), chosen_by=by)


def compare(runs: pd.DataFrame, first: pd.Series, second: pd.Series, metric: Metric) -> Comparison:
    """Return a metric of ``second``'s runs against ``first``'s, on a logarithmic scale.

    Seed by seed where both have the same seeds, else by Welch's test on the logarithms. With fewer
    than two runs of each there is no interval.
    """
    one, two = (
        runs[runs["setting"] == row["setting"]].set_index("seed")[metric.name].astype(float)
        for row in (first, second)
    )
    same_seeds = set(one.index) == set(two.index) and one.index.is_unique and two.index.is_unique
    seed_by_seed = paired_test(one, two) if same_seeds else None
    low, change, high = _welch(np.log(one), np.log(two))
    if seed_by_seed is not None:
        low, change, high = seed_by_seed.low, seed_by_seed.change, seed_by_seed.high
    return Comparison(
        first,
        second,
        metric,
        share=float(second["trainable_params"] / first["trainable_params"]),
        change=change,
        low=low,
        high=high,
        n=(len(one), len(two)),
        paired=seed_by_seed is not None,
    )


def _welch(one: pd.Series, two: pd.Series) -> tuple[float, float, float]:
    """Return the change in percent from these logarithms to those, between the ends of Welch's
    interval; the ends are NaN where either has one run.
    """
    change = float(two.mean() - one.mean())
    parts = [(float(each.var()) / len(each), len(each) - 1) for each in (one, two)]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / n for part, n in parts) if variance > 0 else 1.0
    half = math.sqrt(variance) * float(stats.t.ppf(0.975, freedom))
    return percent(change - half), percent(change), percent(change + half)


def controls(runs: pd.DataFrame) -> Iterator[tuple[pd.Series, pd.Series, PairedTest]]:
    """Each control beside the trained circuit that is equal in all but ``CIRCUIT``.

    Yields:
        The first run of the trained circuit, that of the control, and their paired test.
    """
    names = [str(name) for name in runs.columns]
    keys = [n for n in names if "." in n and n not in CIRCUIT and tells_settings_apart(n)]
    keys += [name for name in ("task", "data_sha256") if name in names]
    metric = ranked_by(runs)
    generated = runs[runs.apply(is_generated, axis=1)]
    for _, group in generated.groupby(keys, dropna=False, sort=False):
        trained = group[group.apply(has_trained_circuit, axis=1)]
        rest = group.drop(trained.index)
        for _, one in trained.groupby("setting", sort=False):
            for _, other in rest.groupby("setting", sort=False):
                first, second = (
                    rows.drop_duplicates("seed").set_index("seed")[metric.name]
                    for rows in (one, other)
                )
                if (found := paired_test(first, second)) is not None:
                    yield one.iloc[0], other.iloc[0], found
