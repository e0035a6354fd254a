"""``optim=adamw``: AdamW for everything (Tables 4 to 7)."""

from __future__ import annotations

from qpa_exp.runs.optimizers import AnglesOptimizer

ENTRY = AnglesOptimizer(reads=())
