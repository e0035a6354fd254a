"""Quantum-PEFT: two circuits' columns and a diagonal, against dense matrices."""

from __future__ import annotations

import math
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from qpa_exp.adapters.formats import export
from qpa_exp.adapters.methods._qpeft_layer import OrthogonalColumns, QPEFTConfig
from qpa_exp.adapters.qpa_model import ClassicalModel, get_qpa_model
from qpa_exp.cli import compose_config
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError
from qpa_exp.plan import plan


def dense(angles: np.ndarray, n_qubits: int, n_layers: int) -> np.ndarray:
    """The circuit with its CZs, every gate a matrix of all qubits."""
    left = iter(angles)

    def turn(qubits: list[int]) -> np.ndarray:
        each = [np.eye(2)] * n_qubits
        for qubit in qubits:
            half = next(left) / 2
            cos, sin = math.cos(half), math.sin(half)
            each[qubit] = np.array([[cos, -sin], [sin, cos]])
        return reduce(np.kron, each)

    def flip(one: int) -> np.ndarray:
        both = 1 << (n_qubits - 1 - one) | 1 << (n_qubits - 2 - one)
        return np.diag([-1.0 if i & both == both else 1.0 for i in range(2**n_qubits)])

    whole = turn(list(range(n_qubits)))
    for _ in range(n_layers):
        for first in (0, 1):
            pairs = range(first, n_qubits - 1, 2)
            for one in pairs:
                whole = flip(one) @ whole
            whole = turn([qubit for one in pairs for qubit in (one, one + 1)]) @ whole
    assert next(left, None) is None
    return whole


@pytest.mark.parametrize(("d", "r", "n_layers"), [(16, 16, 1), (13, 5, 2), (5, 3, 3), (2, 2, 1)])
def test_the_columns_are_those_of_the_dense_circuit(d: int, r: int, n_layers: int) -> None:
    columns = OrthogonalColumns(d, r, n_layers)
    q = max(1, (d - 1).bit_length())
    assert columns.n_angles == (2 * n_layers + 1) * q - 2 * n_layers
    angles = torch.randn(columns.n_angles, dtype=torch.float64, requires_grad=True)
    whole = dense(angles.detach().numpy(), q, n_layers)
    np.testing.assert_allclose(columns(angles).detach(), whole[:d, :r], rtol=0, atol=1e-6)
    np.testing.assert_allclose(whole.T @ whole, np.eye(2**q), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(columns, angles, atol=1e-6)


def disturbed(base: Any) -> PeftModel:
    config = QPEFTConfig(target_modules=["lm_head", "c_attn"], task_type="CAUSAL_LM", n_layers=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = get_peft_model(base, config)
        for name, tensor in model.named_parameters():
            if "diagonal" in name:
                tensor.data = torch.randn(4)
    return model.eval()


@torch.no_grad()
def logits(model: Any, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_it_leaves_as_a_plain_lora_that_others_load(
    form: str, make_model: Any, tokens: Tensor, tmp_path: Path
) -> None:
    model = ClassicalModel(disturbed(make_model("gpt2")))
    expected, before = logits(model.peft_model, tokens), logits(make_model("gpt2"), tokens)
    assert (expected - before).abs().max() > 0.1
    export(model, tmp_path / "out", form, "some/base", "card")
    if form == "peft":
        loaded = PeftModel.from_pretrained(make_model("gpt2"), tmp_path / "out")
        assert loaded.active_peft_config.peft_type == "LORA"
    else:
        loaded = type(make_model("gpt2")).from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(loaded.eval(), tokens), expected, rtol=2e-5, atol=2e-5)


def test_generated_it_leaves_as_a_plain_lora_too(
    make_model: Any, tokens: Tensor, tmp_path: Path
) -> None:
    config = QPEFTConfig(target_modules=["lm_head"], task_type="CAUSAL_LM")
    model = get_qpa_model(make_model("gpt2"), config, QPAConfig(n_mlp=8, seed=3))
    with torch.no_grad():
        for tensor in model.generator.parameters():
            tensor += torch.randn_like(tensor)
    expected = logits(model.eval(), tokens)
    export(model, tmp_path / "out", "peft", "some/base", "card")
    loaded = PeftModel.from_pretrained(make_model("gpt2"), tmp_path / "out").eval()
    torch.testing.assert_close(logits(loaded, tokens), expected, rtol=2e-5, atol=2e-5)


def test_its_count_is_logarithmic_in_the_layers_size() -> None:
    config = compose_config(["model=gpt2", "peft=qpeft", "qpa=off", "peft.options.n_layers=3"])
    # ceil(log2 50257) = 16 and ceil(log2 768) = 10 qubits, and a diagonal of 4
    assert plan(config).trainable_params == (7 * 16 - 6) + (7 * 10 - 6) + 4


def test_a_size_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match=r"r=0"):
        compose_config(["peft=qpeft", "peft.r=0"])
    with pytest.raises(ValueError, match=r"^n_layers=0 is too small"):
        QPEFTConfig(n_layers=0)
