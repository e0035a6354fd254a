"""What a run trains for: what is promised of every task, and of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qpa_exp import tasks
from qpa_exp.cli import compose_config
from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.runs import directory
from qpa_exp.runs.callbacks import Stopwatch
from qpa_exp.runs.module import AdapterModule, Divergence
from qpa_exp.runs.train import resume, run
from qpa_exp.task import TASKS

Configure = Callable[..., Config]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_names_what_the_rest_of_the_system_asks_for(name: str) -> None:
    task = TASKS[name]
    assert task.metrics
    assert task.ranked_by() in task.metrics
    assert task.label
    means = dict.fromkeys(task.measures, 1.0)
    made = task(compose_config([]), Stopwatch()).figures(means)
    assert set(made) <= {"loss", *(metric.name for metric in task.metrics)}
    assert {"loss", task.ranked_by().name} <= set(made)
    nothing = task(compose_config([]), Stopwatch()).figures(dict.fromkeys(task.measures, math.nan))
    assert all(math.isnan(value) for value in nothing.values())


# --- a NaN is a NaN -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoilt", "at_step", "says"),
    [("validation", 0, "validation/"), ("validation", 2, "validation/"), ("test", 2, "test/")],
)
def test_a_run_whose_figures_have_a_nan_says_so_and_is_not_complete(
    configure: Configure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoilt: str,
    at_step: int,
    says: str,
) -> None:
    """One NaN in one batch: it must not be left out of the mean."""
    proper = getattr(AdapterModule, f"{spoilt}_step")

    def poisoned(self: AdapterModule, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        proper(self, batch, batch_idx)
        if batch_idx == 0 and self.trainer.global_step == at_step:
            means = self.validation if spoilt == "validation" else self.adapted
            one = torch.ones(())
            means.update(dict.fromkeys(self.task.measures, (math.nan * one, one)))

    monkeypatch.setattr(AdapterModule, f"{spoilt}_step", poisoned)
    with pytest.raises(Divergence, match=f"{says}.* is not a number"):
        run(configure("trainer.max_steps=2", "trainer.validate_every_n_steps=2"), tmp_path / "run")
    written = directory.read_metrics(tmp_path / "run")
    assert written["status"] == "diverged"
    assert "is not a number" in written["error"]
    assert written["perplexity"] is None
    assert ": NaN" not in (tmp_path / "run" / "metrics.json").read_text()
    with pytest.raises(InputError, match="cannot be continued"):
        resume(tmp_path / "run")


# --- a task of one's own --------------------------------------------------------------------------

OWN = '''
"""Language modelling, ranked by bits a token."""

import math

from qpa_exp.task import Metric
from qpa_exp.tasks.causal_lm import CausalLM


class Bits(CausalLM):
    label = "bits a token"
    metrics = (Metric("bits", "bits a token"),)

    def figures(self, means):
        return {"loss": means["text"], "bits": means["text"] / math.log(2)}


ENTRY = Bits
'''


@pytest.mark.slow
def test_a_task_is_one_file(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bits.py").write_text(OWN)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    bits = run(configure("task=bits", "trainer.max_steps=3"), tmp_path / "own")
    known = run(configure("trainer.max_steps=3"), tmp_path / "known")
    assert bits["bits"] == pytest.approx(math.log2(known["perplexity"]), rel=1e-6)
    assert bits["base_bits"] == pytest.approx(math.log2(known["base_perplexity"]), rel=1e-6)
    names = [
        load_file(tmp_path / p / "generator" / "adapter_model.safetensors")
        for p in ("own", "known")
    ]
    for key in names[0]:  # the fast head knows the package's own task alone
        torch.testing.assert_close(names[0][key], names[1][key], rtol=1e-4, atol=1e-5)
