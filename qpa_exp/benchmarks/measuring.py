"""Seconds side by side, exponents, and what they were measured on."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

_PACKAGES = (
    "torch", "transformers", "peft", "numpy", "torchquantum", "pennylane",
    "pennylane_lightning", "tensorcircuit-ng",
)  # fmt: skip


@dataclass(frozen=True)
class Seconds:
    """How long something took, each time that it was done."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        """Half of the times were shorter."""
        return statistics.median(self.runs)

    @property
    def spread(self) -> tuple[float, float]:
        """The lower and the upper quartile."""
        if len(self.runs) == 1:
            return self.runs[0], self.runs[0]
        low, _, high = statistics.quantiles(self.runs, n=4, method="inclusive")
        return low, high

    def over(self, other: Seconds) -> float:
        """The median ratio of what was measured in the same round.

        A load on the machine that comes and goes meets both sides of such a ratio alike.
        """
        return statistics.median(a / b for a, b in zip(self.runs, other.runs, strict=True))

    def record(self) -> dict[str, Any]:
        """For JSON."""
        low, high = self.spread
        return {"median": self.median, "quartiles": [low, high], "runs": list(self.runs)}


def side_by_side(
    work: Mapping[str, Callable[[], object]], rounds: int, device: torch.device | None = None
) -> dict[str, Seconds]:
    """Do each once to warm up, then all of them in turn, ``rounds`` times.

    Every other round goes backwards: what comes before a piece of work tells on it.
    """
    for do in work.values():
        do()
    times: dict[str, list[float]] = {name: [] for name in work}
    order = list(work.items())
    for _ in range(rounds):
        for name, do in order:
            _synchronize(device)
            began = time.perf_counter()
            do()
            _synchronize(device)
            times[name].append(time.perf_counter() - began)
        order.reverse()
    return {name: Seconds(tuple(runs)) for name, runs in times.items()}


def _synchronize(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def fit_exponent(sizes: Sequence[float | int], seconds: Sequence[float | int]) -> float:
    """The e of seconds = c * size^e, by least squares of the logarithms.

    Raises:
        ValueError: fewer than two different sizes, or a number that is not above zero.
    """
    if min((*sizes, *seconds), default=0) <= 0 or len(set(sizes)) < 2:
        raise ValueError("An exponent needs two sizes that differ, and times above zero.")
    x, y = ([math.log(v) for v in values] for values in (sizes, seconds))
    return statistics.linear_regression(x, y).slope


@dataclass(frozen=True)
class Machine:
    """What the figures were measured on, and with."""

    processor: str
    cores: int
    threads: int
    memory_gib: float
    system: str
    accelerator: str | None
    versions: dict[str, str]

    @staticmethod
    def this() -> Machine:
        """The machine that this runs on."""
        return Machine(
            processor=_processor(),
            cores=os.cpu_count() or 1,
            threads=torch.get_num_threads(),
            memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
            system=f"{platform.system()} {platform.machine()}",
            accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            versions={"python": platform.python_version()} | _versions(),
        )

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    there = (importlib.metadata.distributions(name=name) for name in _PACKAGES)
    return {d.metadata["Name"]: d.version for found in there for d in found}
