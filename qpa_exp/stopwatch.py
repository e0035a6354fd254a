"""Where the time of a training step goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

SECTIONS = ("backbone", "generator", "head")
_MARKS_HELD = 4096


class Stopwatch:
    """Adds up seconds, section by section.

    On a GPU the sections are marked by events, which cost nothing; they are read at the end.

    Attributes:
        on: nothing is measured while this is false.
    """

    def __init__(self) -> None:
        self.on = False
        self._seconds = dict.fromkeys(SECTIONS, 0.0)
        self._marks: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def section(self, name: str, device: torch.device) -> Iterator[None]:
        """Count what is done in this context as ``name``."""
        if not self.on:
            yield
        elif device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._marks.append((name, begin, end))
            if len(self._marks) >= _MARKS_HELD:
                self._read_marks()
        else:
            began = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - began

    def split(self, total: float) -> dict[str, float]:
        """Seconds in each section, and what is left of ``total`` as ``other``."""
        self._read_marks()
        return self._seconds | {"other": max(0.0, total - sum(self._seconds.values()))}

    def _read_marks(self) -> None:
        if self._marks:
            torch.cuda.synchronize()
        for name, begin, end in self._marks:
            self._seconds[name] += begin.elapsed_time(end) / 1000
        self._marks.clear()
