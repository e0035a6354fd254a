"""CONTRIBUTING.md adds one of everything: each is one file, and works as it is there."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from qpa_exp.cli import compose_config, register_schema
from qpa_exp.config import QPAConfig
from qpa_exp.runs.train import run

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```\w+\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))

# The key that names an entry of each folder, and what a run needs beside it.
ADDED = {
    "qpa_exp/circuits/ansatze/ry_ring.py": ["qpa.ansatz=ry_ring"],
    "qpa_exp/generator/features/root.py": ["qpa.feature=root"],
    "qpa_exp/circuits/backends/matrices.py": ["qpa.backend=matrices"],
    "qpa_exp/data/corpora/stdlib.py": ["data.name=stdlib", "data.path=null"],
    "qpa_exp/adapters/methods/gain.py": ["peft=gain"],
    "qpa_exp/tasks/next_token.py": ["task=next_token"],
}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """``write(path)``: the page's file, outside the package but on its folder's path."""
    known = set(sys.modules)

    def put(name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FILES[name], encoding="utf-8")
        if path.suffix == ".py":
            folder = importlib.import_module(".".join(Path(name).parent.parts))
            monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(path.parent)])
            register_schema.cache_clear()  # Hydra is told the names when a command begins
        return path

    yield put
    register_schema.cache_clear()
    for name in set(sys.modules) - known:
        if any(name == file[: -len(".py")].replace("/", ".") for file in ADDED):
            del sys.modules[name]


def test_every_example_is_tested_here() -> None:
    others = {"conf/data/stdlib.yaml", "sweeps/windows.yaml"}
    assert set(FILES) == {*ADDED, *others}


@pytest.mark.parametrize("file", ADDED)
def test_one_file_is_all_that_it_takes(
    file: str, write: Callable[[str], Path], overrides: list[str], tmp_path: Path
) -> None:
    write(file)
    short = ["trainer.max_steps=2", "trainer.limit_eval_batches=1"]
    config = compose_config([*overrides, *short, *ADDED[file]])
    metrics = run(config, tmp_path / "run")
    assert metrics["status"] == "complete"
    saved = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert saved["trainable_params"] > 0


def test_the_back_end_gives_the_probabilities_of_the_others(write: Callable[[str], Path]) -> None:
    from qpa_exp.circuits.simulator import make_simulator

    write("qpa_exp/circuits/backends/matrices.py")
    ours, theirs = (
        make_simulator(QPAConfig(n_layers=2, ansatz="ry_rz", backend=name), 3)
        for name in ("statevector", "matrices")
    )
    theta = torch.rand(2, 2, 2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found, expected = theirs(theta), ours(theta)
    torch.testing.assert_close(found, expected)
    towards = torch.arange(16.0).view(2, 8)
    slopes = [torch.autograd.grad(p, theta, towards)[0] for p in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-5)


def test_a_task_s_metric_ranks_its_runs(
    write: Callable[[str], Path], overrides: list[str], tmp_path: Path
) -> None:
    from qpa_exp.report.collect import collect
    from qpa_exp.report.figures import draw
    from qpa_exp.report.tables import runs_table

    write("qpa_exp/tasks/next_token.py")
    short = ["task=next_token", "trainer.max_steps=1", "trainer.limit_eval_batches=1"]
    run(compose_config([*overrides, *short]), tmp_path / "run")
    (collected,) = collect([str(tmp_path / "run")])
    assert "accuracy" in runs_table(collected.runs).rows
    (axes,) = draw(collected.runs, {"kind": "categories"}).axes
    assert axes.get_xlabel().startswith("accuracy of the next token")


def test_a_corpus_options_are_those_of_its_schema(write: Callable[[str], Path]) -> None:
    write("qpa_exp/data/corpora/stdlib.py")
    lines = FILES["conf/data/stdlib.yaml"].splitlines()
    values = ["data." + line.replace(": ", "=") for line in lines]
    assert compose_config(values).data.name == "stdlib"


def test_a_study_s_file_is_a_sweep(write: Callable[[str], Path], monkeypatch) -> None:
    from qpa_exp.sweeps import studies
    from qpa_exp.sweeps.prepare import expand

    path = write("sweeps/windows.yaml")
    monkeypatch.setattr(studies, "STUDIES", dict(studies.STUDIES))
    studies.register_studies(studies.sweeps_dir())
    studies.register_studies(path.parent)
    study = studies.read_study("windows", "smoke")
    assert study.figures[0]["key"] == "qpa.window"
    assert len(expand(study.parts, study.fixed, [])) == 2
