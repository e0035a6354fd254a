"""What a report consists of."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from qpa_exp.errors import InputError
from qpa_exp.report import __main__ as command
from qpa_exp.report.collect import collect
from qpa_exp.report.comparisons import measured
from qpa_exp.report.tables import TABLES, runs_table

MakeRun, MakeStudy = Callable[..., Path], Callable[..., Path]
GPT2 = ["model=gpt2", "data=wikitext2"]


@pytest.fixture
def study(make_run: MakeRun, make_study: MakeStudy, tmp_path: Path) -> Path:
    """LoRA at two seeds, QPA at two seeds, and one run that is not complete."""
    runs = [
        make_run(tmp_path / "runs" / "one", "qpa=off", "seed=1", perplexity=100.0),
        make_run(tmp_path / "runs" / "two", "qpa=off", "seed=2", perplexity=104.0),
        make_run(tmp_path / "runs" / "three", "seed=1", perplexity=99.0, trainable_params=500),
        make_run(tmp_path / "runs" / "four", "seed=2", perplexity=101.0, trainable_params=500),
    ]
    (tmp_path / "runs" / "five").mkdir()
    return make_study(
        tmp_path / "studies", [*runs, tmp_path / "runs" / "five"],
        figures=[{"kind": "parameters"}], tables=["table2"], title="<script>alert(1)</script>",
    )  # fmt: skip


def test_a_page_needs_nothing_else_and_says_everything(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command.main([f"runs={study}", f"out={tmp_path / 'out'}"])
    page = (tmp_path / "out" / "fig2-tiny" / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "<script>" not in page
    text = html.unescape(page)
    for expected in (
        "trains 50.00 % of the parameters of LoRA (r = 4) (500 of 1,000)",
        "2 seeds, paired",
        "102.0 ± 2.8",
        "data.layout is blocks; the paper's is lines.",
        "python -m qpa_exp -m sweep=fig2",
        "python -m qpa_exp.report runs=studies",
        "python -m qpa_exp run=three",
        "five is not a run directory",
        "sha256 ab",
        "perplexity_padded",
        "1.583",
    ):
        assert expected in text
    assert "left out" in capsys.readouterr().out


def test_the_runs_are_written_as_csv_and_parquet(study: Path, tmp_path: Path) -> None:
    command.main([f"runs={study}", f"out={tmp_path / 'out'}"])
    out = tmp_path / "out" / "fig2-tiny"
    for table in (pd.read_csv(out / "runs.csv"), pd.read_parquet(out / "runs.parquet")):
        assert sorted(table["perplexity"]) == [99.0, 100.0, 101.0, 104.0]
        assert set(table["qpa.variant"]) == {"off", "tuned"}
    for name in ("parameters.png", "parameters.svg", "table2_table.csv", "runs_table.csv"):
        assert (out / name).stat().st_size > 0


def test_a_report_names_no_place_of_this_machine(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, away = tmp_path / "here", tmp_path / "away"
    place.mkdir()
    monkeypatch.chdir(place)
    for seed in (1, 2):
        make_run(
            (place, away)[seed - 1] / f"run{seed}", f"seed={seed}", f"optim.lr=0.0{seed}",
            "data=text", f"data.path={away}/text{seed}", f"data.cache_dir={away}/cache",
            f"model.name_or_path={away}/model",
        )  # fmt: skip
    command.main([f"runs={place},{away}", "out=reports"])
    (report,) = Path("reports").iterdir()
    for file in report.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file
    assert sorted(pd.read_csv(report / "runs.csv")["path"]) == ["run1", "run2"]


def test_a_report_that_takes_the_place_of_another_says_so(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("notes", "other/notes"):
        run = make_run(tmp_path / place, "model.name=模型")  # the figures' font has no such letters
        command.main([f"runs={run}", f"out={tmp_path / 'out'}"])
        replaced = "in place of the report that was there" in capsys.readouterr().out
        assert replaced == (place == "other/notes")


@pytest.mark.long
def test_a_report_needs_no_torch(study: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from qpa_exp.report.__main__ import main; main(sys.argv[1:]); "
        "print(*({'torch', 'transformers', 'peft', 'pytorch_lightning'} & set(sys.modules)))"
    )
    options = [f"runs={study}", f"out={tmp_path / 'out'}"]
    done = subprocess.run(
        [sys.executable, "-c", program, *options], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == ""
    assert (tmp_path / "out" / "fig2-tiny" / "report.html").is_file()


def test_the_same_runs_make_the_same_bytes(study: Path, tmp_path: Path) -> None:
    pages = []
    for name in ("a", "b"):
        command.main([f"runs={study}", f"out={tmp_path / name}"])
        files = tmp_path / name / "fig2-tiny"
        pages.append((files / "parameters.svg").read_bytes() + (files / "runs.csv").read_bytes())
    assert pages[0] == pages[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["runs=nowhere"], "matches no directory"),
        ([], "runs is missing"),
        (["runs=.", "stdy=fig2"], "it takes runs, study, out"),
        (["runs=."], "there is no complete run to report"),
    ],
)
def test_nothing_to_report_is_one_sentence(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        command.main(arguments)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# --- tables -------------------------------------------------------------------------------------


def table_of(tmp_path: Path, name: str) -> pd.DataFrame:
    (collected,) = collect([str(tmp_path)])
    return TABLES[name](name, collected.runs).rows


def test_a_run_of_the_papers_setting_stands_beside_it(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(
        tmp_path / "a", *GPT2, "qpa=paper", "qpa.n_mlp=2048", perplexity=33.5,
        perplexity_padded=1.58, trainable_params=106_264, target_params=50257 * 768,
    )  # fmt: skip
    table = table_of(tmp_path, "table2")
    line = table[(table["model"] == "gpt2") & (table["method"] == "QPA LoRA")].iloc[0]
    assert line["paper: perplexity_padded"] == "1.583"
    assert (line["ours: perplexity_padded"], line["ours: perplexity"]) == ("1.580", "33.50")
    assert (line["counts"], line["perplexities"]) == ("exact", "comparable")
    rest = table.drop(line.name)
    assert set(rest["ours: perplexity"]) == {"not measured"}


def test_another_setting_of_the_papers_model_does_not_stand_in(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run(tmp_path / "a", *GPT2, "qpa=paper", "qpa.n_mlp=1024", perplexity_padded=1.5)
    assert set(table_of(tmp_path, "table2")["ours: perplexity"]) == {"not measured"}


def test_another_model_is_shown_and_called_not_comparable(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run(tmp_path / "a", "qpa=off", perplexity=120.0, validation=110.0)
    make_run(tmp_path / "b", "qpa=off", "peft.r=8", perplexity=100.0, validation=130.0)
    table = table_of(tmp_path, "table2")
    line = table[table["method"] == "LoRA"].iloc[0]
    assert line["ours: perplexity"] == "120.0"  # the lower on validation, not on test
    assert line["perplexities"].startswith("not comparable: data.name=pydoc")


def test_times_stand_beside_the_papers(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(tmp_path / "a", *GPT2, "qpa=off", "peft.r=2", train_seconds=80.0)
    table = table_of(tmp_path, "table8").set_index("parameters")
    assert table.loc["102,050", "paper: seconds"] == "1,677"
    assert table.loc["102,050", "ours: seconds"] == "80.0"
    assert table.loc["106,264", "ours: seconds"] == "not measured"


def test_an_unknown_table_is_one_sentence(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    with pytest.raises(InputError, match="tables=table7 is unknown"):
        table_of(tmp_path, "table7")


def test_the_runs_table_names_both_perplexities(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(tmp_path / "a", *GPT2, perplexity=33.0, perplexity_padded=1.6)
    (collected,) = collect([str(tmp_path)])
    rows = runs_table(collected.runs).rows
    assert (rows["perplexity"][0], rows["perplexity_padded"][0]) == ("33.00", "1.600")
    assert rows["base perplexity_padded"][0] == "2.000"


def test_other_forms_of_a_metric_have_columns_beside_runs_that_lack_them(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run(tmp_path / "old", "peft.r=2", perplexity=33.0)
    bits = {"bits_per_byte": 1.25, "base_bits_per_byte": 1.5, "word_perplexity": 1e31}
    make_run(tmp_path / "new", "peft.r=4", perplexity=30.0, **bits)
    (collected,) = collect([str(tmp_path)])
    rows = runs_table(collected.runs).rows.set_index("perplexity")
    assert list(rows.loc["30.00", ["base bits_per_byte", "bits_per_byte"]]) == ["1.500", "1.250"]
    assert list(rows.loc["33.00", ["base bits_per_byte", "bits_per_byte"]]) == ["", ""]
    assert "word_perplexity" not in rows  # no run has one that can be drawn
    assert [metric.name for metric in measured(collected.runs)] == ["perplexity"]
