"""Measured counts on disk, so that nobody pays twice for the same circuit.

One small file for each circuit, under ``$QPA_EXP_CACHE``, or ``qpa_exp`` in ``$XDG_CACHE_HOME``
(``~/.cache``). Its name is a digest of all that the counts depend on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from qpa_exp.files.writing import whole_file

Counts = dict[int, int]
"""From a basis state to how often it was measured."""


def cache_directory() -> Path:
    """Where measured counts lie."""
    if own := os.environ.get("QPA_EXP_CACHE"):
        return Path(own) / "qiskit"
    shared = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(shared) / "qpa_exp" / "qiskit"


def digest(record: Mapping[str, Any]) -> str:
    """A name for what was measured; ``record`` is plain JSON."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_counts(name: str, shots: int) -> Counts | None:
    """The counts of that name; None where there are none, or none that can be read."""
    try:
        saved = load_file(_path(name))
        counts = dict(zip(_ints(saved["states"]), _ints(saved["counts"]), strict=True))
    except (OSError, SafetensorError, LookupError, ValueError):
        return None
    return counts if sum(counts.values()) == shots else None


def write_counts(name: str, counts: Counts) -> None:
    """Write the file whole or not at all."""
    states = torch.tensor(sorted(counts), dtype=torch.int64)
    values = torch.tensor([counts[state] for state in sorted(counts)], dtype=torch.int64)
    with whole_file(_path(name)) as file:
        file.write(save({"states": states, "counts": values}))


def _path(name: str) -> Path:
    return cache_directory() / name[:2] / f"{name}.safetensors"


def _ints(values: Int[Tensor, " outcomes"]) -> list[int]:
    return [int(value) for value in values]
