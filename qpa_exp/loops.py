"""Loops that Numba compiles for this processor, and the threads that share them.

A loop that is to be compiled is ``@compiled``, and beneath it ``@no_type_check``: the checks of
types that the tests put into every function cannot be compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, TypeVar

import numba
import torch

T = TypeVar("T")


def compiled(function: Callable[..., Any]) -> Any:
    """Compile at the first call, and keep that for the next process where there is a place for it.

    Sums may be taken in any order, so that they are taken many at a time; NaN and infinity stay.
    """
    return _njit(function, fastmath={"reassoc", "contract", "nsz", "arcp"})


def compiled_in_order(function: Callable[..., Any]) -> Any:
    """The same for arithmetic that is to be done as it is written."""
    return _njit(function, fastmath={"contract"})


def _njit(function: Callable[..., Any], fastmath: set[str]) -> Any:
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
        threads: whether it is worth it to start some; then there are as many as torch has.
    """
    parts = max(1, min(n, torch.get_num_threads() if threads else 1))
    if parts == 1:
        return [do(0, n)]
    bounds = [n * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts - 1) as pool:  # one for each call: a fork would not keep it
        others = [pool.submit(do, *span) for span in pairwise(bounds[1:])]
        return [do(*bounds[:2]), *(other.result() for other in others)]
