"""The most memory that a step takes above the weights, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from qpa_exp.benchmarks.workloads import Shape, Workload
from qpa_exp.machine import keep_freed_memory, release_freed_memory

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_STEPS = 2


def can_measure() -> bool:
    """Whether this system tells a process its peak (Linux does)."""
    return _STATUS.is_file() and _RESET.is_file()


def measure_memory(shape: Shape, steps: list[str], threads: int) -> dict[str, float | None]:
    """MiB above the weights, by name of the step; None where a process did not end well."""
    return {name: _measure_one(shape, name, threads) for name in steps}


def _measure_one(shape: Shape, name: str, threads: int) -> float | None:
    request = json.dumps({"shape": asdict(shape), "step": name, "threads": threads})
    done = subprocess.run(
        [sys.executable, "-m", "qpa_exp.benchmarks.peak_memory", request],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        return float(json.loads(done.stdout.splitlines()[-1])["mib"])
    except (IndexError, ValueError, KeyError, TypeError):
        return None


def probe(request: dict[str, Any]) -> float:
    """MiB between what the process holds before its first step and the peak of its steps.

    The model, its hidden states and the adapter are there before; the optimizer's moments, which
    the first step makes, count as the step's.
    """
    torch.set_num_threads(request["threads"])
    step = Workload(Shape(**request["shape"])).step(request["step"])
    torch.mm(torch.ones(256, 256), torch.ones(256, 256))  # the library's own start-up
    release_freed_memory()  # or a step would take what building the model has left
    before = _mib("VmRSS")
    keep_freed_memory()
    _RESET.write_text("5", encoding="ascii")  # the peak begins anew
    for _ in range(_STEPS):
        step()
    return _mib("VmHWM") - before


def _mib(field: str) -> float:
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"{_STATUS} has no {field}.")


if __name__ == "__main__":
    print(json.dumps({"mib": probe(json.loads(sys.argv[1]))}))
