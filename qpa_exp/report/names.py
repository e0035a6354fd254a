"""What the rooms call what a run names: its method, its metrics, whether its circuit is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from qpa_exp.adapters.catalogue import METHODS
from qpa_exp.circuits.ansatze import ANSATZE
from qpa_exp.task import TASKS, Metric

Row = pd.Series | Mapping[str, Any]
"""One run, or one setting, by the config's dotted keys."""


def is_generated(row: Row) -> bool:
    """Whether a generator makes the method's tensors."""
    return bool(row["qpa.variant"] != "off")


def has_trained_circuit(row: Row) -> bool:
    """Whether a circuit whose angles are trained has a part in them."""
    return is_generated(row) and ANSATZE[row["qpa.ansatz"]].trained


def family(row: Row) -> str:
    """``LoRA``, or ``QPA LoRA`` where a generator makes its tensors."""
    label = METHODS[row["peft.method"]].label
    return f"QPA {label}" if is_generated(row) else label


def ranked_by(runs: pd.DataFrame) -> Metric:
    """The metric by which runs of this task are chosen."""
    return TASKS[runs["task"].iloc[0]].ranked_by()


def measured(runs: pd.DataFrame) -> list[Metric]:
    """The metrics of these runs' tasks that any of them has."""
    tasks: Sequence[str] = list(dict.fromkeys(runs["task"]))
    metrics = dict.fromkeys(metric for task in tasks for metric in TASKS[task].metrics)
    return [m for m in metrics if m.name in runs and runs[m.name].notna().any()]


def validation_of(metric: Metric) -> str:
    """The column with a run's last value of the metric on the validation split."""
    return f"validation_{metric.name}"
