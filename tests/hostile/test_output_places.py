"""The files that commands write where the user says: a bad place is refused before the work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qpa_exp import benchmark, export
from qpa_exp.circuits.to_qiskit import check_picture
from qpa_exp.errors import InputError

BAD = [
    "", ".", "..", "notes", "file.png/x.png", "loop.png", "loop.png/x.png", "pipe.png", "/dev/null",
    "/proc/x.png", "nowhere/x.png", "x" * 256 + ".png", "x/" * 2500 + "x.png", "x" * 5000,
]  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory of somebody's own, and names that are no files."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "lab.log").write_text("precious")
    (tmp_path / "file.png").write_text("precious")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    return tmp_path


WRITERS = {
    "--json": lambda place: benchmark.parse(["--json", place]),
    "draw": lambda place: check_picture(Path(place)),
    "out": lambda place: export.main(["run=nowhere", f"out={place}", "overwrite=true"]),
}


@pytest.mark.parametrize("place", BAD, ids=lambda place: place[:20])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_bad_place_is_one_sentence_and_changes_nothing(home, monkeypatch, writer, place):
    monkeypatch.chdir(home)
    before = {path: path.lstat().st_mtime_ns for path in home.rglob("*")}
    with pytest.raises(InputError) as caught:
        WRITERS[writer](place)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert {path: path.lstat().st_mtime_ns for path in home.rglob("*")} == before
