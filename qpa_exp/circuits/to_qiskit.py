"""The circuit for Qiskit, and Qiskit's devices. Nothing is imported before it is needed."""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING, Any

from qpa_exp.circuits.ansatz import gates
from qpa_exp.errors import InputError, first_line

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

SNAPSHOTS = {"fake_torino": "FakeTorino", "fake_fez": "FakeFez"}
"""The devices of the paper's Appendix G, as Qiskit Runtime recorded them, by ``qpa.device``."""
NOISE_OF = {"ibm_torino": "fake_torino", "ibm_fez": "fake_fez"}
"""The recorded device behind each ``qpa.noise``."""

_TRANSPILER_SEED = 2025


def require_qiskit(what: str) -> None:
    """Refuse ``what`` in one sentence where Qiskit, Aer or Runtime is missing."""
    for package in ("qiskit", "qiskit_aer", "qiskit_ibm_runtime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InputError(
                f"{what} needs Qiskit with Aer and Runtime ({first_line(error)}): "
                "pip install 'qpa-exp[quantum]'."
            ) from error


def quantum_circuit(ansatz: str, n_qubits: int, n_layers: int) -> QuantumCircuit:
    """The circuit without measurements; qubit i of Qiskit's is our qubit i, drawn from the top.

    Its parameters are named theta[layer,rotation,qubit]; :func:`parameters` lists them in order.
    """
    from qiskit import QuantumCircuit
    from qiskit.circuit import Parameter

    circuit = QuantumCircuit(n_qubits)
    for gate in gates(ansatz, n_qubits, n_layers):
        angle = () if gate.angle is None else (Parameter(_name(gate.angle)),)
        getattr(circuit, gate.name)(*angle, *gate.qubits)
    return circuit


def measured_circuit(ansatz: str, n_qubits: int, n_layers: int) -> QuantumCircuit:
    """The circuit and a measurement of every qubit, the first into the highest classical bit."""
    from qiskit import ClassicalRegister

    circuit = quantum_circuit(ansatz, n_qubits, n_layers)
    circuit.add_register(ClassicalRegister(n_qubits, "outcome"))
    circuit.measure(range(n_qubits), range(n_qubits - 1, -1, -1))
    return circuit


def angle_places(ansatz: str, n_qubits: int, n_layers: int) -> dict[str, tuple[int, int, int]]:
    """From the name of a parameter to its place in theta, in the order of the gates."""
    turned = [gate.angle for gate in gates(ansatz, n_qubits, n_layers) if gate.angle is not None]
    return {_name(angle): angle for angle in turned}


def _name(angle: tuple[int, int, int]) -> str:
    return "θ[{},{},{}]".format(*angle)


@cache
def snapshot(name: str) -> Any:
    """The recorded device of that name in :data:`SNAPSHOTS`, a Qiskit backend."""
    from qiskit_ibm_runtime import fake_provider

    return getattr(fake_provider, SNAPSHOTS[name])()


def transpile_for(circuit: QuantumCircuit, device: Any) -> QuantumCircuit:
    """The circuit in the device's own gates and on its own qubits; the same at every call."""
    from qiskit import transpile

    if device.num_qubits is not None and device.num_qubits < circuit.num_qubits:
        raise InputError(
            f"{circuit.num_qubits} qubits are more than the {device.num_qubits} of "
            f"{device.name}: raise qpa.n_mlp, each doubling saves a qubit."
        )
    return transpile(circuit, device, optimization_level=2, seed_transpiler=_TRANSPILER_SEED)
