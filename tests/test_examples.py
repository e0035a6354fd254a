"""The scripts in ``examples/``, with the arguments that their readers give."""

from __future__ import annotations

import re
import runpy
import warnings
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from qpa_exp.lm.loading import BUNDLED

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "figure"),
    [
        pytest.param("bare_loop.py", r"loss (\d+\.\d+)", marks=pytest.mark.long),
        ("hf_trainer.py", r"(?:perplexity|->) (\d+\.\d+)"),
        ("trl_sft.py", r"(?:^loss|->) (\d+\.\d+)"),
    ],
)
def test_it_learns_and_leaves_an_adapter_that_peft_loads(
    name: str,
    figure: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name, "--steps", "8", "--out", "out"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that it shows
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    printed = capsys.readouterr().out
    assert "trainable params: " in printed
    values = [float(value) for value in re.findall(figure, printed, re.MULTILINE)]
    assert values[-1] < values[0]
    base = AutoModelForCausalLM.from_pretrained(BUNDLED["qpa_exp/tiny"])
    PeftModel.from_pretrained(base, tmp_path / "out")


def test_every_example_is_run() -> None:
    names = {"bare_loop.py", "hf_trainer.py", "trl_sft.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == names
