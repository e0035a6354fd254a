"""Sizes by formula against generators that are built, and what needs no torch for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qpa_exp.circuits.ansatz import ANSATZE
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError
from qpa_exp.generator.generator import Generator
from qpa_exp.generator.rules import count_generator

M = 200


@pytest.mark.parametrize("ansatz", ANSATZE)
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"n_mlp": 300},
        {"window": 5, "mapping_hidden": []},
        {"window": 100, "n_layers": 3, "activation": "none"},
        {"n_circuits": 3, "mapping_hidden": [7]},
        {"n_circuits": 3, "share_angles": True},
        {"n_circuits": 99, "share_angles": True, "shuffle": True},
    ],
    ids=lambda keys: ",".join(keys) or "plain",
)
def test_the_formula_counts_what_is_built(ansatz, keys):
    config = QPAConfig(**({"n_mlp": 16, "ansatz": ansatz} | keys))
    counts, built = count_generator(M, config), Generator(M, config)
    assert counts.trainable_params == built.n_trainable
    assert (counts.n_chunks, counts.n_qubits) == (built.chunking.n_chunks, built.chunking.n_qubits)


def test_what_is_too_large_is_refused_while_counting(monkeypatch):
    with pytest.raises(InputError, match=r"31 qubits are more than the 30 .*raise qpa\.n_mlp"):
        count_generator(2**30 + 1, QPAConfig(n_mlp=1))
    from qpa_exp.circuits import simulator

    monkeypatch.setattr(simulator, "free_memory", lambda: 2**20)
    with pytest.raises(InputError, match=r"^20 qubits need about .* GiB of memory .* are free"):
        count_generator(2**20, QPAConfig(n_mlp=1))


def test_checking_and_counting_the_default_imports_nothing_heavy():
    script = """
import sys
from qpa_exp.config import QPAConfig
from qpa_exp.circuits.simulator import record_versions
from qpa_exp.generator.rules import check_generator
from qpa_exp.generator.rules import count_generator
for config in (QPAConfig(), QPAConfig(feature="normal"), QPAConfig(ansatz="gaussian")):
    check_generator(config)
    count_generator(1000, config)
    record_versions(config)
heavy = {"torch", "numba", "numpy", "transformers", "peft", "qiskit"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
