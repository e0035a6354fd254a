"""Measured counts on disk, so that nobody pays twice for the same circuit.

One small JSON file for each circuit, in the folder ``qiskit`` of the user's cache. Its name is a
digest of all that the counts depend on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qpa_exp.files.reading import read_json
from qpa_exp.files.writing import write_json
from qpa_exp.machine import user_cache

Counts = dict[int, int]
"""From a basis state to how often it was measured."""


def digest(record: Mapping[str, Any]) -> str:
    """A name for what was measured; ``record`` is plain JSON."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_counts(name: str, shots: int) -> Counts | None:
    """The counts of that name; None where there are none, or none that can be read."""
    try:
        counts = {int(state): int(n) for state, n in (read_json(_path(name)) or {}).items()}
    except (ValueError, TypeError):
        return None
    return counts if sum(counts.values()) == shots else None


def write_counts(name: str, counts: Counts) -> None:
    """Write the file whole or not at all."""
    write_json(_path(name), counts)


def _path(name: str) -> Path:
    return user_cache() / "qiskit" / name[:2] / f"{name}.json"
