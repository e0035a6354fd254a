"""What a run does by itself in a job of SLURM: it asks to be started again, and finds its run."""

from __future__ import annotations

import os
import subprocess


def job() -> str | None:
    """The name of this process' job, as ``scontrol`` takes it; None outside SLURM."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}"
    return os.environ.get("SLURM_JOB_ID")


def was_restarted() -> bool:
    """Whether SLURM has started this job before."""
    return job() is not None and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def requeue() -> bool:
    """Ask for this job to be started again, once it has ended; whether that was granted."""
    try:
        done = subprocess.run(["scontrol", "requeue", str(job())], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0
