"""What is installed works from any directory: the configs and the bundled model travel along."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_wheel_is_complete_and_runs_from_an_empty_directory(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert (site / "qpa_exp" / "conf" / "config.yaml").is_file()
    assert (site / "qpa_exp" / "studies" / "scale" / "tiny.yaml").is_file()
    assert (site / "qpa_exp" / "report" / "page.html").is_file()
    assert (site / "qpa_exp" / "py.typed").is_file()
    assert (site / "hydra_plugins" / "qpa_exp_sweeper.py").is_file()

    ours = {str(file.relative_to(ROOT)) for file in (ROOT / "qpa_exp").rglob("*.py")}
    assert not {name for name in ours if not (site / name).is_file()}

    # -P keeps the checkout out of the path: only what the wheel holds can be found. Its circuit and
    # its head would be compiled anew, so this run needs neither.
    empty = tmp_path / "empty"
    empty.mkdir()
    short = ["trainer.max_steps=1", "trainer.limit_eval_batches=1", "hydra.run.dir=run",
             "qpa=off", "peft.target_modules=[c_attn]"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-P", "-c", _RUN_FROM.format(site=str(site)), *short],
        cwd=empty, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads((empty / "run" / "metrics.json").read_text())
    assert metrics["status"] == "complete"


_RUN_FROM = """
import sys
sys.modules["bitsandbytes"] = None  # PEFT imports it where it is, for seconds
sys.path.insert(0, {site!r})
import qpa_exp
assert qpa_exp.__file__.startswith({site!r}), qpa_exp.__file__
from qpa_exp.__main__ import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_waiting_threads_give_way_unless_the_user_says_how_they_wait(given, spins) -> None:
    """It has to be said before torch is imported."""
    program = (
        "import os, sys, qpa_exp; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    )
    other = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    environment = {key: value for key, value in os.environ.items() if key not in other} | given
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [spins, "False"]
