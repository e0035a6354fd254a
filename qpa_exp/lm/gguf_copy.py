"""A GGUF file's model in the hub's format and float32, made once and kept in the user's cache.

transformers takes most of a minute to read a small GGUF file, and holds what it has read for
quantized. So the copy is what everything else reads. It lies in ``gguf/`` within the cache, a
directory with the package's mark, under the digest of the GGUF file's content. It is written whole
or not at all; a checksum of each of its files is compared when it is found, and a damaged copy is
made again.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import mmap
import shutil
import struct
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError

from qpa_exp.errors import InputError, one_line
from qpa_exp.files import file_sha256, mark, read_json, write_json
from qpa_exp.files.whole_directory import part_of
from qpa_exp.machine import user_cache

log = logging.getLogger(__name__)

FOLDER = "gguf"
"""The name of the copies' own directory within the user's cache."""

_RECORD = "qpa_copy.json"


def hub_copy(file: Path, read: Callable[[], tuple[Any, Any]]) -> Path:
    """Return the directory of a GGUF file's copy, which is made where it is not there and whole.

    Args:
        file: the GGUF file.
        read: reads the model and its tokenizer out of it, if need be.

    Raises:
        InputError: the file is refused, or the copy cannot be written.
    """
    digest = file_sha256(file)
    cache = user_cache() / FOLDER
    place = cache / f"{digest[:32]}-transformers-{version('transformers')}"
    if _is_whole(place):
        return place
    check_header(file)
    what = f"{place} is damaged: it is" if place.exists() else f"{place} is"
    log.info("%s made from %s, once: a minute or two.", what, file)
    model, tokenizer = read()
    if file_sha256(file) != digest:
        raise InputError(f"{file} was changed while it was read: try it again.")
    try:
        mark(cache)
        with FileLock(cache / f"{place.name}.lock"):
            if not _is_whole(place):  # nor has another process made it meanwhile
                _write(place, model, tokenizer)
    except (OSError, SafetensorError, InputError) as error:
        why = getattr(error, "strerror", None) or one_line(error).rstrip(".")[:300]
        raise InputError(
            f"The float32 copy of {file} cannot be kept in {cache} ({why}): make room there, or "
            "set QPA_EXP_CACHE to another directory."
        ) from error
    return place


def _write(place: Path, model: Any, tokenizer: Any) -> None:
    with part_of(place) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        write_json(new / _RECORD, _sums(new))
        if place.exists():
            shutil.rmtree(place)
        new.rename(place)


def _is_whole(place: Path) -> bool:
    """Whether each file of the copy, and no other, is there as it was written."""
    try:
        return place.is_dir() and read_json(place / _RECORD) == _sums(place)
    except OSError:
        return False


def _sums(place: Path) -> dict[str, str]:
    """Return the hash of each file, by its path within."""
    files = [f for f in place.rglob("*") if f.is_file() and f != place / _RECORD]
    return {f.relative_to(place).as_posix(): file_sha256(f) for f in files}


# --- a file that somebody else may have written -------------------------------------------------

_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_ITEMS = 2**22
"""The most entries of all lists together. The reader makes an object of each; the largest
vocabularies and their merges are half a million."""


def check_header(file: Path) -> None:
    """Refuse what is no GGUF file, and lengths in it that would fill the memory of its reader.

    The package ``gguf`` does not look where the file ends, and so adds to a list as often as a
    damaged length says.
    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

    Raises:
        InputError: one sentence with the path; or the package is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise InputError(
            f"{file} needs the package gguf to be read: pip install 'qpa-exp[gguf]', or "
            "make setup-smollm2."
        )
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise InputError(f"{file} is no GGUF file: it does not begin with GGUF.")
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                _walk(content)
            except struct.error as error:
                raise InputError(
                    f"{file} is no whole GGUF file: it is cut short or damaged."
                ) from error


def _walk(content: mmap.mmap) -> None:
    """Go through the metadata and the list of tensors, and see that these are there.

    Raises:
        struct.error: the file ends before, or there is something that no GGUF file has.
    """
    from gguf import GGML_QUANT_SIZES

    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    place, order, items = 4, "<", 0

    def take(form: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(order + form, content, place)
        place += struct.calcsize(order + form)
        return int(value) if form not in "fd" else 0

    def skip(size: int) -> None:
        nonlocal place
        if size > len(content) - place:
            raise struct.error("beyond the end")
        place += size

    def value(kind: int) -> None:
        nonlocal items
        if kind == _STRING:
            skip(take("Q"))
        elif kind in _SCALARS:
            skip(struct.calcsize(_SCALARS[kind]))
        elif kind == _ARRAY:
            inner, length = take("I"), take("Q")
            items += length
            if inner == _ARRAY or items > _MOST_ITEMS:
                raise struct.error("a list of lists, or a list of millions")
            for _ in range(length):
                value(inner)
        else:
            raise struct.error("an unknown type")

    if take("I") & 0xFFFF == 0:  # written in the other order of bytes
        order = ">"
    tensors, pairs, end = take("Q"), take("Q"), 0
    for _ in range(pairs):
        skip(take("Q"))
        value(take("I"))
    for _ in range(tensors):
        skip(take("Q"))
        size = math.prod(take("Q") for _ in range(take("I")))
        kind, offset = take("I"), take("Q")
        if kind not in sizes:
            raise struct.error("an unknown type")
        block, block_bytes = sizes[kind]
        end = max(end, offset + size // block * block_bytes)
    skip(end)
