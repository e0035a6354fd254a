"""The relatives of the paper's generator, each against an independent few lines."""

from __future__ import annotations

import numpy as np
import pytest
import torch

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
