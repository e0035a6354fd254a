"""The benchmark's figures for a person."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

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
        names = list(dict.fromkeys(name for c in suite.circuits for name in c.times))
        rows = [[str(c.n_qubits), *(_ms(c.times.get(n)) for n in names)] for c in suite.circuits]
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
