"""This machine's memory: how much is free, and what the C library does with what torch frees."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MIB = 2**20


def free_memory() -> int:
    """Bytes that are free on this machine."""
    return int(psutil.virtual_memory().available)


def keep_freed_memory() -> bool:
    """Let the C library keep the blocks that torch frees on a CPU; whether that was possible.

    glibc gives a large block back to the system as soon as it is freed, and the next step pays
    for each of its pages again: half the time of a step, where the logits take tens of MB. Other
    C libraries (macOS, musl, Windows) have no such switch, and nothing is done there.
    """
    return _set({_M_MMAP_THRESHOLD: 1024, _M_TRIM_THRESHOLD: 2047, _M_TOP_PAD: 64})


def _set(settings: dict[int, int]) -> bool:
    """Of the C library, in MiB."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(bool(mallopt(name, mebibytes * _MIB)) for name, mebibytes in settings.items())


@contextmanager
def stock_memory() -> Iterator[None]:
    """What freed memory costs in a process that has not called :func:`keep_freed_memory`.

    glibc's own thresholds move, up to 32 MiB and twice that, as blocks are freed; here they stand
    where a process with large blocks ends up.
    """
    _set({_M_MMAP_THRESHOLD: 32, _M_TRIM_THRESHOLD: 64, _M_TOP_PAD: 0})
    try:
        yield
    finally:
        keep_freed_memory()


def release_freed_memory() -> bool:
    """Give what the C library holds of freed memory back to the system, where it can."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):
        return False
