"""The simulator against Qiskit, and its gradients against the parameter-shift rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from qiskit import QuantumCircuit
from qiskit.quantum_info import Statevector

from qpa_exp.circuits import Circuit, gates, probabilities, theta_shape
from qpa_exp.config import Ansatz
from qpa_exp.errors import InputError

ANGLES = st.floats(-2 * math.pi, 2 * math.pi)


def thetas(max_layers: int, max_qubits: int) -> st.SearchStrategy[np.ndarray]:
    """Angles of shape (layers, 1, qubits)."""
    shapes = st.tuples(st.integers(1, max_layers), st.just(1), st.integers(1, max_qubits))
    return shapes.flatmap(lambda shape: arrays(np.float64, shape, elements=ANGLES))


def qiskit_probabilities(circuit: QuantumCircuit) -> np.ndarray:
    return Statevector(circuit).probabilities()


def equation_1(theta: np.ndarray) -> QuantumCircuit:
    """Eq. 1 by hand. Qiskit counts from the least significant bit, the paper from the most."""
    n_layers, _, n_qubits = theta.shape
    circuit = QuantumCircuit(n_qubits)
    for layer in range(n_layers):
        for i in range(n_qubits):
            circuit.ry(theta[layer, 0, i], n_qubits - 1 - i)
        for i in range(n_qubits - 1):
            circuit.cx(n_qubits - 1 - i, n_qubits - 2 - i)
    return circuit


def from_gates(ansatz: Ansatz, theta: np.ndarray) -> QuantumCircuit:
    n_layers, _, n_qubits = theta.shape
    circuit = QuantumCircuit(n_qubits)
    for gate in gates(ansatz, n_qubits, n_layers):
        angle = () if gate.angle is None else (theta[gate.angle],)
        getattr(circuit, gate.name)(*angle, *(n_qubits - 1 - q for q in gate.qubits))
    return circuit


@given(theta=thetas(max_layers=6, max_qubits=7))
def test_probabilities_are_those_of_equation_1_in_qiskit(theta):
    ours = probabilities(torch.from_numpy(theta))
    assert ours.dtype == torch.float64
    np.testing.assert_allclose(ours, qiskit_probabilities(equation_1(theta)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("ansatz", list(Ansatz))
@given(data=st.data(), n_qubits=st.integers(1, 7), n_layers=st.integers(1, 6))
def test_probabilities_are_those_of_the_listed_gates_in_qiskit(ansatz, data, n_qubits, n_layers):
    shape = theta_shape(ansatz, n_qubits, n_layers)
    theta = data.draw(arrays(np.float64, shape, elements=ANGLES))
    ours = probabilities(torch.from_numpy(theta), ansatz)
    theirs = qiskit_probabilities(from_gates(ansatz, theta))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@given(theta=thetas(max_layers=6, max_qubits=7))
def test_single_precision_is_right_to_a_millionth(theta):
    single = torch.from_numpy(theta).float()
    ours = probabilities(single)
    assert ours.dtype == torch.float32
    theirs = qiskit_probabilities(equation_1(single.double().numpy()))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("n_qubits", [8, 10, 11, 12])
def test_many_qubits_agree_with_qiskit_too(n_qubits):
    theta = np.random.default_rng(n_qubits).uniform(-math.pi, math.pi, (2, 1, n_qubits))
    ours = probabilities(torch.from_numpy(theta))
    np.testing.assert_allclose(ours, qiskit_probabilities(equation_1(theta)), rtol=0, atol=1e-12)


@given(theta=thetas(max_layers=6, max_qubits=12))
def test_probabilities_are_a_distribution_over_all_basis_states(theta):
    ours = probabilities(torch.from_numpy(theta))
    assert ours.shape == (2 ** theta.shape[-1],)
    assert (ours >= 0).all()
    assert ours.sum().item() == pytest.approx(1, abs=1e-12)


def test_the_first_qubit_is_the_most_significant_bit():
    theta = torch.zeros(1, 1, 2, dtype=torch.float64)
    theta[0, 0, 0] = math.pi  # |0 0> -> |1 0> -> the CNOT's |1 1>
    torch.testing.assert_close(probabilities(theta), torch.tensor([0, 0, 0, 1]).double())
    theta = theta.flip(-1)  # |0 0> -> |0 1>, which the CNOT leaves
    torch.testing.assert_close(probabilities(theta), torch.tensor([0, 1, 0, 0]).double())


def test_one_qubit_is_a_plain_rotation():
    theta = torch.tensor([[[0.3]], [[0.5]]], dtype=torch.float64)
    expected = torch.tensor([math.cos(0.4) ** 2, math.sin(0.4) ** 2], dtype=torch.float64)
    torch.testing.assert_close(probabilities(theta), expected)


@settings(max_examples=10)
@given(theta=thetas(max_layers=3, max_qubits=4), seed=st.integers(0, 2**16))
def test_gradients_are_those_of_the_parameter_shift_rule(theta, seed):
    weights = np.random.default_rng(seed).normal(size=2 ** theta.shape[-1])
    angles = torch.from_numpy(theta).requires_grad_()
    (probabilities(angles) @ torch.from_numpy(weights)).backward()
    shifted = np.empty_like(theta)
    for place in np.ndindex(*theta.shape):
        step = np.zeros_like(theta)
        step[place] = math.pi / 2
        plus, minus = (qiskit_probabilities(equation_1(theta + s)) for s in (step, -step))
        shifted[place] = weights @ (plus - minus) / 2
    np.testing.assert_allclose(angles.grad, shifted, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("n_layers", "n_qubits"), [(1, 1), (3, 1), (2, 2), (2, 4)])
def test_gradients_pass_gradcheck(n_layers, n_qubits):
    generator = torch.Generator().manual_seed(n_qubits)
    theta = torch.randn(n_layers, 1, n_qubits, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(probabilities, theta.requires_grad_())
    assert torch.autograd.gradgradcheck(probabilities, theta)


def test_the_circuits_angles_start_uniform_between_minus_pi_and_pi():
    torch.manual_seed(0)
    theta = Circuit(n_qubits=10, n_layers=400).theta.detach()
    assert theta.abs().max() <= math.pi
    assert theta.mean().item() == pytest.approx(0, abs=0.1)
    assert theta.std().item() == pytest.approx(math.pi / math.sqrt(3), abs=0.05)


def test_a_circuit_gives_the_probabilities_of_its_angles():
    torch.manual_seed(0)
    circuit = Circuit(n_qubits=3, n_layers=2)
    assert circuit.n_qubits == 3
    assert torch.equal(circuit(), probabilities(circuit.theta))


def test_more_qubits_than_the_back_end_takes_are_refused_with_the_key_that_helps():
    with pytest.raises(InputError, match=r"21 qubits .* 20 .*raise qpa\.n_mlp"):
        Circuit(n_qubits=21, n_layers=1)


@pytest.mark.slow
def test_twenty_qubits_run_forward_and_backward():
    torch.manual_seed(0)
    circuit = Circuit(n_qubits=20, n_layers=8)
    p = circuit()
    assert p.sum().item() == pytest.approx(1, abs=1e-4)
    (p * torch.randn(2**20)).sum().backward()
    assert circuit.theta.grad.isfinite().all()
    assert circuit.theta.grad.abs().max() > 0
