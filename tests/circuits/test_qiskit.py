"""Measured frequencies, and what is kept of them on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qpa_exp.circuits.ansatz import ANSATZE
from qpa_exp.circuits.circuit import Circuit
from qpa_exp.circuits.simulator import make_simulator, record_versions
from qpa_exp.errors import InputError

DEVICES = {"aer": None, "fake_torino": "ibm_torino", "fake_fez": "ibm_fez"}
SHOTS = 20_000


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty place for the counts."""
    monkeypatch.setenv("QPA_EXP_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def jobs(monkeypatch) -> list[int]:
    """How many circuits each job has had."""
    from qpa_exp.circuits.backends.qiskit import QiskitSampler

    sizes: list[int] = []
    measure = QiskitSampler._measure

    def counted(self, angles, shots, seed):
        sizes.append(len(angles))
        return measure(self, angles, shots, seed)

    monkeypatch.setattr(QiskitSampler, "_measure", counted)
    return sizes


@pytest.fixture
def sampler(qpa):
    """``sampler("aer", "ry", 2)``: of circuits of two layers."""

    def make(device: str, ansatz: str, n_qubits: int):
        config = qpa(
            backend="qiskit", device=device, ansatz=ansatz, shots=str(SHOTS),
            gradient="spsa", n_layers=2,
        )  # fmt: skip
        return make_simulator(config, n_qubits)

    return make


@pytest.fixture
def real_device(monkeypatch) -> None:
    """Aer under every name of a device, also under one that is not recorded."""
    from qiskit_aer import AerSimulator

    from qpa_exp.circuits.backends import qiskit as module

    monkeypatch.setattr(module, "_find_device", lambda name: AerSimulator())


PAPER = ["ry", "rx", "rx_rz", "ry_rz", "product"]


@pytest.mark.parametrize("n_qubits", [1, pytest.param(2, marks=pytest.mark.long), 5])
@pytest.mark.parametrize(
    ("device", "ansatz"),
    [
        pytest.param(device, ansatz, marks=pytest.mark.long if ansatz != "ry" else ())
        for device in DEVICES
        for ansatz in PAPER
        if device != "aer"
    ]
    + [("aer", ansatz) for ansatz in (*PAPER, "of_a_user")],
)
def test_frequencies_are_those_of_the_device(
    qpa, sampler, device, ansatz, n_qubits, random_theta, sampling_p_value
):
    noise = DEVICES[device]
    keys = {"backend": "density_matrix", "noise": noise} if noise else {}
    exact = make_simulator(qpa(ansatz=ansatz, n_layers=2, **keys), n_qubits)
    theta = torch.from_numpy(random_theta(ansatz, n_qubits))
    frequencies = sampler(device, ansatz, n_qubits).sample(theta, SHOTS, seed=7)
    assert frequencies.sum().item() == pytest.approx(1)
    assert sampling_p_value(frequencies, exact(theta), SHOTS) > 1e-4


def test_eight_qubits_are_measured_too(qpa, sampler, random_theta, sampling_p_value):
    theta = torch.from_numpy(random_theta("ry", 8))
    exact = make_simulator(qpa(n_layers=2), 8)(theta)
    frequencies = sampler("aer", "ry", 8).sample(theta, SHOTS, seed=3)
    assert sampling_p_value(frequencies, exact, SHOTS) > 1e-4


@pytest.fixture
def theta() -> torch.Tensor:
    """Angles of five circuits."""
    stream = torch.Generator().manual_seed(0)
    return torch.randn(5, *ANSATZE["ry"].theta_shape(2, 2), generator=stream)


@pytest.mark.parametrize("device", ["aer", pytest.param("fake_fez", marks=pytest.mark.long)])
def test_a_simulated_device_keeps_nothing_and_its_seed_gives_the_same(
    sampler, jobs, cache, theta, device
):
    first = sampler(device, "ry", 2).sample(theta, 100, seed=1)
    sampler(device, "ry", 2).sample(theta[:2], 100, seed=1)
    assert torch.equal(sampler(device, "ry", 2).sample(theta, 100, seed=1), first)
    assert jobs == [5, 2, 5]
    assert not list(cache.rglob("*.json"))


@pytest.mark.usefixtures("real_device")
def test_a_real_device_measures_a_batch_in_one_job_and_no_circuit_twice(
    sampler, jobs, cache, theta
):
    first = sampler("ibm_real", "ry", 2).sample(theta, 100, seed=1)
    assert jobs == [5]
    again = sampler("ibm_real", "ry", 2).sample(theta, 100, seed=1)  # as after a kill
    assert jobs == [5]
    assert torch.equal(first, again)
    files = list(cache.rglob("*"))
    assert len([f for f in files if f.suffix == ".json"]) == 5
    assert not [f for f in files if f.suffix == ".part"]
    more = torch.cat([theta[:2], theta[:1] + 1, theta[:1] + 1])
    sampler("ibm_real", "ry", 2).sample(more, 100, seed=1)
    assert jobs == [5, 1]


@pytest.mark.usefixtures("real_device")
@pytest.mark.parametrize(
    "change", [{"shots": 200}, {"seed": 2}, {"device": "ibm_other"}, {"ansatz": "rx"}]
)
def test_what_the_counts_depend_on_is_in_their_name(sampler, jobs, change):
    theta = torch.zeros(ANSATZE["ry"].theta_shape(2, 2))
    plain = {"shots": 100, "seed": 1, "device": "ibm_real", "ansatz": "ry"}
    for keys in (plain, plain | change):
        sampler(keys["device"], keys["ansatz"], 2).sample(theta, keys["shots"], keys["seed"])
    assert jobs == [1, 1]


@pytest.mark.usefixtures("real_device")
def test_a_damaged_file_is_measured_again(sampler, jobs, cache):
    theta = torch.zeros(ANSATZE["ry"].theta_shape(2, 2))
    first = sampler("ibm_real", "ry", 2).sample(theta, 100, seed=1)
    (file,) = cache.rglob("*.json")
    file.write_bytes(file.read_bytes()[:5])
    assert torch.equal(sampler("ibm_real", "ry", 2).sample(theta, 100, seed=1), first)
    assert jobs == [1, 1]


def test_a_circuit_trains_on_measurements(qpa, jobs):
    config = qpa(backend="qiskit", shots="5000", gradient="parameter_shift", n_layers=1)
    torch.manual_seed(0)
    circuit = Circuit(config, 2)
    weights = torch.tensor([1.0, -1.0, 2.0, 0.5])
    (circuit() @ weights).backward()
    assert jobs == [1, 4]
    assert circuit.evaluations == 5
    exact = Circuit(qpa(n_layers=1), 2)
    exact.load_state_dict(circuit.state_dict())
    (exact() @ weights).backward()
    torch.testing.assert_close(circuit.theta.grad, exact.theta.grad, rtol=0, atol=0.1)
    fixed = circuit.eval()()
    assert torch.equal(circuit(), fixed)


def test_a_device_that_nobody_recorded_is_refused(qpa):
    config = qpa(backend="qiskit", shots="5", gradient="spsa", device="fake_mars")
    with pytest.raises(InputError, match=r"qpa\.device=fake_mars is not among the recorded"):
        Circuit(config, 2)


def test_an_ibm_device_without_an_account_is_refused_in_one_sentence(qpa, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    import qiskit_ibm_runtime

    def no_account(*args: object, **kwargs: object) -> None:
        raise ValueError("Unable to find account.\nPlease save one.")

    monkeypatch.setattr(qiskit_ibm_runtime, "QiskitRuntimeService", no_account)
    config = qpa(backend="qiskit", shots="5", gradient="spsa", device="ibm_mars")
    with pytest.raises(InputError, match=r"ibm_mars cannot be reached.*Unable to find") as caught:
        Circuit(config, 2)
    assert "\n" not in str(caught.value)


def test_a_device_with_too_few_qubits_is_refused(sampler, monkeypatch):
    from qiskit.providers.fake_provider import GenericBackendV2

    from qpa_exp.circuits.backends import qiskit as module

    monkeypatch.setattr(module, "_find_device", lambda name: GenericBackendV2(3, seed=0))
    with pytest.raises(InputError, match=r"4 qubits are more than the 3 of .*raise qpa\.n_mlp"):
        sampler("ibm_small", "ry", 4).prepare()


def test_the_versions_name_the_device_and_the_day_of_its_record(qpa):
    noisy = record_versions(qpa(backend="density_matrix", noise="ibm_fez"))
    assert set(noisy) == {"qiskit", "qiskit-aer", "qiskit-ibm-runtime", "fake_fez"}
    assert noisy["fake_fez"].endswith("(2025-02-26)")
    keys = {"backend": "qiskit", "shots": "9", "gradient": "spsa"}
    assert set(record_versions(qpa(**keys, device="fake_torino"))) >= {"fake_torino", "qiskit-aer"}
    assert "fake_torino" not in record_versions(qpa(**keys))
    assert set(record_versions(qpa(backend="torchquantum"))) == {"torchquantum"}
    assert record_versions(qpa()) == record_versions(qpa(backend="density_matrix")) == {}
    assert record_versions(qpa(ansatz="classical")) == record_versions(qpa(variant="off")) == {}
