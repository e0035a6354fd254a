"""The relatives of the paper's generator, each against an independent few lines."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qpa_exp.circuits.ansatz import ansatz_of
from qpa_exp.circuits.circuit import probabilities
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError
from qpa_exp.generator.generator import Generator
from qpa_exp.generator.rules import check_generator, count_generator


def moved(generator: Generator) -> Generator:
    """The same with every trained number changed a little, as after some steps."""
    torch.manual_seed(5)
    with torch.no_grad():
        for tensor in generator.parameters():
            tensor += 0.3 * torch.randn_like(tensor)
    return generator


@pytest.mark.parametrize(("m", "keys"), [(200, {"n_mlp": 16}), (5, {}), (66_048, {})])
def test_random_features_are_a_matrix_of_fixed_numbers_times_a_trained_one(m, keys):
    config = QPAConfig(variant="random", **keys)
    check_generator(config)
    generator = Generator(m, config)
    assert np.allclose(generator().detach(), 0)
    start = [p.detach().clone() for p in generator.parameters()]
    now = [p.detach() for p in moved(generator).parameters()]
    weight, bias = ((n - then).numpy() for n, then in zip(now, start, strict=True))
    numbers = generator.circuit().numpy()
    window, n_mlp = generator.config.window, generator.config.n_mlp
    codes = np.stack([numbers[i : i + window] for i in range(generator.chunking.n_chunks)])
    expected = generator.config.scale * (codes @ weight.T + bias).ravel()
    np.testing.assert_allclose(
        generator().detach(), expected[generator.order.places.numpy()], rtol=0, atol=2e-5
    )
    counts = count_generator(m, config)
    assert counts.trainable_params == generator.n_trainable == n_mlp * (window + 1)
    assert counts.n_qubits is None


@pytest.mark.parametrize("keys", [{"ansatz": "rx"}, {"n_circuits": 2}, {"feature": "log"}])
def test_random_features_read_nothing_of_a_circuits(keys):
    with pytest.raises(InputError, match=r"has no effect: qpa\.variant=random does not read it"):
        check_generator(QPAConfig(variant="random", **keys))


# --- what stands in the MLP's place -----------------------------------------------------------


def bits_of(generator: Generator) -> np.ndarray:
    n_qubits, n_chunks = generator.chunking.n_qubits, generator.chunking.n_chunks
    written = [f"{i:0{n_qubits}b}" for i in range(n_chunks)]
    return np.array([[2 * int(bit) - 1 for bit in word] for word in written])


@pytest.mark.parametrize(
    ("keys", "trained"),
    [
        # (N + 1) sites of [1, x] and a leg of n_mlp: 2 chi + N 2 chi^2 + chi n_mlp, and 8 N angles
        ({"n_mlp": 16, "window": 1, "bond_dim": 3}, 6 + 4 * 18 + 48 + 32),
        ({"n_mlp": 16, "window": 5, "n_circuits": 2}, 16 + 3 * 128 + 2 * 6 * 64 + 128 + 64),
        ({"n_mlp": 300, "window": 1, "bond_dim": 1}, 2 + 2 + 300 + 8),
    ],
)
def test_a_matrix_product_state_is_the_contraction_of_its_sites(keys, trained):
    config = QPAConfig(mapping="mps", anchor=False, shuffle=False, **keys)
    check_generator(config)
    generator = Generator(200, config).double()
    assert count_generator(200, config).trainable_params == generator.n_trainable == trained
    states = moved(generator)._read(generator.circuit().detach()).numpy()
    sites = [s.detach().numpy() for s in (*generator.mapping.bits, *generator.mapping.windows)]
    rows, window = [], generator.config.window
    for i, bits in enumerate(bits_of(generator)):
        chain = np.ones((1, 1))
        read = [np.take(ring, range(i, i + window), mode="wrap") for ring in states]
        for site, x in zip(sites, [*bits[:, None], *read], strict=True):
            chain = chain @ np.tensordot([1, *x], site, (0, 1))
        rows.append(chain @ generator.mapping.out.detach().numpy())
    expected = generator.config.scale * np.concatenate(rows, axis=1).ravel()[:200]
    np.testing.assert_allclose(generator().detach(), expected, rtol=0, atol=1e-6)


def test_random_features_may_pass_through_a_matrix_product_state():
    config = QPAConfig(variant="random", mapping="mps", n_mlp=16, window=6, bond_dim=4)
    check_generator(config)
    assert count_generator(200, config).trainable_params == 7 * 4 + 4 * 16
    assert Generator(200, config).n_trainable == 7 * 4 + 4 * 16


def test_a_linear_mapping_is_an_mlp_without_hidden_layers():
    one, other = (Generator(200, QPAConfig(mapping=name, n_mlp=16)) for name in ("linear", "mlp"))
    assert torch.equal(moved(one)(), moved(other)())
    with pytest.raises(InputError, match=r"^qpa\.mapping_hidden=\[4\] has no effect: .*=linear"):
        check_generator(QPAConfig(mapping="linear", mapping_hidden=[4]))


# --- the circuit ------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "blocks"), [(2, [2, 2, 1]), (None, [3, 2]), (9, [5])])
def test_a_distributed_circuit_is_the_product_of_its_blocks(size, blocks):
    ansatz = ansatz_of(QPAConfig(ansatz="distributed", block_size=size))
    theta = torch.randn(3, 1, sum(blocks), generator=torch.Generator().manual_seed(1))
    product = torch.ones(1)
    for part in theta.split(blocks, dim=-1):
        product = torch.kron(product, probabilities(part, "ry"))
    torch.testing.assert_close(probabilities(theta, ansatz), product)


@pytest.mark.parametrize("blend", ["0.25", "trained"])
def test_a_blend_is_the_measured_probabilities_and_a_networks(blend):
    config = QPAConfig(blend=blend, n_mlp=16, window=2, blend_hidden=[3], feature="probability")
    check_generator(config)
    generator = Generator(200, config)
    assert count_generator(200, config).trainable_params == generator.n_trainable
    network = moved(generator).estimator.network
    logits = network(torch.from_numpy(bits_of(generator)).float())  # of 13 states, and one behind
    fourteenth = network(torch.tensor([[1.0, 1.0, -1.0, 1.0]]))
    guessed = torch.cat([logits, fourteenth]).flatten().softmax(0)
    weight = 0.25 if blend == "0.25" else generator.estimator.logit.sigmoid()
    expected = weight * generator.circuit()[:14] + (1 - weight) * guessed
    found = generator._read(generator.circuit())[0]
    torch.testing.assert_close(found[:14], expected)
    torch.testing.assert_close(found.sum(), torch.ones(()))


def test_a_blends_weight_is_a_number_from_0_to_1():
    for wrong in ("1.5", "half", "-1"):
        with pytest.raises(InputError, match=rf"^qpa\.blend={wrong} is no weight: give a number"):
            check_generator(QPAConfig(blend=wrong))
    with pytest.raises(InputError, match=r"^qpa\.blend=0\.5 has no effect: qpa\.ansatz=gaussian"):
        check_generator(QPAConfig(blend="0.5", ansatz="gaussian"))


# --- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        {"variant": "random"},
        {"mapping": "mps", "bond_dim": 2},
        {"ansatz": "distributed"},
        {"blend": "trained", "blend_hidden": [3]},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_the_gradients_are_finite_differences(keys):
    generator = moved(Generator(60, QPAConfig(n_mlp=16, window=3, **keys)).double())
    towards = torch.randn(60, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    parameters = list(generator.parameters())
    found = torch.autograd.grad(generator() @ towards, parameters)
    direction = [torch.randn_like(p) for p in parameters]
    ends = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            for parameter, way in zip(parameters, direction, strict=True):
                parameter += step * way
            ends.append(float(generator() @ towards))
    slope = sum(float((g * way).sum()) for g, way in zip(found, direction, strict=True))
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)
