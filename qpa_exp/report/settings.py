"""From runs to settings: means over the seeds, the best of several, the front of them all."""

from __future__ import annotations

import math

import pandas as pd

from qpa_exp.report.names import ranked_by, validation_of
from qpa_exp.task import Metric


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


def is_chosen_by_validation(table: pd.DataFrame) -> bool:
    """Whether the validation split was measured for each of these settings."""
    column = validation_of(ranked_by(table))
    return column in table and bool(table[column].notna().all())


def chosen(table: pd.DataFrame) -> pd.Series:
    """The setting that is best on validation, else the smallest: never by the test split."""
    if is_chosen_by_validation(table):
        metric = ranked_by(table)
        return best(table, metric, validation_of(metric))
    return table.sort_values("trainable_params").iloc[0]


def best(table: pd.DataFrame, metric: Metric, column: str | None = None) -> pd.Series:
    """The row with the metric's best value, or with that of ``column``, which holds the same."""
    return table.sort_values(column or metric.name, ascending=metric.smaller_is_better).iloc[0]


def pareto(table: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """The settings that no other beats in both parameters and the metric, fewest first."""
    loss = table[metric.name] * (1 if metric.smaller_is_better else -1)
    ordered = table.assign(_loss=loss).sort_values(["trainable_params", "_loss"])
    best_before = ordered["_loss"].cummin().shift(fill_value=math.inf)
    return ordered[ordered["_loss"] < best_before].drop(columns="_loss")
