"""The circuits of the paper, as lists of gates."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from qpa_exp.circuits.ansatz import ANSATZE, CNOT_CHAIN, GATES, RY, Ansatz, Moment
from qpa_exp.circuits.circuit import probabilities
from qpa_exp.circuits.to_qiskit import draw_text
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError

CHAIN = [("cx", (0, 1)), ("cx", (1, 2))]
ANSATZ = [name for name in ANSATZE if ANSATZE[name].has_circuit]


def each(name: str) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, (0,)), (name, (1,)), (name, (2,))]


@pytest.mark.parametrize(
    ("ansatz", "layer"),
    [
        ("ry", each("ry") + CHAIN),  # Eq. 1
        ("rx", each("rx") + CHAIN),  # Eq. 12
        ("rx_rz", each("rx") + CHAIN + each("rz") + CHAIN),  # Eq. 13
        ("ry_rz", each("ry") + CHAIN + each("rz") + CHAIN),  # Eq. 14
        ("product", each("ry")),
    ],
)
def test_a_circuit_repeats_the_gates_of_its_equation(ansatz, layer):
    assert [(g.name, g.qubits) for g in ANSATZE[ansatz].gates(3, 2)] == layer + layer


@pytest.mark.parametrize("ansatz", ANSATZ)
def test_one_qubit_has_no_gate_of_two(ansatz):
    assert all(gate.qubits == (0,) for gate in ANSATZE[ansatz].gates(1, 4))


@pytest.mark.parametrize("ansatz", ANSATZ)
@pytest.mark.parametrize(("n_qubits", "n_layers"), [(1, 1), (2, 3), (5, 2)])
def test_every_angle_turns_exactly_one_gate(ansatz, n_qubits, n_layers):
    listed = ANSATZE[ansatz].gates(n_qubits, n_layers)
    used = [gate.angle for gate in listed if gate.angle is not None]
    places = product(*map(range, ANSATZE[ansatz].theta_shape(n_qubits, n_layers)))
    assert sorted(used) == sorted(places)


@pytest.mark.parametrize(("ansatz", "rotations"), [("ry", 1), ("rx", 1), ("rx_rz", 2)])
def test_an_ansatz_takes_one_angle_a_rotation_qubit_and_layer(ansatz, rotations):
    assert ANSATZE[ansatz].theta_shape(n_qubits=7, n_layers=8) == (8, rotations, 7)


@pytest.mark.parametrize("name", sorted(GATES))
def test_a_gate_is_qiskits_gate_of_that_name(name):
    import torch
    from qiskit import QuantumCircuit
    from qiskit.quantum_info import Operator

    from qpa_exp.circuits.torch_engine import gate_matrix

    ours = gate_matrix(name, torch.tensor([0.7, -2.1], dtype=torch.float64))
    n_qubits = ours.shape[-1].bit_length() - 1
    for angle, matrix in zip((0.7, -2.1), ours, strict=True):
        circuit = QuantumCircuit(n_qubits)
        angles = (angle,) if GATES[name].has_angle else ()
        getattr(circuit, name)(*angles, *reversed(range(n_qubits)))
        np.testing.assert_allclose(matrix, Operator(circuit).data, rtol=0, atol=1e-15)
        assert not GATES[name].is_real or matrix.imag.abs().max() == 0


def test_a_name_that_is_no_ansatz_is_refused_with_those_that_are():
    with pytest.raises(InputError, match=r"qpa\.ansatz=yr .*classical, .* ry, "):
        ANSATZE["yr"]


@pytest.mark.parametrize(
    ("gate", "place"),
    [
        ("cx", (0,)),
        ("ry", (0, 1)),
        ("cz", (0, 0)),
        ("cx", (0, 3)),
        ("ry", (-1,)),
        ("ry", 0),
        ("ry", ()),
    ],
)
def test_a_gate_that_cannot_stand_there_is_refused_in_one_sentence(gate, place):
    ansatz = Ansatz("own", (RY, Moment(gate, lambda n_qubits: [place])))
    theta = torch.zeros(ansatz.theta_shape(3, 1))
    with pytest.raises(InputError, match=rf"{gate} cannot stand on .* qubits? from 0 to 2"):
        probabilities(theta, ansatz)


def test_a_gate_that_nobody_knows_is_refused_with_those_that_are_known():
    with pytest.raises(InputError, match=r"gate cnot is unknown: give one of .*cx"):
        Moment("cnot", CNOT_CHAIN.where)


def test_moments_may_be_a_list():
    theta = torch.linspace(-1, 2, 6).view(2, 1, 3)
    assert torch.equal(
        probabilities(theta, Ansatz("own", [RY, CNOT_CHAIN])), probabilities(theta, "ry")
    )


def test_a_drawing_shows_every_gate_with_its_angle():
    text = draw_text(QPAConfig(ansatz="rx_rz", n_layers=2), n_qubits=3, width=1000)
    for gate in ANSATZE["rx_rz"].gates(3, 2):
        if gate.angle is not None:
            assert f"R{gate.name[1]}(θ[{','.join(map(str, gate.angle))}])" in text
    assert text.splitlines()[0] == "ansatz=rx_rz, N = 3 qubits, L = 2 repetitions"


def test_of_a_large_circuit_one_repetition_is_drawn_and_the_title_says_so():
    text = draw_text(QPAConfig(n_layers=500), n_qubits=3, width=1000)
    assert "the first of 500 is drawn" in text
    assert "θ[0,0,2]" in text
    assert "θ[1,0,0]" not in text
