"""lm-evaluation-harness on what a run exports: its figures are those of the run."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qpa_exp import export
from qpa_exp.cli import compose_config
from qpa_exp.errors import InputError
from qpa_exp.runs.train import run
from qpa_exp.score import main, score

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "lm_eval"
WINDOW = 16
# Blocks of one token more than the window, which overlap by one: each token is predicted once.
AS_LM_EVAL = [f"data.max_length={WINDOW + 1}", f"data.stride={WINDOW}", "data.join=text"]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, float]]:
    """The example's ``score``."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.delitem(sys.modules, "score", raising=False)
    from score import score as by_lm_eval  # type: ignore[import-not-found]

    return by_lm_eval  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of lm-eval and its packages
def test_the_merged_model_and_the_adapter_have_the_run_s_perplexities(
    configure: Callable[..., Any],
    overrides: list[str],
    text_dir: Path,
    tmp_path: Path,
    harness: Callable[..., dict[str, float]],
) -> None:
    config = configure("trainer.max_steps=6", *AS_LM_EVAL)
    metrics = run(config, tmp_path / "run")
    for form in ("peft", "merged"):
        export.main([f"run={tmp_path / 'run'}", f"out={tmp_path / form}", f"format={form}"])
    text, base = text_dir / "test.txt", config.model.name_or_path
    merged = harness(str(tmp_path / "merged"), text, WINDOW)
    adapter = harness(base, text, WINDOW, str(tmp_path / "peft"))
    assert adapter["bits_per_byte"] == pytest.approx(merged["bits_per_byte"], rel=1e-5)
    assert merged["bits_per_byte"] == pytest.approx(metrics["bits_per_byte"], rel=5e-3)
    # It counts an empty word after the last newline.
    written = text.read_text(encoding="utf-8")
    ours = math.log(metrics["word_perplexity"]) * len(written.split())
    theirs = math.log(merged["word_perplexity"]) * len(re.split(r"\s+", written))
    assert theirs == pytest.approx(ours, rel=5e-3)

    alone = score(compose_config([*overrides, *AS_LM_EVAL]))
    unchanged = harness(base, text, WINDOW)
    assert alone["bits_per_byte"] == pytest.approx(metrics["base_bits_per_byte"], rel=1e-5)
    assert unchanged["bits_per_byte"] == pytest.approx(alone["bits_per_byte"], rel=5e-3)
    assert unchanged["bits_per_byte"] != pytest.approx(merged["bits_per_byte"], rel=1e-3)


def test_score_measures_the_base_model_alone(
    overrides: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main([*overrides, "format=json", "trainer.limit_eval_batches=2"])
    figures = json.loads(capsys.readouterr().out)
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    assert {"bits_per_byte", "word_perplexity", "tokens"} <= set(figures)
    main([*overrides, "split=validation"])
    assert "perplexity" in capsys.readouterr().out
    for bad, says in (
        ("split=train", "give one of test, validation"),
        ("format=xml", "is unknown"),
    ):
        with pytest.raises(InputError, match=says):
            main([bad])
