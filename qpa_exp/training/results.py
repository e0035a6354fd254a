"""What a run leaves behind: ``metrics.json``, the curves, and the table at its end."""

from __future__ import annotations

import csv
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

METRICS = "metrics.json"

_PACKAGES = ("torch", "transformers", "peft", "pytorch-lightning", "datasets", "numpy")


def versions() -> dict[str, str]:
    """Of Python, this package, and the libraries that numbers depend on."""
    found = {"python": platform.python_version(), "qpa_exp": version("qpa-exp")}
    return found | {package: version(package) for package in _PACKAGES}


def write_metrics(run_dir: Path, metrics: dict[str, Any]) -> None:
    """Write ``metrics.json`` whole or not at all."""
    part = run_dir / f".{METRICS}.part"
    with part.open("w", encoding="utf-8") as file:
        json.dump(metrics, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(run_dir / METRICS)


def read_metrics(run_dir: Path) -> dict[str, Any] | None:
    """A run's ``metrics.json``; None where it has none."""
    path = run_dir / METRICS
    if not path.is_file():
        return None
    metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return metrics


def read_curve(run_dir: Path, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one logged quantity, from the CSV files of a run's parts.

    A resumed run repeats the steps since its last checkpoint: the later part counts.
    """
    points: dict[int, float] = {}
    for file in sorted((run_dir / "csv").glob("version_*/metrics.csv"), key=_part_number):
        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                if row.get(name):
                    points[int(row["step"])] = float(row[name])
    steps = sorted(points)
    return steps, [points[step] for step in steps]


def _part_number(file: Path) -> int:
    return int(file.parent.name.removeprefix("version_"))


def draw_curves(run_dir: Path, base_loss: float | None = None) -> Path:
    """Draw training and validation loss against steps as ``curves.png``; return its path."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, label, color, marker in (
        ("train/loss", "training", "#56B4E9", ""),
        ("validation/loss", "validation", "#D55E00", "o"),
    ):
        steps, values = read_curve(run_dir, name)
        axes.plot(steps, values, label=label, color=color, marker=marker, markersize=4)
    if base_loss is not None:
        axes.axhline(base_loss, color="0.4", linestyle="--", linewidth=1, label="base model, test")
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("loss (nats a token)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path = run_dir / "curves.png"
    figure.savefig(path, dpi=150)
    return path


def summary(lines: dict[str, str], metrics: dict[str, Any]) -> Table:
    """The table that a person reads at the end: perplexities first, then what they took."""
    table = Table(title="Result on the test split", show_header=True)
    table.add_column("")
    table.add_column("base model", justify="right")
    table.add_column("adapted", justify="right")
    table.add_column("change", justify="right")
    for key in ("perplexity", "perplexity_padded"):
        base, adapted = metrics[f"base_{key}"], metrics[key]
        if adapted is not None:
            change = f"{100 * (adapted / base - 1):+.1f} %"
            table.add_row(key, f"{base:.3f}", f"{adapted:.3f}", change)
    table.add_section()
    for label, value in lines.items():
        table.add_row(label, "", value, "")
    table.add_row("steps", "", f"{metrics['steps']:,} ({metrics['epochs']:g} epochs)", "")
    table.add_row("seconds of training", "", f"{metrics['train_seconds']:.1f}", "")
    if metrics["step_seconds_median"] is not None:
        table.add_row("seconds a step, median", "", f"{metrics['step_seconds_median']:.4f}", "")
    return table
