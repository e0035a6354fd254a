"""Runs and records of studies from an enemy: left out and said, or one sentence."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import SECRET, files_like, in_yaml

from qpa_exp.cli import compose_config
from qpa_exp.errors import InputError
from qpa_exp.report import collect as collecting
from qpa_exp.report.__main__ import report
from qpa_exp.report.collect import collect
from qpa_exp.report.comparisons import comparisons
from qpa_exp.report.figures import KINDS, draw
from qpa_exp.report.page import as_csv, render
from qpa_exp.report.tables import TABLES, runs_table
from qpa_exp.runs.directory import METRICS, claim, read_config
from qpa_exp.sweeps import studies
from qpa_exp.sweeps.prepare import expand
from qpa_exp.sweeps.search import STORAGE, _alone, _open
from qpa_exp.sweeps.studies import MANIFEST, read_manifest, read_study, register_studies, sweeps_dir

pytestmark = pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
EXAMPLES = settings(max_examples=200, suppress_health_check=list(HealthCheck))
STUDY = {
    "study": "fig2", "title": "A title", "paper": "Figure 2", "scale": "tiny", "command": "python",
    "figures": [{"kind": "over", "key": "qpa.window", "label": "window", "log": True}],
    "tables": ["table2"], "notes": ["a"], "differs": ["b"],
    "runs": [{"path": "../good", "label": "x", "overrides": ["seed=1"]}],
}  # fmt: skip
FIGURES = {
    "status": "complete", "perplexity": 100.0, "perplexity_padded": None, "base_perplexity": 200.0,
    "base_perplexity_padded": None, "bits_per_byte": 1.5, "base_bits_per_byte": 2.0,
    "word_perplexity": 1e4, "base_word_perplexity": 1e5, "seed": 1,
    "trainable_params": 10, "target_params": 100,
    "generated_params": 50, "n_chunks": 4, "n_qubits": 2, "train_seconds": 5.0, "steps": 10,
    "step_seconds_median": 0.1, "versions": {"python": "3"}, "data_sha256": "ab",
    "time_split": {"head": 1.0}, "model_revision": None, "gradient_variance": 0.1,
    "expectation_variance": 0.2, "class_names": ["a"],
}  # fmt: skip


composed = functools.cache(lambda variant: compose_config([f"qpa={variant}"]))
_read = functools.cache(lambda _, run_dir: read_config(run_dir))


def read_once(run_dir: Path) -> Any:
    config = run_dir / "config.yaml"
    if not config.is_file():
        return read_config(run_dir)
    return _read(config.read_bytes(), run_dir)


@pytest.fixture(scope="module", autouse=True)
def _known_studies() -> None:
    register_studies(sweeps_dir())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A complete run ``good``, another ``bad`` whose files a test replaces, and an empty study."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.chdir(tmp_path)
    # The configs stay as they are here, and reading one takes as long as all else.
    monkeypatch.setattr(collecting, "read_config", read_once)
    for name, variant in (("good", "off"), ("bad", "tuned")):
        claim(tmp_path / name, composed(variant))
        (tmp_path / name / METRICS).write_text(json.dumps(FIGURES))
    (tmp_path / "study").mkdir()
    return tmp_path


def attempt(call: Callable[[], Any]) -> Any:
    """What is returned; None where it is refused. Any error but a refusal fails the test."""
    try:
        found, sentence = call(), ""
    except InputError as error:
        found, sentence = None, str(error)
    assert "\n" not in sentence
    assert SECRET not in sentence
    return found


@EXAMPLES
@given(data=st.data())
def test_a_studys_record(home, data):
    path = home / "study" / MANIFEST
    path.write_bytes(data.draw(files_like(STUDY)))
    if manifest := attempt(lambda: read_manifest(path.parent)):
        assert "/" not in manifest.study + manifest.scale
        attempt(lambda: collect([str(path.parent)]))


OWN = {
    "study": "own", "title": "A title", "paper": "Figure 2",
    "points": {"smoke": {"windows": [1, 4]}, "own": {"as": "smoke"}},
    "fixed": {"peft": "lora", "seed": "${scale.seeds}"},
    "parts": [{"qpa": "tuned", "qpa.window": "${points.windows}"}],
    "search": {"n_trials": 2, "space": {"qpa.n_mlp": [64, 128]}},
    "figures": [{"kind": "pareto"}], "tables": ["table2"], "notes": ["a"],
    "groups": {"wide": {"qpa.window": 4}}, "finding": {"smoke": "A sentence."},
}  # fmt: skip
OWN_SCALE = {
    "as": "smoke", "about": "a model and a text", "seeds": [1, 2], "differs": ["a sentence"],
    "fixed": {"model": "tiny", "data.max_length": 32}, "runs_side_by_side": True,
}  # fmt: skip


@pytest.mark.parametrize("spoilt", ["study", "scale"])
@EXAMPLES
@given(data=st.data())
def test_a_study_of_the_users_own(home, monkeypatch, spoilt, data):
    """Files of ``sweeps/`` are written by hand, and copied from others."""
    files = {"study": home / "own.yaml", "scale": home / "scale.yaml"}
    for kind, valid in (("study", OWN), ("scale", OWN_SCALE)):
        content = in_yaml(valid)
        files[kind].write_bytes(
            data.draw(files_like(valid, in_yaml)) if kind == spoilt else content
        )
    monkeypatch.setitem(studies.STUDIES, "own", files["study"])
    monkeypatch.setitem(studies.SCALES, "own", files["scale"])
    studies._load.cache_clear()
    if study := attempt(lambda: read_study("own", "own")):
        attempt(lambda: expand(study.parts, study.fixed, []))
        assert SECRET not in str(study)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (in_yaml(OWN | {"notes": ["${oc.env:HF_TOKEN}"]}), "refers to ${oc.env:HF_TOKEN}: it may"),
        (in_yaml(OWN | {"part": []}), "part is not known"),
        (in_yaml(OWN | {"parts": [{"peft.r": "${points.ranks}"}]}), "'points.ranks' not found"),
        (in_yaml(OWN | {"points": {"smoke": {"as": "nowhere"}}}), "as=nowhere must name a scale"),
        (b"study: own\npoints: {smoke: {a: [1, 2}}\nparts: []\n", "line 2: "),
        (b"study: own\npoints: {smoke: {a: [1, 2}}\nparts: []\n", "expected ',' or ']'"),
    ],
)
def test_a_slip_in_a_study_is_named(home, monkeypatch, content, says):
    (home / "own.yaml").write_bytes(content)
    monkeypatch.setitem(studies.STUDIES, "own", home / "own.yaml")
    studies._load.cache_clear()
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        read_study("own", "smoke")
    assert str(home / "own.yaml") in str(caught.value)


def test_a_rate_is_a_number_however_it_is_spelt(home, monkeypatch):
    (home / "own.yaml").write_text("study: own\npoints: {smoke: {}}\nparts: [{optim.lr: 1e-3}]\n")
    monkeypatch.setitem(studies.STUDIES, "own", home / "own.yaml")
    studies._load.cache_clear()
    assert read_study("own", "smoke").parts == [{"optim.lr": 0.001}]


@pytest.fixture(scope="module")
def trials(tmp_path_factory) -> bytes:
    """The record of a search with a trial that has ended and one that has not."""
    file = tmp_path_factory.mktemp("search") / STORAGE
    study = _open(file, "own", 0, ["minimize", "minimize"])
    for _ in range(2):
        trial = study.ask()
        trial.suggest_categorical("peft.r", [1, 2])
    study.tell(0, [1.0, 2.0])
    return file.read_bytes()


@EXAMPLES
@given(data=st.data())
def test_a_searchs_record(home, trials, data):
    file = home / STORAGE
    at = data.draw(st.integers(0, len(trials) - 1))
    more = data.draw(st.binary(min_size=1, max_size=99))
    spoilt = [trials[:at], trials[:at] + more + trials[at + len(more) :], more]
    file.write_bytes(data.draw(st.sampled_from(spoilt)))
    with contextlib.suppress(InputError), _alone(home):
        _open(file, "own", 0, ["minimize", "minimize"])


@EXAMPLES
@given(data=st.data())
def test_a_runs_figures(home, data):
    (home / "bad" / METRICS).write_bytes(data.draw(files_like(FIGURES)))
    (collected,) = collect([str(home / "bad")])
    assert len(collected.runs) + len(collected.skipped) == 1
    assert SECRET not in str(collected)


VALUES = st.one_of(
    st.floats(1e-30, 1e30), st.floats(), st.integers(), st.none(), st.text(max_size=3)
)


WRONG = st.dictionaries(st.sampled_from(list(FIGURES)), VALUES, min_size=1, max_size=4)


@settings(max_examples=5, suppress_health_check=list(HealthCheck))
@given(figures=WRONG)
def test_what_is_made_of_a_runs_figures(home, figures):
    (home / "bad" / METRICS).write_text(json.dumps(FIGURES | figures))
    (collected,) = collect([str(home)])
    for comparison in comparisons(collected.runs):
        assert comparison.sentence()
    as_csv(TABLES["table8"]("table8", collected.runs).rows)
    assert SECRET not in render(collected, {}, [runs_table(collected.runs)], "report")


@settings(max_examples=16, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(list(KINDS)),
    options=st.dictionaries(
        st.sampled_from(["key", "label", "log", "hue", "runs", "x"]),
        st.sampled_from([
            "qpa.window", "qpa.shots", "peft.r", "label", "$\\frac{", 1, None, True, ["qpa.ansatz"],
        ]),
        max_size=2,
    ),
    figures=WRONG,
)  # fmt: skip
def test_a_figure_of_any_kind_and_any_options(home, kind, options, figures):
    (home / "bad" / METRICS).write_text(json.dumps(FIGURES | figures))
    (collected,) = collect([str(home)])
    attempt(lambda: draw(collected.runs, {"kind": kind, **options}))


# --- places -------------------------------------------------------------------------------------


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path)


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 10)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


@pytest.mark.parametrize("make", [fifo, folder, loop, binary, huge])
def test_a_run_whose_file_is_none_is_left_out_and_said(home, make):
    make(home / "bad" / METRICS)
    (collected,) = collect([str(home)])
    assert list(collected.runs["path"]) == [str(home / "good")]
    (skipped,) = collected.skipped
    assert "\n" not in skipped.why


@pytest.mark.parametrize("make", [fifo, folder, loop, binary, huge])
def test_a_curve_that_is_none_costs_the_curve_alone(home, make):
    curve = home / "bad" / "csv" / "version_0" / "metrics.csv"
    curve.parent.mkdir(parents=True)
    make(curve)
    (collected,) = collect([str(home)])
    assert len(collected.runs) == 2


@pytest.mark.parametrize(
    "text", ["step\n", "step,validation/perplexity\n1\n", "step,validation/perplexity\n,3\n",
             "step,validation/perplexity\n1,nan\n1e400,1\n", "\0", "x" * 200_000, '"' * 999]
)  # fmt: skip
def test_a_curve_of_nonsense_costs_the_curve_alone(home, text):
    curve = home / "bad" / "csv" / "version_0" / "metrics.csv"
    curve.parent.mkdir(parents=True)
    curve.write_text(text)
    (collected,) = collect([str(home)])
    assert len(collected.runs) == 2


@pytest.mark.parametrize(
    "place", ["loop", "loop/**", "x" * 5000, "x/" * 2500, "**x", "good/config.yaml", "\0", "~no/x"]
)  # fmt: skip
def test_a_place_that_is_none_is_one_sentence(home, place):
    (home / "loop").symlink_to(home / "loop")
    assert attempt(lambda: collect([place])) is None


def test_directories_that_lead_in_a_circle_end(home):
    for name in "abc":
        (home / "good" / name).symlink_to(home)
    (collected,) = collect(["good/**"])
    assert len(collected.runs) == 1


@pytest.mark.parametrize("out", ["file", "file/x", "x" * 300, "loop/x", "/proc/x", "/dev/null"])
def test_a_report_that_cannot_be_written_is_one_sentence(home, out):
    (home / "file").write_text("precious")
    (home / "loop").symlink_to(home / "loop")
    assert attempt(lambda: report([str(home / "good")], None, Path(out))) is None
    assert (home / "file").read_text() == "precious"


@pytest.mark.parametrize("name", ["/victim", "../victim", "..", "", "a/b", ".hidden"])
@pytest.mark.parametrize("key", ["study", "scale", "tables", "kind", "path"])
def test_a_report_goes_where_it_was_asked_to(home, key, name):
    if (key, name) == ("scale", "") or (key == "path" and name != "/victim"):
        pytest.skip("allowed: no scale, and a run beside the record")
    changed: dict[str, Any] = {
        "tables": {"tables": [name]}, "kind": {"figures": [{"kind": name}]},
        "path": {"runs": [{"path": name, "label": "", "overrides": []}]},
    }.get(key, {key: name})  # fmt: skip
    (home / "study" / MANIFEST).write_text(json.dumps(STUDY | changed))
    before = sorted(home.rglob("*"))
    assert attempt(lambda: report([str(home / "study")], None, home / "reports")) is None
    assert sorted(home.rglob("*")) == before


# --- tables ---------------------------------------------------------------------------------------


@given(
    cell=st.one_of(st.text(), st.sampled_from("=+-@\t\r").flatmap(lambda c: st.just(c + "1+cmd()")))
)
def test_no_cell_is_a_formula_and_none_is_lost(cell):
    table = pd.DataFrame({"=HYPERLINK()": [cell, "-1.5", "+2e3"], "number": [-1.5, -2, 3]})
    try:
        content = as_csv(table).decode()
    except UnicodeEncodeError:  # half characters never come so far
        return
    head, *rows = csv.reader(io.StringIO(content, newline=""))
    assert head[0] == "'=HYPERLINK()"
    assert [row[1] for row in rows] == ["-1.5", "-2.0", "3.0"]
    assert [row[0] for row in rows[1:]] == ["-1.5", "+2e3"]
    first = rows[0][0]
    assert not first.startswith(("=", "+", "-", "@", "\t", "\r")) or math.isfinite(float(first))
