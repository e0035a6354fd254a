"""The driver for PEFT's own comparison: its files, and the way through a made-up suite."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError
from qpa_exp.generator.rules import count_generator

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "method_comparison" / "metamathqa.py"
SUITE = """
import sys
from pathlib import Path
from peft import PeftConfig
config = PeftConfig.from_pretrained(sys.argv[2])
Path("seen.txt").write_text(f"{config.peft_type.value} {config.qpa.window} {config.r}")
"""


@pytest.fixture(scope="module")
def driver() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT), run_name="driver")


@pytest.mark.parametrize("budget", [9000, 28000])
def test_the_budgets_are_those_of_llama_3_2_3b(driver: dict[str, Any], budget: int) -> None:
    m = 28 * 4 * ((3072 + 3072) + (3072 + 1024))  # q_proj and v_proj of 28 layers, at rank 4
    config = QPAConfig(n_mlp=64, window=driver["WINDOWS"][budget])
    assert count_generator(m, config).trainable_params == pytest.approx(budget, rel=0.005)


def test_the_suites_own_run_reads_the_experiment(
    driver: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = tmp_path / "method_comparison" / "MetaMathQA"
    with pytest.raises(InputError, match=r"has no run\.py: clone"):
        driver["run_suite"](tmp_path, 9000)
    suite.mkdir(parents=True)
    (suite / "run.py").write_text(SUITE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    driver["run_suite"](tmp_path, 9000)
    assert (suite / "seen.txt").read_text() == "QPA_LORA 123 4"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")
def test_made_up_problems_go_all_the_way(driver: dict[str, Any]) -> None:
    assert 0 <= driver["trial"](9000, 2) <= 1
    assert driver["answer"]("3 + 1,000 = 1003\nThe answer is: 1,003") == "1003"
