"""The benchmark's figures for a person."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from qpa_exp.benchmarks.measuring import Machine, Seconds
from qpa_exp.benchmarks.suite import Suite


def show(suite: Suite, console: Console) -> None:
    """Print a table for each part that was measured, and the notes."""
    machine = Machine.this()
    console.print(
        f"{machine.processor}, {machine.threads} of {machine.cores} cores, "
        f"{machine.memory_gib:g} GiB; torch {machine.versions.get('torch')}. "
        "Medians, and in brackets the quartiles."
    )
    for table in tables(suite):
        console.print(table)
    for note in suite.notes:
        console.print(f"Note: {note}", highlight=False)


def tables(suite: Suite) -> Iterator[Table]:
    """A table for each part that was measured."""
    if suite.circuits:
        yield _circuits(suite)
    for name in suite.steps:
        yield _steps(suite, name)
    if suite.memory:
        yield _memory(suite)
    if suite.growth:
        yield _growth(suite)


def _circuits(suite: Suite) -> Table:
    names = list(dict.fromkeys(name for c in suite.circuits for name in c.times))
    table = Table(title="Circuit, forward and backward, L = 8 (ms)")
    table.add_column("qubits", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    for circuit in suite.circuits:
        cells = [_ms(circuit.times.get(name)) for name in names]
        table.add_row(str(circuit.n_qubits), *cells)
    return table


def _steps(suite: Suite, name: str) -> Table:
    shape, times = suite.measured_shapes[name], suite.steps[name]
    kind = f"{shape.layers} layers before it" if shape.layers else "the head alone"
    table = Table(
        title=f"A training step: {name}, head {shape.vocab:,} x {shape.width:,}, "
        f"{shape.tokens} tokens, {kind}"
    )
    table.add_column("")
    for column in ("ms", "over the floor"):
        table.add_column(column, justify="right")
    for step, seconds in times.items():
        table.add_row(step, _ms(seconds), f"{seconds.over(times['floor']):.2f}")
    return table


def _memory(suite: Suite) -> Table:
    table = Table(title="Peak memory above the weights (MiB)")
    table.add_column("")
    for name in suite.memory:
        table.add_column(name, justify="right")
    for step in dict.fromkeys(step for mib in suite.memory.values() for step in mib):
        values = [mib.get(step) for mib in suite.memory.values()]
        table.add_row(step, *["" if v is None else f"{v:,.0f}" for v in values])
    return table


def _growth(suite: Suite) -> Table:
    table = Table(title="Growth: seconds ~ size^e")
    for column in ("size", "what is timed", "from", "to"):
        table.add_column(column)
    table.add_column("e", justify="right")
    for growth in suite.growth:
        ends = (f"{growth.values[i]:,}: {1000 * growth.times[i].median:,.1f} ms" for i in (0, -1))
        name = "2^n_qubits" if growth.name == "n_qubits" else growth.name
        table.add_row(name, growth.what, *ends, f"{growth.exponent:.2f}")
    return table


def _ms(seconds: Seconds | None) -> str:
    if seconds is None:
        return ""
    low, high = seconds.spread
    return f"{1000 * seconds.median:,.1f} [{1000 * low:,.1f}, {1000 * high:,.1f}]"
