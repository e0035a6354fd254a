"""A directory takes its place whole, and takes nobody else's."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qpa_exp.errors import InputError
from qpa_exp.files import MARK
from qpa_exp.files.whole_directory import LIST, check_place, whole_directory


def write(place: Path, text: str, overwrite: bool = False) -> None:
    with whole_directory(place, overwrite=overwrite) as new:
        (new / "a.txt").write_text(text)
        (new / "folder").mkdir()
        (new / "folder" / "b.txt").write_text(text)


def snapshot(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): str(path.readlink()) if path.is_symlink()
        else path.read_text() if path.is_file() else ""
        for path in directory.rglob("*")
    }  # fmt: skip


def test_what_is_written_is_listed_and_replaced_as_a_whole(tmp_path):
    place = tmp_path / "new" / "out"
    write(place, "old")
    assert json.loads((place / LIST).read_text())["files"] == ["a.txt", "folder/b.txt", LIST]
    write(place, "new", overwrite=True)
    assert (place / "folder" / "b.txt").read_text() == "new"
    assert list(tmp_path.iterdir()) == [place.parent]
    assert list(place.parent.iterdir()) == [place]


BAD = [
    "", ".", "..", "/", "notes/..", "notes", "empty", "file", "file/out", "loop", "loop/out",
    "link", "pipe", "/dev/null", "/dev/null/out", "/proc/out", "x" * 256, "x/" * 2500, "x" * 5000,
]  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch) -> Path:
    """A working directory with what is somebody's own, and what is no directory."""
    home = tmp_path / "home"
    for name in ("notes", "empty"):
        (home / name).mkdir(parents=True)
    (home / "notes" / "lab.log").write_text("precious")
    (home / "file").write_text("precious")
    (home / "loop").symlink_to(home / "loop")
    (home / "link").symlink_to(home / "notes")
    os.mkfifo(home / "pipe")
    monkeypatch.chdir(home)
    return home


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", BAD, ids=lambda name: name[:20])
def test_a_place_that_is_not_ours_is_refused_in_one_sentence(home, name, overwrite):
    before = snapshot(home.parent)
    with pytest.raises(InputError) as caught:
        write(Path(name), "new", overwrite=overwrite)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert snapshot(home.parent) == before


def test_a_place_where_nothing_can_be_made_is_refused_before_the_work():
    with pytest.raises(InputError, match="cannot be written"):  # permissions allow it to root
        check_place(Path("/proc/out"))


@pytest.mark.parametrize("foreign", ["mine.txt", "folder/mine.txt", "deep/er/mine.txt", "link"])
def test_one_file_that_is_not_listed_keeps_everything(tmp_path, foreign):
    place = tmp_path / "out"
    write(place, "old")
    (tmp_path / "victim").mkdir()
    mine = place / foreign
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.symlink_to(tmp_path / "victim") if foreign == "link" else mine.write_text("precious")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="holds files that no export has written"):
        write(place, "new", overwrite=True)
    assert snapshot(tmp_path) == before


@settings(max_examples=200)
@given(
    names=st.lists(
        st.one_of(
            st.text(max_size=5),
            st.integers(),
            st.none(),
            st.sampled_from(["../victim", "/victim", "..", ".", "a/../../victim", "victim", LIST]),
        ),
        max_size=4,
    )
)
def test_a_list_from_an_enemy_reaches_nothing_outside(names):
    with tempfile.TemporaryDirectory() as directory:
        _attack(Path(directory), names)


def _attack(home: Path, names: list[object]) -> None:
    (home / "victim").write_text("precious")
    place = home / "out"
    place.mkdir()
    (place / LIST).write_text(json.dumps({"files": [*names, LIST]}))
    try:
        write(place, "new", overwrite=True)
    except InputError:
        assert (place / LIST).is_file()
    assert (home / "victim").read_text() == "precious"


# --- killed on the way ------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours may run after it."""


def kill_at_rename(monkeypatch, which: int) -> None:
    """Let the ``which``-th rename of a directory be the process's last act, or never come."""
    rename, count = Path.rename, iter(range(100))

    def last(self, target):
        if next(count) >= which:
            raise Killed
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", last)
    monkeypatch.setattr("qpa_exp.files.whole_directory._put_back", lambda place: None)
    monkeypatch.setattr("shutil.rmtree", lambda place: None)


@pytest.mark.parametrize("which", [0, 1])
def test_whenever_it_is_killed_a_whole_version_is_found_again(tmp_path, which):
    place = tmp_path / "out"
    write(place, "old")
    with pytest.MonkeyPatch.context() as patch:
        kill_at_rename(patch, which)
        with pytest.raises(Killed):
            write(place, "new", overwrite=True)
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(InputError, match="exists"):
        write(place, "newer")
    assert (place / "a.txt").read_text() == "old"
    write(place, "newer", overwrite=True)
    assert (place / "a.txt").read_text() == "newer"
    assert list(tmp_path.iterdir()) == [place]


def test_what_goes_wrong_leaves_the_old_one(tmp_path):
    place = tmp_path / "out"
    write(place, "old")
    with pytest.raises(OSError, match="full"), whole_directory(place, overwrite=True):
        raise OSError("full")
    assert (place / "a.txt").read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]


def test_a_directory_of_a_user_with_such_a_name_stays(tmp_path):
    """The mark decides, not the name; and another process that still writes is left alone."""
    mine, marked, busy = (tmp_path / f".out.{n}.part" for n in (99999999, 99999998, 1))
    for directory in (mine, marked, busy):
        directory.mkdir()
        (directory / "x").write_text("")
    (marked / MARK).touch()
    (busy / MARK).touch()
    (tmp_path / ".out.replaced").mkdir()
    with pytest.raises(InputError, match=r"\.out\.replaced is not replaced"):
        write(tmp_path / "out", "new")
    (tmp_path / ".out.replaced").rmdir()
    write(tmp_path / "out", "new")
    assert {path.name for path in tmp_path.iterdir()} == {"out", mine.name, busy.name}
