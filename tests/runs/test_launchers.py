"""A run whose process a launcher has numbered: on one device it is the first one all the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from pytorch_lightning.utilities import rank_zero_only

from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.runs import directory, signals
from qpa_exp.runs.train import make_trainer, resume, run
from qpa_exp.sweeps.worker import attempt

Configure = Callable[..., Config]

SHORT = ("trainer.max_steps=1", "trainer.limit_eval_batches=1")

SLURM = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n1", "SLURM_NTASKS": "4"}
SRUN = {"SLURM_NTASKS_PER_NODE": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "3"}
LAUNCHERS = {
    "srun, four runs side by side": SLURM | SRUN | {"SLURM_NODEID": "0"},
    "sbatch --ntasks=4": SLURM,
    "torchrun": {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4", "GROUP_RANK": "1"},
    "another": {"RANK": "3"},
    "jsrun": {"JSM_NAMESPACE_RANK": "3"},
}


@pytest.fixture(params=LAUNCHERS)
def launched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of a launcher, which Lightning looks at once, when it is imported."""
    for name, value in LAUNCHERS[request.param].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 3)


@pytest.mark.usefixtures("launched")
def test_a_run_on_one_device_writes_all_its_files(configure: Configure, tmp_path: Path) -> None:
    run(configure(*SHORT), tmp_path / "run")
    check_complete(tmp_path / "run")
    trainer, _ = make_trainer(configure("trainer.strategy=ddp"), tmp_path / "another")
    assert (trainer.global_rank, trainer.world_size) == (0, 1)
    with directory.held(tmp_path / "run"), pytest.raises(directory.Held):
        resume(tmp_path / "run", configure(*SHORT, "trainer.max_epochs=3"))


@pytest.mark.parametrize("launched", [next(iter(LAUNCHERS))], indirect=True)
@pytest.mark.usefixtures("launched")
def test_so_does_a_run_of_a_sweep(configure: Configure, tmp_path: Path) -> None:
    directory.claim(tmp_path, configure(*SHORT))
    directory.record_failure(tmp_path, InputError("of before"))
    attempt(tmp_path)
    check_complete(tmp_path)


def check_complete(place: Path) -> None:
    assert directory.state_of(place) is directory.State.complete
    assert (place / "generator" / "adapter_model.safetensors").exists()
    assert len(directory.checkpoints(place)) == 1
    assert directory.read_curve(place, "train/loss")[0] == [0]
    assert not (place / "failed.json").exists()


@pytest.mark.usefixtures("launched")
def test_a_signal_ends_a_run_on_one_device_with_a_sentence_and_its_status(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, signals.at_once(tmp_path, 1):
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    assert "To continue" in capfd.readouterr().err


def test_tasks_of_slurm_that_several_devices_cannot_use_are_refused_in_one_sentence(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"cannot be set up as configured: .*--ntasks"):
        run(configure(*SHORT, "trainer.devices=2"), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
