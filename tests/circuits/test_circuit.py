"""The circuit as a module: its modes, its shots, its gradients, and the controls in its place."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from qpa_exp.circuits.ansatz import ANSATZE, CNOT_CHAIN, RY, Ansatz, Moment, every_qubit
from qpa_exp.circuits.backends.density_matrix import _pauli_strings
from qpa_exp.circuits.circuit import Circuit, probabilities, sample_frequencies
from qpa_exp.circuits.gradients.parameter_shift import parameter_shift
from qpa_exp.config import QPAConfig, count_shots
from qpa_exp.errors import InputError
from qpa_exp.generator.rules import check_generator, count_generator

WEIGHTS = torch.linspace(-1, 2, 8)


def built(config, n_qubits: int = 3) -> Circuit:
    """A circuit from its seed."""
    torch.manual_seed(config.seed)
    return Circuit(config, n_qubits)


# --- angles and modes -------------------------------------------------------------------------


def test_the_angles_start_uniform_between_minus_pi_and_pi(qpa):
    theta = built(qpa(n_layers=400), 10).theta.detach()
    assert theta.abs().max() <= math.pi
    assert theta.mean().item() == pytest.approx(0, abs=0.1)
    assert theta.std().item() == pytest.approx(math.pi / math.sqrt(3), abs=0.05)


@pytest.mark.parametrize("ansatz", ["ry", "rx_rz"])
def test_without_shots_a_circuit_gives_the_probabilities_of_its_angles(qpa, ansatz):
    circuit = built(qpa(ansatz=ansatz, n_layers=2))
    assert circuit.n_qubits == 3
    for mode in (True, False):
        assert torch.equal(circuit.train(mode)(), probabilities(circuit.theta, ansatz))


def test_a_copy_has_angles_of_its_own(qpa):
    circuit = built(qpa(n_layers=2))
    other = copy.deepcopy(circuit)
    torch.nn.init.zeros_(other.theta)
    assert other()[0] == 1
    assert circuit()[0] < 1


@pytest.mark.parametrize("ansatz", ["ry", "rx_rz"])
@pytest.mark.parametrize("shape", [(1, 3, 3), (2, 2, 0, 3), (2, 2, 5, 3)])
def test_angles_of_another_shape_are_refused(ansatz, shape):
    theta = torch.zeros(shape, requires_grad=True)
    with pytest.raises(InputError, match=r"give \(layers, [12], qubits\)"):
        probabilities(theta, ansatz)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("ansatz", ["ry", "rx_rz"])
def test_probabilities_are_as_precise_as_the_angles_and_never_below_32_bits(
    ansatz, autocast, dtype
):
    theta = torch.linspace(-2, 3, 3 * ANSATZE[ansatz].theta_shape(3, 1)[1], dtype=dtype)
    theta = theta.view(1, -1, 3)
    wide = torch.promote_types(dtype, torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = probabilities(theta, ansatz)
    assert found.dtype == wide
    exact = probabilities(theta.double(), ansatz)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=10 * torch.finfo(wide).eps)


def test_without_an_angle_there_is_nothing_to_train(add_ansatz, qpa):
    add_ansatz("flips", Ansatz("flips", (Moment("x", every_qubit), CNOT_CHAIN)))
    circuit = built(qpa(ansatz="flips", n_layers=1))
    assert list(circuit.parameters()) == []
    assert circuit().argmax() == 0b101
    with pytest.raises(InputError, match=r"qpa\.gradient=spsa has no effect"):
        check_generator(qpa(ansatz="flips", gradient="spsa"))


def test_fixed_angles_are_read_again_where_they_have_changed(qpa):
    circuit = built(qpa(ansatz="frozen"))
    assert circuit()[0] < 1
    circuit.theta.zero_()
    assert circuit()[0] == 1
    circuit.theta = torch.full_like(circuit.theta, 0.3)
    assert circuit()[0] < 1


@pytest.mark.parametrize("keys", [{"ansatz": "frozen"}, {"backend": "density_matrix"}])
def test_what_is_kept_in_inference_mode_serves_training(qpa, keys):
    _pauli_strings.cache_clear()
    with torch.inference_mode():
        built(qpa(**keys, n_layers=1)).double()()
    circuit, layer = built(qpa(**keys, n_layers=1)).double(), torch.nn.Linear(8, 1).double()
    if keys.get("ansatz") == "frozen":
        with torch.inference_mode():
            circuit()
    layer(circuit()).sum().backward()
    assert layer.weight.grad is not None


# --- second derivatives -----------------------------------------------------------------------


@pytest.mark.parametrize("keys", [{}, {"gradient": "parameter_shift"}, {"gradient": "spsa"}])
@pytest.mark.parametrize(
    "loss", [lambda p: p @ WEIGHTS, lambda p: p.log().sum()], ids=["linear", "not linear"]
)
def test_a_second_derivative_is_refused_and_a_first_within_a_graph_is_not(qpa, keys, loss):
    circuit = built(qpa(**keys, n_layers=1))
    torch.manual_seed(1)
    (plain,) = torch.autograd.grad(loss(circuit()), circuit.theta)
    torch.manual_seed(1)
    (slopes,) = torch.autograd.grad(loss(circuit()), circuit.theta, create_graph=True)
    assert torch.equal(slopes, plain)
    with pytest.raises(InputError, match="slopes have no derivative"):
        slopes.square().sum().backward()


# --- shots ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shots", "count"), [(None, None), ("20x", 20 * 2**5), ("1x", 32), ("1000", 1000), ("1", 1)]
)
def test_shots_are_a_number_or_a_multiple_of_the_states(shots, count):
    assert count_shots(shots, n_qubits=5) == count


@pytest.mark.parametrize("shots", ["0", "0x", "-5", "20 x", "x", "x20", "1e3", "20.5x", "", "many"])
@pytest.mark.parametrize("key", ["shots", "final_shots"])
def test_an_odd_number_of_shots_is_refused(qpa, key, shots):
    with pytest.raises(InputError, match=rf"qpa\.{key}={shots} is no number of shots"):
        check_generator(qpa(**{key: shots}))


@settings(max_examples=20)
@given(n_qubits=st.integers(1, 6), shots=st.integers(1, 500), seed=st.integers(0, 100))
def test_a_sample_is_whole_counts_of_so_many_shots(n_qubits, shots, seed):
    p = torch.rand(2, 2**n_qubits, generator=torch.Generator().manual_seed(seed))
    p = p / p.sum(-1, keepdim=True)
    counts = sample_frequencies(p, shots).double() * shots
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-4)
    torch.testing.assert_close(counts.sum(-1), torch.full((2,), shots).double(), atol=1e-3, rtol=0)


def test_a_sample_follows_the_distribution(sampling_p_value):
    p = probabilities(torch.linspace(-3, 3, 12, dtype=torch.float64).view(2, 1, 6))
    frequencies = sample_frequencies(p, 100_000, torch.Generator().manual_seed(0))
    assert sampling_p_value(frequencies, p, 100_000) > 1e-3


def test_a_state_without_probability_is_never_found():
    p = torch.tensor([0.0, 0.5, 0.0, 0.5])
    frequencies = sample_frequencies(p, 1000, torch.Generator().manual_seed(0))
    assert frequencies[0] == frequencies[2] == 0


def test_the_samples_spread_like_shots_do():
    p = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).expand(4000, 4)
    frequencies = sample_frequencies(p, 50, torch.Generator().manual_seed(1))
    covariance = torch.cov(frequencies.T)
    exact = (torch.diag(p[0]) - torch.outer(p[0], p[0])) / 50
    torch.testing.assert_close(covariance, exact, rtol=0, atol=4e-4)


def test_training_draws_a_new_sample_from_torchs_stream(qpa):
    circuit = built(qpa(shots="20x")).train()
    torch.manual_seed(1)
    first = [circuit() for _ in range(3)]
    assert not torch.equal(first[0], first[1])
    torch.manual_seed(1)
    assert all(torch.equal(circuit(), sample) for sample in first)


@pytest.mark.parametrize(("final", "count"), [(None, 160), ("100x", 800), ("7", 7)])
def test_evaluation_keeps_one_sample_of_the_final_shots(qpa, final, count):
    circuit = built(qpa(shots="20x", final_shots=final)).eval()
    stream = torch.get_rng_state()
    samples = [circuit() for _ in range(3)]
    assert torch.equal(samples[0], samples[1])
    assert torch.equal(samples[0], samples[2])
    assert torch.equal(torch.get_rng_state(), stream)
    counts = samples[0] * count
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-4)
    other = built(qpa(shots="20x", final_shots=final, seed=1)).eval()
    other.load_state_dict(circuit.state_dict())
    assert not torch.equal(other(), samples[0])


def test_more_final_shots_come_closer_to_the_exact_probabilities(qpa):
    exact = built(qpa())()
    distances = [
        (built(qpa(shots="10", final_shots=final)).eval()() - exact).abs().sum().item()
        for final in ("10", "1000", "1000000")
    ]
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.01


@pytest.mark.parametrize("training", [True, False])
def test_the_gradient_passes_straight_through_the_sample(qpa, training):
    gradients = []
    for shots in ("20x", None):
        circuit = built(qpa(shots=shots)).train(training)
        (circuit() @ WEIGHTS).backward()
        gradients.append(circuit.theta.grad)
    assert gradients[0].count_nonzero() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


# --- gradients from evaluations ---------------------------------------------------------------


@pytest.mark.parametrize("ansatz", ["ry", "rx", "rx_rz", "ry_rz", "product"])
@pytest.mark.parametrize("backend", ["statevector", "torchquantum", "density_matrix"])
def test_the_parameter_shift_rule_is_exact(qpa, backend, ansatz):
    gradients = []
    for gradient in ("parameter_shift", "autograd"):
        config = qpa(backend=backend, ansatz=ansatz, gradient=gradient, n_layers=2)
        circuit = built(config)
        (circuit() @ WEIGHTS).backward()
        gradients.append(circuit.theta.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-5)


def test_circuits_are_counted_the_shifted_ones_too(qpa):
    circuit = built(qpa(gradient="parameter_shift", n_layers=4, ansatz="rx_rz"))
    (circuit() @ WEIGHTS).backward()
    assert circuit.evaluations == 1 + 2 * circuit.theta.numel() == 1 + 2 * 24
    with torch.no_grad():
        circuit()
    assert circuit.evaluations == 50


def test_shifted_circuits_go_in_one_batch_or_in_slices():
    sizes = []

    def measure(theta: torch.Tensor) -> torch.Tensor:
        sizes.append(math.prod(theta.shape[:-3]))
        return probabilities(theta)

    theta = torch.linspace(-1, 1, 9).view(3, 1, 3)
    whole = parameter_shift(QPAConfig(), 100)(measure, theta, WEIGHTS)
    sliced = parameter_shift(QPAConfig(), 9)(measure, theta, WEIGHTS)
    assert sizes == [18, 8, 8, 2]
    torch.testing.assert_close(whole, sliced, rtol=0, atol=1e-6)


def test_the_shift_rule_on_samples_scatters_about_the_slope(qpa):
    exact = built(qpa(n_layers=1))
    (exact() @ WEIGHTS).backward()
    circuit = built(qpa(n_layers=1, shots="1000", gradient="parameter_shift"))
    torch.manual_seed(0)
    found = []
    for _ in range(200):
        circuit.zero_grad()
        (circuit() @ WEIGHTS).backward()
        found.append(circuit.theta.grad.clone())
    samples = torch.stack(found)
    error = samples.std(0) / math.sqrt(len(samples))
    assert error.min() > 0
    assert ((samples.mean(0) - exact.theta.grad).abs() < norm.isf(1e-5) * error + 1e-4).all()


def test_spsa_takes_two_circuits_and_scatters_about_the_slope(qpa):
    exact = built(qpa(n_layers=1))
    (exact() @ WEIGHTS).backward()
    circuit = built(qpa(n_layers=1, gradient="spsa", spsa_step=0.01))
    torch.manual_seed(0)
    found = []
    for _ in range(400):
        circuit.zero_grad()
        (circuit() @ WEIGHTS).backward()
        found.append(circuit.theta.grad.clone())
    assert circuit.evaluations == 400 * 3
    samples = torch.stack(found)
    error = samples.std(0) / math.sqrt(len(samples))
    assert ((samples.mean(0) - exact.theta.grad).abs() < norm.isf(1e-5) * error + 1e-3).all()


def test_a_gate_that_the_shift_rule_does_not_cover_is_refused(qpa, user_ansatz):
    with pytest.raises(InputError, match=r"parameter_shift does not cover .*: crx is no half"):
        built(qpa(ansatz=user_ansatz, gradient="parameter_shift"))
    assert built(qpa(ansatz=user_ansatz, gradient="spsa", n_layers=1))().shape == (8,)


# --- the controls -----------------------------------------------------------------------------


def test_none_is_uniform_and_trains_nothing(qpa):
    control = ANSATZE["none"].make(qpa(ansatz="none"), n_qubits=4, n_chunks=13)
    torch.testing.assert_close(control(), torch.full((16,), 1 / 16))
    assert list(control.parameters()) == []
    assert control.state_dict() == {}


def test_frozen_is_the_circuit_of_the_seed_and_trains_nothing(qpa):
    frozen, free = built(qpa(ansatz="frozen")), built(qpa(ansatz="ry"))
    assert torch.equal(frozen(), free())
    assert list(frozen.parameters()) == []
    assert frozen.state_dict() == {}
    assert not frozen().requires_grad


def test_classical_is_one_free_logit_for_each_chunk(qpa):
    torch.manual_seed(0)
    control = ANSATZE["classical"].make(qpa(ansatz="classical"), n_qubits=4, n_chunks=13)
    assert [p.shape for p in control.parameters()] == [(13,)]
    torch.testing.assert_close(control(), control.logits.softmax(0))
    assert control().std() > 0
    control()[3].backward()
    assert control.logits.grad.count_nonzero() == 13


def test_product_does_not_entangle(qpa):
    p = built(qpa(ansatz="product"), 2)().detach().view(2, 2)
    torch.testing.assert_close(p, torch.outer(p.sum(1), p.sum(0)))


def test_gates_that_share_an_angle_have_no_shift_rule(add_ansatz, qpa):
    pairs = Moment("rzz", lambda n: [(i, j) for j in range(n) for i in range(j)])
    add_ansatz("all_pairs", Ansatz("all pairs", (RY, pairs)))
    shift = qpa(ansatz="all_pairs", gradient="parameter_shift")
    built(shift, 2)  # one pair, one angle
    for refused in (lambda: built(shift, 3), lambda: count_generator(500, shift)):
        with pytest.raises(InputError, match=r"parameter_shift does not cover .*same angle"):
            refused()
    built(qpa(ansatz="all_pairs"), 3)


def test_a_circuit_whose_slopes_nobody_asks_for_needs_no_way_to_them(qpa):
    config = qpa(backend="qiskit", shots="20", n_layers=1)
    check_generator(config, slopes=False)
    circuit = built(config, 2)
    with torch.no_grad():
        assert circuit().sum() == 1
    with pytest.raises(InputError, match=r"qpa\.gradient=autograd needs a simulation"):
        circuit()
    assert circuit.requires_grad_(False)().sum() == 1


# --- keys that do not go together -------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (
            {"noise": "ibm_fez"},
            r"qpa\.noise=ibm_fez has no effect: qpa\.backend=statevector does not read it",
        ),
        ({"noise": "ibm_fez", "backend": "torchquantum"}, r"qpa\.noise=ibm_fez has no effect"),
        (
            {"noise": "ibm_fez", "backend": "qiskit", "shots": "9", "gradient": "spsa"},
            r"qpa\.noise=ibm_fez has no effect: qpa\.backend=qiskit does not",
        ),
        ({"device": "fake_fez"}, r"qpa\.device=fake_fez has no effect: .* leave it at aer"),
        (
            {"ansatz": "none", "shots": "20x"},
            r"qpa\.shots=20x has no effect: qpa\.ansatz=\w+ does not read it",
        ),
        ({"ansatz": "classical", "final_shots": "5"}, r"qpa\.final_shots=5 has no effect"),
        (
            {"ansatz": "none", "noise": "ibm_fez", "backend": "density_matrix"},
            r"qpa\.backend=density_matrix has no effect: qpa\.ansatz=none does not read it",
        ),
        ({"ansatz": "frozen", "gradient": "spsa"}, r"qpa\.gradient=spsa has no effect"),
        ({"backend": "qiskit", "gradient": "spsa"}, r"qpa\.shots=null: .*say how often"),
        ({"backend": "qiskit", "shots": "20x"}, r"qpa\.gradient=autograd needs a simulation"),
        (
            {"backend": "qiskit", "shots": "9", "gradient": "spsa", "device": "a device"},
            r"qpa\.device=a device is no name of a device",
        ),
        ({"spsa_step": 0.0}, r"qpa\.spsa_step=0\.0 is out of range"),
        ({"n_circuits": 0}, r"qpa\.n_circuits=0 is too small"),
        (
            {"ansatz": "gaussian", "shots": "20x"},
            r"qpa\.shots=20x has no effect: qpa\.ansatz=\w+ does not read it",
        ),
        ({"mapping_hidden": [32, 0]}, r"qpa\.mapping_hidden=\[32, 0\] has a layer of 0"),
        ({"squash": True, "feature": "log"}, r"qpa\.squash=true and qpa\.feature=log ask for two"),
    ],
)
def test_keys_that_do_not_go_together_are_refused_in_one_sentence(qpa, keys, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        check_generator(qpa(**keys))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"backend": "density_matrix", "noise": "ibm_torino", "shots": "20x"},
        {"backend": "qiskit", "shots": "20x", "gradient": "parameter_shift"},
        {"backend": "qiskit", "shots": "20x", "ansatz": "frozen", "device": "fake_fez"},
        {"ansatz": "product", "shots": "100", "final_shots": "1000x", "gradient": "spsa"},
        {"ansatz": "none"},
        {"ansatz": "classical"},
    ],
)
def test_keys_that_go_together_are_accepted(qpa, keys):
    check_generator(qpa(**keys))
