"""A home that nothing may touch, and a run directory to be spoilt in many ways."""

from __future__ import annotations

import hashlib
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

MARKER = "hf_a-secret-that-nobody-may-see"
"""The value of an environment variable that must appear nowhere."""

Snapshot = dict[str, tuple[int, int, int, str]]


def snapshot(root: Path) -> Snapshot:
    """Of everything below: mode, size, time of the last change, and content."""
    found: Snapshot = {}
    for path in [root, *root.rglob("*")]:
        stat = path.lstat()
        content = ""
        if path.is_symlink():
            content = str(path.readlink())
        elif path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        changed = (0, 0) if path.is_dir() else (stat.st_size, stat.st_mtime_ns)  # see its files
        found[str(path)] = (stat.st_mode, *changed, content)
    return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's home, with files of theirs; whatever a test does, they are all as they were.

    The working directory is ``home/desk``; what a command may write to is ``home/desk/out``.
    """
    import matplotlib.font_manager  # noqa: F401  # makes its folders when it is first imported

    home = tmp_path / "home"
    work = home / "desk"
    (work / "out").mkdir(parents=True)
    for name in ("thesis.txt", "models/model.safetensors", "desk/notes/lab.log", "desk/a.txt"):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text("mine\n")
    monkeypatch.chdir(work)
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("QPA_EXP_CACHE", str(work / "out" / "cache"))
    monkeypatch.setenv("SECRET_TOKEN", MARKER)
    yield home
    # A run that was refused may have read this; it may not have left it anywhere.
    for path in home.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert MARKER.encode() not in path.read_bytes(), path


@pytest.fixture
def untouched(home: Path) -> Iterator[None]:
    """After the test, nothing but ``home/desk/out`` has changed."""
    outside = str(home / "desk" / "out")

    def now() -> Snapshot:
        return {k: v for k, v in snapshot(home).items() if not k.startswith(outside)}

    before = now()
    yield
    assert now() == before


@pytest.fixture(scope="session")
def whole_run(
    tmp_path_factory: pytest.TempPathFactory, small_model_dir: Path, text_dir: Path
) -> Path:
    """A complete run of two steps."""
    from qpa_exp.cli import compose_config
    from qpa_exp.runs.train import run

    place = tmp_path_factory.mktemp("whole") / "run"
    config = compose_config(
        [
            "model=hf", f"model.name_or_path={small_model_dir}", "data=text",
            f"data.path={text_dir}", "data.max_length=16", "data.batch_size=4", "data.cache=off",
            "optim.lr=5e-3", "trainer.max_epochs=1", "trainer.max_steps=2",
            "trainer.progress_bar=false", "trainer.limit_eval_batches=1",
        ]
    )  # fmt: skip
    run(config, place)
    return place


@pytest.fixture
def enemys(home: Path, whole_run: Path) -> Callable[[], Path]:
    """``enemys()``: a run directory that somebody else may have changed, a new copy each time."""

    def copy() -> Path:
        place = home / "desk" / "out" / "run"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(whole_run, place)
        return place

    return copy


SECONDS = 10
"""For a command that is refused; it may wait for a pipe or a lock that never opens."""


class TooLong(BaseException):
    """No OSError, as Python's own TimeoutError is, which a command would explain."""


def _too_long(*_: object) -> None:
    raise TooLong


@pytest.fixture
def ends(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """``ends(main, arguments)``: exit status, stdout and stderr of a command in this process.

    Whatever it is, there is no traceback, no secret, and a refusal is one sentence.
    """
    from qpa_exp.cli import run_command

    def end(main: Callable[[list[str]], object], arguments: list[str]) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["qpa_exp", *arguments])
        capfd.readouterr()
        was = signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(SECONDS)
        try:
            with pytest.raises(SystemExit) as ended:
                run_command(main)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, was)
        out, err = capfd.readouterr()
        assert "Traceback" not in err, err
        assert MARKER not in out + err
        status = int(ended.value.code or 0)
        assert status in (0, 2), (status, err)
        if status == 2:
            assert err.splitlines()[-1].startswith("error: "), err
            assert len(err.splitlines()[-1]) <= 520
        return status, out, err

    return end


@pytest.fixture
def refused(ends: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """``refused(main, arguments)``: the one sentence that it ends with, and says nothing else."""

    def refuse(main: Callable[[list[str]], object], arguments: list[str]) -> str:
        status, _, err = ends(main, arguments)
        assert status == 2, arguments
        assert err.count("\n") == 1, err
        return err

    return refuse
