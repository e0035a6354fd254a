"""Where a run may go, and what is left behind where it may not: nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from qpa_exp.__main__ import main, place_as_typed
from qpa_exp.cli import compose_whole
from qpa_exp.errors import InputError
from qpa_exp.files import tidied
from qpa_exp.runs import directory

Refusal = Callable[..., str]


def snapshot(root: Path) -> dict[str, bytes | None]:
    """Every path below, and what the files hold."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        if path.is_file() and not path.is_symlink()
        else None
        for path in root.rglob("*")
    }


def _file(root: Path) -> str:
    (root / "notes.txt").write_text("mine")
    return "notes.txt"


def _under_a_file(root: Path) -> str:
    return f"{_file(root)}/run"


def _loop(root: Path) -> str:
    (root / "loop").symlink_to("loop")
    return "loop/run"


def _link_to_nowhere(root: Path) -> str:
    (root / "link").symlink_to("nowhere/at/all")
    return "link"


def _read_only(root: Path) -> str:
    (root / "locked").mkdir(mode=0o500)
    return "/proc/1/run" if os.access(root / "locked", os.W_OK) else "locked/run"


PLACES: dict[str, Callable[[Path], str]] = {
    "empty": lambda root: "",
    "blank": lambda root: " ",
    "a file": _file,
    "under a file": _under_a_file,
    "a device": lambda root: "/dev/null",
    "under a device": lambda root: "/dev/full/run",
    "a name too long": lambda root: "a" * 300,
    "a path too long": lambda root: "/".join(["a"] * 5000),
    "a loop of links": _loop,
    "a link to nowhere": _link_to_nowhere,
    "read-only": _read_only,
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_a_place_that_cannot_be_is_refused(
    overrides: list[str], tmp_path: Path, refusal: Refusal, place: Callable[[Path], str]
) -> None:
    path = place(tmp_path)
    before = snapshot(tmp_path)
    said = refusal(main, [*overrides, f"hydra.run.dir={path}"], tmp_path)
    assert "director" in said
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", sorted(directory.WRITTEN))
def test_a_directory_that_holds_what_a_run_writes_is_not_written_over(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="holds"):
        directory.check_place(tmp_path)


REFUSED = {
    "data": ["data.path=/nope"],
    "generator": ["qpa.n_mlp=0"],
    "no GPU": ["trainer=gpu", "trainer.max_epochs=1"],
    "strategy": ["trainer.strategy=nope"],
    "devices": ["trainer.devices=100"],
    "layer": ["peft.target_modules=[lm_hed]"],
}


@pytest.mark.parametrize("bad", REFUSED.values(), ids=REFUSED.keys())
def test_a_refused_run_leaves_everything_as_it_was(
    overrides: list[str], tmp_path: Path, refusal: Refusal, bad: list[str]
) -> None:
    """The user's own files, empty directories and logs among them."""
    (tmp_path / "notes" / "empty").mkdir(parents=True)
    (tmp_path / "notes" / "lab.log").write_text("mine")
    before = snapshot(tmp_path)
    for place in ("notes", "notes/new/one"):
        refusal(main, [*overrides, *bad, f"hydra.run.dir={place}"], tmp_path)
        assert snapshot(tmp_path) == before


def test_what_was_made_on_the_way_to_a_run_that_never_began_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    run_dir = tmp_path / "there" / "new" / "run"
    with tidied(run_dir):
        run_dir.mkdir(parents=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "there"]
    with tidied(tmp_path / "there"):
        pass
    assert (tmp_path / "there").is_dir()


@pytest.mark.parametrize(
    "path",
    [
        "my runs/a",
        "größe/ü",
        "it's",
        "a=b",
        "a,b",
        "[x]",
        "{a:b}",
        "1e3",
        "null",
        "~x",
        "$a",
        r"a\b",
        "a\\",
        r"\'",
        r"a\\'b",
    ],
)
def test_a_path_is_taken_as_it_is_typed(path: str) -> None:
    read = OverridesParser.create().parse_override(place_as_typed(f"hydra.run.dir={path}"))
    assert read.value() == path


def test_home_and_times_are_put_into_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/an na")
    _, composed = compose_whole([place_as_typed("hydra.run.dir=~/ü/${seed}-${now:%Y}")])
    assert composed.hydra.run.dir.startswith("/home/an na/ü/2025-20")


@pytest.mark.parametrize("flags", [["hydra.run.dir=run"], ["-m", "hydra.sweep.dir=run", "seed=1"]])
def test_paths_are_relative_to_where_they_were_typed_wherever_hydra_works(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("the circuit of some qubits\n" * 200)
    text = ["data.path=a.txt", "data.cache=disk", "data.cache_dir=cache", "trainer.max_steps=1"]
    main([*flags, *overrides, *text, "hydra.job.chdir=true"])
    assert {path.name for path in tmp_path.iterdir()} <= {"a.txt", "cache", "run", "outputs"}
    (metrics,) = (tmp_path / "run").rglob("metrics.json")
    assert metrics.parent in (tmp_path / "run", *(tmp_path / "run").iterdir())
    assert list((tmp_path / "cache").rglob("*.safetensors"))
