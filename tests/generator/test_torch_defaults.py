"""A generator is the same under any of torch's defaults, and leaves them as they were."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from qpa_exp.config import QPAConfig
from qpa_exp.generator.generator import Generator

CONFIG = QPAConfig(n_mlp=8, window=2, ansatz="rx_rz", n_layers=1, blend="trained")


@pytest.fixture(params=[torch.float64, torch.bfloat16, torch.float16])
def default(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """torch's default type is another one."""
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def plain() -> Generator:
    """Made before there is another default."""
    return Generator(100, CONFIG)


def test_the_default_type_makes_no_other_generator(plain: Generator, default: torch.dtype) -> None:
    other = Generator(100, CONFIG)
    assert torch.get_default_dtype() == default
    assert {t.dtype for t in other.parameters()} == {torch.float32}
    other.load_state_dict(plain.state_dict())
    first, second = plain(), other()
    assert first.dtype == second.dtype == torch.float32
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    second.sum().backward()


def test_nor_does_the_default_device() -> None:
    with torch.device("meta"):
        assert all(p.is_meta for p in Generator(100, CONFIG).parameters())
    assert {p.device.type for p in Generator(100, CONFIG).parameters()} == {"cpu"}


def test_no_accelerator_is_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    stream = torch.get_rng_state()
    Generator(100, CONFIG)
    assert seeds == []
    assert torch.equal(torch.get_rng_state(), stream)


@pytest.mark.parametrize("ansatz", ["ry", "frozen"])
def test_in_64_bits_the_start_is_exactly_zero_and_so_is_that_of_another_seed(ansatz: str) -> None:
    generator = Generator(100, QPAConfig(n_mlp=8, window=2, ansatz=ansatz))
    with torch.inference_mode():
        generator()
    generator.double()
    assert generator().dtype == torch.float64
    assert not generator().any()
    with torch.no_grad():
        next(generator.mapping.parameters()).add_(0.1)
    generator.restart(3)
    assert generator().dtype == torch.float64
    assert not generator().any()
