"""An ansatz, a back end, a gradient and a feature of one's own: one file each, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest
import torch

from qpa_exp.circuits.simulator import record_versions
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError
from qpa_exp.generator.generator import Generator
from qpa_exp.generator.rules import check_generator, count_generator

ROOMS = {
    "ansatz": "qpa_exp.circuits.ansatze",
    "backend": "qpa_exp.circuits.backends",
    "gradient": "qpa_exp.circuits.gradients",
    "feature": "qpa_exp.generator.features",
}
FILES = {
    "ansatz": """
from qpa_exp.circuits.ansatz import RX, RZ, Ansatz, Moment, ring

ENTRY = Ansatz("a ring of CZs", (RX, RZ, Moment("cz", ring)))
""",
    "backend": '''
import torch
from qpa_exp.circuits.circuit import probabilities
from qpa_exp.circuits.simulator import Simulator


class Dimmed(Simulator):
    """Probabilities that do not quite reach their sum."""

    label = "dimmed"

    @classmethod
    def record_versions(cls, config):
        return {"jaxtyping": "its version"}

    @classmethod
    def bytes_needed(cls, config, n_qubits):
        return 2**n_qubits * 100

    def __call__(self, theta):
        return 0.5 * probabilities(theta, self.ansatz)


ENTRY = Dimmed
''',
    "gradient": """
import torch
from qpa_exp.circuits.gradients import GradientMethod


def none_at_all(config, most):
    return lambda measure, theta, grad: torch.zeros_like(theta)


ENTRY = GradientMethod("none at all", none_at_all)
""",
    "feature": """
from qpa_exp.generator.features import Feature

ENTRY = Feature("the root", lambda probabilities, n_qubits: (probabilities + 1e-6).sqrt())
""",
}


@pytest.fixture
def add(tmp_path, monkeypatch) -> Callable[[str], None]:
    """Put the file of one's own for a key where its room looks for it."""

    def put(key: str) -> None:
        room = import_module(ROOMS[key])
        (tmp_path / f"own_{key}.py").write_text(FILES[key])
        monkeypatch.setattr(room, "__path__", [*room.__path__, str(tmp_path)])
        monkeypatch.delitem(__import__("sys").modules, f"{ROOMS[key]}.own_{key}", raising=False)

    return put


@pytest.mark.parametrize("key", ROOMS)
def test_an_entry_is_known_everywhere_as_soon_as_its_file_is_there(add, key):
    config = QPAConfig(n_mlp=16, **{key: f"own_{key}"})
    with pytest.raises(InputError, match=rf"^qpa\.{key}=own_{key} is unknown"):
        check_generator(config)
    add(key)
    check_generator(config)
    torch.manual_seed(0)
    generator = Generator(200, config)
    assert count_generator(200, config).trainable_params == generator.n_trainable
    (generator() @ torch.randn(200)).backward()
    assert generator.mapping[0].weight.grad.isfinite().all()
    moves = key != "gradient"
    assert (generator.circuit.theta.grad.count_nonzero() > 0) == moves
    with pytest.raises(InputError, match=rf"give one of .*own_{key}"):
        check_generator(QPAConfig(**{key: "other"}))


def test_a_back_end_of_ones_own_records_the_versions_that_it_says(add):
    add("backend")
    assert record_versions(QPAConfig(backend="own_backend")) == {"jaxtyping": "its version"}
    with pytest.raises(InputError, match=r"^qpa\.noise=ibm_fez has no effect: .*own_backend"):
        check_generator(QPAConfig(backend="own_backend", noise="ibm_fez"))


def test_an_ansatz_of_ones_own_has_rules_that_follow_from_its_gates(add):
    add("ansatz")
    keys = {"ansatz": "own_ansatz", "n_mlp": 16}
    for gradient in ("parameter_shift", "spsa"):
        check_generator(QPAConfig(gradient=gradient, **keys))
    # 13 chunks on 4 qubits: 8 layers of two rotations a qubit.
    plain = count_generator(200, QPAConfig(n_mlp=16)).trainable_params
    assert count_generator(200, QPAConfig(**keys)).trainable_params == plain + 8 * 4
