"""A run that comes to an end in the middle of its training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from qpa_exp.runs.module import AdapterModule


class Crash(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture
def crashes_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """``with crashes_at(step):`` the run that is made in it ends when that step begins."""
    proper = AdapterModule.training_step

    @contextmanager
    def crashing_at(step: int) -> Iterator[None]:
        def crashing(self: AdapterModule, batch: object, batch_idx: int) -> object:
            if self.global_step == step:
                raise Crash
            return proper(self, batch, batch_idx)

        with monkeypatch.context() as patch:
            patch.setattr(AdapterModule, "training_step", crashing)
            with pytest.raises(Crash):
                yield

    return crashing_at
