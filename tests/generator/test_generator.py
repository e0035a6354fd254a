"""The generator against a second computation in NumPy, and what each variant promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qpa_exp.circuits.circuit import probabilities
from qpa_exp.generator.features import FEATURES
from qpa_exp.generator.features.squashed import squash
from qpa_exp.generator.generator import Generator, basis_bits
from qpa_exp.generator.rules import VARIANTS

GENERATED = [name for name in VARIANTS if VARIANTS[name].generates]
M, N_MLP = 200, 16  # 13 chunks on 4 qubits: one chunk is cut short, three states are spare
ACTIVATIONS = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "tanh": np.tanh,
}


def make(config, m: int = M) -> Generator:
    """A generator in double precision."""
    return Generator(m, config).double()


def second_computation(
    generator: Generator,
    states: np.ndarray,
    *,
    squashed: bool,
    activation: str,
    centered: bool,
    logarithmic: bool = False,
    normal: bool = False,
) -> np.ndarray:
    """Eq. 5 to 8 step by step: features, mapping model, the first m values."""
    theta = generator.circuit.theta.detach()
    if generator.circuit.turned is not None:
        theta = theta + generator.circuit.turned
    p = probabilities(theta).numpy()
    p = p.reshape(-1, p.shape[-1]).T
    n_qubits = round(math.log2(len(p)))
    if squashed:
        p = (0.6 * np.tanh(0.1 * 2 ** (n_qubits - 1) * p)) ** 0.15
        p = p - p.mean(axis=0)
    if logarithmic or normal:
        p = np.log(1 + 2**n_qubits * p)
    if normal:
        p = (p - p.mean(axis=0)) / np.sqrt(p.var(axis=0) + 1e-5)
    bits = [[1.0 if bit == "1" else -1.0 for bit in format(i, f"0{n_qubits}b")] for i in states]
    places = np.arange(len(states))[:, None] + np.arange(generator.config.window)
    read = [circuit[places % len(circuit)] for circuit in p.T]
    x = np.hstack([np.array(bits), *read])
    linear = [layer for layer in generator.mapping if isinstance(layer, nn.Linear)]
    for depth, layer in enumerate(linear):
        x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        if depth < len(linear) - 1:
            x = ACTIVATIONS[activation](x)
    vector = x.reshape(-1)[: generator.chunking.m]
    return vector - vector.mean() if centered else vector


def run_and_record(generator: Generator) -> tuple[torch.Tensor, np.ndarray]:
    """The vector, and the basis states whose bits the mapping model was shown for it."""
    shown: list[torch.Tensor] = []
    hook = generator.mapping.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    vector = generator().detach()
    hook.remove()
    bits = (shown[0] > 0).long()
    places = 2 ** torch.arange(bits.shape[1])
    if not VARIANTS[generator.config.variant].lowest_first:
        places = places.flip(0)
    return vector, (bits * places).sum(1).numpy()


def disturb(generator: Generator) -> None:
    """A step away from the start, always the same one."""
    stream = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in generator.parameters():
            step = torch.randn(parameter.shape, generator=stream, dtype=torch.float64)
            parameter.add_(0.1 * step)


# --- the equations ----------------------------------------------------------------------------


def by_the_authors_rule(p, states, layers, m: int) -> np.ndarray:
    """The released code once more: bits of -1 and +1, least significant first; no activations."""
    n_qubits = round(math.log2(len(p)))
    p = (0.6 * np.tanh(0.1 * 2 ** (n_qubits - 1) * p)) ** 0.15
    p = p - p.mean()
    bits = [[1.0 if state & 2**k else -1.0 for k in range(n_qubits)] for state in states]
    x = np.column_stack([bits, p[: len(states)]])
    for layer in layers:
        x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    vector = x.flatten()[:m]
    return vector - vector.mean()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("m", [M, 208, 256, 5])
def test_released_is_the_authors_code_to_the_letter(qpa_config, m, training):
    generator = make(qpa_config("released", n_mlp=N_MLP), m).train(training)
    n_chunks, p = -(-m // N_MLP), generator.circuit().detach().numpy()
    torch.manual_seed(7)
    drawn = torch.randperm(len(p))[:n_chunks] if training else generator.states
    torch.manual_seed(7)
    vector = generator().detach()
    expected = by_the_authors_rule(p, drawn.tolist(), list(generator.mapping), m)
    np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-12)
    assert vector.mean().item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("m", [M, 208, 256, 5])
def test_paper_is_the_published_equations(qpa_config, m):
    generator = make(qpa_config("paper", n_mlp=N_MLP), m)
    states = np.arange(-(-m // N_MLP))
    expected = second_computation(
        generator, states, squashed=False, activation="relu", centered=False
    )
    np.testing.assert_allclose(generator().detach(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("hidden", [[], [6, 9]])
def test_tuned_is_the_change_since_the_start(qpa_config, hidden):
    generator = make(qpa_config("tuned", n_mlp=N_MLP, mapping_hidden=hidden))
    parts = {"squashed": False, "activation": "gelu", "centered": False, "normal": True}
    start = second_computation(generator, np.arange(13), **parts)
    disturb(generator)
    now = second_computation(generator, np.arange(13), **parts)
    expected = generator.config.scale * (now - start)
    if generator.order is not None:
        expected = expected[generator.order.places.numpy()]
    np.testing.assert_allclose(generator().detach(), expected, rtol=0, atol=1e-6)
    assert np.abs(expected).max() > 1e-3


def test_shuffled_the_same_parameters_stand_elsewhere(qpa_config):
    plain, shuffled = (
        make(qpa_config("paper", n_mlp=N_MLP, shuffle=shuffle))().detach()
        for shuffle in (False, True)
    )
    assert not torch.equal(plain, shuffled)
    assert torch.equal(plain.sort().values, shuffled.sort().values)


def test_there_are_at_most_as_many_circuits_of_the_same_angles_as_basis_states(qpa_config, caplog):
    generator = make(qpa_config("paper", n_mlp=N_MLP, share_angles=True, n_circuits=500))
    assert generator.config.n_circuits == 16
    assert "the 4 qubits have 16" in caplog.text


def test_a_window_is_at_most_all_basis_states(qpa_config, caplog):
    generator = make(qpa_config("paper", n_mlp=N_MLP, window=500))
    assert generator.config.window == 16
    assert "wider than the 16 basis states of 4 qubits" in caplog.text


@pytest.mark.parametrize(("n_circuits", "window"), [(1, 2), (1, 9), (3, 16)])
def test_a_chunk_reads_the_probabilities_that_follow_its_own_around_the_end(
    qpa_config, n_circuits, window
):
    config = qpa_config(
        "paper", n_mlp=N_MLP, n_circuits=n_circuits, window=window, mapping_hidden=[6]
    )
    generator = make(config)
    expected = second_computation(
        generator, np.arange(13), squashed=False, centered=False, activation="relu"
    )
    np.testing.assert_allclose(generator().detach(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_circuits", [1, 4])
@pytest.mark.parametrize("feature", FEATURES)
def test_a_chunk_reads_its_probability_in_every_circuit(qpa_config, n_circuits, feature):
    config = qpa_config(
        "paper", n_mlp=N_MLP, n_circuits=n_circuits, feature=feature, mapping_hidden=[6, 9]
    )
    generator = make(config)
    assert [layer.out_features for layer in list(generator.mapping)[::2]] == [6, 9, N_MLP]
    expected = second_computation(
        generator, np.arange(13), squashed=feature == "squashed", centered=False,
        activation="relu", logarithmic=feature == "log",
        normal=feature == "normal",
    )  # fmt: skip
    np.testing.assert_allclose(generator().detach(), expected, rtol=0, atol=1e-12)


def test_squash_is_the_short_name_of_a_feature(qpa_config):
    vectors = [
        make(qpa_config("paper", n_mlp=N_MLP, **{key: value}))().detach()
        for key, value in (("squash", True), ("feature", "squashed"))
    ]
    assert torch.equal(*vectors)


def test_without_hidden_layers_the_mapping_model_is_linear(qpa_config):
    generator = make(qpa_config("paper", n_mlp=N_MLP, mapping_hidden=[]))
    assert len(generator.mapping) == 1


@pytest.mark.parametrize("ansatz", ["gaussian", "classical", "none", "frozen", "product"])
def test_what_stands_in_the_circuits_place_is_read_in_the_same_windows(qpa_config, ansatz):
    generator = make(qpa_config("tuned", n_mlp=N_MLP, window=5, ansatz=ansatz))
    assert generator.mapping[0].in_features == 4 + 5
    disturb(generator)
    generator().sum().backward()
    assert generator.mapping[0].weight.grad.isfinite().all()


def test_beside_gaussian_numbers_the_mapping_model_reads_them_as_they_are(qpa_config):
    config = qpa_config("paper", n_mlp=N_MLP, n_circuits=5, ansatz="gaussian", feature="log")
    generator = Generator(M, config)
    shown: list[torch.Tensor] = []
    generator.mapping.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[1]))
    generator()
    assert torch.equal(shown[0], generator.circuit.numbers)
    assert generator.n_trainable == sum(p.numel() for p in generator.mapping.parameters())


def test_kaiming_tells_the_chunks_apart_where_the_default_does_not(qpa_config):
    def spread(init: str) -> float:
        config = qpa_config("paper", n_mlp=N_MLP, activation="gelu", mapping_init=init)
        chunks = make(config, 16 * N_MLP)().detach().view(16, N_MLP)
        return (chunks.std(dim=0).mean() / chunks.abs().mean()).item()

    assert spread("kaiming") > 0.5 > 5 * spread("default")


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("squashed", [True, False])
@pytest.mark.parametrize("centered", [True, False])
def test_each_difference_between_the_variants_is_a_switch_of_its_own(
    qpa_config, activation, squashed, centered
):
    config = qpa_config(
        "paper", n_mlp=N_MLP, activation=activation, squash=squashed, center=centered
    )
    generator = make(config)
    expected = second_computation(
        generator, np.arange(13), squashed=squashed, activation=activation, centered=centered
    )
    np.testing.assert_allclose(generator().detach(), expected, rtol=0, atol=1e-12)


def test_the_mapping_model_has_the_layers_behind_the_papers_counts(qpa_config):
    generator = Generator(M, qpa_config("paper", n_mlp=N_MLP))
    widths = [
        (layer.in_features, layer.out_features)
        for layer in generator.mapping
        if isinstance(layer, nn.Linear)
    ]
    assert widths == [
        (5, 32), (32, 64), (64, 128), (128, 128), (128, 64), (64, 32), (32, 32), (32, 16)
    ]  # fmt: skip


@given(state=st.integers(0, 2**12 - 1), spare=st.integers(0, 4))
def test_basis_bits_are_the_binary_digits_most_significant_first(state, spare):
    n_qubits = max(1, state.bit_length()) + spare
    signs = basis_bits(torch.tensor([state]), n_qubits)[0]
    assert "".join("1" if s == 1 else "0" for s in signs) == format(state, f"0{n_qubits}b")
    assert signs.abs().eq(1).all()


# --- the squash -------------------------------------------------------------------------------


def test_the_squash_is_the_released_formula():
    p = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.03, 0.02, 0.0125, 0.0], dtype=torch.float64)
    raised = (0.6 * np.tanh(0.1 * 4 * p.numpy())) ** 0.15
    np.testing.assert_allclose(squash(p), raised - raised.mean(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_squash_has_a_finite_gradient_where_a_probability_is_zero(dtype):
    p = torch.zeros(8, dtype=dtype)
    p[3] = 1
    p.requires_grad_()
    squashed = squash(p)
    (squashed * torch.arange(8)).sum().backward()
    assert squashed.isfinite().all()
    assert p.grad.isfinite().all()


def test_released_has_finite_gradients_where_the_circuit_leaves_states_empty(qpa_config):
    generator = Generator(M, qpa_config("released", n_mlp=N_MLP))
    nn.init.zeros_(generator.circuit.theta)
    generator().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in generator.parameters())


# --- the basis order --------------------------------------------------------------------------


def drawn(generator: Generator) -> list[int]:
    return run_and_record(generator)[1].tolist()


@pytest.mark.parametrize("variant", ["paper", "tuned"])
@pytest.mark.parametrize("training", [True, False])
def test_a_fixed_order_is_the_first_states_in_order(qpa_config, variant, training):
    generator = Generator(M, qpa_config(variant, n_mlp=N_MLP)).train(training)
    assert drawn(generator) == list(range(13))


@pytest.mark.parametrize("training", [True, False])
def test_a_random_order_never_draws_a_state_twice(qpa_config, training):
    states = drawn(Generator(M, qpa_config("released", n_mlp=N_MLP)).train(training))
    assert len(states) == len(set(states)) == 13
    assert set(states) <= set(range(16))


def test_training_draws_a_fresh_sample_at_every_call(qpa_config):
    generator = Generator(M, qpa_config("released", n_mlp=N_MLP)).train()
    torch.manual_seed(0)
    samples = {tuple(drawn(generator)) for _ in range(10)}
    assert len(samples) == 10
    assert {state for sample in samples for state in sample} == set(range(16))


def test_training_samples_follow_the_manual_seed(qpa_config):
    generator = Generator(M, qpa_config("released", n_mlp=N_MLP)).train()
    torch.manual_seed(3)
    first = [drawn(generator) for _ in range(3)]
    torch.manual_seed(3)
    assert [drawn(generator) for _ in range(3)] == first


def test_evaluation_keeps_one_sample_and_draws_nothing(qpa_config):
    generator = Generator(M, qpa_config("released", n_mlp=N_MLP)).eval()
    stream = torch.get_rng_state()
    vectors = [generator() for _ in range(3)]
    assert torch.equal(vectors[0], vectors[1])
    assert torch.equal(vectors[0], vectors[2])
    assert torch.equal(torch.get_rng_state(), stream)
    generator.train()()
    assert torch.equal(generator.eval()(), vectors[0])


# --- the anchor -------------------------------------------------------------------------------


@pytest.fixture(params=["fixed", "random"])
def anchored(request, qpa_config) -> Generator:
    return Generator(M, qpa_config("tuned", n_mlp=N_MLP, basis_order=request.param))


@pytest.mark.parametrize("training", [True, False])
def test_an_anchored_vector_starts_at_exactly_zero_and_then_moves(anchored, training):
    anchored.train(training)
    for _ in range(3):
        assert anchored().count_nonzero() == 0
    optimizer = torch.optim.SGD(anchored.parameters(), lr=0.1)
    (anchored() @ torch.randn(M, generator=torch.Generator().manual_seed(0))).backward()
    optimizer.step()
    assert anchored().count_nonzero() > M / 2


def test_the_squash_and_the_mean_are_anchored_as_well(qpa_config):
    generator = Generator(M, qpa_config("released", n_mlp=N_MLP, anchor=True))
    assert generator().count_nonzero() == 0


def test_an_anchor_costs_no_parameter_and_no_entry_in_a_checkpoint(anchored, qpa_config):
    free = Generator(M, qpa_config("tuned", n_mlp=N_MLP, anchor=False))
    anchored()
    assert anchored.n_trainable == free.n_trainable
    assert [n for n, _ in anchored.named_parameters()] == [n for n, _ in free.named_parameters()]
    assert list(anchored.state_dict()) == [name for name, _ in free.named_parameters()]


def test_an_anchor_does_not_change_the_gradients(anchored, qpa_config):
    order = anchored.config.basis_order
    free = Generator(M, qpa_config("tuned", n_mlp=N_MLP, basis_order=order, anchor=False))
    weights = torch.randn(M, generator=torch.Generator().manual_seed(0))
    for generator in (anchored.eval(), free.eval()):
        (generator() @ weights).backward()
    for ours, theirs in zip(anchored.parameters(), free.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_start_is_rebuilt_from_the_seed_and_not_from_the_weights(anchored):
    disturb(anchored.double().eval())
    again = Generator(M, anchored.config).double().eval()
    again.load_state_dict(anchored.state_dict())
    assert torch.equal(again(), anchored())
    assert again().count_nonzero() > 0


@pytest.mark.parametrize("variant", GENERATED)
def test_restarted_it_is_the_generator_of_another_seed(qpa_config, variant):
    generator = Generator(M, qpa_config(variant, n_mlp=N_MLP, seed=1)).eval()
    other = Generator(M, qpa_config(variant, n_mlp=N_MLP, seed=2)).eval()
    generator()
    generator.restart(2)
    assert torch.equal(generator(), other())
    for one in (generator, other):
        disturb(one.double())
    assert torch.equal(generator(), other())


# --- seeds and gradients ----------------------------------------------------------------------


@pytest.mark.parametrize("variant", GENERATED)
def test_the_same_seed_gives_the_same_generator(qpa_config, variant):
    first, second, other = (
        Generator(M, qpa_config(variant, n_mlp=N_MLP, seed=seed, anchor=False)).eval()
        for seed in (1, 1, 2)
    )
    assert torch.equal(first(), second())
    assert not torch.equal(first(), other())


@pytest.mark.parametrize("variant", GENERATED)
def test_building_one_leaves_the_global_random_stream_alone(qpa_config, variant):
    stream = torch.get_rng_state()
    Generator(M, qpa_config(variant, n_mlp=N_MLP))
    assert torch.equal(torch.get_rng_state(), stream)


@pytest.mark.parametrize("variant", GENERATED)
def test_gradients_reach_the_angles_and_every_layer_of_the_mapping_model(qpa_config, variant):
    generator = Generator(M, qpa_config(variant, n_mlp=N_MLP))
    torch.manual_seed(0)
    (generator() @ torch.randn(M)).backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name


@pytest.mark.parametrize("variant", GENERATED)
def test_the_vector_has_m_single_precision_values(qpa_config, variant):
    vector = Generator(M, qpa_config(variant, n_mlp=N_MLP))()
    assert vector.shape == (M,)
    assert vector.dtype == torch.float32
    assert vector.isfinite().all()
