"""Sweeps in this process, and studies of a test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from qpa_exp.__main__ import run_sweep
from qpa_exp.sweeps import studies

Sweep = Callable[..., None]


@pytest.fixture
def sweep(overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """``sweep("qpa.n_mlp=32,64")``: runs of two steps on the small model, in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    short = ["trainer.max_steps=2", "trainer.validate_every_n_steps=2", "hydra.sweep.dir=runs"]
    return lambda *more: run_sweep([*overrides, *short, *more])


@pytest.fixture
def add_study(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, Any]], None]:
    """``add_study({"study": "mine", ...})``: one more study, from a file of this test's."""

    def add(study: dict[str, Any]) -> None:
        directory = tmp_path_factory.mktemp("studies")
        OmegaConf.save(OmegaConf.create(study), directory / f"{study['study']}.yaml")
        monkeypatch.setattr(studies, "STUDIES", dict(studies.STUDIES))
        studies.register_studies(directory)

    return add
