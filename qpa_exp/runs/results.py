"""What a run leaves behind: ``metrics.json``, the curves, and the table at its end."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from qpa_exp.runs.directory import CURVES, Metrics, read_curve
from qpa_exp.task import Task

# Blue and vermilion of Okabe and Ito: told apart by colour-blind readers and in grey.
_BLUE, _ORANGE = "#0072B2", "#D55E00"

_PACKAGES = ("torch", "transformers", "peft", "pytorch-lightning", "datasets", "numpy")


def versions() -> dict[str, str]:
    """Of Python, this package, and the libraries that numbers depend on."""
    found = {"python": platform.python_version(), "qpa_exp": version("qpa-exp")}
    return found | {package: version(package) for package in _PACKAGES}


def draw_curves(run_dir: Path) -> Path:
    """Draw training and validation loss against steps as ``curves.png``; return its path.

    The training loss of single batches is drawn faint, and its running mean over it.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    steps, values = read_curve(run_dir, "train/loss")
    window = max(1, len(values) // 20)
    axes.plot(steps, values, color=_BLUE, alpha=0.35, linewidth=0.8)
    mean = np.full(window, 1 / window)
    smooth = np.convolve(values, mean, "valid") if values else np.empty(0)
    axes.plot(steps[window - 1 :], smooth, color=_BLUE, label="training, running mean")
    steps, values = read_curve(run_dir, "validation/loss")
    axes.plot(steps, values, color=_ORANGE, marker="o", markersize=4, label="validation")
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("loss (nats a token)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path = run_dir / CURVES
    figure.savefig(path, dpi=150)
    return path


def summary(task: Task, lines: dict[str, str], metrics: Metrics) -> Table:
    """The table that a person reads at the end: the task's metrics first, then what they took."""
    table = Table(title="Result on the test split", show_header=True)
    table.add_column("")
    table.add_column("base model", justify="right")
    table.add_column("adapted", justify="right")
    table.add_column("change", justify="right")
    for metric in task.metrics:
        base, adapted = metrics[f"base_{metric.name}"], metrics[metric.name]
        if adapted is not None:
            change = f"{100 * (adapted / base - 1):+.1f} %" if base else ""
            table.add_row(metric.name, f"{base:.3f}", f"{adapted:.3f}", change)
    table.add_section()
    for label, value in lines.items():
        table.add_row(label, "", value, "")
    table.add_row("steps", "", f"{metrics['steps']:,} ({metrics['epochs']:g} epochs)", "")
    table.add_row("seconds of training", "", f"{metrics['train_seconds']:.1f}", "")
    if metrics["step_seconds_median"] is not None:
        table.add_row("seconds a step, median", "", f"{metrics['step_seconds_median']:.4f}", "")
    if metrics["tokens_per_second"] is not None:
        table.add_row("tokens a second", "", f"{metrics['tokens_per_second']:,.0f}", "")
        total = sum(metrics["time_split"].values()) or 1.0
        for name, seconds in metrics["time_split"].items():
            table.add_row(f"  time in the {name}", "", f"{100 * seconds / total:.1f} %", "")
    return table
