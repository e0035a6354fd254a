"""A generator in a model that is cast to 16 bits: it computes with 32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qpa_exp.config import QPAConfig
from qpa_exp.generator.generator import Generator

CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "complex gates": {"ansatz": "rx_rz"},
    "density matrix": {"backend": "density_matrix"},
    "tensor network": {"mapping": "mps"},
    "blended shots": {"shots": "20", "blend": "trained"},
    "fixed numbers": {"variant": "random"},
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CONFIGS)
def test_cast_to_16_bits_it_gives_and_learns_the_same(case: str, dtype: torch.dtype) -> None:
    made = []
    for cast in (False, True):
        generator = Generator(100, QPAConfig(n_mlp=8, **CONFIGS[case]))
        whole = torch.nn.Sequential(generator)
        if cast:
            whole.to(dtype)
        torch.manual_seed(0)
        vector = generator()
        vector.square().sum().backward()
        made.append([vector.detach(), *(p.grad for p in generator.parameters())])
    torch.testing.assert_close(made[1], made[0], rtol=0, atol=0)


def test_64_bits_are_kept_and_so_are_whole_numbers() -> None:
    generator = Generator(100, QPAConfig(n_mlp=8)).double().half()
    assert {p.dtype for p in generator.parameters()} == {torch.float64}
    assert generator.states.dtype == torch.int64
