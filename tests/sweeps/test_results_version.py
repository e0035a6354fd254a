"""A run's figures move with ``RESULTS_VERSION`` alone, which is part of every run's name.

``python tests/sweeps/test_results_version.py`` prints the table anew.
"""

from __future__ import annotations

import pprint
import tempfile
from pathlib import Path

import pytest

from qpa_exp.cli import compose_config
from qpa_exp.runs.results_version import RESULTS_VERSION
from qpa_exp.runs.train import run

RUNS = {
    "tuned": [],
    "paper": ["qpa=paper"],
    "released": ["qpa=released"],
    "off": ["qpa=off"],
    "gradient_variance": ["qpa=paper", "trainer.gradient_variance_starts=3"],
    "bf16": ["trainer.precision=bf16-mixed"],
}
VERSION = 1
PINNED = {
    "tuned": {"loss": 5.1893439292907715, "base_perplexity": 412.5277404785156},
    "paper": {"loss": 6.025282859802246, "base_perplexity": 412.5277404785156},
    "released": {"loss": 6.008666515350342, "base_perplexity": 412.5277404785156},
    "off": {"loss": 5.917735576629639, "base_perplexity": 412.5277404785156},
    "gradient_variance": {
        "loss": 6.025282859802246,
        "base_perplexity": 412.5277404785156,
        "gradient_variance": 1.9114177679104822e-13,
        "expectation_variance": 1.1659575334181343e-08,
    },
    "bf16": {"loss": 5.188838481903076, "base_perplexity": 412.3303527832031},
}
FIGURES = ("loss", "base_perplexity", "gradient_variance", "expectation_variance")
CLOSE = {"bf16": 1e-3, "gradient_variance": 1e-2}
"""Relative; else 1e-4. Processors round products of bfloat16 and small gradients differently."""


def measure(name: str, directory: Path) -> dict[str, float]:
    """The figures of two steps on the bundled model and a text of its own."""
    for split in ("train", "validation", "test"):
        lines = (
            f"The {split} text has {n} lines, of which this is line {n // 2}.\n" for n in range(99)
        )
        (directory / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    config = compose_config([
        "data=text", f"data.path={directory}", "data.max_length=32", "trainer.max_steps=2",
        "trainer.progress_bar=false", "data.cache=off", *RUNS[name],
    ])  # fmt: skip
    metrics = run(config, directory / name)
    return {figure: metrics[figure] for figure in FIGURES if figure in metrics}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_figures_move_with_the_version_alone(name: str, tmp_path: Path) -> None:
    found = measure(name, tmp_path)
    assert VERSION == RESULTS_VERSION, "print the table anew, see above, and set VERSION here"
    assert found == pytest.approx(PINNED[name], rel=CLOSE.get(name, 1e-4), abs=0), (
        "The same config gives other figures. If that is on purpose, raise RESULTS_VERSION, print "
        "this file's table anew, and set VERSION to it: runs that were made before are made again."
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        found = {}
        for name in RUNS:
            (Path(temporary) / name).mkdir()
            found[name] = measure(name, Path(temporary) / name)
    pprint.pprint(found, sort_dicts=False)
