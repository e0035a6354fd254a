"""The one place that writes, reads and removes files, and what it takes for its own.

Nothing is removed that does not carry the package's mark: a name of the package's own form, in a
directory that the package has marked. What somebody else wrote is data: it is read up to a limit,
checked, and a path that stands in it is never followed to write or to remove.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import stat
import tempfile
import types
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from qpa_exp.errors import InputError

MIB = 2**20
MARK = ".qpa_exp"
"""A directory that has a file of this name is the package's own."""

LONGEST_NAME = 200
"""Bytes of a file's name, so that the name of what is being written is allowed, too."""
_PART = re.compile(r"\..+\.\d+\.part")


@contextmanager
def tidied(directory: Path) -> Iterator[None]:
    """Take away at the end the directories that were made on the way to this one, and are empty."""
    way = (directory, *directory.parents)
    missing = [place for place in way if not os.path.exists(place)]  # noqa: PTH110
    try:
        yield
    finally:
        for place in missing:
            with suppress(OSError):  # it holds something, or was never made
                place.rmdir()


@contextmanager
def made(directory: Path) -> Iterator[None]:
    """Have a directory, made with those on the way to it; what is empty at the end goes again."""
    with tidied(directory):
        directory.mkdir(parents=True, exist_ok=True)
        yield


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file to write to, which takes its name when it is complete and on disk.

    It lies beside its place under a name of this process until then, and is gone where anything
    goes wrong.

    Args:
        path: the file's place; its directory is made where it does not exist.

    Raises:
        InputError: a directory or a device has this name.
        OSError: the disk is full, the place is read-only, and the like.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{str(path)[:200]} is no ordinary file: give another name.")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with made(path.parent):
        try:
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            error.filename = error.filename or str(path)  # a full disk does not say which file
            raise
        finally:
            part.unlink(missing_ok=True)


def check_file(path: Path, key: str) -> None:
    """Refuse a place where no file can be written, before the work for it begins.

    Args:
        path: the file's place.
        key: what the user gave it as, for the sentence: ``draw=`` or ``--json ``.

    Raises:
        InputError: its directory is missing or read-only, or the name is no file's.
    """
    shown, parent = f"{key}{str(path)[:200]}", path.absolute().parent
    try:
        if not parent.is_dir():
            raise InputError(f"{shown} cannot be written: {str(parent)[:200]} is not a directory.")
        if os.path.lexists(path) and not path.is_file():
            raise InputError(f"{shown} cannot be written: it is there and is no ordinary file.")
        if len(os.fsencode(path.name)) > LONGEST_NAME:
            raise InputError(f"{shown} cannot be written: its name is too long.")
        try_writing(parent)
    except OSError as error:
        raise InputError(f"{shown} cannot be written: {error.strerror}.") from error


def try_writing(directory: Path) -> None:
    """Make a file without a name there, which is gone at once: permissions do not tell all.

    Raises:
        OSError: the directory is read-only, full, or no place for files.
    """
    with tempfile.TemporaryFile(dir=directory):
        pass


def remove_parts(directory: Path) -> None:
    """Remove what killed processes left of :func:`whole_file` in this directory.

    The caller holds the directory's lock, so that nobody is writing there now.
    """
    for file in directory.glob(".*.part"):
        if _PART.fullmatch(file.name) and file.is_file() and not file.is_symlink():
            file.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text."""
    with whole_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON.

    Raises:
        TypeError: JSON has no such value; nothing is written then.
        ValueError: a number is not finite, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def mark(directory: Path) -> None:
    """Make a directory the package's own; it must be new or empty, or have its mark already.

    Raises:
        InputError: it holds something else.
    """
    with made(directory):
        holds = any(directory.iterdir())  # first: another process may mark it, and then write to it
        if is_marked(directory):
            return
        if holds:
            raise InputError(
                f"{directory} holds files of yours: give a directory that is new or empty."
            )
        text = "This directory belongs to qpa_exp, which removes files in it.\n"
        (directory / MARK).write_text(text, encoding="utf-8")  # its name is all that counts


def typed_path(text: str) -> Path:
    """Return the path that somebody typed; ``~`` is their home, where the system knows one."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path's own fails where it knows none


def is_marked(directory: Path) -> bool:
    """Whether a directory is the package's own."""
    return (directory / MARK).is_file()


