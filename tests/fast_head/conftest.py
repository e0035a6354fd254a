"""The fast head of small models is tested without PEFT's remarks."""

from __future__ import annotations

import warnings

import pytest


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """PEFT's remarks on tied heads and unreachable hubs."""
    warnings.filterwarnings("ignore", module="peft")
