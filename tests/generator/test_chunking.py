"""Chunks, qubits and the paper's parameter counts."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpa_exp.cli import compose_config
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError
from qpa_exp.generator.generator import Generator
from qpa_exp.generator.rules import Chunking

GPT2_LORA = 4 * (50257 + 768)
GPT2_PREFIX = 512 * 768
GEMMA_LORA = 4 * (256000 + 2048)

# m, n_mlp, qubits, trainable parameters: every count that the paper prints.
PRINTED = [
    (GPT2_LORA, 256, 10, 47_248),
    (GPT2_LORA, 512, 9, 55_656),
    (GPT2_LORA, 1024, 8, 72_512),
    (GPT2_LORA, 2048, 7, 106_264),
    (GPT2_LORA, 4096, 6, 173_808),
    (GPT2_LORA, 8192, 5, 308_936),
    (GPT2_PREFIX, 1024, 9, 72_552),
    (GEMMA_LORA, 1024, 10, 72_592),
    (GEMMA_LORA, 4096, 8, 173_888),
    (GEMMA_LORA, 8192, 7, 309_016),
    (GEMMA_LORA, 16258, 6, 575_154),
    (GEMMA_LORA, 32768, 5, 1_119_944),
    (GEMMA_LORA, 65536, 4, 2_201_248),
]


@pytest.mark.parametrize(("m", "n_mlp", "n_qubits", "trainable"), PRINTED)
def test_the_papers_count_is_met_exactly(qpa_config, m, n_mlp, n_qubits, trainable):
    generator = Generator(m, qpa_config("paper", n_mlp=n_mlp))
    assert generator.n_trainable == trainable
    assert generator.chunking.n_qubits == generator.circuit.n_qubits == n_qubits


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_both_variants_train_what_the_paper_prints_for_gpt2(variant):
    config = compose_config(["model=gpt2", f"qpa={variant}"]).qpa
    assert Generator(GPT2_LORA, config).n_trainable == 106_264


@pytest.mark.parametrize(
    ("n_circuits", "n_mlp", "hidden", "trainable"),
    [(16, 64, [32, 64, 32], 8_608), (32, 16, [32, 64, 32], 9_520), (64, 16, [64, 64], 16_848)],
)
def test_several_circuits_and_a_smaller_mapping_model_are_counted(
    n_circuits, n_mlp, hidden, trainable
):
    config = QPAConfig(n_mlp=n_mlp, n_circuits=n_circuits, window=1, mapping_hidden=hidden)
    assert Generator(4 * (128 + 16384), config).n_trainable == trainable


@given(m=st.integers(1, 10**8), n_mlp=st.integers(1, 10**6))
def test_chunks_are_just_enough_for_all_parameters(m, n_mlp):
    n_chunks = Chunking(m, n_mlp).n_chunks
    assert n_chunks * n_mlp >= m > (n_chunks - 1) * n_mlp


@given(m=st.integers(1, 10**8), n_mlp=st.integers(1, 10**6))
def test_qubits_are_just_enough_for_all_chunks_and_at_least_one(m, n_mlp):
    chunking = Chunking(m, n_mlp)
    assert chunking.n_qubits >= 1
    assert 2**chunking.n_qubits >= chunking.n_chunks
    assert chunking.n_qubits == 1 or 2 ** (chunking.n_qubits - 1) < chunking.n_chunks


@pytest.mark.parametrize(("n_chunks", "n_qubits"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_a_power_of_two_of_chunks_needs_no_spare_qubit(n_chunks, n_qubits):
    assert Chunking(n_chunks * 10, 10).n_qubits == n_qubits


def test_a_chunk_larger_than_everything_is_one_chunk_and_a_warning(caplog):
    chunking = Chunking(m=10, n_mlp=16)
    with caplog.at_level(logging.WARNING):
        chunking.warn_if_oversized()
    assert (chunking.n_chunks, chunking.n_qubits) == (1, 1)
    assert "qpa.n_mlp=16" in caplog.text
    assert Generator(10, QPAConfig(n_mlp=16))().shape == (10,)


@pytest.mark.parametrize("m", [16, 17, 1000])
def test_chunks_that_fit_give_no_warning(caplog, m):
    with caplog.at_level(logging.WARNING):
        Chunking(m, n_mlp=16).warn_if_oversized()
    assert not caplog.records


def test_too_many_chunks_are_refused_with_the_key_that_helps():
    with pytest.raises(InputError, match=r"raise qpa\.n_mlp"):
        Generator(2**30 + 1, QPAConfig(n_mlp=1))
