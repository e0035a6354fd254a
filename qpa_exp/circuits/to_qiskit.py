"""The circuit for Qiskit, which is imported where it is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qpa_exp.circuits.ansatz import Ansatz
from qpa_exp.circuits.simulator import Packages
from qpa_exp.errors import InputError

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

QISKIT = Packages(("qiskit", "qiskit-aer", "qiskit-ibm-runtime"), "pip install 'qpa-exp[quantum]'")

_TRANSPILER_SEED = 2025


def quantum_circuit(ansatz: Ansatz, n_qubits: int, n_layers: int) -> QuantumCircuit:
    """The circuit without measurements; qubit i of Qiskit's is our qubit i, drawn from the top.

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
    """The circuit and a measurement of every qubit, the first into the highest classical bit."""
    from qiskit import ClassicalRegister

    circuit = quantum_circuit(ansatz, n_qubits, n_layers)
    circuit.add_register(ClassicalRegister(n_qubits, "outcome"))
    circuit.measure(range(n_qubits), range(n_qubits - 1, -1, -1))
    return circuit


def angle_places(ansatz: Ansatz, n_qubits: int, n_layers: int) -> dict[str, int]:
    """From the name of a parameter to its place in theta, flattened."""
    _, rotations, _ = ansatz.theta_shape(n_qubits, n_layers)
    turned = [gate.angle for gate in ansatz.gates(n_qubits, n_layers) if gate.angle is not None]
    return {_name((x, y, z)): (x * rotations + y) * n_qubits + z for x, y, z in turned}


def _name(angle: tuple[int, int, int]) -> str:
    return "θ[{},{},{}]".format(*angle)


def transpile_for(circuit: QuantumCircuit, device: Any) -> QuantumCircuit:
    """The circuit in the device's own gates and on its own qubits; the same at every call."""
    from qiskit import transpile

    if device.num_qubits is not None and device.num_qubits < circuit.num_qubits:
        raise InputError(
            f"{circuit.num_qubits} qubits are more than the {device.num_qubits} of "
            f"{device.name}: raise qpa.n_mlp, each doubling saves a qubit."
        )
    return transpile(circuit, device, optimization_level=2, seed_transpiler=_TRANSPILER_SEED)
