"""A study's page in docs/results, and drawing it again from what is kept there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qpa_exp.errors import InputError
from qpa_exp.report import __main__ as command
from qpa_exp.report.collect import collect
from qpa_exp.report.docs_page import read_saved, redraw
from qpa_exp.report.figures import draw
from qpa_exp.sweeps.studies import study_of_record

MakeRun, MakeStudy = Callable[..., Path], Callable[..., Path]
INDEX = """# Results

<!-- studies: written by python -m qpa_exp.report -->
old
<!-- end of studies -->
"""


@pytest.fixture(scope="module")
def written(
    make_run: MakeRun, make_study: MakeStudy, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A study, its runs, and its pages in ``docs``."""
    place = tmp_path_factory.mktemp("written")
    runs = [
        make_run(place / "runs" / f"{n}", *overrides, perplexity=100.0 + n, validation=90.0)
        for n, overrides in enumerate((["qpa=off", "seed=1"], ["qpa=off", "seed=2"], ["seed=1"]))
    ]
    command_line = " ".join(["python -m qpa_exp -m", *(f"key{n}=1" for n in range(30))])
    study = make_study(
        place / "studies", runs, figures=[{"kind": "pareto"}, {"kind": "time"}],
        tables=["table2"], study="own_study", command=command_line,
    )  # fmt: skip
    docs = place / "docs"
    docs.mkdir()
    (docs / "README.md").write_text(INDEX)
    command.main([f"runs={study}", f"out={place / 'out'}", f"pages={docs}"])
    return place


@pytest.fixture
def docs(written: Path, tmp_path: Path) -> Path:
    """A copy of the pages, beside one of the study."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return tmp_path / "docs"


def test_a_page_has_its_finding_figure_table_command_and_data(docs: Path) -> None:
    page = (docs / "own_study-tiny.md").read_text()
    assert page.startswith("# A title\n")
    assert "![A title: tiny](own_study-tiny-pareto.svg)" in page
    assert "101 ± 0.71" in page or "100.5 ± 0.71" in page
    assert max(map(len, page.partition("```bash")[2].partition("```")[0].splitlines())) <= 100
    assert "prefers-color-scheme" in (docs / "own_study-tiny-time.svg").read_text()
    index = (docs / "README.md").read_text()
    assert "[own_study](own_study-tiny.md)" in index
    assert "\nold\n" not in index


def test_pages_are_drawn_again_from_their_data_to_the_same_bytes(
    docs: Path, tmp_path: Path
) -> None:
    before = {file.name: file.read_bytes() for file in docs.iterdir() if file.is_file()}
    for name in before:
        if name != "README.md":
            (docs / name).unlink()
    command.main([f"pages={docs}"])
    assert {file.name: file.read_bytes() for file in docs.iterdir() if file.is_file()} == before


def test_what_is_kept_is_what_was_collected(docs: Path, tmp_path: Path) -> None:
    (collected,) = collect([str(tmp_path / "studies")])
    runs = read_saved(docs / "data" / "own_study-tiny.json").runs
    for column in set(collected.runs) - {"path", "command"}:
        found, kept = collected.runs[column], runs.get(column)
        if kept is None:
            assert found.isna().all()
        else:
            assert ((found == kept) | (found.isna() & kept.isna())).all(), column


def test_a_page_says_which_settings_of_its_study_were_not_run(
    make_run: MakeRun, make_study: MakeStudy, tmp_path: Path
) -> None:
    runs = [make_run(tmp_path / "run", "qpa=off", "peft.r=4")]
    study = make_study(tmp_path / "study", runs, study="fig4b", figures=[{"kind": "parameters"}])
    docs = tmp_path / "docs"
    command.main([f"runs={study}", f"out={tmp_path / 'out'}", f"pages={docs}"])
    (said,) = [
        line for line in (docs / "fig4b-tiny.md").read_text().splitlines()
        if "more settings, without runs here" in line
    ]  # fmt: skip
    expected = study_of_record("fig4b", "tiny")
    assert expected is not None
    assert "qpa=paper" in said
    assert said.count("`") > 2 * len(expected.parts)
    assert "`peft=lora qpa=off peft.r=4`" not in said


def test_a_column_that_is_empty_in_every_run_costs_no_page(
    make_run: MakeRun, make_study: MakeStudy, tmp_path: Path
) -> None:
    """Methods without a rank, none of them generated: such columns are not kept."""
    empty = {"n_qubits": None, "n_chunks": None, "train_seconds": None}
    runs = [
        make_run(tmp_path / name, "qpa=off", f"peft={name}", **empty)
        for name in ("fourierft", "c3a")
    ]
    kinds = [{"kind": "pareto"}, {"kind": "parameters", "hue": "qpa.shots"}, {"kind": "time"}]
    study = make_study(tmp_path / "study", runs, study="own_study", figures=kinds)
    docs = tmp_path / "docs"
    command.main([f"runs={study}", f"out={tmp_path / 'out'}", f"pages={docs}"])
    before = {file.name: file.read_bytes() for file in docs.iterdir() if file.is_file()}
    assert "peft.r" not in (docs / "data" / "own_study-tiny.json").read_text()
    redraw(docs)
    assert {file.name: file.read_bytes() for file in docs.iterdir() if file.is_file()} == before
    for kind, says in (("learning_rates", "validation perplexity"), ("qubits", "has qubits")):
        with pytest.raises(InputError, match=says):
            draw(read_saved(docs / "data" / "own_study-tiny.json").runs, {"kind": kind})


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"study": "../x"}'])
def test_damaged_data_is_one_sentence(docs: Path, damage: str) -> None:
    file = docs / "data" / "own_study-tiny.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps(whole | {"study": "../x"}) if "x" in damage else damage)
    with pytest.raises(InputError) as caught:
        redraw(docs)
    assert "\n" not in str(caught.value)


def test_no_data_to_draw_from_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are no runs"):
        command.main([f"pages={tmp_path}"])
