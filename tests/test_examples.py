"""The scripts in ``examples/``, run as their readers run them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from qpa_exp.lm.loading import BUNDLED

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run_example(name: str, out: Path) -> str:
    command = [sys.executable, EXAMPLES / name, "--steps", "8", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "trainable params: " in done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "figure"),
    [
        pytest.param("bare_loop.py", r"loss (\d+\.\d+)", marks=pytest.mark.long),
        ("hf_trainer.py", r"(?:perplexity|->) (\d+\.\d+)"),
        ("trl_sft.py", r"(?:^loss|->) (\d+\.\d+)"),
    ],
)
def test_it_learns_and_leaves_an_adapter_that_peft_loads(name: str, figure: str, tmp_path: Path):
    printed = run_example(name, tmp_path / "out")
    values = [float(value) for value in re.findall(figure, printed, re.MULTILINE)]
    assert values[-1] < values[0]
    base = AutoModelForCausalLM.from_pretrained(BUNDLED["qpa_exp/tiny"])
    PeftModel.from_pretrained(base, tmp_path / "out")


def test_every_example_is_run() -> None:
    names = {"bare_loop.py", "hf_trainer.py", "trl_sft.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == names
