"""The default simulator: its properties, its precision, its memory, and where it may be used."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qpa_exp.circuits import compiled_engine, torch_engine
from qpa_exp.circuits.ansatz import (
    ANSATZE,
    Ansatz,
    Moment,
    every_qubit,
    inverse_of,
    neighbours,
    order_of,
)
from qpa_exp.circuits.circuit import probabilities

ANGLES = st.floats(-2 * math.pi, 2 * math.pi)
ANSATZ = ["ry", "rx", "rx_rz", "ry_rz", "product", "of_a_user"]
WAYS = ["compiled", "torch"]


@contextmanager
def by(way: str) -> Iterator[None]:
    """Circuits in the compiled kernels, where they can be, or in torch's own operations."""
    with pytest.MonkeyPatch.context() as patch:
        if way == "torch":
            patch.setattr(compiled_engine, "takes", lambda *_: False)
        yield


def test_the_paper_s_circuits_are_compiled_and_any_other_gate_is_not():
    for ansatz in ANSATZ:
        theta = torch.zeros(1, *ANSATZE[ansatz].theta_shape(4, 1))
        assert compiled_engine.takes(theta, ANSATZE[ansatz]) == (ansatz != "of_a_user")
        assert not compiled_engine.takes(theta.half(), ANSATZE[ansatz])
        assert not compiled_engine.takes(theta.to("meta"), ANSATZE[ansatz])


@st.composite
def circuits(draw: st.DrawFn, max_qubits: int = 7) -> tuple[str, np.ndarray]:
    """An ansatz, and angles for up to 4 layers of it."""
    ansatz = draw(st.sampled_from(ANSATZ))
    shape = ANSATZE[ansatz].theta_shape(draw(st.integers(1, max_qubits)), draw(st.integers(1, 4)))
    return ansatz, draw(arrays(np.float64, shape, elements=ANGLES))


