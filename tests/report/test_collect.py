"""Runs from disk: what is read, what is left out and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qpa_exp.errors import InputError
from qpa_exp.report.__main__ import places_of
from qpa_exp.report.collect import collect, left_out
from qpa_exp.runs import directory

MakeRun = Callable[..., Path]


def test_a_run_is_a_row_of_its_config_its_figures_and_its_validation(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "a", "qpa.n_mlp=32", "seed=7", perplexity=12.5, validation=20.0)
    (collected,) = collect([str(tmp_path)])
    (row,) = collected.runs.to_dict("records")
    assert row["path"] == str(run)
    assert (row["qpa.n_mlp"], row["peft.method"], row["seed"]) == (32, "lora", 7)
    assert (row["perplexity"], row["validation_perplexity"]) == (12.5, 20.0)
    assert row["peft.target_modules"] == '["lm_head"]'


def test_what_ranks_a_run_is_of_the_weights_that_it_kept(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(tmp_path / "a", validation=20.0, validation_perplexity=18.0)
    (collected,) = collect([str(tmp_path)])
    assert list(collected.runs["validation_perplexity"]) == [18.0]


SAME_SETTING = (
    "seed=2", "data.cache=memory", "data.cache_gib=3", "logger=tensorboard", "data.path=elsewhere",
    "trainer.checkpoint_every_n_steps=7",
)  # fmt: skip


@pytest.mark.parametrize("override", [*SAME_SETTING, "optim.lr=1e-4"])
def test_seeds_and_keys_without_effect_are_no_part_of_a_setting(
    make_run: MakeRun, tmp_path: Path, override: str
) -> None:
    make_run(tmp_path / "one", "data=text", "data.path=here", "seed=1")
    more = {"seed": 2} | dict([override.split("=")])
    keys = [f"{key}={value}" for key, value in ({"data.path": "here"} | more).items()]
    make_run(tmp_path / "two", "data=text", *keys)
    (collected,) = collect([str(tmp_path)])
    assert (collected.runs["setting"].nunique() == 1) == (override in SAME_SETTING)
    assert len(collected.runs) == 2


def test_another_text_is_another_setting_whatever_its_name(
    make_run: MakeRun, tmp_path: Path
) -> None:
    for digest in ("ab", "cd"):
        make_run(tmp_path / digest, data_sha256=digest)
    (collected,) = collect([str(tmp_path)])
    assert collected.runs["setting"].nunique() == 2


def test_a_run_that_was_made_twice_counts_once(make_run: MakeRun, tmp_path: Path) -> None:
    one, two = (make_run(tmp_path / name, "seed=1") for name in ("one", "two"))
    other = make_run(tmp_path / "three", "seed=2")
    (collected,) = collect([str(tmp_path)])
    assert sorted(collected.runs["path"]) == sorted(map(str, (one, other)))
    assert left_out(collected.skipped) == [
        f"{two} has the setting and the seed of {one}, which counts."
    ]


BROKEN = {
    "half written": ({"config.yaml": None}, "is not complete: it is running, or was interrupted"),
    "failed": ({"config.yaml": None, "failed.json": '{"error": "out of memory"}'}, "out of memory"),
    "diverged": (
        {
            "config.yaml": None,
            "metrics.json": '{"status": "diverged", "error": "The loss is NaN."}',
        },
        "The loss is NaN.",
    ),
    "cut metrics": ({"config.yaml": None, "metrics.json": '{"status": '}, "or is damaged"),
    "text for a number": (
        {"config.yaml": None, "metrics.json": '{"status": "complete", "perplexity": "low"}'},
        "holds no result of this program",
    ),
    "other metrics": (
        {"config.yaml": None, "metrics.json": '{"status": "complete"}'},
        "holds no result of this program",
    ),
    "no status": ({"config.yaml": None, "metrics.json": "{}"}, "is not one of ours"),
    "no config": ({"metrics.json": "{}"}, "is not a run directory"),
    "other config": ({"config.yaml": "a: 1\n", "metrics.json": "{}"}, "is not the config of a run"),
    "code": ({"config.yaml": "a: !!python/object/apply:os.abort []\n"}, "cannot be used"),
    "reference": ({"config.yaml": "seed: ${oc.env:HOME}\n"}, "cannot be used"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_used_is_left_out_with_a_reason(
    make_run: MakeRun, tmp_path: Path, name: str
) -> None:
    good = make_run(tmp_path / "good")
    files, why = BROKEN[name]
    bad = tmp_path / "bad"
    bad.mkdir()
    for file, text in files.items():
        content = (good / file).read_text() if text is None else text
        (bad / file).write_text(content)
    (collected,) = collect([str(tmp_path)])
    assert list(collected.runs["path"]) == [str(good)]
    (skipped,) = collected.skipped
    assert skipped.path == bad
    assert why in skipped.why
    assert "\n" not in skipped.why


def test_a_study_is_the_runs_that_its_record_lists(
    make_run: MakeRun, make_study: Callable[..., Path], tmp_path: Path
) -> None:
    runs = [make_run(tmp_path / "runs" / name, f"seed={ord(name)}") for name in "abc"]
    make_study(tmp_path / "one", runs[:2])
    make_study(tmp_path / "two", [runs[1], tmp_path / "runs" / "gone"], study="fig3")
    by_name = {c.study: c for c in collect([str(tmp_path)])}
    paths = {name: sorted(Path(p).name for p in c.runs["path"]) for name, c in by_name.items()}
    assert paths == {"fig2": ["a", "b"], "fig3": ["b"], "runs": ["c"]}
    assert "gone" in by_name["fig3"].skipped[0].why
    (only,) = collect([str(tmp_path)], "fig3")
    assert only.study == "fig3"
    with pytest.raises(InputError, match=r"study=fig9 is not among these runs: there is fig2"):
        collect([str(tmp_path)], "fig9")


def test_what_lies_in_a_run_s_directory_is_no_run_of_its_own(
    make_run: MakeRun, make_study: Callable[..., Path], tmp_path: Path
) -> None:
    listed, alone = make_run(tmp_path / "a"), make_run(tmp_path / "csv" / "b")
    below = make_run(tmp_path / "csv" / "b" / "c", "seed=1")
    make_study(tmp_path / "study", [listed])
    for run in (listed, alone):
        make_run(run / "earlier" / "step=8")
        files = run / "wandb" / "run-1" / "files"
        files.mkdir(parents=True)
        (files / "config.yaml").write_text("_wandb: {}\n")
    (tmp_path / "csv" / "metrics.json").write_text("{}")  # another program's: no run is in there
    by_name = {c.study: c for c in collect([str(tmp_path)])}
    assert list(by_name["fig2"].runs["path"]) == [str(listed)]
    assert list(by_name["runs"].runs["path"]) == [str(alone), str(below)]
    assert [skipped.path for skipped in by_name["runs"].skipped] == [tmp_path / "csv"]


def test_runs_of_no_study_are_named_by_what_differs(make_run: MakeRun, tmp_path: Path) -> None:
    """A whole number beside nulls is a float to pandas, and is written as it was given."""
    make_run(tmp_path / "a", "qpa.n_mlp=64", "qpa.shuffle=true")
    make_run(tmp_path / "b", "qpa.n_mlp=null", "qpa.shuffle=true", n_mlp=None)
    make_run(tmp_path / "c", "qpa.n_mlp=64", "qpa.shuffle=false", "optim.lr=0.5")
    (collected,) = collect([str(tmp_path)])
    assert list(collected.runs["label"]) == [
        "qpa.n_mlp=64 qpa.shuffle=true",
        "qpa.n_mlp=null qpa.shuffle=true",
        "qpa.n_mlp=64 qpa.shuffle=false",
    ]


def test_places_are_patterns_and_must_exist(make_run: MakeRun, tmp_path: Path) -> None:
    for seed, name in enumerate(("r1", "r2", "x")):
        make_run(tmp_path / name, f"seed={seed}")
    (collected,) = collect([str(tmp_path / "r*")])
    assert len(collected.runs) == 2
    with pytest.raises(InputError, match="matches no directory"):
        collect([str(tmp_path / "none*")])


def test_a_directory_of_links_to_runs_has_those_runs(make_run: MakeRun, tmp_path: Path) -> None:
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    for seed, name in enumerate(("r1", "r2", "r3")):
        make_run(tmp_path / "all" / name, f"seed={seed}")
    for name in ("r1", "r3"):
        (chosen / name).symlink_to(tmp_path / "all" / name)
    (chosen / "up").symlink_to(tmp_path)  # a directory above runs is none
    (collected,) = collect([str(chosen)])
    assert sorted(collected.runs["label"]) == ["r1", "r3"]
    assert collected.skipped == []


def test_a_comma_may_be_in_a_directory_s_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=0.1,seed=1").mkdir()
    assert list(places_of("lr=0.1,seed=1")) == ["lr=0.1,seed=1"]
    assert list(places_of("a*,lr=0.1,seed=1,b")) == ["a*", "lr=0.1,seed=1", "b"]


RECORD = json.dumps(
    dict.fromkeys(
        ("study", "title", "paper", "scale", "command", "work", "figures", "tables", "notes"), ""
    )
    | {"differs": [], "runs": [{"path": 1, "label": "", "overrides": []}]}
)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"study": 1, "runs": [1]}', "\x00", RECORD])
def test_a_damaged_record_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(InputError, match="is not the record of a study"):
        collect([str(tmp_path)])


def test_a_directory_without_runs_says_so(tmp_path: Path) -> None:
    (collected,) = collect([str(tmp_path)])
    assert collected.runs.empty
    assert "is not a run directory" in collected.skipped[0].why


def test_damaged_curves_do_not_cost_the_run(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", validation=3.0)
    (run / "csv" / "version_0" / "metrics.csv").write_text("step,validation/perplexity\nx,y\n")
    (collected,) = collect([str(tmp_path)])
    assert collected.runs["validation_perplexity"].isna().all()
    assert json.loads((run / directory.METRICS).read_text())["perplexity"] == 100.0


def test_runs_of_a_study_that_are_not_complete_yet_are_one_sentence(
    make_run: Callable[..., Path], make_study: Callable[..., Path], tmp_path: Path
) -> None:
    done, damaged, begun = (make_run(tmp_path / name) for name in ("done", "damaged", "begun"))
    (damaged / "metrics.json").write_text("no figures")
    (begun / "metrics.json").unlink()
    planned = [tmp_path / "planned" / str(n) for n in range(3)]
    make_study(tmp_path / "study", [done, damaged, begun, *planned])
    (collected,) = collect([str(tmp_path / "study")])
    assert len(collected.runs) == 1
    damage, waiting = left_out(collected.skipped)
    assert "damaged" in damage
    assert waiting == "4 planned runs are not complete yet."
