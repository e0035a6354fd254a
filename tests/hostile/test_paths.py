"""Every option that takes a path, with every kind of bad path: one sentence, nothing changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qpa_exp import benchmark, export, generate, plan, reproduce
from qpa_exp.__main__ import main as train
from qpa_exp.report import __main__ as report

TINY = ["trainer.max_steps=1", "trainer.limit_eval_batches=1", "trainer.progress_bar=false"]
READ: dict[str, tuple[Callable[[list[str]], object], list[str]]] = {
    "train data.path": (train, ["data=text", "data.path={}"]),
    "train model": (train, ["model=hf", "model.name_or_path={}", "data=text", "data.path=a.txt"]),
    "resume": (train, ["resume={}"]),
    "plan model": (plan.main, ["model=hf", "model.name_or_path={}"]),
    "generate run": (generate.main, ["run={}", "prompt=the"]),
    "export run": (export.main, ["run={}", "out=out/adapter"]),
    "report runs": (report.main, ["runs={}", "out=out/report"]),
}
WRITTEN: dict[str, tuple[Callable[[list[str]], object], list[str]]] = {
    "train hydra.run.dir": (train, [*TINY, "data=text", "data.path=a.txt", "hydra.run.dir={}"]),
    "sweep hydra.sweep.dir": (
        train,
        ["-m", *TINY, "data=text", "data.path=a.txt", "seed=1,2", "hydra.sweep.dir={}"],
    ),
    "export out": (export.main, ["run={run}", "out={}"]),
    "report out": (report.main, ["runs={run}", "out={}"]),
    "plan draw": (plan.main, ["draw={}"]),
    "benchmark json": (benchmark.main, ["--quick", "--only", "circuits", "--json", "{}"]),
    "reproduce out": (reproduce.main, ["studies=windows", "scale=smoke", "out={}"]),
}


def bad_paths(place: Path) -> dict[str, str]:
    """Made below a directory; what each of them is, and its path."""
    (place / "file.txt").write_text("the circuit\n")
    (place / "loop").symlink_to(place / "loop")
    os.mkfifo(place / "fifo")
    return {
        "under a file": str(place / "file.txt" / "x"),
        "a device": "/dev/null",
        "a full device": "/dev/full",
        "under a device": "/dev/null/x",
        "a loop": str(place / "loop"),
        "a FIFO": str(place / "fifo"),
        "a long name": str(place / ("x" * 300)),
        "a long id": "owner/" + "x" * 300,
        "a long owner": "x" * 300 + "/name",
        "a long path": "x/" * 2500,
        "a zero byte": "a\0b",
        "another text": "\udcff",
        "nothing": "",
        "nobody's home": "~nobody_of_this_name/x",
    }


KINDS = ["under a file", "a device", "a full device", "under a device", "a loop", "a FIFO",
         "a long name", "a long id", "a long owner", "a long path", "a zero byte", "another text",
         "nothing"]  # fmt: skip


@pytest.mark.parametrize("kind", [*KINDS, "nobody's home"])
@pytest.mark.parametrize("option", READ)
def test_what_cannot_be_read_is_one_sentence(
    home: Path, untouched: None, refused: Callable[..., str], option: str, kind: str
) -> None:
    path = bad_paths(home / "desk" / "out")[kind]
    main, arguments = READ[option]
    refused(main, [argument.replace("{}", path) for argument in arguments])


BAD = [(option, kind) for option in WRITTEN for kind in (*KINDS, "a file")]
BAD.remove(("benchmark json", "a file"))  # a record is written again where it was


@pytest.mark.parametrize(("option", "kind"), BAD)
def test_what_cannot_be_written_is_one_sentence(
    home: Path, untouched: None, enemys: Callable[[], Path], refused: Callable[..., str],
    option: str, kind: str,
) -> None:  # fmt: skip
    run = enemys()
    paths = {**bad_paths(home / "desk" / "out"), "a file": "a.txt"}
    main, arguments = WRITTEN[option]
    refused(main, [a.replace("{run}", str(run)).replace("{}", paths[kind]) for a in arguments])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("option", WRITTEN)
def test_a_directory_that_may_not_be_written_is_one_sentence(
    home: Path, enemys: Callable[[], Path], refused: Callable[..., str], option: str
) -> None:
    run, locked = enemys(), home / "desk" / "out" / "locked"
    locked.mkdir(mode=0o500)
    main, arguments = WRITTEN[option]
    path = str(locked / "x.svg")
    refused(main, [a.replace("{run}", str(run)).replace("{}", path) for a in arguments])


PLANS = ["model=hf", "data=text", "data.path=a.txt", "hydra.sweeper.only_plan=true"]


def test_a_sweep_refuses_the_home_of_nobody_too(home: Path, refused: Callable[..., str]) -> None:
    refused(train, ["-m", *PLANS, "model.name_or_path=~nobody_of_this_name/x", "seed=1,2"])


# --- the boundary itself ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left on device", "out/x"), "out/x cannot be written: No space left"),
        (PermissionError(13, "Permission denied", "x"), "x cannot be used: Permission denied"),
        (MemoryError(), "There is not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
         "There is not enough memory to allocate 8 bytes"),
    ],
)  # fmt: skip
def test_what_the_machine_refuses_is_one_sentence(
    home: Path, refused: Callable[..., str], error: Exception, says: str
) -> None:
    def main(arguments: list[str]) -> None:
        raise error

    assert says in refused(main, [])


def test_a_bug_keeps_its_traceback_and_says_where_to_report_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from qpa_exp.cli import run_command

    def main(arguments: list[str]) -> Any:
        return {}["no such key"]

    monkeypatch.setattr("sys.argv", ["qpa_exp"])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    lines = capfd.readouterr().err.splitlines()
    assert ended.value.code == 1
    assert lines[0].startswith("Traceback")
    assert "KeyError" in lines[-2]
    assert "issue tracker" in lines[-1]


def test_ctrl_c_ends_a_command_with_a_word(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from qpa_exp.cli import run_command

    def main(arguments: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["qpa_exp"])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert (ended.value.code, capfd.readouterr().err) == (130, "interrupted\n")
