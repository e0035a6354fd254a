"""The whole benchmark: what is measured, in which order, and the record that it leaves."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from qpa_exp.adapters.catalogue import METHODS
from qpa_exp.benchmarks.measuring import (
    N_LAYERS,
    Seconds,
    measure_circuits,
    side_by_side,
    this_machine,
)
from qpa_exp.benchmarks.shapes import PARTS, SHAPES, Shape
from qpa_exp.benchmarks.workloads import (
    Growth,
    Workload,
    can_measure,
    measure_growth,
    measure_memory,
)
from qpa_exp.errors import InputError, first_line
from qpa_exp.machine import free_memory, release_freed_memory

log = logging.getLogger(__name__)

_QUICK_VOCAB = 16384
_ROUNDS = {
    "circuits": 10, "tiny": 16, "smollm2": 15, "gpt2": 10, "gemma": 4, "gemma2": 4, "methods": 5,
    "growth": 5,
}  # fmt: skip
_QUICK_ROUNDS = {
    "circuits": 3, "tiny": 7, "smollm2": 5, "gpt2": 3, "gemma": 2, "gemma2": 2, "methods": 1,
    "growth": 3,
}  # fmt: skip
_QUBITS = [4, 6, 8, 10, 12, 14, 16, 18, 20]
_QUICK_QUBITS = [4, 8, 12]
_RATIOS = {
    "qpa_over_lora": {"": ("qpa_fast", "lora_fast"), "_tuned": ("qpa_fast_tuned", "lora_fast")},
    "naive_over_fast": {
        "_cached": ("qpa_naive", "qpa_fast"),
        "_uncached": ("qpa_naive", "qpa_fast_uncached"),
        "_cached_bf16": ("qpa_naive", "qpa_fast_bf16"),
    },
    "lora_over_floor": {"": ("lora_fast", "floor")},
}
"""How the ratios of the steps are named, and which step's time is over which."""
_PROBED = ["lora_naive", "lora_fast", "qpa_naive", "qpa_fast"]


@dataclass
class Suite:
    """What has been asked for, and what has been measured so far.

    Attributes:
        quick: fewer sizes, fewer rounds, and for the Gemmas a smaller vocabulary.
        rounds: how often each step is timed; None is the suite's own choice.
        shapes: the heads to measure at; every method of ``peft=`` at the first but tiny.
    """

    quick: bool = False
    rounds: int | None = None
    shapes: dict[str, Shape] = field(default_factory=lambda: dict(SHAPES))
    circuits: dict[int, dict[str, Seconds]] = field(default_factory=dict)
    steps: dict[str, dict[str, Seconds]] = field(default_factory=dict)
    memory: dict[str, dict[str, float | None]] = field(default_factory=dict)
    methods: dict[str, dict[str, Seconds]] = field(default_factory=dict)
    growth: list[Growth] = field(default_factory=list)
    bf16_perplexity_change: float | None = None
    measured_shapes: dict[str, Shape] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def run(self, parts: tuple[str, ...] = PARTS) -> Iterator[str]:
        """Measure these parts, one after the other; gives the name of each that is done."""
        for part in PARTS:
            if part in parts:
                log.info("Measuring: %s", part)
                getattr(self, f"_run_{part}")()
                yield part

    def _rounds(self, name: str) -> int:
        planned = _QUICK_ROUNDS if self.quick else _ROUNDS
        return self.rounds or planned.get(name, planned["gpt2"])

    def _run_circuits(self) -> None:
        qubits = _QUICK_QUBITS if self.quick else _QUBITS
        self.circuits, notes = measure_circuits(qubits, self._rounds("circuits"), self.quick)
        self.notes += notes

    def _fitted(self, name: str) -> Shape:
        shape = self.shapes[name]
        if self.quick and name not in ("gpt2", "smollm2"):
            shape = shape.with_vocab(min(shape.vocab, _QUICK_VOCAB))
        self.measured_shapes[name] = shape.fitting(free_memory())
        return self.measured_shapes[name]

    def _run_steps(self) -> None:
        for name in self.shapes:
            log.info("  steps at the shape of %s", name)
            work = Workload(self._fitted(name))
            self.steps[name] = side_by_side(work.steps(), self._rounds(name))
            if work.shape.layers:
                self.bf16_perplexity_change = work.bf16_perplexity()
            self.notes += [note for note in work.notes if note not in self.notes]
            del work
            gc.collect()
            release_freed_memory()  # the next shape, and the processes that measure memory, need it

    def _run_memory(self) -> None:
        if not can_measure():
            self.notes.append("Memory is left out: this system does not tell a process its peak.")
            return
        threads = this_machine()["threads"]
        for name in self.shapes:
            log.info("  memory at the shape of %s", name)
            extra = ["qpa_fast_bf16"] if self.shapes[name].layers else []
            shape = self.measured_shapes.get(name) or self._fitted(name)
            self.memory[name] = measure_memory(shape, [*_PROBED, *extra], threads)

    @property
    def methods_at(self) -> str:
        """At which shape every method is measured."""
        return next((name for name in self.shapes if name != "tiny"), "tiny")

    def _run_methods(self) -> None:
        """Time each method in turn with LoRA: all of them at once would not fit the memory."""
        work = Workload(self._fitted(self.methods_at))
        lora = work.fast(work.lora())
        for name in METHODS:
            try:
                with warnings.catch_warnings():  # PEFT's, of a model that is nothing but a head
                    warnings.simplefilter("ignore")
                    step = work.fast(work.method(name))
                    step()
            except (InputError, ValueError) as error:
                self.notes.append(f"{name} is left out: {first_line(error)}")
                continue
            log.info("  %s at the shape of %s", name, self.methods_at)
            self.methods[name] = side_by_side({"lora": lora, name: step}, self._rounds("methods"))
            del step
            gc.collect()
            release_freed_memory()

    def _run_growth(self) -> None:
        self.growth = measure_growth(self._rounds("growth"), self.quick)

    def ratios(self) -> dict[str, Any]:
        """Return the figures that others are compared by; what was not measured is left out."""
        found: dict[str, Any] = {}
        over = {
            str(n): times["torchquantum"].over(times["statevector"])
            for n, times in self.circuits.items()
            if {"torchquantum", "statevector"} <= times.keys()
        }
        if over:
            found["circuit_over_torchquantum"] = over
        if self.steps:
            found |= {name: self._over(kinds) for name, kinds in _RATIOS.items()}
        if self.methods:
            found["method_over_lora"] = {n: t[n].over(t["lora"]) for n, t in self.methods.items()}
        if self.memory:
            found["extra_memory_mib"] = {n: mib.get("qpa_fast") for n, mib in self.memory.items()}
        return found

    def _over(self, kinds: Mapping[str, tuple[str, str]]) -> dict[str, float]:
        """Compare the two steps of each kind that a shape has both of, shape by shape."""
        return {
            f"{name}{kind}": times[one].over(times[other])
            for name, times in self.steps.items()
            for kind, (one, other) in kinds.items()
            if {one, other} <= times.keys()
        }

    def record(self) -> dict[str, Any]:
        """Every figure, for JSON."""
        circuits = [
            {"n_qubits": n, "n_layers": N_LAYERS, "seconds": _recorded(times)}
            for n, times in self.circuits.items()
        ]
        return {
            "machine": this_machine(),
            "quick": self.quick,
            "circuits": circuits,
            "shapes": {name: vars(shape) for name, shape in self.measured_shapes.items()},
            "steps": {name: _recorded(times) for name, times in self.steps.items()},
            "bf16_perplexity_change": self.bf16_perplexity_change,
            "memory_mib": self.memory,
            "methods": {name: times[name].record() for name, times in self.methods.items()},
            "growth": {growth.name: growth.record() for growth in self.growth},
            "ratios": self.ratios(),
            "notes": self.notes,
        }


