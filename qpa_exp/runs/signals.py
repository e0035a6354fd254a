"""What a signal does to a command: it ends in one sentence, with status 128 + signal.

SIGTERM, SIGHUP and SIGINT end a command at once (:func:`at_once`), but training only after the
step that it is in, with a checkpoint (:class:`qpa_exp.runs.callbacks.Checkpoints`). In a job of
SLURM, SIGUSR1 does the same, and the job is started again. A second signal ends everything now; one
within a second of the first counts as the same, for a terminal that is closed sends two.

What somebody else handles or ignores is left to them: ``nohup`` ignores SIGHUP, submitit starts its
jobs again by a handler of its own.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

Handler = Callable[[int, FrameType | None], Any]

_RANKS = ("LOCAL_RANK", "SLURM_PROCID")


def numbers() -> list[int]:
    """Return the signals that ask a command to end; Windows has some of them."""
    names = ["SIGTERM", "SIGHUP", "SIGINT", *(["SIGUSR1"] if slurm_job() else [])]
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


def end(number: int, run_dir: Path | None, devices: int | None = None) -> NoReturn:
    """Say how to go on, and leave.

    Args:
        number: of the signal.
        run_dir: where there is a run that can be continued.
        devices: of the run; None while its config is not known.
    """
    name, status = signal.Signals(number).name, 128 + number
    if not first_process(devices):  # Lightning kills the first where another fails
        raise SystemExit(status if devices is None else 0)
    said = "interrupted"
    if run_dir is not None:
        said = (
            f"Stopped by {name}. To continue: python -m qpa_exp resume={shlex.quote(str(run_dir))}"
        )
    if name == "SIGUSR1":
        granted = requeue()
        result = "is started again and goes on by itself" if granted else "cannot be requeued"
        said = f"{said} (job {slurm_job()} {result})"
        status = 0 if granted else status
    # Not print: what is redirected in a sweep is Python's stderr, and it may be in use.
    os.write(2, f"{said}\n".encode(errors="surrogateescape"))
    raise SystemExit(status)


def first_process(devices: int | None) -> bool:
    """Whether this is the one process of a run that speaks and writes.

    A run on one device is one process, whatever number a launcher has given it: ``srun`` may start
    several runs side by side.

    Args:
        devices: of the run; None while its config is not known.

    Examples:
        >>> first_process(devices=1)
        True
    """
    return devices == 1 or all(os.environ.get(name, "0") == "0" for name in _RANKS)


class AtOnce:
    """A handler that ends the command; :func:`end` says what the arguments are."""

    def __init__(self, run_dir: Path | None = None, devices: int | None = None) -> None:
        self.run_dir, self.devices = run_dir, devices
        self._began: float | None = None
        self._raised: SystemExit | None = None
        self._is_lost = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Unwind the first time, so that files are closed and locks given back."""
        if self._raised is not None and self._is_lost:
            self._is_lost, self._raised = False, SystemExit(self._raised.code)
            raise self._raised
        if self._began is None:
            self._began = time.monotonic()
            try:
                end(number, self.run_dir, self.devices)
            except SystemExit as leaving:
                self._raised = leaving
                raise
        leave_at_second(number, self._began)

    def is_lost(self, error: BaseException | None) -> bool:
        """Take note where this error, which Python dropped, is what the handler raised."""
        self._is_lost = error is not None and error is self._raised
        return self._is_lost


def _send_again(dropped: Any) -> None:
    """Send a signal once more whose handler ran in a finalizer or a weak reference's callback.

    Python drops what is raised there, and the command would go on.
    """
    for number in numbers():
        handler = signal.getsignal(number)
        if isinstance(handler, AtOnce) and handler.is_lost(dropped.exc_value):
            main = threading.main_thread().ident or 0
            threading.Timer(0.01, signal.pthread_kill, (main, number)).start()
            return
    sys.__unraisablehook__(dropped)


def leave_at_second(number: int, first: float) -> None:
    """End the process now, unless the first signal, at this monotonic time, is hardly past."""
    if time.monotonic() - first > 1:
        os._exit(128 + number)


def install(handler: Handler, *, over: tuple[int, ...] = ()) -> dict[int, Any]:
    """Handle the signals of :func:`numbers` that nobody else does, and those in ``over``.

    Returns:
        The handlers that were replaced.
    """
    replaced: dict[int, Any] = {}
    if isinstance(handler, AtOnce) and sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _send_again
    if threading.current_thread() is threading.main_thread():  # no other may
        for number in numbers():
            now = signal.getsignal(number)
            ours = now in (signal.SIG_DFL, signal.default_int_handler) or isinstance(now, AtOnce)
            if ours or number in over:
                replaced[number] = signal.signal(number, handler)
    return replaced


def at_once(run_dir: Path, devices: int | None = None) -> AbstractContextManager[None]:
    """Let a signal say, within this context, how to go on with this run on so many devices."""
    return handled(AtOnce(run_dir, devices))


@contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """:func:`install` a handler for this context."""
    replaced = install(handler)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


# --- in a job of SLURM ------------------------------------------------------------------------


def slurm_job() -> str | None:
    """Return the name of this process' job, as ``scontrol`` takes it; None outside SLURM."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}"
    return os.environ.get("SLURM_JOB_ID")


def was_restarted() -> bool:
    """Whether SLURM has started this job before."""
    return slurm_job() is not None and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def requeue() -> bool:
    """Ask for this job to be started again, once it has ended; whether that was granted."""
    try:
        done = subprocess.run(
            ["scontrol", "requeue", str(slurm_job())], capture_output=True, check=False
        )
    except OSError:
        return False
    return done.returncode == 0
