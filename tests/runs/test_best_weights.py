"""``trainer.keep``: which weights of a run are tested and saved."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from saved_weights import same

from qpa_exp.cli import compose_config
from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.runs import directory
from qpa_exp.runs.callbacks import BestWeights
from qpa_exp.runs.train import resume, run
from qpa_exp.sweeps.studies import read_study, register_studies, sweeps_dir
from qpa_exp.task import Metric

CrashesAt = Callable[[int], AbstractContextManager[None]]

STEPS = 8


@pytest.fixture
def rising(
    configure: Callable[..., Config], text_dir: Path, tmp_path: Path
) -> Callable[..., Config]:
    """The config of a run whose validation rises: of another text than the one it learns.

    It is validated after steps 2, 4, 6 and 8.
    """
    place = tmp_path / "text"
    place.mkdir()
    (place / "train.txt").write_bytes((text_dir / "train.txt").read_bytes())
    for split in ("validation", "test"):
        (place / f"{split}.txt").write_text("%%% === ### @@@ &&& ^^^ " * 20, encoding="utf-8")
    return lambda *more: configure(
        f"data.path={place}", "optim.schedule=constant", f"trainer.max_steps={STEPS}",
        "trainer.checkpoint_every_n_steps=3", "trainer.validate_every_n_steps=2",
        "peft.lora_dropout=0.2", "qpa=off", "qpa.n_mlp=null", *more,
    )  # fmt: skip


@pytest.mark.parametrize("qpa", ["off", pytest.param("tuned", marks=pytest.mark.long)])
def test_the_best_weights_are_those_that_were_validated(
    rising: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str], qpa: str
) -> None:
    found = run(rising(f"qpa={qpa}"), tmp_path / "best")
    shown = capsys.readouterr().out
    last = run(rising(f"qpa={qpa}", "trainer.keep=last"), tmp_path / "last")
    _, validated = directory.read_curve(tmp_path / "best", "validation/perplexity")
    lowest = min(validated[1:])  # the first is from before training
    kept = 2 * validated.index(lowest)
    if qpa == "off":
        assert validated == sorted(validated)
        assert kept == 2
        assert "step 2, the best" in shown
        assert f"{found['last_perplexity']:.3f}" in shown
    assert (found["kept_step"], found["validation_perplexity"]) == (kept, lowest)
    assert found["last_perplexity"] == last["last_perplexity"] == last["perplexity"]
    assert (last["kept_step"], last["validation_perplexity"]) == (STEPS, validated[-1])
    for name, value in (("best", lowest), ("last", validated[-1])):
        assert directory.validation_of_kept(tmp_path / name, "perplexity") == value

    short = run(rising(f"qpa={qpa}", f"trainer.max_steps={kept}"), tmp_path / "short")
    assert same(tmp_path / "best", tmp_path / "short")
    assert found["perplexity"] == short["perplexity"]


def test_a_run_that_was_killed_ends_with_the_same_best_weights(
    rising: Callable[..., Config], tmp_path: Path, crashes_at: CrashesAt
) -> None:
    whole = run(rising(), tmp_path / "whole")
    with crashes_at(5):
        run(rising(), tmp_path / "killed")
    resumed = resume(tmp_path / "killed")
    assert same(tmp_path / "whole", tmp_path / "killed")
    measured = ("perplexity", "kept_step", "validation_perplexity", "last_perplexity")
    assert [resumed[name] for name in measured] == [whole[name] for name in measured]

    (tmp_path / "killed" / "metrics.json").unlink()
    checkpoint = directory.checkpoints(tmp_path / "killed")[-1]
    saved = torch.load(checkpoint, weights_only=True)
    saved["callbacks"]["BestWeights"]["weights"] = {"theta": torch.zeros(1)}
    torch.save(saved, checkpoint)
    with pytest.raises(InputError, match="best weights are not of this run's"):
        resume(tmp_path / "killed")


def test_the_last_weights_are_a_candidate_too(
    rising: Callable[..., Config], tmp_path: Path
) -> None:
    """Nothing else validates them where a run ends between two validations."""
    falling = rising("data.validation_split=train", "trainer.max_steps=3")
    found = run(falling, tmp_path / "run")
    _, validated = directory.read_curve(tmp_path / "run", "validation/perplexity")
    assert found["kept_step"] == 3
    assert found["validation_perplexity"] == validated[-1] == min(validated)


def test_without_a_validation_the_last_weights_are_kept(
    rising: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(
        rising("trainer.validate_every_n_steps=null", "trainer.max_steps=2"), tmp_path / "r"
    )
    assert (found["kept_step"], found["validation_perplexity"]) == (2, None)
    assert found["last_perplexity"] == found["perplexity"]
    assert "step 2, not validated" in capsys.readouterr().out


@given(values=st.lists(st.floats(-1e9, 1e9) | st.just(math.nan), max_size=6), smaller=st.booleans())
def test_the_first_of_the_best_numbers_wins(values: list[float], smaller: bool) -> None:
    metric = Metric("score", "a score", smaller_is_better=smaller)
    best = BestWeights(metric)
    parameter = torch.nn.Parameter(torch.zeros(1))
    module: Any = SimpleNamespace(trained=lambda: {"p": parameter})
    for step, value in enumerate([-1e10 if smaller else 1e10, *values]):  # the untrained model
        trainer: Any = SimpleNamespace(
            global_step=step,
            callback_metrics={"validation/score": torch.tensor(value, dtype=torch.float64)},
        )
        parameter.data.fill_(step)
        best.on_validation_end(trainer, module)
    numbers = [value for value in values if not math.isnan(value)]
    if not numbers:
        assert best.step is None
        return
    wins = min(numbers) if smaller else max(numbers)
    expected = 1 + values.index(wins)
    best.restore(module.trained())
    assert (best.step, best.value, parameter.item()) == (expected, wins, expected)


def test_ours_keep_the_best_and_the_papers_protocol_the_last() -> None:
    assert compose_config([]).trainer.keep == "best"
    for name in ("gpt2_wikitext2", "gpt2_ptb", "gemma_wikitext2", "gemma_ptb"):
        assert compose_config([f"experiment={name}"]).trainer.keep == "last"
    register_studies(sweeps_dir())
    at = {s: read_study("fig2", s).fixed for s in ("tiny", "smoke", "gpt2", "gpt2_xl", "gemma")}
    kept = {scale: fixed.get("trainer.keep", "best") for scale, fixed in at.items()}
    paper = dict.fromkeys(("gpt2", "gpt2_xl", "gemma"), "last")
    assert kept == {"tiny": "best", "smoke": "best", **paper}


def test_a_run_of_before_the_key_goes_on_as_it_was(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    saved = dataclasses.asdict(configure())
    del saved["trainer"]["keep"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    assert directory.read_config(tmp_path).trainer.keep == "last"