def read_bytes(path: Path, most: int = 16 * MIB) -> bytes:
    """Read the content of an ordinary file that somebody else may have written.

    Args:
        path: the file. A device or a pipe is refused before it is opened, for it may never end.
        most: bytes that it may have.

    Raises:
        InputError: one sentence with the path: it is missing, no ordinary file, too large, or
            cannot be read.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path} is no ordinary file.")
        if found.st_size > most:
            raise InputError(f"{path} has {found.st_size:,} bytes, more than the {most:,} allowed.")
        with path.open("rb") as file:
            return file.read(found.st_size)  # more would be allocated first
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:  # a path with a zero byte
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(path)!r} is no path: {error}.") from error


def check_directory(directory: str | Path) -> None:
    """Refuse a place to save to that is a file.

    Raises:
        InputError: it is one.
    """
    if Path(directory).is_file():
        raise InputError(f"{str(directory)[:200]} is a file: give a directory to save to.")


def file_sha256(file: Path) -> str:
    """Return the hash of a file's content, computed once for as long as the file is the same."""
    found = file.stat()
    return _sha256(file, found.st_size, found.st_mtime_ns)


@functools.cache
def _sha256(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object from disk; None where there is none, or something else."""
    try:
        value = json.loads(read_bytes(path))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_plain(path: Path, most: int = MIB, *, references: bool = False) -> Any:
    """Return what a JSON file holds that somebody else may have written: plain data, nothing to
    resolve.

    Args:
        path: the file.
        most: bytes that it may have.
        references: whether it may hold text with ``${``, which will be shown and nothing else.

    Raises:
        InputError: one sentence with the path: it cannot be read, is no JSON, or holds a reference
            (``${``), a number that is not finite or beyond 64 bits, or text that is none.
    """
    try:
        value = json.loads(read_bytes(path, most))
        check_plain(value, references)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON that can be used: {str(error)[:200]}.") from error
    return value


def check_plain(value: Any, references: bool) -> None:
    """Refuse what is more than data: a reference, no text, no number of 64 bits, another type.

    Args:
        value: what a file holds, lists and tables among it.
        references: whether texts may hold ``${``, which will be shown and nothing else.

    Raises:
        ValueError: says which.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r:.50} is no text")
            check_plain(key, references)
            check_plain(item, references)
    elif isinstance(value, list):
        for item in value:
            check_plain(item, references)
    elif isinstance(value, str):
        if not references and ("${" in value or value == "???"):
            raise ValueError("it refers to something, and all values are written out")
        if "\0" in value or value != value.encode(errors="replace").decode():
            raise ValueError("it holds text that is none")
    elif isinstance(value, int | float):  # a truth value is one, too
        if not (math.isfinite(value) if isinstance(value, float) else -(2**63) <= value < 2**64):
            raise ValueError("it holds a number that is not finite, or beyond 64 bits")
    elif value is not None:
        raise ValueError(f"it holds a {type(value).__name__}")


T = TypeVar("T")


def typed(schema: type[T], value: Any, place: str = "") -> T:
    """Return an object of a dataclass from plain data, where every key is known and has its type.

    Args:
        schema: the dataclass; a field may be one, too, or one or null.
        value: what a file holds.
        place: the key at which it stands there, for the sentence.

    Raises:
        ValueError: a key is unknown or missing, or its value has another type.
    """
    hints = typing.get_type_hints(schema)
    if not isinstance(value, dict):
        raise ValueError(f"{place or 'it'} holds {str(value)[:100]} where a table is to be")
    given = {}
    for name, item in value.items():
        key, hint = f"{place}.{name}".lstrip("."), hints.get(name)
        if hint is None:
            raise ValueError(f"{key[:100]} is not known")
        table = next(filter(dataclasses.is_dataclass, (hint, *typing.get_args(hint))), None)
        if table is not None and not (item is None and hint is not table):
            item = typed(typing.cast(type, table), item, key)
        elif not fits(item, hint):
            raise ValueError(f"{key}={str(item)[:100]} has the wrong type")
        given[name] = item
    try:
        return schema(**given)
    except TypeError as error:
        raise ValueError(str(error)) from error


def fits(value: Any, hint: Any) -> bool:
    """Whether plain data is of a type, down to the items of its lists and tables."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, choice) for choice in inside)
    if origin is typing.Literal:
        return value in inside
    if origin in (list, Sequence):
        return isinstance(value, list) and all(fits(item, inside[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(v, inside[1]) for v in value.values())
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, (int, float) if hint is float else origin or hint)


def plain_name(name: Any, what: str) -> str:
    """Give a name out of a file that somebody else may have written, which will be part of a path.

    Raises:
        InputError: it is none: letters, digits, ``_``, ``-`` and ``.``, at most 100 of them, and no
            dot first.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]{0,99}", name):
        raise InputError(f"{what} is {name!r:.100}: a name has letters, digits, _, - and . alone.")
    return name