def _recorded(times: Mapping[str, Seconds]) -> dict[str, Any]:
    return {name: time.record() for name, time in times.items()}


# --- for a person -----------------------------------------------------------------------------


def show(suite: Suite, console: Console) -> None:
    """Print a table for each part that was measured, and the notes."""
    on = this_machine()
    console.print(
        f"{on['processor']}, {on['threads']} of {on['cores']} cores, "
        f"{on['memory_gib']:g} GiB; torch {on['versions'].get('torch')}. "
        "Medians, and in brackets the quartiles."
    )
    for table in tables(suite):
        console.print(table)
    for note in suite.notes:
        console.print(f"Note: {note}", highlight=False)


def tables(suite: Suite) -> Iterator[Table]:
    """Yield a table for each part that was measured."""
    if suite.circuits:
        names = list(dict.fromkeys(name for times in suite.circuits.values() for name in times))
        rows = [
            [str(n), *(_ms(times.get(name)) for name in names)]
            for n, times in suite.circuits.items()
        ]
        yield _table("Circuit, forward and backward, L = 8 (ms)", ["qubits", *names], rows)
    for name, times in suite.steps.items():
        shape = suite.measured_shapes[name]
        kind = f"{shape.layers} layers before it" if shape.layers else "the head alone"
        title = (
            f"A training step: {name}, head {shape.vocab:,} x {shape.width:,}, "
            f"{shape.tokens} tokens, {kind}"
        )
        rows = [[step, _ms(t), f"{t.over(times['floor']):.2f}"] for step, t in times.items()]
        yield _table(title, ["", "ms", "over the floor"], rows)
    if suite.memory:
        measured = list(suite.memory.values())
        rows = [
            [step, *("" if (v := mib.get(step)) is None else f"{v:,.0f}" for mib in measured)]
            for step in dict.fromkeys(step for mib in measured for step in mib)
        ]
        yield _table("Peak memory above the weights (MiB)", ["", *suite.memory], rows)
    if suite.methods:
        rows = [
            [METHODS[name].label, _ms(times[name]), f"{times[name].over(times['lora']):.2f}"]
            for name, times in suite.methods.items()
        ]
        yield _table(
            f"A training step of every method, at the shape of {suite.methods_at}",
            ["", "ms", "over LoRA"],
            rows,
        )
    if suite.growth:
        rows = []
        for growth in suite.growth:
            of = zip(growth.values, growth.times, strict=True)
            ends = [f"{value:,}: {1000 * time.median:,.1f} ms" for value, time in of]
            name = "2^n_qubits" if growth.name == "n_qubits" else growth.name
            rows.append([name, growth.what, ends[0], ends[-1], f"{growth.exponent:.2f}"])
        header = ["size", "what is timed", "from", "to", "e"]
        yield _table("Growth: seconds ~ size^e", header, rows)


def _table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title)
    for name in header:
        table.add_column(name, justify="left" if name in ("", "what is timed") else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _ms(seconds: Seconds | None) -> str:
    if seconds is None:
        return ""
    low, high = seconds.spread
    return f"{1000 * seconds.median:,.1f} [{1000 * low:,.1f}, {1000 * high:,.1f}]"
