"""Sweeps as a person starts them: killed, started twice, in parallel."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import psutil
import pytest

from qpa_exp.__main__ import main
from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.report.collect import collect
from qpa_exp.report.comparisons import aggregate
from qpa_exp.runs import directory
from qpa_exp.runs.train import run
from qpa_exp.sweeps.runner import AfterWorkers

pytestmark = pytest.mark.slow

RUNS = 2
STEPS = 4

LeftAlone = Callable[[list[str]], pd.DataFrame]


def start(
    arguments: Sequence[str], cwd: Path, program: Sequence[str] = ("-m", "qpa_exp"), **more: str
) -> subprocess.Popen[str]:
    cwd.mkdir(exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more
    return subprocess.Popen(
        [sys.executable, *program, *arguments], cwd=cwd, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def arguments(overrides: list[str]) -> list[str]:
    seeds = ",".join(map(str, range(1, RUNS + 1)))
    return [
        "-m", *overrides, f"trainer.max_steps={STEPS}", "trainer.checkpoint_every_n_steps=2",
        f"seed={seeds}", "peft.lora_dropout=0.1", "hydra.sweep.dir=runs",
    ]  # fmt: skip


def table(cwd: Path) -> pd.DataFrame:
    """What a report would say, without what depends on the clock."""
    (collected,) = collect([str(cwd / "runs")])
    assert not collected.skipped
    runs = collected.runs.sort_values("seed").reset_index(drop=True)
    kept = ["seed", "perplexity", "base_perplexity", "loss", "steps", "trainable_params", "label"]
    assert aggregate(runs)["n"].tolist() == [len(runs)]
    return runs[kept]


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> LeftAlone:
    """The table of such a sweep that nothing happens to, made once."""

    @cache
    def of(*arguments: str) -> pd.DataFrame:
        directory = tmp_path_factory.mktemp("left_alone")
        here(arguments, directory)
        return table(directory)

    return lambda arguments: of(*arguments)


def here(arguments: Sequence[str], directory: Path) -> None:
    """The same sweep in this process, for which nothing has to be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        main(list(arguments))


KILLED = """
import os, signal, sys
from qpa_exp.__main__ import main
from qpa_exp.config import Config
from qpa_exp.runs.module import AdapterModule

proper, left = AdapterModule.on_train_batch_start, [int(os.environ["KILL_AFTER"])]

def killing(self, batch, batch_idx):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    proper(self, batch, batch_idx)

AdapterModule.on_train_batch_start = killing
main(sys.argv[1:])
"""


@pytest.mark.long
def test_a_killed_sweep_ends_with_the_table_of_one_left_alone(
    arguments: list[str], tmp_path: Path, left_alone: LeftAlone
) -> None:
    moment = random.Random(0).randrange(1, RUNS * STEPS)
    killed = finish(start(arguments, tmp_path / "killed", ["-c", KILLED], KILL_AFTER=str(moment)))
    assert killed.returncode == -signal.SIGKILL
    here(arguments, tmp_path / "killed")
    pd.testing.assert_frame_equal(
        table(tmp_path / "killed"), left_alone(arguments), check_exact=True
    )


@pytest.mark.long
def test_two_sweeps_at_once_share_the_runs(arguments: list[str], tmp_path: Path) -> None:
    both = [start(arguments, tmp_path) for _ in range(2)]
    for process in both:
        done = finish(process)
        assert done.returncode == 0, done.stderr
        assert f"All {RUNS} runs are complete." in done.stdout
    assert len(table(tmp_path)) == RUNS
    parts = list((tmp_path / "runs").glob("*/csv/version_*"))
    assert {part.name for part in parts} == {"version_0"}  # none was made, or resumed, twice


@pytest.mark.long  # of these, joblib runs every study at the scale smoke
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_launcher_changes_no_number(
    arguments: list[str], tmp_path: Path, launcher: str, left_alone: LeftAlone
) -> None:
    other = finish(start([*arguments, f"hydra/launcher={launcher}"], tmp_path / launcher))
    assert other.returncode == 0, other.stderr
    assert f"[{RUNS}/{RUNS}] " in other.stdout
    pd.testing.assert_frame_equal(
        table(tmp_path / launcher), left_alone(arguments), check_exact=True
    )


