"""``logger=csv``: the run directory's own CSV file, which every run writes, and nothing else."""

from __future__ import annotations

from qpa_exp.runs.loggers import Destination

ENTRY = Destination()
