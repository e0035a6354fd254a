"""The circuit as a drawing, by Qiskit's drawer: in text, or as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qpa_exp.circuits.ansatze import ANSATZE
from qpa_exp.circuits.to_qiskit import QISKIT, quantum_circuit
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

PICTURES = (".png", ".svg", ".pdf")
_MOST_GATES = 1000
"""Of a larger circuit only the first repetition is drawn: the others are the same."""


def check_picture(path: Path) -> None:
    """Refuse a file that cannot or must not be written."""
    if path.suffix not in PICTURES:
        raise InputError(
            f"draw={path} is no picture: give true for text, or a file that ends in "
            f"{', '.join(PICTURES)}."
        )
    if path.exists():
        raise InputError(f"draw={path} exists already: give another name, or remove it.")
    if not path.parent.is_dir():
        raise InputError(f"draw={path} cannot be written: {path.parent} is no directory.")


def draw_text(config: QPAConfig, n_qubits: int, width: int = 100) -> str:
    """The circuit in text, qubit 1 at the top, folded into lines of ``width`` characters."""
    circuit, drawn = _circuit(config, n_qubits)
    text = circuit.draw("text", fold=width, cregbundle=False)
    return f"{_title(config, n_qubits, drawn)}\n{text}"


def draw_picture(config: QPAConfig, n_qubits: int, path: Path) -> None:
    """The circuit as a picture, folded after 25 columns of gates."""
    check_picture(path)
    circuit, drawn = _circuit(config, n_qubits)
    figure = circuit.draw("mpl", fold=25)
    figure.suptitle(_title(config, n_qubits, drawn))
    figure.savefig(path, bbox_inches="tight")


def _circuit(config: QPAConfig, n_qubits: int) -> tuple[QuantumCircuit, int]:
    """Qiskit's circuit, and how many of its repetitions are in it."""
    ansatz = ANSATZE[config.ansatz]
    if not ansatz.has_circuit:
        raise InputError(f"qpa.ansatz={config.ansatz} has no circuit to draw: leave draw out.")
    QISKIT.check("draw")
    in_one = sum(1 for _ in ansatz.gates(n_qubits, 1))
    drawn = config.n_layers if in_one * config.n_layers <= _MOST_GATES else 1
    return quantum_circuit(ansatz, n_qubits, drawn), drawn


def _title(config: QPAConfig, n_qubits: int, drawn: int) -> str:
    title = f"ansatz={config.ansatz}, N = {n_qubits} qubits, L = {config.n_layers} repetitions"
    if drawn < config.n_layers:
        title += f"; the first of {config.n_layers} is drawn"
    return title