@pytest.mark.long
def test_a_failure_is_told_on_one_line_and_in_the_status(
    arguments: list[str], tmp_path: Path
) -> None:
    program = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "raise OSError('disk full')")
    program = program.replace("main(sys.argv[1:])", "run_command(main)")
    program = "from qpa_exp.cli import run_command\n" + program
    done = finish(start(arguments, tmp_path / "sweep", ["-c", program], KILL_AFTER="5"))
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert (
        last == "error: 1 run of 2 failed, listed above; the same command runs those alone again."
    )
    assert "Error executing job" not in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "OSError: disk full" in done.stdout
    assert len(list((tmp_path / "sweep" / "runs").rglob("metrics.json"))) == 1


@pytest.fixture
def killed_at() -> Iterator[list[int]]:
    """The seeds of runs: add one, and a process that is at such a run is killed, and it removed."""
    seeds, over = list[int](), threading.Event()

    def seed_of(process: psutil.Process) -> int | None:
        with suppress(psutil.Error, InputError):
            for file in map(Path, (file.path for file in process.open_files())):
                if file.name == directory.LOCK:
                    return directory.read_config(file.parent).seed
        return None

    def watch() -> None:
        while not over.wait(0.05):
            for child in psutil.Process().children(recursive=True):
                if (seed := seed_of(child)) in seeds:
                    child.kill()
                    seeds.remove(seed)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield seeds
    over.set()
    watcher.join()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "way",
    [
        "hydra.sweeper.side_by_side=2",
        pytest.param("hydra/launcher=submitit_local", marks=pytest.mark.long),
        pytest.param("hydra/launcher=joblib", marks=pytest.mark.long),
    ],
)
def test_a_run_whose_process_is_killed_goes_on_and_so_do_the_others(
    sweep: Callable[..., None], killed_at: list[int], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], way: str,
) -> None:  # fmt: skip
    killed_at.append(1)
    sweep("seed=1,2", way)
    gc.collect()  # a process that submitit has given up is told about now
    assert killed_at == []
    states = [directory.state_of(run) for run in (tmp_path / "runs").glob("lora*")]
    assert states == ["complete", "complete"]
    assert "All 2 runs are complete." in capsys.readouterr().out


WORKERS = """
import os, sys, time
from pathlib import Path
from joblib import Parallel, delayed

def make(run_dir, own):
    (run_dir / "pid").write_text(str(os.getpid()))
    time.sleep(300)

def attempt(run_dir):
    from qpa_exp.runs import train
    from qpa_exp.sweeps import worker
    train.go_on = make
    worker.attempt(run_dir)

Parallel(n_jobs=2, batch_size=1)(delayed(attempt)(Path(f"run{n}")) for n in range(4))
"""


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.long
def test_workers_end_when_the_sweep_is_killed(tmp_path: Path) -> None:
    sweep = subprocess.Popen([sys.executable, "-c", WORKERS], cwd=tmp_path)
    began = time.monotonic()
    while len(pids := [int(f.read_text() or 0) for f in tmp_path.glob("*/pid")]) < 2 or 0 in pids:
        assert time.monotonic() - began < 120
        time.sleep(0.1)
    sweep.kill()
    sweep.wait()
    began = time.monotonic()
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() - began < 10
        time.sleep(0.1)
    assert len(list(tmp_path.glob("*/pid"))) == 2  # and no worker has begun another run


SAVES = """
import signal, sys, time
from pathlib import Path
from filelock import FileLock

def save(number, frame):
    time.sleep(0.2)  # the step that it is in
    Path("saved").touch()
    sys.exit()

signal.signal(signal.SIGTERM, save)
with FileLock(sys.argv[1]):
    print("at it", flush=True)
    time.sleep(60)
"""


