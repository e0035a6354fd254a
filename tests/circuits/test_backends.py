"""Every back end, every ansatz: probabilities and slopes against Qiskit and Aer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qiskit_aer import AerSimulator
from torch import Tensor

from qpa_exp.circuits.ansatz import ANSATZE
from qpa_exp.circuits.circuit import Circuit
from qpa_exp.circuits.recorded_devices import NOISES, noise_model, restrict
from qpa_exp.circuits.simulator import BACKENDS, make_simulator
from qpa_exp.errors import InputError

ANSATZ = ["ry", "rx", "rx_rz", "ry_rz", "product", "distributed", "of_a_user"]
TOLERANCE = {"torchquantum": 1e-6}  # complex64
EXACT = [name for name in BACKENDS if not BACKENDS[name].samples]
NOISE = {name: device for name, device in NOISES.items() if device is not None}


def evaluated(config, theta: np.ndarray, weights: np.ndarray):
    """Probabilities, and the slopes of weights @ probabilities."""
    simulator = make_simulator(config, theta.shape[-1])
    angles = torch.from_numpy(theta).requires_grad_()
    probabilities = simulator(angles)
    (probabilities @ torch.from_numpy(weights)).backward()
    return probabilities.detach().numpy(), angles.grad.numpy()


@pytest.mark.parametrize(
    "n_qubits", [1, 5, *(pytest.param(n, marks=pytest.mark.long) for n in (2, 8))]
)
@pytest.mark.parametrize("ansatz", ANSATZ)
@pytest.mark.parametrize("backend", EXACT)
def test_probabilities_and_slopes_are_qiskits(
    qpa, backend, ansatz, n_qubits, random_theta, by_qiskit, slopes_by_qiskit
):
    theta = random_theta(ansatz, n_qubits)
    weights = np.random.default_rng(0).normal(size=2**n_qubits)
    probabilities, slopes = evaluated(
        qpa(backend=backend, ansatz=ansatz, n_layers=2), theta, weights
    )
    atol = TOLERANCE.get(backend, 1e-12)
    np.testing.assert_allclose(probabilities, by_qiskit(ansatz, theta), rtol=0, atol=atol)
    expected = slopes_by_qiskit(ansatz, theta, weights)
    differences = 1e-8 if ansatz == "of_a_user" else 0.0  # of finite differences, not of ours
    np.testing.assert_allclose(slopes, expected, rtol=0, atol=10 * atol + differences)


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("ansatz", ["ry", "rx_rz", "of_a_user"])
def test_a_batch_of_circuits_is_each_of_them(qpa, backend, ansatz, random_theta):
    theta = torch.from_numpy(random_theta(ansatz, 3))
    batch = torch.stack([theta, -theta, theta.flip(0), theta + 1, theta - 2, 2 * theta])
    simulator = make_simulator(qpa(backend=backend, ansatz=ansatz, n_layers=2), 3)
    weights = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).double()
    together = batch.clone().requires_grad_()
    one_by_one = batch.clone().requires_grad_()
    p = simulator(together.unflatten(0, (2, 3)))
    q = torch.stack([simulator(theta) for theta in one_by_one])
    assert p.shape == (2, 3, 8)
    torch.testing.assert_close(p.flatten(0, 1), q, rtol=0, atol=1e-6)
    (p.flatten(0, 1) * weights).sum().backward()
    (q * weights).sum().backward()
    torch.testing.assert_close(together.grad, one_by_one.grad, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("ansatz", ["ry", "rx"])
def test_single_precision_stays_single_and_right_to_a_millionth(
    qpa, backend, ansatz, random_theta, by_qiskit
):
    theta = random_theta(ansatz, 5).astype(np.float32)
    simulator = make_simulator(qpa(backend=backend, ansatz=ansatz, n_layers=2), 5)
    probabilities = simulator(torch.from_numpy(theta))
    assert probabilities.dtype == torch.float32
    expected = by_qiskit(ansatz, theta.astype(np.float64))
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("n_qubits", [2, 5])
@pytest.mark.parametrize("ansatz", ["ry", "rx", "rx_rz", "ry_rz"])
def test_pennylane_says_the_same(qpa, ansatz, n_qubits, random_theta):
    import pennylane

    theta = random_theta(ansatz, n_qubits)
    weights = np.random.default_rng(1).normal(size=2**n_qubits)
    names = {"rx": pennylane.RX, "ry": pennylane.RY, "rz": pennylane.RZ, "cx": pennylane.CNOT}

    @pennylane.qnode(pennylane.device("default.qubit", wires=n_qubits), interface="torch")
    def circuit(angles: Tensor) -> object:
        for gate in ANSATZE[ansatz].gates(n_qubits, len(theta)):
            angle = () if gate.angle is None else (angles[gate.angle],)
            names[gate.name](*angle, wires=list(gate.qubits))
        return pennylane.probs(wires=range(n_qubits))

    angles = torch.from_numpy(theta).requires_grad_()
    theirs = circuit(angles)
    (theirs @ torch.from_numpy(weights)).backward()
    probabilities, slopes = evaluated(qpa(ansatz=ansatz, n_layers=2), theta, weights)
    np.testing.assert_allclose(probabilities, theirs.detach(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(slopes, angles.grad, rtol=0, atol=1e-11)


# --- with noise -------------------------------------------------------------------------------


def bound(simulator, theta: np.ndarray):
    """The transpiled circuit at these angles."""
    from qpa_exp.circuits.to_qiskit import angle_places

    transpiled = simulator.transpiled()
    places = angle_places(simulator.ansatz, simulator.n_qubits, len(theta))
    return transpiled.assign_parameters(
        {p: float(theta.flat[places[p.name]]) for p in transpiled.parameters}
    )


def by_aer(circuit, noise: str, *, whole: bool = False) -> np.ndarray:
    """The outcomes' probabilities by Aer's density matrix, then each qubit's readout error.

    With the ``whole`` noise model, of all the device's qubits, Aer takes seconds for each circuit.
    """
    model = noise_model(NOISE[noise])
    if not whole:
        used = {circuit.find_bit(qubit).index for step in circuit.data for qubit in step.qubits}
        model = restrict(model, used)
    ends = {
        circuit.find_bit(step.clbits[0]).index: circuit.find_bit(step.qubits[0]).index
        for step in circuit.data
        if step.operation.name == "measure"
    }
    measured = [ends[bit] for bit in sorted(ends)]
    circuit.remove_final_measurements()
    circuit.save_density_matrix(measured)
    aer = AerSimulator(method="density_matrix", noise_model=model)
    density = np.asarray(aer.run(circuit).result().data(0)["density_matrix"])
    probabilities = np.real(np.diag(density)).reshape([2] * len(measured))
    for axis, qubit in enumerate(reversed(measured)):
        table = model._local_readout_errors[(qubit,)].probabilities  # row: the true value
        moved = np.tensordot(probabilities, table, axes=(axis, 0))
        probabilities = np.moveaxis(moved, -1, axis)
    return probabilities.flatten()


def total_variation(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.abs(p - q).sum() / 2)


@pytest.mark.parametrize(
    "n_qubits", [5, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 6))]
)
@pytest.mark.parametrize("ansatz", ["ry", "rx", "rx_rz", "ry_rz", "product"])
@pytest.mark.parametrize(
    "noise", [pytest.param(n, marks=pytest.mark.long if i else ()) for i, n in enumerate(NOISE)]
)
def test_noisy_probabilities_are_aers(qpa, noise, ansatz, n_qubits, random_theta):
    theta = random_theta(ansatz, n_qubits)
    config = qpa(backend="density_matrix", noise=noise, ansatz=ansatz, n_layers=2)
    simulator = make_simulator(config, n_qubits)
    expected = by_aer(bound(simulator, theta), noise, whole=n_qubits == 6)
    exact = simulator(torch.from_numpy(theta)).numpy()
    single = simulator(torch.from_numpy(theta).float()).double().numpy()
    assert exact.sum() == pytest.approx(1, abs=1e-9)
    assert total_variation(exact, expected) < 1e-6
    assert total_variation(single, expected) < 1e-5
    ideal = make_simulator(qpa(ansatz=ansatz), n_qubits)(torch.from_numpy(theta))
    assert total_variation(exact, ideal.numpy()) > 1e-3  # the noise is there


@pytest.mark.parametrize("ansatz", ["ry", "rx_rz"])
def test_noisy_slopes_are_those_of_the_parameter_shift_rule_on_the_device(
    qpa, ansatz, random_theta
):
    theta = random_theta(ansatz, 3)
    weights = np.random.default_rng(0).normal(size=8)
    keys = {"noise": "ibm_torino", "n_layers": 2}
    config = qpa(backend="density_matrix", ansatz=ansatz, **keys)
    simulator = make_simulator(config, 3)
    angles = torch.from_numpy(theta).requires_grad_()
    (simulator(angles) @ torch.from_numpy(weights)).backward()
    place = (1, 0, 1)
    step = np.zeros_like(theta)
    step[place] = np.pi / 2
    up, down = (by_aer(bound(simulator, theta + s), "ibm_torino") for s in (step, -step))
    assert angles.grad[place].item() == pytest.approx(weights @ (up - down) / 2, abs=1e-6)


def test_any_noise_model_of_aer_is_taken_gate_by_gate(random_theta):
    from qiskit_aer.noise import NoiseModel, ReadoutError, depolarizing_error

    from qpa_exp.circuits.backends.density_matrix import noisy_program, run
    from qpa_exp.circuits.to_qiskit import angle_places, measured_circuit

    model = NoiseModel(basis_gates=["ry", "cx"])
    model.add_all_qubit_quantum_error(depolarizing_error(0.05, 1), ["ry"])
    model.add_all_qubit_quantum_error(depolarizing_error(0.1, 2), ["cx"])
    model.add_all_qubit_readout_error(ReadoutError([[0.9, 0.1], [0.2, 0.8]]))
    theta = random_theta("ry", 3)
    circuit = measured_circuit(ANSATZE["ry"], 3, 2)
    places = angle_places(ANSATZE["ry"], 3, 2)
    ours = run(noisy_program(circuit, model, places), torch.from_numpy(theta).reshape(1, -1))[0]
    at = circuit.assign_parameters(
        {p: float(theta.flat[places[p.name]]) for p in circuit.parameters}
    )
    counts = AerSimulator(noise_model=model, method="density_matrix", seed_simulator=1)
    shots = 200_000
    found = counts.run(at, shots=shots).result().get_counts()
    frequencies = np.array([found.get(format(i, "03b"), 0) for i in range(8)]) / shots
    spread = np.sqrt(ours.numpy() * (1 - ours.numpy()) / shots)
    assert (np.abs(frequencies - ours.numpy()) < 5 * spread).all()


@pytest.mark.slow
def test_ten_noisy_qubits_train(qpa):
    config = qpa(backend="density_matrix", noise="ibm_torino")
    torch.manual_seed(0)
    circuit = Circuit(config, 10)
    (circuit() @ torch.randn(1024)).backward()
    assert circuit.theta.grad.isfinite().all()
    assert circuit.theta.grad.count_nonzero() > 70


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("backend", EXACT)
def test_too_many_qubits_for_the_memory_are_refused_with_what_they_need(qpa, backend, monkeypatch):
    from qpa_exp.circuits import simulator

    monkeypatch.setattr(simulator, "free_memory", lambda: 2**20)
    wanted = r"16 qubits need about [\d.e+]+ GiB .* 0\.000977 GiB are free: raise qpa\.n_mlp"
    with pytest.raises(InputError, match=wanted):
        Circuit(qpa(backend=backend), 16)


def test_more_qubits_than_any_back_end_takes_are_refused(qpa):
    with pytest.raises(InputError, match=r"31 qubits .* 30 .*raise qpa\.n_mlp"):
        Circuit(qpa(), 31)


@pytest.mark.parametrize("missing", ["qiskit_aer", "qiskit_ibm_runtime"])
@pytest.mark.parametrize(
    "keys",
    [
        {"backend": "density_matrix", "noise": "ibm_fez"},
        {"backend": "qiskit", "shots": "20x", "gradient": "spsa"},
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_has_it(qpa, missing, keys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match=rf"{missing}.*qpa-exp\[quantum\]"):
        make_simulator(qpa(**keys), 2).prepare()


def test_the_ansatz_list_of_this_file_is_whole():
    circuits = {name for name in ANSATZE if ANSATZE[name].has_circuit}
    assert set(ANSATZ) == circuits - {"frozen"}
