"""A generator goes to another process, and is copied, whatever it is made of."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from qpa_exp.circuits.ansatz import ANSATZE
from qpa_exp.circuits.gradients import GRADIENTS
from qpa_exp.config import QPAConfig
from qpa_exp.generator.features import FEATURES
from qpa_exp.generator.generator import Generator
from qpa_exp.generator.mappings import MAPPINGS
from qpa_exp.generator.rules import VARIANTS

CASES: list[dict[str, Any]] = [
    *({"ansatz": name} for name in ANSATZE),
    *({"feature": name} for name in FEATURES),
    *({"mapping": name} for name in MAPPINGS),
    *({"gradient": name} for name in GRADIENTS),
    *({"variant": name, **VARIANTS[name].fixed} for name in VARIANTS if VARIANTS[name].generates),
    {"backend": "density_matrix"},
    {"backend": "qiskit", "shots": "10", "gradient": "spsa"},
]


@pytest.mark.parametrize("keys", CASES, ids=lambda keys: "-".join(map(str, [*keys.values()][:1])))
def test_a_copy_and_a_pickled_generator_give_the_same(keys: dict[str, Any]) -> None:
    generator = Generator(60, QPAConfig(**{"n_mlp": 16, "n_layers": 1, **keys}))
    generator.eval()
    before = generator()
    for other in (pickle.loads(pickle.dumps(generator)), copy.deepcopy(generator)):
        assert torch.equal(other(), before)
