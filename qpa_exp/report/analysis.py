"""From a table of runs to what a figure or a sentence needs: means, choices, comparisons."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from qpa_exp.circuits.ansatze import ANSATZE

METRICS = ("perplexity", "perplexity_padded")
"""Both perplexities: over real tokens, and the paper's, over padded lines."""

NAMES = {
    "lora": "LoRA", "dora": "DoRA", "prefix": "PT", "ffa": "FFA", "prefix_tuning": "prefix tuning",
    "ia3": "(IA)³", "vera": "VeRA", "vblora": "VB-LoRA", "tinylora": "TinyLoRA",
    "unilora": "Uni-LoRA", "randlora": "RandLoRA", "fourierft": "FourierFT",
}  # fmt: skip
METRIC_NAMES = {
    "perplexity": "perplexity (real tokens)",
    "perplexity_padded": "perplexity (padded lines, the paper's)",
}


def family(row: pd.Series | dict[str, Any]) -> str:
    """``LoRA``, or ``QPA LoRA`` where a circuit makes its tensors."""
    name = NAMES.get(row["peft.method"], row["peft.method"])
    return name if row["qpa.variant"] == "off" else f"QPA {name}"


def present(runs: pd.DataFrame) -> list[str]:
    """The perplexities that these runs have."""
    return [m for m in METRICS if m in runs and runs[m].notna().any()]


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
    return table.reset_index()


@dataclass(frozen=True)
class Comparison:
    """Two settings, the second against the first.

    Attributes:
        share: trainable parameters of the second in those of the first.
        change: change of the perplexity in percent; negative is better.
        low: lower end of the 95 % interval of ``change``; NaN for one run each.
        high: its upper end.
        n: runs of each that take part.
        paired: whether the runs are compared seed by seed.
        candidates: settings that ``second`` was chosen from.
        chosen_by: by the lowest value of which column.
    """

    first: pd.Series
    second: pd.Series
    metric: str
    share: float
    change: float
    low: float
    high: float
    n: tuple[int, int]
    paired: bool
    candidates: int = 1
    chosen_by: str = ""

    def sentence(self) -> str:
        """The result in words, with its uncertainty."""
        one, two = self.first, self.second
        counts = f"{two['trainable_params']:,.0f} of {one['trainable_params']:,.0f}"
        words = (
            f"{one['model.name']}: {family(two)}{_details(two)} trains {100 * self.share:.2f} % of "
            f"the parameters of {family(one)}{_details(one)} ({counts}) at "
            f"{abs(self.change):.2f} % {'lower' if self.change < 0 else 'higher'} {self.metric} "
            f"({two[self.metric]:.4g} against {one[self.metric]:.4g}; {self._uncertainty()})."
        )
        if self.candidates > 1:
            words += f" Chosen from {self.candidates} settings by the lowest "
            words += f"{self.chosen_by.replace('_', ' ')}."
        return words

    def _uncertainty(self) -> str:
        if math.isnan(self.low):
            return "one run each: how far runs scatter has not been measured"
        how = f"{self.n[0]} seeds, paired" if self.paired else f"{self.n[0]} and {self.n[1]} seeds"
        return f"95 % interval of the change {self.low:+.2f} % to {self.high:+.2f} %, {how}"


def _details(row: pd.Series) -> str:
    rank = row.get("peft.r")
    parts = [] if rank is None or pd.isna(rank) else [f"r = {rank:.0f}"]
    if row["qpa.variant"] != "off":
        parts.append(f"n_mlp = {row['qpa.n_mlp']:,}")
    return f" ({', '.join(parts)})" if parts else ""


def comparisons(runs: pd.DataFrame) -> Iterator[Comparison]:
    """For each model, text and method: QPA at its best against the classical method.

    The classical run has the rank that is generated, as in the paper. QPA's setting is the one of
    lowest validation perplexity among those with fewer parameters and a circuit that is trained; so
    is the classical one among those of its size. The test split is only reported.
    """
    table = aggregate(runs)
    for _, group in table.groupby(["model.name", "data.name", "data.layout", "peft.method"]):
        classical = group[group["qpa.variant"] == "off"]
        trained = [name for name in ANSATZE if ANSATZE[name].trains_circuit]
        generated = group[(group["qpa.variant"] != "off") & group["qpa.ansatz"].isin(trained)]
        for _, of_size in classical.groupby("trainable_params", sort=False):
            first = lowest(of_size, chosen_by(of_size))
            rank = first.get("peft.r")
            rivals = generated[generated["trainable_params"] < first["trainable_params"]]
            if rank is not None and not pd.isna(rank):
                rivals = rivals[rivals["peft.r"] == rank]
            if rivals.empty:
                continue
            by = chosen_by(rivals)
            for metric in present(runs):
                found = compare(runs, first, lowest(rivals, by), metric)
                yield replace(found, candidates=len(rivals), chosen_by=by)


def chosen_by(table: pd.DataFrame) -> str:
    """The column that a setting is chosen by, smallest first: never the test split's."""
    column = "validation_perplexity"
    usable = column in table and table[column].notna().all()
    return column if usable else "trainable_params"


def lowest(table: pd.DataFrame, column: str) -> pd.Series:
    """The row with the smallest value in a column."""
    return table.sort_values(column).iloc[0]


def compare(runs: pd.DataFrame, first: pd.Series, second: pd.Series, metric: str) -> Comparison:
    """The perplexity of ``second``'s runs against ``first``'s, on a logarithmic scale.

    Student's t on log perplexities: of their differences where both have the same seeds, else
    Welch's. With fewer than two runs of each there is no interval.
    """
    one, two = (
        np.log(runs[runs["setting"] == row["setting"]].set_index("seed")[metric].astype(float))
        for row in (first, second)
    )
    paired = set(one.index) == set(two.index) and one.index.is_unique and two.index.is_unique
    change = float(two.mean() - one.mean())
    half = math.nan
    if min(len(one), len(two)) > 1:
        test = stats.ttest_rel(two.sort_index(), one.sort_index()) if paired else None
        test = test if test is not None else stats.ttest_ind(two, one, equal_var=False)
        interval = test.confidence_interval(0.95)
        half = float(interval.high - interval.low) / 2
    return Comparison(
        first,
        second,
        metric,
        share=float(second["trainable_params"] / first["trainable_params"]),
        change=100 * math.expm1(change),
        low=100 * math.expm1(change - half),
        high=100 * math.expm1(change + half),
        n=(len(one), len(two)),
        paired=paired,
    )


def pareto(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The settings that no other beats in both parameters and perplexity, fewest first."""
    ordered = table.sort_values(["trainable_params", metric])
    best_before = ordered[metric].cummin().shift(fill_value=math.inf)
    return ordered[ordered[metric] < best_before]


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


def protocol_differences(row: pd.Series) -> list[str]:
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
