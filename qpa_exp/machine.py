"""This machine: loops compiled for its processor, their threads, and its memory."""

from __future__ import annotations

import ctypes
import inspect
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def compiled(function: Callable[..., Any]) -> Any:
    """Compile at the first call, and keep that for the next process where there is a place for it.

    Sums may be taken in any order, so that they are taken many at a time; NaN and infinity stay.
    """
    return _njit(function, fastmath={"reassoc", "contract", "nsz", "arcp"})


def compiled_in_order(function: Callable[..., Any]) -> Any:
    """Return the same for arithmetic that is to be done as it is written."""
    return _njit(function, fastmath={"contract"})


def _njit(function: Callable[..., Any], fastmath: set[str]) -> Any:
    import numba

    function = inspect.unwrap(function)  # the tests check types in every function: not in a loop
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither beside the source nor in the user's cache may be written
        return numba.njit(**options)(function)


def share_out(do: Callable[[int, int], T], n: int, *, threads: bool) -> list[T]:
    """``do(first, last)`` for ranges that make up ``range(n)``, and what they return.

    Args:
        do: releases the interpreter's lock, as compiled loops do.
        n: how much there is to do.
        threads: whether it is worth it to start some; then there are as torch has.
    """
    import torch

    parts = max(1, min(n, torch.get_num_threads() if threads else 1))
    if parts == 1:
        return [do(0, n)]
    bounds = [n * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts - 1) as pool:  # one for each call: a fork would not keep it
        others = [pool.submit(do, *span) for span in pairwise(bounds[1:])]
        return [do(*bounds[:2]), *(other.result() for other in others)]


# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MIB = 2**20


def user_cache() -> Path:
    """``$QPA_EXP_CACHE``, or ``qpa_exp`` in the user's cache directory."""
    if own := os.environ.get("QPA_EXP_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "qpa_exp"


def free_memory() -> int:
    """Bytes that are free on this machine."""
    import psutil

    return int(psutil.virtual_memory().available)


def keep_freed_memory() -> bool:
    """Let the C library keep the blocks that torch frees on a CPU; whether that was possible.

    glibc gives a large block back to the system as it is freed, and the next step pays
    for each of its pages again: half the time of a step, where the logits take tens of MB. Other
    C libraries (macOS, musl, Windows) have no such switch, and nothing is done there.
    """
    return _set({_M_MMAP_THRESHOLD: 1024, _M_TRIM_THRESHOLD: 2047, _M_TOP_PAD: 64})


def _set(settings: dict[int, int]) -> bool:
    """Set a limit of the C library, in MiB."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(bool(mallopt(name, mebibytes * _MIB)) for name, mebibytes in settings.items())


@contextmanager
def stock_memory() -> Iterator[None]:
    """Yield what freed memory costs in a process that has not called :func:`keep_freed_memory`.

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
