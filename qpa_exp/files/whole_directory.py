"""A directory that is written whole or not at all, and replaced only where it is the package's."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qpa_exp.errors import InputError
from qpa_exp.files import (
    LONGEST_NAME,
    MARK,
    MIB,
    is_marked,
    made,
    plain_name,
    read_bytes,
    try_writing,
    write_json,
)

LIST = "qpa_export.json"
"""The file of a finished directory that says which files of it the package has written."""


@contextmanager
def whole_directory(place: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a directory to write into, which takes its place when it is complete and on disk.

    The one that was there stays until then, and is moved aside, not removed, before the new one
    takes its place: whenever the process is killed, one whole version is ``place`` or
    ``.<name>.replaced`` beside it, and the next call puts that back first.

    Args:
        place: the directory to make.
        overwrite: replace one that the package has written, and that holds nothing else.

    Raises:
        InputError: :func:`check_place` refuses it.
    """
    check_place(place, overwrite=overwrite)
    aside = _aside(place)
    with part_of(place) as new:
        yield new
        written = sorted(str(file.relative_to(new)) for file in new.rglob("*") if file.is_file())
        write_json(new / LIST, {"made_by": "qpa_exp", "files": [*written, LIST]})
        _sync(new)
        if overwrite and _listed(place) is not None:
            place.rename(aside)
        try:
            new.rename(place)
        except BaseException:
            _put_back(place)
            raise
    _remove_listed(aside)


def check_place(place: Path, *, overwrite: bool = False) -> None:
    """Refuse a place where :func:`whole_directory` cannot or must not write; nothing is made.

    Raises:
        InputError: it exists and is not to be replaced, or is no directory that the package has
            written; or its parent is none that can be written to.
    """
    shown = f"out={str(place)[:100]}"
    if place.name in ("", ".."):
        raise InputError(f"{shown} is no new directory: give a name, for example out=adapter.")
    if len(os.fsencode(place.name)) > LONGEST_NAME:
        raise InputError(f"{shown} has too long a name: give at most {LONGEST_NAME} letters.")
    try:
        _put_back(place)
        exists = _exists(place)
        parent = next(folder for folder in place.absolute().parents if _exists(folder))
        try_writing(parent)
        if exists and not overwrite:
            raise InputError(f"{shown} exists: give another out=<directory>, or overwrite=true.")
        for there in (place, _aside(place)):
            if _exists(there) and _listed(there) is None:
                raise InputError(
                    f"out={str(there)[:100]} is not replaced: it is no export, or holds files that "
                    "no export has written; give another out=<directory>."
                )
    except OSError as error:
        raise InputError(f"{shown} cannot be written: {error.strerror}.") from error


def _exists(place: Path) -> bool:
    """Whether anything has this name, a broken link among it."""
    try:
        place.lstat()
    except FileNotFoundError:
        return False
    return True


@contextmanager
def part_of(place: Path) -> Iterator[Path]:
    """Yield a new directory beside ``place`` to write into.

    What is left in it at the end is removed.

    It lies in one that is marked as the package's own, and what a killed process left of such
    is removed first.

    Raises:
        InputError: it cannot be made.
    """
    with made(place.absolute().parent):
        yield from _part_of(place)


def _part_of(place: Path) -> Iterator[Path]:
    name = re.compile(rf"\.{re.escape(place.name)}\.(\d+)\.part")
    for old in place.parent.iterdir():
        match = name.fullmatch(old.name)
        if match and not old.is_symlink() and is_marked(old) and not _runs(int(match[1])):
            shutil.rmtree(old)
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        part.mkdir()
        (part / MARK).touch()
        (part / "new").mkdir()
    except OSError as error:
        raise InputError(f"{str(part)[:200]} cannot be made: {error.strerror}.") from error
    try:
        yield part / "new"
    finally:
        shutil.rmtree(part)


def _runs(process: int) -> bool:
    import psutil

    return process != os.getpid() and bool(psutil.pid_exists(process))


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.replaced")


def _put_back(place: Path) -> None:
    """Undo the first half of a replacement whose second half never came."""
    aside = _aside(place)
    if _listed(aside) is not None:
        if os.path.lexists(place):
            _remove_listed(aside)
        else:
            aside.rename(place)


def _listed(directory: Path) -> list[Path] | None:
    """Return the files of a directory that the package has written.

    None where it holds anything else.
    """
    if directory.is_symlink() or not directory.is_dir() or not (directory / LIST).is_file():
        return None
    try:
        names = json.loads(read_bytes(directory / LIST, MIB))["files"]
        files = [directory.joinpath(*map(_name, str(name).split("/"))) for name in names]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    folders = {folder for file in files for folder in file.relative_to(directory).parents}
    for found in directory.rglob("*"):
        known = found in files or (found.is_dir() and found.relative_to(directory) in folders)
        if found.is_symlink() or not known:
            return None
    return files


def _name(part: str) -> str:
    return plain_name(part, "a file's name")


def _remove_listed(directory: Path) -> None:
    """Remove a directory that holds what it lists and nothing else; the list goes last."""
    files = _listed(directory)
    if files is None:
        return
    for file in sorted(files, key=lambda file: file.name == LIST):
        file.unlink(missing_ok=True)
    folders = [folder for folder in directory.rglob("*") if folder.is_dir()]
    for folder in [*sorted(folders, reverse=True), directory]:
        folder.rmdir()


def _sync(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
