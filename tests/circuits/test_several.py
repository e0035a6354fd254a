"""Circuits side by side: each is what it would be alone, in every back end and gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.quantum_info import Operator

from qpa_exp.circuits.ansatz import ANSATZE
from qpa_exp.circuits.circuit import Circuit, probabilities
from qpa_exp.errors import InputError

COTANGENTS = torch.linspace(-1, 2, 24).view(3, 8).sin()


def built(config, n_qubits: int = 3) -> Circuit:
    torch.manual_seed(config.seed)
    return Circuit(config, n_qubits)


@pytest.mark.parametrize("backend", ["statevector", "torchquantum", "density_matrix"])
@pytest.mark.parametrize("ansatz", ["ry", "rx_rz"])
def test_each_of_several_circuits_is_one_circuit(qpa, backend, ansatz):
    circuit = built(qpa(n_circuits=3, n_layers=2, ansatz=ansatz, backend=backend))
    assert circuit.theta.shape[0] == 3
    measured = circuit()
    assert measured.shape == (3, 8)
    for row, theta in zip(measured, circuit.theta, strict=True):
        torch.testing.assert_close(row, probabilities(theta, ansatz), rtol=0, atol=1e-6)


def test_one_circuit_has_the_angles_of_the_paper_without_another_axis(qpa):
    circuit = built(qpa(n_circuits=1, n_layers=2))
    assert circuit.theta.shape == (2, 1, 3)
    assert circuit().shape == (8,)


@pytest.mark.parametrize("backend", ["statevector", "torchquantum", "density_matrix"])
def test_the_shift_rule_turns_all_circuits_together_and_is_exact(qpa, backend):
    found = []
    for gradient in ("parameter_shift", "autograd"):
        circuit = built(qpa(n_circuits=3, n_layers=2, backend=backend, gradient=gradient))
        (circuit() * COTANGENTS).sum().backward()
        found.append(circuit.theta.grad)
        if gradient == "parameter_shift":
            assert circuit.evaluations == 3 * (1 + 2 * 6)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


def test_spsa_estimates_each_circuit_from_its_own_probabilities(qpa):
    circuit = built(qpa(n_circuits=3, n_layers=2, gradient="spsa"))
    torch.manual_seed(0)
    (circuit()[1] * COTANGENTS[1]).sum().backward()
    assert circuit.evaluations == 3 * 3
    touched = circuit.theta.grad.flatten(1).count_nonzero(dim=1)
    assert touched.tolist() == [0, 6, 0]


def test_every_circuit_is_measured_with_shots_of_its_own(qpa):
    circuit = built(qpa(n_circuits=3, shots="20x"))
    torch.nn.init.zeros_(circuit.theta)
    with torch.no_grad():
        circuit.theta[1] += 0.7
        frequencies = circuit()
    torch.testing.assert_close(frequencies.sum(-1), torch.ones(3))
    assert frequencies[0].tolist() == frequencies[2].tolist() == [1] + 7 * [0]
    assert frequencies[1].count_nonzero() > 1
    torch.testing.assert_close(frequencies * 160, (frequencies * 160).round())


@pytest.mark.parametrize("control", [n for n in ANSATZE if not ANSATZE[n].trains_circuit])
def test_a_control_gives_as_many_features_as_the_circuits_it_replaces(qpa, control):
    torch.manual_seed(0)
    config, control_of = qpa(n_circuits=4, ansatz=control), ANSATZE[control]
    replaced = Circuit(config, 3) if control_of.has_circuit else control_of.make(config, 3, 7)
    given = replaced()
    assert given.shape[0] == 4
    assert given.shape[1] >= 7
    trained = [tuple(p.shape) for p in replaced.parameters()]
    assert trained == ([(4, 7)] if control == "classical" else [])


def test_the_gaussian_control_is_standard_normal_and_follows_the_seed(qpa):
    def numbers(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        config = qpa(n_circuits=8, ansatz="gaussian")
        return ANSATZE["gaussian"].make(config, n_qubits=9, n_chunks=500)()

    assert numbers(0).mean().item() == pytest.approx(0, abs=0.1)
    assert numbers(0).std().item() == pytest.approx(1, abs=0.1)
    assert torch.equal(numbers(0), numbers(0))
    assert not torch.equal(numbers(0), numbers(1))


@pytest.mark.parametrize("ansatz", ["ry", "rx", "rx_rz", "ry_rz", "product"])
def test_with_shared_angles_each_circuit_starts_from_its_own_basis_state(qpa, ansatz):
    circuit = built(qpa(n_circuits=8, share_angles=True, n_layers=2, ansatz=ansatz))
    rotations = 2 if "_" in ansatz else 1
    assert circuit.theta.shape == (2, rotations, 3)
    described = QuantumCircuit(3)
    names = {"cx": "cx", "rx": "rx", "ry": "ry", "rz": "rz"}
    for gate in ANSATZE[ansatz].gates(3, 2):
        angle = [] if gate.angle is None else [circuit.theta[gate.angle].item()]
        # Qiskit counts qubits from the least significant bit.
        getattr(described, names[gate.name])(*angle, *[2 - qubit for qubit in gate.qubits])
    unitary = Operator(described).data
    expected = torch.tensor(np.abs(unitary.T) ** 2, dtype=torch.float32)
    torch.testing.assert_close(circuit().detach(), expected, rtol=0, atol=1e-6)


def test_circuits_that_are_not_trained_are_evaluated_once(qpa):
    circuit = built(qpa(n_circuits=4, ansatz="frozen", share_angles=True))
    first = circuit()
    assert torch.equal(circuit(), first)
    assert circuit.evaluations == 4
    assert circuit.double()().dtype == torch.float64
    sampled = built(qpa(ansatz="frozen", shots="20x"))
    sampled()
    sampled()
    assert sampled.evaluations == 2


@pytest.mark.parametrize("gradient", ["parameter_shift", "autograd"])
def test_the_slope_of_shared_angles_is_the_sum_over_circuits(qpa, gradient):
    config = qpa(n_circuits=3, share_angles=True, n_layers=2, gradient=gradient)
    circuit = built(config)
    (circuit() * COTANGENTS).sum().backward()
    apart = (circuit.theta + circuit.turned).detach().requires_grad_()
    (probabilities(apart) * COTANGENTS).sum().backward()
    torch.testing.assert_close(circuit.theta.grad, apart.grad.sum(0), rtol=0, atol=1e-5)


def test_more_circuits_than_basis_states_cannot_share_their_angles(qpa):
    built(qpa(n_circuits=8, share_angles=True))
    with pytest.raises(InputError, match=r"^qpa\.n_circuits=9 .* 3 qubits have 8: give at most"):
        built(qpa(n_circuits=9, share_angles=True))


def test_memory_is_counted_for_all_circuits(qpa):
    built(qpa(), 18)
    with pytest.raises(InputError, match=r"^10000 circuits of 18 qubits need about .* GiB"):
        built(qpa(n_circuits=10_000), 18)
