"""How far a run has come, from what its directory holds."""

from __future__ import annotations

import json
import os
import traceback
from enum import StrEnum
from pathlib import Path
from typing import Any

from qpa_exp.errors import InputError, one_line

CONFIG, METRICS, FAILED = "config.yaml", "metrics.json", "failed.json"


class State(StrEnum):
    """Of a run in a sweep."""

    new = "new"
    interrupted = "interrupted"
    failed = "failed"
    diverged = "diverged"
    complete = "complete"

    @property
    def is_final(self) -> bool:
        """Whether running it again would only repeat what is known."""
        return self in (State.complete, State.diverged)


def state_of(run_dir: Path) -> State:
    """How far the run in this directory has come."""
    metrics = read_json(run_dir / METRICS)
    if metrics is not None:
        status = metrics.get("status")
        return State(status) if status in ("complete", "diverged") else State.interrupted
    if (run_dir / FAILED).exists():
        return State.failed
    return State.interrupted if (run_dir / CONFIG).exists() else State.new


def error_of(run_dir: Path) -> str | None:
    """Why a run failed or diverged, in a sentence; None where it did neither."""
    for name in (METRICS, FAILED):
        record = read_json(run_dir / name)
        if record is not None and "error" in record:
            return str(record["error"])
    return None


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from disk; None where there is none, or something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def record_failure(run_dir: Path, error: Exception) -> None:
    """Keep why the run failed: a sentence for the user, the traceback for a bug report."""
    sentence = str(error) if isinstance(error, InputError) else unexpected(error)
    trace = "".join(traceback.format_exception(error))
    write_json(run_dir / FAILED, {"error": sentence, "traceback": trace})


def unexpected(error: BaseException) -> str:
    """An error that is no :class:`InputError`, in a line."""
    return f"{type(error).__name__}: {one_line(error)[:300]}"
