"""Seconds side by side, exponents, what they were measured on, and those of the circuits."""

from __future__ import annotations

import importlib
import importlib.metadata
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from qpa_exp.circuits.simulator import BACKENDS, make_simulator
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError, one_line

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
        """Return the median ratio of what was measured in the same round.

        A load on the machine that comes and goes meets both sides of such a ratio alike.
        """
        return statistics.median(a / b for a, b in zip(self.runs, other.runs, strict=True))

    def record(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
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
    """Return the e of seconds = c * size^e, by least squares of the logarithms.

    Raises:
        ValueError: fewer than two different sizes, or a number that is not above zero.
    """
    if min((*sizes, *seconds), default=0) <= 0 or len(set(sizes)) < 2:
        raise ValueError("An exponent needs two sizes that differ, and times above zero.")
    x, y = ([math.log(v) for v in values] for values in (sizes, seconds))
    return statistics.linear_regression(x, y).slope


def this_machine() -> dict[str, Any]:
    """Return what the figures are measured on, and with."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {"python": platform.python_version()} | _versions(),
    }


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


N_LAYERS = 8
_MOST = 20
_BUDGET, _QUICK_BUDGET = 4 * 2**30, 8 * 2**20

Probabilities = Callable[[Tensor], Tensor]
"""Angles (layers, 1, qubits) -> the 2^N probabilities."""


def own(backend: str) -> Callable[[int], Probabilities]:
    """Return a back end of this package.

    Raises:
        InputError: what it needs is not installed.
    """
    return lambda n_qubits: make_simulator(_config(backend), n_qubits)


def _config(backend: str) -> QPAConfig:
    return QPAConfig(n_layers=N_LAYERS, backend=backend)


def _most(backend: str, budget: int) -> int:
    """Return the most qubits that it takes with so many bytes, which are about as its time."""
    needed, config = BACKENDS[backend].bytes_needed, _config(backend)
    return max(n for n in range(1, _MOST + 1) if n == 1 or needed(config, n) <= budget)


def pennylane(device: str, diff_method: str) -> Callable[[int], Probabilities]:
    """Return a device of PennyLane."""

    def make(n_qubits: int) -> Probabilities:
        qml = _library("pennylane")

        @qml.qnode(qml.device(device, wires=n_qubits), interface="torch", diff_method=diff_method)
        def run(theta: Tensor) -> Any:
            for layer in theta:
                for qubit in range(n_qubits):
                    qml.RY(layer[0, qubit], wires=qubit)
                for qubit in range(n_qubits - 1):
                    qml.CNOT(wires=[qubit, qubit + 1])
            return qml.probs(wires=range(n_qubits))

        probabilities: Probabilities = run
        return probabilities

    return make


def tensorcircuit(n_qubits: int) -> Probabilities:
    """TensorCircuit-NG on torch."""
    tc = _library("tensorcircuit")
    tc.set_backend("pytorch")

    def run(theta: Tensor) -> Tensor:
        circuit = tc.Circuit(n_qubits)
        for layer in theta:
            for qubit in range(n_qubits):
                circuit.ry(qubit, theta=layer[0, qubit])
            for qubit in range(n_qubits - 1):
                circuit.cx(qubit, qubit + 1)
        state: Tensor = circuit.state()
        return state.abs().square()

    return run


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # a package in a state of its own raises all sorts
        raise InputError(f"{name} cannot be imported: {one_line(error)[:200]}") from error


@dataclass(frozen=True)
class Simulator:
    """One way to simulate, and the most qubits at which that ends within the time there is."""

    make: Callable[[int], Probabilities]
    most: int
    most_if_quick: int


SIMULATORS: dict[str, Simulator] = {
    **{
        name: Simulator(own(name), _most(name, _BUDGET), _most(name, _QUICK_BUDGET))
        for name in BACKENDS
        if not BACKENDS[name].samples
    },
    "pennylane default.qubit": Simulator(pennylane("default.qubit", "backprop"), 16, 10),
    "pennylane lightning.qubit": Simulator(pennylane("lightning.qubit", "parameter-shift"), 10, 6),
    "tensorcircuit": Simulator(tensorcircuit, 14, 8),
}


def measure_circuits(
    qubits: list[int], rounds: int, quick: bool
) -> tuple[dict[int, dict[str, Seconds]], list[str]]:
    """Time one circuit's forward and backward pass, by each simulator that takes it.

    Returns:
        The times by number of qubits and by simulator, and a line for each simulator that was
        left out or capped.
    """
    notes, usable = [], {}
    for name, simulator in SIMULATORS.items():
        try:
            simulator.make(2)(torch.zeros(N_LAYERS, 1, 2, requires_grad=True)).sum().backward()
        except InputError as error:
            notes.append(f"{name} is left out: {error}")
            continue
        usable[name] = simulator
        most = simulator.most_if_quick if quick else simulator.most
        if most < max(qubits):
            notes.append(f"{name} is slow: measured up to {most} qubits.")
    return {n: side_by_side(_steps(n, usable, quick), rounds) for n in qubits}, notes


def _steps(n: int, usable: dict[str, Simulator], quick: bool) -> dict[str, Callable[[], None]]:
    stream = torch.Generator().manual_seed(n)
    theta = torch.rand(N_LAYERS, 1, n, generator=stream)
    towards = torch.rand(2**n, generator=stream)

    def step(run: Probabilities) -> Callable[[], None]:
        def do() -> None:
            leaf = theta.clone().requires_grad_()
            found = run(leaf)
            found.backward(towards.to(found.dtype))

        return do

    return {
        name: step(simulator.make(n))
        for name, simulator in usable.items()
        if n <= (simulator.most_if_quick if quick else simulator.most)
    }