def test_a_signal_ends_a_sweep_after_its_workers_have_saved(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of other processes of this one it asks nothing."""
    job: Any = SimpleNamespace(run_dir=tmp_path)
    places = [tmp_path / directory.LOCK, tmp_path / "another"]
    worker, other = (start([str(place)], tmp_path, ["-c", SAVES]) for place in places)
    for process in (worker, other):
        assert process.stdout is not None
        assert process.stdout.readline() == "at it\n"
    with pytest.raises(SystemExit, match="130"):
        AfterWorkers([job])(signal.SIGINT, None)
    assert (tmp_path / "saved").exists()
    assert "interrupted" in capfd.readouterr().err
    assert finish(worker).returncode == 0
    assert other.poll() is None
    other.kill()
    finish(other)


# --- runs of several processes --------------------------------------------------------------------

TASK = """
import sys
from pathlib import Path
from qpa_exp.sweeps.worker import attempt
attempt(Path(sys.argv[1]))
"""


@pytest.mark.long
def test_a_run_on_two_devices_is_the_same_whoever_starts_its_processes(
    arguments: list[str], tmp_path: Path
) -> None:
    """Lightning beside the sweep, submitit, or SLURM: a process for each device, and one result."""
    one = [argument for argument in arguments if not argument.startswith("seed=")]
    ddp = [*one, "trainer=ddp", "trainer.accelerator=cpu"]
    launched = [*ddp, "hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"]
    for name, asked in (("alone", ddp), ("submitit", launched)):
        done = finish(start(asked, tmp_path / name))
        assert done.returncode == 0, done.stdout + done.stderr
    ((made,), (launched_by,)) = (
        (tmp_path / n / "runs").glob("lora*") for n in ("alone", "submitit")
    )
    by_slurm = tmp_path / "slurm" / made.name
    by_slurm.mkdir(parents=True)
    (by_slurm / "config.yaml").write_bytes((made / "config.yaml").read_bytes())
    tasks = [
        start(
            [str(by_slurm)], tmp_path, ["-c", TASK], SLURM_NTASKS="2", SLURM_NTASKS_PER_NODE="2",
            SLURM_JOB_ID="4711", SLURM_JOB_NAME="qpa", SLURM_NODELIST="localhost",
            SLURM_NODEID="0", SLURM_PROCID=rank, SLURM_LOCALID=rank,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    assert [finish(task).returncode for task in tasks] == [0, 0]
    results = [directory.read_metrics(place) or {} for place in (made, launched_by, by_slurm)]
    assert len({result["perplexity"] for result in results}) == 1
    assert {result["steps"] for result in results} == {STEPS}
    assert not list(tmp_path.rglob("failed.json"))


PREEMPTED = """
import os, signal, sys
from pathlib import Path
import submitit

class Attempt(submitit.helpers.Checkpointable):
    def __call__(self, run_dir):
        from qpa_exp.runs.module import AdapterModule
        from qpa_exp.sweeps.worker import attempt
        proper, reached = AdapterModule.training_step, Path("reached")

        def training_step(self, batch, batch_idx):
            if self.global_step == 3 and not reached.exists():
                reached.touch()
                os.kill(os.getpid(), signal.SIGUSR2)  # as SLURM preempts a job of submitit's
            return proper(self, batch, batch_idx)

        AdapterModule.training_step = training_step
        attempt(Path(run_dir))

executor = submitit.LocalExecutor("jobs")
executor.update_parameters(timeout_min=5)
executor.submit(Attempt(), sys.argv[1]).result()
"""


@pytest.mark.long
def test_a_job_that_submitit_starts_again_goes_on_with_its_run(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    short = ("trainer.max_steps=4", "trainer.checkpoint_every_n_steps=2", "peft.lora_dropout=0.1")
    whole = run(configure(*short), tmp_path / "whole")
    directory.claim(tmp_path / "run", configure(*short))
    done = finish(start(["run"], tmp_path, ["-c", PREEMPTED]))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "reached").exists()
    again = directory.read_metrics(tmp_path / "run") or {}
    assert (again["steps"], again["perplexity"]) == (4, whole["perplexity"])
    assert len(list((tmp_path / "run" / "csv").iterdir())) == 2
    assert not (tmp_path / "run" / "failed.json").exists()
