"""Every file of ``sweeps/``: it composes at every scale, and has the paper's points."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from qpa_exp.__main__ import run_hydra
from qpa_exp.cli import compose_config, known_keys
from qpa_exp.errors import InputError
from qpa_exp.report.figures import KINDS
from qpa_exp.report.paper_values import reported
from qpa_exp.report.tables import TABLES
from qpa_exp.sweeps.expand import expand
from qpa_exp.sweeps.studies import name_scales, study_names, sweeps_dir

PAPER = [
    "fig2", "table2", "fig3", "table3", "fig4a", "fig4b", "fig4cd", "fig5", "fig6", "fig7",
    "fig8", "fig9", "fig10", "fig11", "table8", "table9",
]  # fmt: skip
OURS = [
    "attention", "attention_rates", "budgets", "circuit_matters", "learning_rates", "methods",
    "optuna_pareto", "quantum", "rivals", "seeds", "text_rates", "text_rivals", "variants",
]  # fmt: skip
PLAN = ["hydra.sweeper.only_plan=true"]


def available(study: str) -> None:
    """Skip the studies of keys that this build of the circuits does not have."""
    text = (sweeps_dir() / f"{study}.yaml").read_text()
    for key in ("qpa.shots", "qpa.noise"):
        if key in text and key not in known_keys():
            pytest.skip(f"{key} is not a key yet")
    try:
        compose_config(["qpa.ansatz=rx"])
    except InputError:
        if "qpa.ansatz" in text:
            pytest.skip("this ansatz is not there yet")


def test_every_figure_and_table_of_the_paper_has_a_file() -> None:
    assert sorted(PAPER + OURS) == study_names()


@pytest.mark.parametrize("study", PAPER + OURS)
def test_a_file_says_what_it_draws_and_that_exists(study: str) -> None:
    spec = OmegaConf.load(sweeps_dir() / f"{study}.yaml")
    assert spec.study == study
    assert spec.title
    assert bool(spec.get("paper")) == (study in PAPER)
    assert {figure.kind for figure in spec.figures} <= set(KINDS)
    assert spec.figures
    assert set(spec.get("tables", [])) <= set(TABLES)


@pytest.mark.parametrize("study", ["fig3", "fig10", "optuna_pareto"])
def test_a_product_a_measurement_and_a_search_compose(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    available(study)
    monkeypatch.chdir(tmp_path)
    run_hydra(["-m", f"sweep={study}", "scale=smoke", *PLAN])
    assert not list(tmp_path.rglob("config.yaml"))


def covering(runs: list[dict[str, str]]) -> list[dict[str, str]]:
    """As few of the runs as have every value of every key."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for run in runs:
        if not set(run.items()) <= seen:
            seen |= set(run.items())
            kept.append(run)
    return kept


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "scale"),
    [
        ("fig9", "gpt2"),
        *(
            pytest.param(*pair, marks=pytest.mark.long)
            for pair in [("variants", "tiny"), ("rivals", "tiny"), ("table2", "gpt2")]
        ),
    ],
)
def test_it_composes_at_its_scales(
    study: str, scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of them: ``make reproduce-all SCALE=smoke`` composes, and runs, every study."""
    from qpa_exp.sweeps import sweep as sweeps

    monkeypatch.setattr(sweeps, "expand", lambda *given: covering(expand(*given)))
    available(study)
    monkeypatch.chdir(tmp_path)
    run_hydra(["-m", f"sweep={study}", f"scale={scale}", *PLAN])


@pytest.mark.parametrize(
    ("study", "scale", "table"),
    [("table8", "gpt2", "table8"), ("table9", "gemma", "table9"), ("table3", "gpt2_xl", "table3")],
)
def test_a_study_has_exactly_the_papers_counts(
    study: str, scale: str, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qpa_exp.sweeps import sweep as sweeps

    planned: list[int] = []
    monkeypatch.setattr(
        sweeps,
        "announce",
        lambda jobs, *names: planned.extend(job.counts.trainable_params for job in jobs),
    )
    monkeypatch.chdir(tmp_path)
    run_hydra(["-m", f"sweep={study}", f"scale={scale}", *PLAN])
    assert sorted(planned) == sorted(row.trainable_params for row in reported(table))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-m", "sweep=fig22"], "sweep=fig22 is unknown: give one of"),
        (["-m", "sweep=fig2", "scale=large"], "scale=large is unknown: give one of"),
        (["-m", "sweep=fig2", "scale=none"], "This sweep needs hydra.sweeper.scale."),
        (["-m", "sweep=fig2", "qpa.n_mpl=3"], "did you mean qpa.n_mlp"),
        (["-m", "sweep=fig2", "qpa.n_mlp=16,0"], "qpa.n_mlp=0 is too small"),
        (["-m", "sweep=fig2", "data=text", "data.path=nowhere"], "nowhere"),
        (["-m", "seed=1,2", "trainer=ddp"], "trainer.strategy=ddp starts processes of its own"),
        (["-m", "seed=1,2", "hydra/launcher=jobli"], "pip install 'qpa-exp[sweeps]'"),
    ],
)
def test_a_mistake_is_one_sentence_before_the_first_run(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qpa_exp.cli import explain

    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run_hydra(arguments)
    error = caught.value
    sentence = str(error) if isinstance(error, InputError) else explain(error)
    assert says in sentence
    assert "\n" not in sentence
    assert list(tmp_path.rglob("*")) == []


def test_the_papers_own_scale_has_a_name_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_hydra(["-m", "sweep=table3_gpt2_xl", *PLAN])
    assert "Sweep table3, scale gpt2_xl: 4 runs of 55,616 to 106,224" in capsys.readouterr().out


def test_a_study_without_multirun_says_how_it_is_started() -> None:
    from qpa_exp.__main__ import main

    with pytest.raises(InputError, match="python -m qpa_exp -m sweep=fig2"):
        main(["sweep=fig2"])


def test_a_record_names_its_runs_and_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short = [o for o in overrides if "n_mlp" not in o]
    run_hydra(["-m", "sweep=fig4b", "scale=smoke", *short, "trainer.max_steps=2", "seed=3"])
    record = json.loads((tmp_path / "outputs/studies/smoke/fig4b/sweep.json").read_text())
    assert record["command"].startswith("python -m qpa_exp -m sweep=fig4b scale=smoke model=hf")
    assert [run["label"] for run in record["runs"]] == ["peft.r=2", "peft.r=4"]
    for run in record["runs"]:
        path = (tmp_path / "outputs/studies/smoke/fig4b" / run["path"]).resolve()
        assert json.loads((path / "metrics.json").read_text())["seed"] == 3


def test_a_study_and_its_scale_may_be_named_together() -> None:
    given = ["-m", "sweep=fig2_gpt2", "sweep=fig2", "seed=1"]
    assert name_scales(given) == ["-m", "sweep=fig2", "scale=gpt2", "sweep=fig2", "seed=1"]
