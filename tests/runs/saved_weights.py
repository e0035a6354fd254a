"""The weights that a run has saved."""

from pathlib import Path

import torch
from safetensors.torch import load_file


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    (file,) = run_dir.glob("*/*.safetensors")
    return load_file(file)


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