@pytest.mark.parametrize("way", WAYS)
@given(circuit=circuits())
def test_probabilities_are_those_of_the_gates_in_qiskit(way, circuit, by_qiskit):
    ansatz, theta = circuit
    with by(way):
        ours = probabilities(torch.from_numpy(theta), ansatz)
    assert ours.dtype == torch.float64
    np.testing.assert_allclose(ours, by_qiskit(ansatz, theta), rtol=0, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n_qubits", [10, 11, 12, 14])
@pytest.mark.parametrize("ansatz", ["ry", "rx_rz", "of_a_user"])
def test_many_qubits_agree_with_qiskit_too(way, ansatz, n_qubits, random_theta, by_qiskit):
    theta = random_theta(ansatz, n_qubits)
    with by(way):
        ours = probabilities(torch.from_numpy(theta), ansatz)
    np.testing.assert_allclose(ours, by_qiskit(ansatz, theta), rtol=0, atol=1e-12)


@given(circuit=circuits(max_qubits=12))
def test_probabilities_are_a_distribution_over_all_basis_states(circuit):
    ansatz, theta = circuit
    ours = probabilities(torch.from_numpy(theta), ansatz)
    assert ours.shape == (2 ** theta.shape[-1],)
    assert (ours >= 0).all()
    assert ours.sum().item() == pytest.approx(1, abs=1e-12)


@given(circuit=circuits(), place=st.integers(0, 10**6))
def test_a_turn_by_two_pi_changes_nothing(circuit, place):
    ansatz, theta = circuit
    if ansatz == "of_a_user":  # its controlled rotations have a period of four pi
        return
    turned = theta.copy().reshape(-1)
    turned[place % turned.size] += 2 * math.pi
    before = probabilities(torch.from_numpy(theta), ansatz)
    after = probabilities(torch.from_numpy(turned.reshape(theta.shape)), ansatz)
    torch.testing.assert_close(before, after, rtol=0, atol=1e-12)


@given(n_qubits=st.integers(1, 12))
def test_the_cnot_chain_is_the_gray_code(n_qubits):
    """It maps bit j to the parity of bits 1 to j: new state y was old state y ^ (y >> 1)."""
    chain = [g for g in ANSATZE["ry"].gates(n_qubits, 1) if g.name == "cx"]
    order = order_of(chain, n_qubits)
    y = np.arange(2**n_qubits, dtype=np.int32)
    np.testing.assert_array_equal(order, y ^ (y >> 1))
    np.testing.assert_array_equal(order[inverse_of(order)], y)


def test_the_first_qubit_is_the_most_significant_bit():
    theta = torch.zeros(1, 1, 2, dtype=torch.float64)
    theta[0, 0, 0] = math.pi  # |0 0> -> |1 0> -> the CNOT's |1 1>
    torch.testing.assert_close(probabilities(theta), torch.tensor([0, 0, 0, 1]).double())
    theta = theta.flip(-1)  # |0 0> -> |0 1>, which the CNOT leaves
    torch.testing.assert_close(probabilities(theta), torch.tensor([0, 1, 0, 0]).double())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ansatz", ANSATZ)
@pytest.mark.parametrize(
    ("n_layers", "n_qubits"), [(1, 1), (3, 1), (2, 2), pytest.param(2, 4, marks=pytest.mark.long)]
)
def test_gradients_pass_gradcheck(way, ansatz, n_layers, n_qubits):
    shape = ANSATZE[ansatz].theta_shape(n_qubits, n_layers)
    generator = torch.Generator().manual_seed(n_qubits)
    theta = torch.randn(2, *shape, dtype=torch.float64, generator=generator, requires_grad=True)
    with by(way):
        assert torch.autograd.gradcheck(lambda t: probabilities(t, ansatz), theta)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ansatz", ["ry", "rx_rz"])
@pytest.mark.parametrize("n_qubits", [11, 12, 13])
def test_gradients_of_many_qubits_are_differences(way, ansatz, n_qubits, random_theta, by_qiskit):
    theta = random_theta(ansatz, n_qubits)
    weights = np.random.default_rng(0).normal(size=2**n_qubits)
    angles = torch.from_numpy(theta).requires_grad_()
    with by(way):
        (probabilities(angles, ansatz) @ torch.from_numpy(weights)).backward()
    for place in [(0, 0, 0), (1, 0, n_qubits // 2), (0, theta.shape[1] - 1, n_qubits - 1)]:
        step = np.zeros_like(theta)
        step[place] = math.pi / 2
        up, down = (by_qiskit(ansatz, theta + s) for s in (step, -step))
        assert angles.grad[place].item() == pytest.approx(weights @ (up - down) / 2, abs=1e-11)


@pytest.mark.parametrize("way", WAYS)
def test_gates_that_share_an_angle_add_up_their_slopes(way):
    twice = Moment("ry", lambda n_qubits: 2 * every_qubit(n_qubits))
    ansatz = Ansatz("twice", (twice, Moment("cx", neighbours)))
    theta = torch.linspace(-1, 2, 6, dtype=torch.float64).view(2, 1, 3).requires_grad_()
    with by(way):
        assert torch.autograd.gradcheck(lambda t: probabilities(t, ansatz), theta)


# --- where it may be used ---------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ansatz", ["ry", "rx_rz"])
def test_what_is_cached_in_inference_mode_serves_training(way, ansatz):
    for cached in (torch_engine._steps, compiled_engine._layer):
        cached.cache_clear()
    theta = torch.ones(ANSATZE[ansatz].theta_shape(4, 2), requires_grad=True)
    with by(way):
        with torch.inference_mode():
            probabilities(theta.detach(), ansatz)
        probabilities(theta, ansatz)[0].backward()
    assert theta.grad.count_nonzero() > 0


@pytest.mark.parametrize("ansatz", ["ry", "rx"])
def test_mixed_precision_around_it_leaves_the_amplitudes_alone(ansatz, random_theta):
    theta = torch.from_numpy(random_theta(ansatz, 6)).float()
    found = []
    for enabled in (True, False):
        angles = theta.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            p = probabilities(angles, ansatz)
            (p * torch.arange(64)).sum().backward()
        found.append((p.detach(), angles.grad))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


_COMPILED = """
import torch
from qpa_exp.circuits.ansatz import ANSATZE
from qpa_exp.circuits.circuit import probabilities
def caller(angles):
    return (probabilities(angles, "rx") * torch.arange(16)).sum()
theta = torch.randn(ANSATZE["rx"].theta_shape(4, 2), generator=torch.Generator().manual_seed(0))
found = []
for call in (torch.compile(caller, backend="eager"), caller):
    angles = theta.clone().requires_grad_()
    value = call(angles)
    value.backward()
    found.append((value.detach(), angles.grad))
torch.testing.assert_close(found[0], found[1])
"""


@pytest.mark.long
@pytest.mark.slow
def test_a_compiled_caller_gets_the_same():
    # In a process of its own: the compiler cannot trace the checks that the tests add.
    done = subprocess.run(
        [sys.executable, "-c", _COMPILED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


_PEAK = """
import resource, sys, torch
from qpa_exp.circuits.ansatz import ANSATZE
from qpa_exp.circuits.circuit import probabilities
ansatz = sys.argv[1]
torch.set_num_threads(1)
small = torch.ones(ANSATZE[ansatz].theta_shape(4, 2), requires_grad=True)
probabilities(small, ansatz).sum().backward()
theta = torch.rand(ANSATZE[ansatz].theta_shape(20, 8), requires_grad=True)
weights = torch.randn(2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(probabilities(theta, ansatz) @ weights).backward()
assert theta.grad.isfinite().all() and theta.grad.abs().max() > 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("ansatz", ["ry", "rx", "rx_rz", "ry_rz", "product"])
def test_twenty_qubits_and_eight_layers_train_in_a_quarter_of_a_gibibyte(ansatz):
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, ansatz], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 2**18  # KiB


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("n_qubits", [3, 10, 13])
@pytest.mark.parametrize("ansatz", ["ry", "rx_rz", "of_a_user"])
def test_a_gpu_gives_the_same(ansatz, n_qubits, random_theta):
    theta = torch.from_numpy(random_theta(ansatz, n_qubits))
    found = []
    for device in ("cpu", "cuda"):
        angles = theta.to(device).requires_grad_()
        p = probabilities(angles, ansatz)
        (p @ torch.arange(len(p), device=device).double()).backward()
        found.append((p.detach().cpu(), angles.grad.cpu()))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-9)


def test_many_circuits_shared_out_among_threads_are_the_same_bit_for_bit(monkeypatch):
    theta = torch.randn(5, 4, 1, 7, generator=torch.Generator().manual_seed(0))
    found = []
    for threads, worth in ((1, 0), (3, 0), (3, 10**9)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        monkeypatch.setattr(compiled_engine, "_WORTH_THREADS", worth)
        angles = theta.clone().requires_grad_()
        p = probabilities(angles)
        (p * torch.arange(128)).sum().backward()
        found.append(torch.cat([p.detach().flatten(), angles.grad.flatten()]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
