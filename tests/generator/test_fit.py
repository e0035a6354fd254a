"""The rule of ``tuned``: a generator's sizes from the number of parameters to generate."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpa_exp.config import QPAConfig
from qpa_exp.generator.generator import Generator
from qpa_exp.generator.rules import count_generator, fit


@pytest.mark.parametrize(
    ("m", "n_mlp", "window"),
    [(66_048, 64, 128), (198_912, 64, 128), (204_100, 64, 128), (1_033_216, 128, 256)],
    ids=["tiny", "135M", "gpt2", "gemma2"],
)
def test_the_rule_of_lora_at_rank_4(m, n_mlp, window):
    chunking, fitted = fit(m, QPAConfig())
    assert (chunking.n_mlp, fitted.n_mlp, fitted.window) == (n_mlp, n_mlp, window)
    assert fitted.scale == pytest.approx(0.1 * math.sqrt(128 / window))


@given(m=st.integers(1, 2**24))
def test_what_is_trained_is_a_part_of_what_is_generated(m):
    counts = count_generator(m, QPAConfig())
    assert counts.n_mlp * fit(m, QPAConfig())[1].window <= max(2, m / 8)
    assert m < 2**12 or counts.trainable_params < m / 4


@given(m=st.integers(1, 2**20), n_mlp=st.integers(1, 2**12), window=st.integers(1, 300))
def test_what_is_given_stays(m, n_mlp, window):
    given_both = QPAConfig(n_mlp=n_mlp, window=window, scale=0.3)
    chunking, fitted = fit(m, given_both)
    assert (chunking.n_mlp, fitted.n_mlp, fitted.scale) == (n_mlp, n_mlp, 0.3)
    assert fitted.window == min(window, 2**chunking.n_qubits)
    _, by_rule = fit(m, QPAConfig(n_mlp=n_mlp))
    assert 1 <= by_rule.window <= 2**chunking.n_qubits


@given(
    m=st.integers(1, 2**20),
    n_mlp=st.none() | st.integers(1, 2**12),
    window=st.none() | st.integers(1, 300),
    n_circuits=st.integers(1, 300),
    share_angles=st.booleans(),
)
def test_the_scale_follows_the_features_that_a_chunk_reads(
    m, n_mlp, window, n_circuits, share_angles
):
    given_some = QPAConfig(
        n_mlp=n_mlp, window=window, n_circuits=n_circuits, share_angles=share_angles
    )
    _, fitted = fit(m, given_some)
    features = fitted.window * fitted.n_circuits
    assert fitted.scale == pytest.approx(0.1 * math.sqrt(128 / features))


@pytest.mark.parametrize("m", [1, 7, 300, 5000])
def test_a_fitted_config_is_fitted_already(m):
    generator = Generator(m, QPAConfig())
    assert fit(m, generator.config)[1] == generator.config
    assert generator().shape == (m,)
    assert generator.n_trainable == count_generator(m, QPAConfig()).trainable_params
