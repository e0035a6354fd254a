"""The circuit for Qiskit, which is imported where it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpa_exp.circuits.ansatz import Ansatz, ansatz_of
from qpa_exp.circuits.simulator import Packages
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError
from qpa_exp.files import check_file, whole_file

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

QISKIT = Packages(("qiskit", "qiskit-aer", "qiskit-ibm-runtime"), "pip install 'qpa-exp[quantum]'")

_TRANSPILER_SEED = 2025


def quantum_circuit(ansatz: Ansatz, n_qubits: int, n_layers: int) -> QuantumCircuit:
    """Return the circuit without measurements.

    Qubit i of Qiskit's is our qubit i, drawn from the top.

    Its parameters are named theta[layer,rotation,qubit].
    """
    from qiskit import QuantumCircuit
    from qiskit.circuit import Parameter

    circuit = QuantumCircuit(n_qubits)
    for gate in ansatz.gates(n_qubits, n_layers):
        angle = () if gate.angle is None else (Parameter(_name(gate.angle)),)
        getattr(circuit, gate.name)(*angle, *gate.qubits)
    return circuit


def measured_circuit(ansatz: Ansatz, n_qubits: int, n_layers: int) -> QuantumCircuit:
    """Return the circuit and a measurement of every qubit, the first into the highest classical
    bit.
    """
    from qiskit import ClassicalRegister

    circuit = quantum_circuit(ansatz, n_qubits, n_layers)
    circuit.add_register(ClassicalRegister(n_qubits, "outcome"))
    circuit.measure(range(n_qubits), range(n_qubits - 1, -1, -1))
    return circuit


def angle_places(ansatz: Ansatz, n_qubits: int, n_layers: int) -> dict[str, int]:
    """Map the name of a parameter to its place in theta, flattened."""
    import numpy as np

    shape = ansatz.theta_shape(n_qubits, n_layers)
    turned = [gate.angle for gate in ansatz.gates(n_qubits, n_layers) if gate.angle is not None]
    return {_name(angle): int(np.ravel_multi_index(angle, shape)) for angle in turned}


def _name(angle: tuple[int, int, int]) -> str:
    return "θ[{},{},{}]".format(*angle)


def transpile_for(circuit: QuantumCircuit, device: Any) -> QuantumCircuit:
    """Give the circuit in the device's own gates and on its own qubits; the same at every call."""
    from qiskit import transpile

    if device.num_qubits is not None and device.num_qubits < circuit.num_qubits:
        raise InputError(
            f"{circuit.num_qubits} qubits are more than the {device.num_qubits} of "
            f"{device.name}: raise qpa.n_mlp, each doubling saves a qubit."
        )
    return transpile(circuit, device, optimization_level=2, seed_transpiler=_TRANSPILER_SEED)


# --- as a drawing -----------------------------------------------------------------------------

PICTURES = (".png", ".svg", ".pdf")
_MOST_GATES = 1000
"""The most gates that are drawn; of a larger circuit only its first repetition is."""


def check_picture(path: Path) -> None:
    """Refuse a file that cannot or must not be written."""
    if path.suffix.lower() not in PICTURES:
        raise InputError(
            f"draw={str(path)[:200]} is no picture: give true for text, or a file that ends in "
            f"{', '.join(PICTURES)}."
        )
    check_file(path, "draw=")
    if path.exists():
        raise InputError(f"draw={path} exists already: give another name, or remove it.")


def draw_text(config: QPAConfig, n_qubits: int, width: int = 100) -> str:
    """Return the circuit in text, qubit 1 at the top, folded into lines of ``width`` characters."""
    circuit, drawn = _circuit(config, n_qubits)
    text = circuit.draw("text", fold=width, cregbundle=False)
    return f"{_title(config, n_qubits, drawn)}\n{text}"


def draw_picture(config: QPAConfig, n_qubits: int, path: Path) -> None:
    """Write the circuit as a picture, folded after 25 columns of gates."""
    check_picture(path)
    circuit, drawn = _circuit(config, n_qubits)
    figure = circuit.draw("mpl", fold=25)
    figure.suptitle(_title(config, n_qubits, drawn))
    with whole_file(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower(), bbox_inches="tight")


def _circuit(config: QPAConfig, n_qubits: int) -> tuple[QuantumCircuit, int]:
    """Qiskit's circuit, and how many of its repetitions are in it."""
    ansatz = ansatz_of(config)
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
