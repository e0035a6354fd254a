"""``reproduce`` and ``dashboard``."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import wandb

from qpa_exp import dashboard, reproduce
from qpa_exp.dashboard import build
from qpa_exp.errors import InputError
from qpa_exp.sweeps.studies import study_names


def test_all_is_every_study_and_a_typo_is_named() -> None:
    assert reproduce.chosen("all", "paper") == study_names()
    assert set(reproduce.chosen("all", "gpt2_xl")) < set(study_names())
    assert reproduce.chosen("fig2,table2", "tiny") == ["fig2", "table2"]
    with pytest.raises(InputError, match="studies=fig22 is unknown: did you mean fig2"):
        reproduce.chosen("fig22", "tiny")


def test_the_papers_scales_are_those_of_the_study() -> None:
    assert reproduce.scales("fig2", "paper") == ["gpt2", "gemma"]
    assert reproduce.scales("fig7", "paper") == ["gpt2"]
    assert reproduce.scales("table3", "paper") == ["gpt2_xl"]
    assert reproduce.scales("fig2", "tiny") == ["tiny"]


def test_the_bundled_model_s_runs_go_side_by_side_unless_a_launcher_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(reproduce, "free_memory", lambda: 2**36)
    assert reproduce.side_by_side("tiny", ["seed=1"]) == 2
    assert reproduce.side_by_side("gpt2", []) == 1
    assert reproduce.side_by_side("smoke", ["hydra/launcher=basic"]) == 1
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert reproduce.side_by_side("tiny", []) == 1


@pytest.mark.long
def test_a_study_is_run_and_reported_and_the_next_goes_on_after_a_failure(
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    short = [o for o in overrides if "n_mlp" not in o] + ["trainer.max_steps=2"]
    with pytest.raises(InputError, match=r"did not complete, see above: fig10 \(smoke\)"):
        # A circuit that is not trained has no place in the gradient study alone.
        reproduce.main(["studies=fig10,fig4b", "scale=smoke", "qpa.ansatz=frozen", *short])
    assert "fig10: trainer.gradient_variance_starts=2 has no effect: qpa.ansatz=frozen" in (
        capsys.readouterr().err
    )
    assert (tmp_path / "outputs/reports/fig4b-smoke/report.html").is_file()
    assert (tmp_path / "outputs/reports/fig4b-smoke/over.png").is_file()


@pytest.mark.slow
def test_a_killed_process_costs_no_other_study_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(task: reproduce.ReportTask) -> tuple[str, str]:
        if task[1] == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        return task[1], ""

    monkeypatch.setattr(reproduce, "_report", made)
    tasks = [([""], name, Path()) for name in ("first", "dies", "last")]
    first, second, third = reproduce.side_by_side_reports(tasks, 2)
    assert (first, third) == (("first", ""), ("last", ""))
    assert second[1] == "the report of dies was not written: its process was killed"


# --- W&B ------------------------------------------------------------------------------------------


def test_the_workspace_has_the_papers_panels() -> None:
    model = json.loads(build("me", "qpa_exp", "fig2")._to_model().model_dump_json(by_alias=True))
    text = json.dumps(model)
    for expected in (
        "perplexity against trainable parameters", "perplexity_padded against trainable parameters",
        "qubits against trainable parameters", "perplexity by qpa.ansatz",
        "perplexity by qpa.noise",
        "validation/perplexity", "qpa.n_layers", "fig2",
    ):  # fmt: skip
        assert expected in text
    assert (model["entity"], model["project"]) == ("me", "qpa_exp")


@pytest.mark.parametrize("study", ["it's", 'a "b"', "both'\"", "C:\\new", "two\nlines"])
def test_any_study_s_name_can_be_a_filter(study: str) -> None:
    model = json.loads(build("me", "qpa_exp", study)._to_model().model_dump_json(by_alias=True))
    (runs,) = model["spec"]["section"]["runSets"]
    assert [each["value"] for each in runs["filters"]["filters"]] == [study]


def test_without_a_key_the_dashboard_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    wandb.teardown()  # it reads the environment once
    with pytest.raises(InputError, match="log in with wandb login"):
        dashboard.main(["study=fig2"])
    with pytest.raises(InputError, match="it takes project, entity, study"):
        dashboard.main(["stdy=fig2"])
