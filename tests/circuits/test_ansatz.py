"""The circuit as a list of gates."""

from __future__ import annotations

from itertools import product

import pytest

from qpa_exp.circuits import ANSATZE, gates, theta_shape
from qpa_exp.config import Ansatz


def test_ry_is_a_rotation_of_every_qubit_and_then_the_cnot_chain():
    layer = [("ry", (0,)), ("ry", (1,)), ("ry", (2,)), ("cx", (0, 1)), ("cx", (1, 2))]
    assert [(g.name, g.qubits) for g in gates(Ansatz.ry, 3, 2)] == layer + layer


def test_one_qubit_has_no_cnot():
    assert [g.name for g in gates(Ansatz.ry, 1, 4)] == ["ry"] * 4


@pytest.mark.parametrize("ansatz", list(Ansatz))
def test_every_ansatz_of_the_config_has_a_circuit(ansatz):
    assert ansatz in ANSATZE


@pytest.mark.parametrize("ansatz", list(Ansatz))
@pytest.mark.parametrize(("n_qubits", "n_layers"), [(1, 1), (2, 3), (5, 2)])
def test_every_angle_turns_exactly_one_gate(ansatz, n_qubits, n_layers):
    used = [gate.angle for gate in gates(ansatz, n_qubits, n_layers) if gate.angle is not None]
    places = product(*map(range, theta_shape(ansatz, n_qubits, n_layers)))
    assert sorted(used) == sorted(places)
    assert all(
        gate.angle[0] < n_layers and gate.qubits == (gate.angle[2],)
        for gate in gates(ansatz, n_qubits, n_layers)
        if gate.angle is not None
    )


@pytest.mark.parametrize("ansatz", list(Ansatz))
def test_gates_without_an_angle_are_the_chains_cnots(ansatz):
    bare = [(g.name, g.qubits) for g in gates(ansatz, 4, 1) if g.angle is None]
    assert bare == [("cx", (0, 1)), ("cx", (1, 2)), ("cx", (2, 3))]


def test_ry_takes_one_angle_a_qubit_and_layer():
    assert theta_shape(Ansatz.ry, n_qubits=7, n_layers=8) == (8, 1, 7)
