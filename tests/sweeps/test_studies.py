"""Every file of ``sweeps/``: it composes at every scale, and has the paper's points."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from qpa_exp.__main__ import main, run_sweep
from qpa_exp.cli import compose_config
from qpa_exp.errors import InputError
from qpa_exp.report.figures import KINDS
from qpa_exp.report.tables import TABLES, reported
from qpa_exp.sweeps import sweep as sweep_module
from qpa_exp.sweeps.prepare import Job, expand
from qpa_exp.sweeps.run_name import relevant
from qpa_exp.sweeps.studies import (
    name_scales,
    points_of,
    read_study,
    scale_names,
    study_names,
    sweeps_dir,
)

PAPER = [
    "fig2", "table2", "fig3", "table3", "fig4a", "fig4b", "fig4cd", "fig5", "fig6", "fig7",
    "fig8", "fig9", "fig10", "fig11", "table8", "table9",
]  # fmt: skip
OURS = [
    "amounts", "attention", "attention_rates", "budgets", "circuit_matters", "depth", "few_shots",
    "learning_rates", "methods", "optuna_pareto", "quantum", "rivals", "seeds", "text_rates",
    "text_rivals", "tiny_budgets", "variants",
]  # fmt: skip
PLAN = ["hydra.sweeper.only_plan=true"]


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


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, list[Job]]:
    """The jobs of each study that is planned from here on."""
    monkeypatch.chdir(tmp_path)
    found: dict[str, list[Job]] = {}
    announced = lambda jobs, title: found.update({title: list(jobs)})  # noqa: E731
    monkeypatch.setattr(sweep_module, "announce", announced)
    return found


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("scale", scale_names())
def test_every_study_plans_at_every_scale_that_it_allows(
    scale: str, planned: dict[str, list[Job]], tmp_path: Path
) -> None:
    """Under one seed: another one changes neither what is allowed nor what it costs."""
    allowed = [name for name in study_names() if scale in points_of(name)]
    texts = [f"data.path={_no_text(tmp_path, scale)}"] if scale.startswith("tiny_") else []
    run_sweep([f"sweep={','.join(allowed)}", f"scale={scale}", "seed=1", *texts, *PLAN])
    for name in allowed:
        study = read_study(name, scale)
        if study.search is None:
            jobs = planned[f"Sweep {name}, scale {scale}"]
            assert 0 < len(jobs) <= len(expand(study.parts, study.fixed, ["seed=1"]))
    assert not list(tmp_path.rglob("config.yaml"))


def _no_text(directory: Path, scale: str) -> Path:
    for split in ("validation", "test"):
        (directory / f"{split}.txt").write_text("a text\n" * 50)
    return directory


@pytest.mark.parametrize("study", study_names())
def test_every_other_pair_is_refused_by_name(study: str) -> None:
    has = points_of(study)
    for scale in set(scale_names()) - set(has):
        with pytest.raises(InputError) as caught:
            read_study(study, scale)
        assert str(caught.value) == (
            f"sweep={study} has no points at scale={scale}: it has them at {', '.join(has)}."
        )


RUNS = {
    "tiny": (
        "- 39 28 69 45 45 63 24 54 69 24 33 12 27 108 60 54 54 54 164 72 3 30 123 16 93 "
        "12 36 36 40 30 189 42"
    ),
    "tiny_ptb": (
        "- 39 28 69 45 45 63 24 51 63 24 33 12 27 102 60 51 51 51 164 72 3 30 123 16 87 "
        "12 33 33 40 30 189 42"
    ),
    "tiny_wikitext2": (
        "- 39 28 69 45 45 63 24 51 63 24 33 12 27 102 60 51 51 51 164 72 3 30 123 16 87 "
        "12 33 33 40 30 189 42"
    ),
    "smoke": ("3 10 7 11 15 15 9 4 3 5 4 3 2 3 6 6 5 5 5 17 6 1 9 17 2 9 4 3 3 5 5 7 14"),
    "gpt2": (
        "- - 28 84 45 - - 24 18 23 14 11 6 9 78 35 30 30 42 84 66 1 30 63 10 37 4 12 12 40 30 - 42"
    ),
    "gpt2_xl": (
        "- - 28 84 45 - - 24 18 23 14 11 6 9 78 35 30 30 42 84 66 1 30 63 10 37 4 12 12 40 30 - 42"
    ),
    "gemma": (
        "- - - 84 45 - - 24 24 23 13 11 6 9 78 34 30 30 18 96 72 1 30 72 10 36 4 12 12 40 30 - 42"
    ),
    "smollm2": (
        "75 27 - 72 100 45 63 - - 63 24 - 15 24 - - 54 54 54 144 - - - 120 16 87 - - - - - 189 -"
    ),
    "smollm2_ptb": (
        "75 27 - 72 100 45 63 - - 63 24 - 15 24 - - 54 54 54 144 - - - 120 16 87 - - - - - 189 -"
    ),
    "smollm2_lines": ("- - - - - - - - - 15 - - - - - - - - - - - - - - - - - - - - - - -"),
}
"""How many runs each study has, in alphabetical order; of a search, where it starts."""


@pytest.mark.parametrize("scale", RUNS)
def test_a_study_has_as_many_runs_as_it_is_known_for(scale: str) -> None:
    found = []
    for name in study_names():
        if scale in points_of(name):
            study = read_study(name, scale)
            found.append(str(len(expand(study.parts, study.fixed, []))))
        else:
            found.append("-")
    assert " ".join(found) == RUNS[scale]


def test_a_study_is_one_file(
    add_study: Callable[[dict[str, Any]], None], planned: dict[str, list[Job]]
) -> None:
    add_study({
        "study": "mine", "points": {"smoke": {"ranks": [1, 2]}, "tiny": {"as": "smoke"}},
        "parts": [{"qpa": ["off", "tuned"], "peft.r": "${points.ranks}"}],
        "figures": [{"kind": "pareto"}],
    })  # fmt: skip
    run_sweep(["sweep=mine,fig4b", "scale=smoke", *PLAN])
    assert [len(jobs) for jobs in planned.values()] == [4, 2]
    run_sweep(["sweep=mine_tiny", "peft.r=3", *PLAN])
    jobs = planned["Sweep mine, scale tiny"]
    assert {job.config.peft.r for job in jobs} == {3}
    assert len(jobs) == 2 * 3
    with pytest.raises(InputError, match="sweep=mine has no points at scale=gpt2"):
        run_sweep(["sweep=mine", "scale=gpt2", *PLAN])


def test_a_file_that_refers_to_a_point_that_it_lacks_is_named(
    add_study: Callable[[dict[str, Any]], None],
) -> None:
    add_study({"study": "mine", "points": {"tiny": {}}, "parts": [{"seed": "${points.seeds}"}]})
    with pytest.raises(InputError, match=r"mine\.yaml at scale=tiny: .*points\.seeds"):
        run_sweep(["sweep=mine", *PLAN])


def test_a_run_is_composed_as_hydra_composes_it(planned: dict[str, list[Job]]) -> None:
    run_sweep(["sweep=fig6,variants", "scale=smoke", *PLAN])
    for job in itertools.chain.from_iterable(planned.values()):
        plain = compose_config(job.overrides)
        assert relevant(plain) == relevant(job.config)


@pytest.mark.parametrize(
    ("study", "scale", "table"),
    [("table8", "gpt2", "table8"), ("table9", "gemma", "table9"), ("table3", "gpt2_xl", "table3")],
)
def test_a_study_has_exactly_the_papers_counts(
    study: str, scale: str, table: str, planned: dict[str, list[Job]]
) -> None:
    run_sweep([f"sweep={study}", f"scale={scale}", *PLAN])
    (jobs,) = planned.values()
    assert sorted(job.counts.trainable_params for job in jobs) == sorted(
        row.trainable_params for row in reported(table)
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-m", "sweep=fig22"], "sweep=fig22 is unknown: give one of"),
        (["-m", "sweep=fig2", "scale=large"], "scale=large is unknown: give one of"),
        (["-m", "sweep=fig2", "scale=none"], "sweep=fig2 has no points at scale=none"),
        (["-m", "sweep=fig2", "scale=tiny,smoke"], "scale=tiny,smoke is more than one"),
        (["-m", "sweep=fig2,fig33"], "sweep=fig33 is unknown: give one of"),
        (["-m", "sweep=fig2", "qpa.n_mpl=3"], "did you mean qpa.n_mlp"),
        (["-m", "sweep=fig2", "qpa.n_mlp=16,0"], "qpa.n_mlp=0 is too small"),
        (["-m", "sweep=fig2", "data=text", "data.path=nowhere"], "nowhere"),
        (["-m", "seed=1,2", "hydra/launcher=jobli"], "pip install 'qpa-exp[sweeps]'"),
    ],
)
def test_a_mistake_is_one_sentence_before_the_first_run(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qpa_exp.cli import explain

    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        main(arguments)
    error = caught.value
    sentence = str(error) if isinstance(error, InputError) else explain(error)
    assert says in sentence
    assert "\n" not in sentence
    assert list(tmp_path.rglob("*")) == []


def test_the_papers_own_scale_has_a_name_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_sweep(["sweep=table3_gpt2_xl", *PLAN])
    assert "Sweep table3, scale gpt2_xl: 4 runs of 55,616 to 106,224" in capsys.readouterr().out


def test_a_study_without_multirun_says_how_it_is_started() -> None:
    with pytest.raises(InputError, match="python -m qpa_exp -m sweep=fig2"):
        main(["sweep=fig2"])


def test_a_record_names_its_runs_and_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short = [o for o in overrides if "n_mlp" not in o]
    run_sweep(["sweep=fig4b", "scale=smoke", *short, "trainer.max_steps=2", "seed=3"])
    record = json.loads((tmp_path / "outputs/studies/smoke/fig4b/sweep.json").read_text())
    assert record["command"].startswith("python -m qpa_exp -m sweep=fig4b scale=smoke model=hf")
    assert [run["label"] for run in record["runs"]] == ["peft.r=2", "peft.r=4"]
    for run in record["runs"]:
        path = (tmp_path / "outputs/studies/smoke/fig4b" / run["path"]).resolve()
        assert json.loads((path / "metrics.json").read_text())["seed"] == 3


def test_a_study_and_its_scale_may_be_named_together() -> None:
    given = ["-m", "sweep=fig2_gpt2", "sweep=fig2", "seed=1"]
    assert name_scales(given) == ["-m", "sweep=fig2", "scale=gpt2", "sweep=fig2", "seed=1"]
