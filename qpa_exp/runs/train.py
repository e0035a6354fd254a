"""One run, from a config to its ``metrics.json``: the story of a training, top to bottom."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from matplotlib.figure import Figure
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger, Logger
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from qpa_exp.adapters.catalogue import check_length
from qpa_exp.adapters.counts import count, describe
from qpa_exp.adapters.qpa_model import AdaptedModel, adapt
from qpa_exp.circuits.simulator import record_versions
from qpa_exp.config import Config, ModelConfig
from qpa_exp.data.datamodule import TextDataModule
from qpa_exp.errors import InputError, first_line, one_line
from qpa_exp.files import typed_path, whole_file
from qpa_exp.lm.loading import load_architecture, loaded_revision, model_files, n_positions
from qpa_exp.machine import keep_freed_memory
from qpa_exp.runs import directory, signals
from qpa_exp.runs.callbacks import (
    BestWeights,
    Checkpoints,
    Lines,
    OwnFiles,
    Patience,
    StepTimes,
    Stopwatch,
    TerminalBar,
    Validations,
)
from qpa_exp.runs.directory import CURVES, Metrics, last_of_curve, read_curve, validation_key
from qpa_exp.runs.gradient_variance import GradientVariance
from qpa_exp.runs.loggers import LOGGERS
from qpa_exp.runs.module import AdapterModule, Divergence, epochs
from qpa_exp.runs.optimizers import OPTIMIZERS, check_search
from qpa_exp.task import TASKS, Task

log = logging.getLogger(__name__)


def run(config: Config, run_dir: Path) -> Metrics:
    """Train and test as configured; everything that is written lies in ``run_dir``.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        InputError: something that was given cannot be used. Nearly all of it is found before the
            run begins; then nothing has been written.
        Divergence: a loss, a gradient or a result became NaN or infinite; ``metrics.json`` then
            says ``status: diverged``, and the last checkpoints are kept.
        SystemExit: a signal ended it; where it was training, a checkpoint has been saved.
    """
    return begin(prepare(config, run_dir))


def begin(prepared: Prepared) -> Metrics:
    """:func:`run`, where everything that can be refused has been made already."""
    run_dir, parts = prepared.run_dir, prepared.parts
    devices = parts.config.trainer.devices
    with directory.held(run_dir, devices):
        rank_zero_only(directory.claim)(run_dir, parts.config)
        with signals.at_once(run_dir, devices):
            rank_zero_only(directory.note_cache)(run_dir, parts.task.cache_mode)
            rank_zero_only(directory.note_inputs)(run_dir, inputs(parts, fresh=True))
            try:
                prepared.trainer.loggers = _loggers(parts.config, run_dir)
            except InputError:
                rank_zero_only(directory.unclaim)(run_dir)
                raise
            rank_zero_only(log.info)("Run directory: %s", run_dir)
            return train_and_test(prepared, checkpoint=None)


def resume(run_dir: Path, config: Config | None = None) -> Metrics:
    """Continue an interrupted run from its newest checkpoint; a complete one is only read.

    On a CPU the result is the same, bit for bit, as that of a run that was never interrupted.

    Args:
        run_dir: of the run.
        config: the run's, with other values of keys in :data:`qpa_exp.runs.longer.MAY_CHANGE`: a
            complete run is then trained longer. None = as it was configured.

    Raises:
        InputError: no run directory, a run that diverged, one that another process is at, no
            checkpoint of it is whole, a change that is not allowed, or another text or model under
            the same name.
        SystemExit: as :func:`run`.
    """
    before = directory.read_config(run_dir)
    if config == before:
        config = None
    if (finished := _finished(run_dir, before)) is not None and config is None:
        return finished
    with directory.held(run_dir, before.trainer.devices):
        return go_on(run_dir, changed=config)


def go_on(run_dir: Path, *, own: bool = False, changed: Config | None = None) -> Metrics:
    """:func:`resume`, for a process that holds the run's lock.

    Args:
        run_dir: of the run.
        own: whether the user has just asked for this config, which may then name a new cache.
        changed: the config that it goes on under, where it is not its own.
    """
    config = directory.read_config(run_dir)
    if (finished := _finished(run_dir, config)) is not None and changed is None:
        return finished
    with signals.at_once(run_dir, config.trainer.devices):
        directory.read_curve(run_dir, "train/loss")  # refused now, not when the curves are drawn
        checkpoint = newest_whole_checkpoint(run_dir)
        mode = directory.noted_cache(run_dir) or (None if own else config.data.cache)
        if changed is not None:
            from qpa_exp.runs import longer

            longer.check_changes(run_dir, config, config := changed)
        fresh = checkpoint is None
        prepared = prepare(config, run_dir, mode, going_on=True, fresh=fresh)
        directory.check_inputs(run_dir, now := inputs(prepared.parts, fresh=fresh))
        if changed is not None:
            step = 0 if checkpoint is None else directory.step_of(checkpoint)
            longer.check_longer(run_dir, prepared.parts.data, config, step)
            rank_zero_only(longer.set_aside)(run_dir, config)
        prepared.trainer.loggers = _loggers(config, run_dir)
        rank_zero_only(log.info)(
            "Continuing %s from %s", run_dir, checkpoint.name if checkpoint else "its start"
        )
        rank_zero_only(directory.note_cache)(run_dir, prepared.parts.task.cache_mode)
        if fresh:
            rank_zero_only(directory.note_inputs)(run_dir, now)
        return train_and_test(prepared, checkpoint)


def inputs(parts: RunParts, *, fresh: bool) -> dict[str, str]:
    """Return the hash of everything that a run reads and its config only names.

    Args:
        parts: of the run.
        fresh: whether it begins at its start: only then are the weights of ``init_from`` read.
    """
    config = parts.config
    revision = loaded_revision(parts.model.language_model())
    found: dict[str, Any] = {
        "text": parts.data.corpus.sha256, "model": model_files(config.model) or revision,
    }  # fmt: skip
    if config.data.chat_template is not None:
        from qpa_exp.data.instructions import template_sha256

        found["chat_template"] = template_sha256(config.data.chat_template)
    if config.model.tokenizer is not None:
        found["tokenizer"] = model_files(ModelConfig(name_or_path=config.model.tokenizer))
    if config.init_from is not None and fresh:
        found["init_from"] = directory.weights_sha256(config.init_from)
    return {
        what: value if isinstance(value, str) else sha256(repr(value).encode()).hexdigest()
        for what, value in found.items() if value
    }  # fmt: skip


def _finished(run_dir: Path, config: Config) -> Metrics | None:
    """Return the results of a complete run; None of one that can be continued."""
    state = directory.state_of(run_dir)
    if state is directory.State.diverged:
        raise InputError(f"{run_dir} cannot be continued: {directory.error_of(run_dir)}")
    if state is not directory.State.complete:
        return None
    if signals.first_process(config.trainer.devices):
        log.info("%s is complete.", run_dir)
    return directory.read_metrics(run_dir)


# --- what a run is made of --------------------------------------------------------------------


@dataclass(frozen=True)
class RunParts:
    """What a run trains, towards what, and on what; nothing has been written yet."""

    config: Config
    task: Task
    model: AdaptedModel
    data: TextDataModule
    stopwatch: Stopwatch


@dataclass(frozen=True)
class Prepared:
    """A run that can begin: everything that could be refused has been made, nothing written."""

    run_dir: Path
    parts: RunParts
    trainer: Trainer
    times: StepTimes


def prepare(
    config: Config,
    run_dir: Path,
    cache_mode: str | None = None,
    *,
    going_on: bool = False,
    fresh: bool = True,
) -> Prepared:
    """Make everything that a run needs and that can be refused; nothing is written.

    Args:
        config: of the run.
        run_dir: its directory, which need not be there.
        cache_mode: as :func:`build` takes it.
        going_on: whether it is there, with a run that is continued.
        fresh: as :func:`build` takes it.
    """
    if not going_on and signals.first_process(config.trainer.devices):
        directory.check_place(run_dir)
    _quiet()
    trainer, times = make_trainer(config, run_dir)
    parts = build(config, cache_mode, fresh=fresh)
    return Prepared(run_dir, parts, trainer, times)


def build(config: Config, cache_mode: str | None = None, *, fresh: bool = True) -> RunParts:
    """Return the parts of a run, loaded and checked; nothing is written.

    Args:
        config: of the run.
        cache_mode: what ``data.cache=auto`` came to when the run began; given where it goes on.
        fresh: whether it begins at its start, and not from a checkpoint.
    """
    keep_freed_memory()
    check_machine(config)
    stopwatch = Stopwatch()
    task = TASKS[config.task](config, stopwatch)
    check_length(config, n_positions(load_architecture(config.model), task.auto_class))
    data = task.data()
    data.setup()
    base = task.load_model(data.tokenizer, data.corpus.class_names)
    task.check_model(base)
    data.check_tokens(base)
    model = adapt(base, config, task.peft_task_type).to(root_device(config))
    if OPTIMIZERS[config.optim.name].search is not None:
        check_search(config, count(model))
    if config.init_from is not None and fresh:
        from qpa_exp.adapters.started_from import start_from

        start_from(model, directory.trained_at(typed_path(config.init_from)))
    if config.trainer.compile:
        model.compile_generator()
    return RunParts(config, accelerate(task, model, data, cache_mode), model, data, stopwatch)


def check_machine(config: Config) -> None:
    """Refuse what this machine does not have; for a run that is to start here.

    Raises:
        InputError: more processes than cores or GPUs, or a package that is not installed.
    """
    trainer, name = config.trainer, config.logger.name
    if trainer.accelerator in ("gpu", "cuda"):
        there, what = torch.cuda.device_count(), "GPUs"
    else:
        there, what = os.cpu_count() or 1, "cores"
    if trainer.devices > there:
        raise InputError(
            f"trainer.devices={trainer.devices} is more than the {there} {what} of this machine."
        )
    for module in LOGGERS[name].needs:
        if importlib.util.find_spec(module) is None:
            raise InputError(f"logger={name} needs {module}: pip install 'qpa-exp[loggers]'.")


def accelerate(
    task: Task, model: AdaptedModel, data: TextDataModule, cache_mode: str | None
) -> Task:
    """Give the task by the fastest way there is for this model; without ``fast_head``, as it is."""
    room = importlib.util.find_spec("qpa_exp.fast_head")
    if room is None or room.origin is None:  # no folder, or one with nothing but old byte code
        return task
    from qpa_exp.fast_head import accelerate as by_the_head

    return by_the_head(task, model, data, cache_mode)


def root_device(config: Config) -> torch.device:
    """Where this process will train, which Lightning itself decides only later."""
    accelerator = config.trainer.accelerator
    if accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        if config.trainer.devices == 1:  # as Lightning does, whatever a launcher says
            return torch.device("cuda", 0)
        here = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
        return torch.device("cuda", int(here))
    return torch.device("cpu")


def make_trainer(config: Config, run_dir: Path) -> tuple[Trainer, StepTimes]:
    """Lightning's Trainer as the config asks for it, still without loggers, and its clock.

    Raises:
        InputError: this machine has no such device, or Lightning no such strategy or precision.
    """
    ours = config.trainer
    times = StepTimes()
    callbacks: list[Callback] = [times, LearningRateMonitor("step")]
    if ours.keep == "best":
        callbacks.append(BestWeights(TASKS[config.task].ranked_by()))
    if ours.patience is not None:
        callbacks.append(Patience(TASKS[config.task].ranked_by(), ours.patience, ours.min_delta))
    if ours.gradient_variance_starts is not None:
        callbacks.append(GradientVariance(ours.gradient_variance_starts))
    if ours.progress_bar:
        callbacks.append(TerminalBar(times) if Console().is_terminal else Lines(times))
    if ours.validate_every_n_steps is not None:
        callbacks.append(Validations(ours.validate_every_n_steps))
    callbacks.append(Checkpoints(run_dir, ours.checkpoint_every_n_steps, ours.devices))
    try:
        trainer = Trainer(
            default_root_dir=run_dir,
            accelerator=ours.accelerator,
            devices=ours.devices,
            strategy=ours.strategy,
            precision=ours.precision,  # type: ignore[arg-type]
            max_epochs=ours.max_epochs,
            max_steps=ours.max_steps,
            accumulate_grad_batches=ours.accumulate_grad_batches,
            gradient_clip_val=ours.gradient_clip_val,
            log_every_n_steps=ours.log_every_n_steps,
            check_val_every_n_epoch=1 if ours.validate_every_n_steps is None else None,
            val_check_interval=ours.validate_every_n_steps,  # which Validations counts in steps
            limit_val_batches=ours.limit_eval_batches,
            limit_test_batches=ours.limit_eval_batches,
            num_sanity_val_steps=0,
            inference_mode=False,  # what an evaluation keeps serves training too
            use_distributed_sampler=False,  # the data module deals the rows out itself
            enable_progress_bar=ours.progress_bar,
            enable_model_summary=False,
            logger=False,  # which write at once: they come when the directory is the run's
            callbacks=callbacks,
            plugins=[OwnFiles(run_dir), *_environment(ours.devices)],
        )
    except (ValueError, RuntimeError, ImportError, MisconfigurationException) as error:
        raise InputError(
            f"The trainer cannot be set up as configured: {one_line(error)}"
        ) from error
    if trainer.precision != ours.precision:  # Lightning has taken another one by itself
        raise InputError(
            f"trainer.precision={ours.precision} is for GPUs: give {trainer.precision} or 32-true."
        )
    return trainer, times


class OneProcess(LightningEnvironment):
    """The processes of a run on one device: this one alone, whatever a launcher has numbered it.

    It is there already: Lightning starts none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.set_global_rank(0)  # Lightning took it from the launcher's variables at its import

    @property
    def creates_processes_externally(self) -> bool:
        """Nothing is left to start."""
        return True

    def local_rank(self) -> int:
        """Its place on this machine."""
        return 0

    def node_rank(self) -> int:
        """This machine's place."""
        return 0


def _environment(devices: int) -> list[ClusterEnvironment]:
    """Who starts the processes of a run, where Lightning is not to find that out by itself.

    Raises:
        RuntimeError: SLURM has started tasks in another way than Lightning can use.
    """
    if devices == 1:
        return [OneProcess()]
    if not SLURMEnvironment.detect():
        return []
    if os.environ["SLURM_NTASKS"] == "1":
        return [LightningEnvironment()]  # which starts the other processes itself
    # By default it would write files of its own, and be started again twice.
    return [SLURMEnvironment(auto_requeue=False)]


def _loggers(config: Config, run_dir: Path) -> list[Logger]:
    """Give a CSV file in the run directory, a new part for each resume, and what ``logger=`` names.

    Raises:
        InputError: what it names refuses.
    """
    loggers: list[Logger] = [CSVLogger(run_dir, name=directory.CSV)]
    if make := LOGGERS[config.logger.name].make:
        try:
            loggers.append(make(config, run_dir))
            loggers[-1].log_hyperparams(dataclasses.asdict(config) | {"versions": versions()})
        except Exception as error:  # of another service: it may be anything
            raise InputError(
                f"logger={config.logger.name} cannot be used: {first_line(error)}"
            ) from error
    return loggers


# --- training ---------------------------------------------------------------------------------


def train_and_test(prepared: Prepared, checkpoint: Path | None) -> Metrics:
    """Train from the start or from a checkpoint, test, and write down what came out."""
    parts, trainer, run_dir = prepared.parts, prepared.trainer, prepared.run_dir
    config, data = parts.config, parts.data
    module = AdapterModule(parts.model, parts.task, config, parts.stopwatch)
    parts.task.prepare()

    try:
        if checkpoint is None:  # the curves begin with the loss before the first step
            trainer.validate(module, data, verbose=False)
        _fit(trainer, module, data, checkpoint)
        last = _choose(trainer, module, data)
        rank_zero_only(parts.model.save_pretrained)(directory.trained(run_dir, config))
        found = _metrics(prepared, module, {**trainer.test(module, data, verbose=False)[0], **last})
    except Divergence as error:
        _record_divergence(prepared, module, error)
        raise
    except BaseException as error:
        _end_logger(trainer, config, {"status": "failed", "error": one_line(error)}, 1)
        raise
    if trainer.is_global_zero:
        _finish(parts, trainer, run_dir, found)
    return found


def _end_logger(trainer: Trainer, config: Config, metrics: Metrics, status: int) -> None:
    """Tell what ``logger=`` names how the run ended, beside the curves that it has."""
    end = LOGGERS[config.logger.name].end
    if end is not None and trainer.is_global_zero:
        try:
            end(trainer.loggers[-1], metrics, status)
        except Exception as error:  # of another service: the run's own files do not depend on it
            log.warning("logger=%s has not got the results: %s", config.logger.name, error)


def _fit(
    trainer: Trainer, module: AdapterModule, data: TextDataModule, checkpoint: Path | None
) -> None:
    """Train; a checkpoint that is whole but does not fit the run is refused in a sentence.

    What it holds is used for the first time in the first step.
    """
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except (InputError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if checkpoint is None or module.has_begun:
            raise
        raise InputError(
            f"{checkpoint} does not fit this run ({type(error).__name__}: {first_line(error)}): "
            "take it away to continue from the one before it."
        ) from error


def _choose(trainer: Trainer, module: AdapterModule, data: TextDataModule) -> Mapping[str, float]:
    """Give the module the weights that the run keeps.

    Under ``trainer.keep=best`` the last weights are a candidate as well: they are validated where
    others have been, and they not yet. Where nothing was validated, the last are kept.

    Returns:
        The test split's figures of the last weights where others are kept; they cost a test.
    """
    best = _best_of(trainer)
    if best is None or best.step is None:
        return {}
    if best.validated != trainer.global_step:
        trainer.validate(module, data, verbose=False)
    if best.step == trainer.global_step:
        return {}
    module.tests_last = True
    last = trainer.test(module, data, verbose=False)[0]
    module.tests_last = False
    best.restore(module.trained())
    return last


def _best_of(trainer: Trainer) -> BestWeights | None:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((each for each in callbacks if isinstance(each, BestWeights)), None)


def newest_whole_checkpoint(run_dir: Path) -> Path | None:
    """Return the checkpoint that a run goes on from; None where it has none yet.

    Raises:
        InputError: it has some, and none is whole.
    """
    found = directory.checkpoints(run_dir)
    for path in reversed(found):
        if _is_whole(path):
            return path
        log.warning("%s is damaged: it is passed over.", path)
    if found:
        raise InputError(
            f"{found[-1]} is damaged, cut short or no checkpoint, and no other is whole: take "
            f"{run_dir / directory.CHECKPOINTS} away to train from the start."
        )
    return None


def _is_whole(path: Path) -> bool:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return all(isinstance(saved[name], kind) for name, kind in _PARTS.items())
    except Exception:  # the restricted unpickler meets damage with errors of every kind
        return False


_PARTS = {"state_dict": dict, "optimizer_states": list, "loops": dict, "callbacks": dict}


# --- results ----------------------------------------------------------------------------------


def _metrics(prepared: Prepared, module: AdapterModule, tested: Mapping[str, float]) -> Metrics:
    """Return the record of a run; the figures of a test that has not been made are None."""
    parts, trainer, times = prepared.parts, prepared.trainer, prepared.times
    batches = max(1, len(parts.data.train_dataloader()))
    figures = {
        f"{base}{metric.name}": tested.get(f"test/{base}{metric.name}")
        for base in ("", "base_")
        for metric in parts.task.metrics
    }
    found: Metrics = {
        "status": "complete",
        **figures,
        "loss": tested.get("test/loss"),
        **dataclasses.asdict(count(parts.model)),
        "epochs": epochs(parts.config.trainer, batches, trainer.global_step),
        "steps": trainer.global_step,
        "stopped_early": trainer.global_step < module.total_steps(),
        "train_seconds": times.train_seconds,
        "step_seconds_median": times.step_seconds_median,
        "tokens_per_second": times.tokens_per_second,
        "time_split": parts.stopwatch.split(times.batch_seconds),
        "train_tokens": size.tokens if (size := parts.data.examples["train"].size) else None,
        "seed": parts.config.seed,
        "circuit_evaluations": module.circuit_evaluations,
        "versions": versions() | record_versions(parts.config.qpa),
        "model_revision": loaded_revision(parts.model.language_model()),
        "data_sha256": parts.data.corpus.sha256,
        **({"init_from": config.init_from} if (config := parts.config).init_from else {}),
        **({"class_names": names} if (names := parts.data.corpus.class_names) else {}),
        **_kept(prepared.run_dir, parts.task, trainer, tested),
    }
    for measuring in trainer.callbacks:  # type: ignore[attr-defined]
        found |= getattr(measuring, "figures", {})
    return found


def _kept(run_dir: Path, task: Task, trainer: Trainer, tested: Mapping[str, float]) -> Metrics:
    """Which weights were tested, and how they and the last ones compare."""
    ranked_by, best = task.ranked_by().name, _best_of(trainer)
    step, validation = trainer.global_step, last_of_curve(run_dir, f"validation/{ranked_by}")
    if best is not None and best.step is not None:
        step, validation = best.step, best.value
    return {
        "kept_step": step if tested else None,
        validation_key(ranked_by): validation if tested else None,
        **{
            f"last_{metric.name}": tested.get(
                f"test/last_{metric.name}", tested.get(f"test/{metric.name}")
            )
            for metric in task.metrics
        },
    }


def _record_divergence(prepared: Prepared, module: AdapterModule, error: Divergence) -> None:
    run_dir, trainer = prepared.run_dir, prepared.trainer
    saved = directory.checkpoints(run_dir)
    kept = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint was due"
    error.args = (f"{str(error).rstrip('.')}; {kept}.",)
    if trainer.is_global_zero:
        draw_curves(run_dir)
        ended = {"status": "diverged", "error": str(error)}
        failed = directory.finite(_metrics(prepared, module, {}) | ended)
        directory.write_metrics(run_dir, failed)
        _end_logger(trainer, prepared.parts.config, failed, 1)


def _finish(parts: RunParts, trainer: Trainer, run_dir: Path, metrics: Metrics) -> None:
    """Write the results, last of all ``metrics.json``, and show them."""
    _end_logger(trainer, parts.config, metrics, 0)
    best = _best_of(trainer)
    draw_curves(run_dir, None if best is None else best.step)
    directory.write_metrics(run_dir, directory.finite(metrics))
    sizes = describe(parts.config, count(parts.model))
    Console().print(summary(parts.task, sizes, metrics))
    log.info("Written to %s", run_dir)


# Blue and vermilion of Okabe and Ito: told apart by colour-blind readers and in grey.
_BLUE, _ORANGE = "#0072B2", "#D55E00"

_PACKAGES = ("torch", "transformers", "peft", "pytorch-lightning", "datasets", "numpy")


def versions() -> dict[str, str]:
    """List the versions of Python, this package, and the libraries that numbers depend on."""
    found = {"python": platform.python_version(), "qpa_exp": version("qpa-exp")}
    return found | {package: version(package) for package in _PACKAGES}


def draw_curves(run_dir: Path, kept_step: int | None = None) -> Path:
    """Draw training and validation loss against steps as ``curves.png``; return its path.

    The training loss of single batches is drawn faint, and its running mean over it. A line marks
    the step whose weights were kept, where validation chose it.
    """
    figure = Figure(figsize=(7, 4.2))
    axes = figure.add_axes((0.12, 0.13, 0.86, 0.84))  # a layout engine takes as long as the rest
    steps, values = read_curve(run_dir, "train/loss")
    window = max(1, len(values) // 20)
    axes.plot(steps, values, color=_BLUE, alpha=0.35, linewidth=0.8)
    mean = np.full(window, 1 / window)
    smooth = np.convolve(values, mean, "valid") if values else np.empty(0)
    axes.plot(steps[window - 1 :], smooth, color=_BLUE, label="training, running mean")
    steps, values = read_curve(run_dir, "validation/loss")
    axes.plot(steps, values, color=_ORANGE, marker="o", markersize=4, label="validation")
    if kept_step is not None:
        axes.axvline(kept_step, color="0.4", linestyle=":", label=f"weights kept: {kept_step:,}")
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("loss (nats)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path = run_dir / CURVES
    with whole_file(path) as file:
        figure.savefig(file, dpi=150, format="png")
    return path


def summary(task: Task, lines: dict[str, str], metrics: Metrics) -> Table:
    """Return the table that a person reads at the end: the task's metrics first, then what they
    took.
    """
    table = Table(title="Result on the test split", show_header=True)
    table.add_column("")
    table.add_column("base model", justify="right")
    table.add_column("adapted", justify="right")
    table.add_column("change", justify="right")
    for metric in task.metrics:
        base, adapted = metrics[f"base_{metric.name}"], metrics[metric.name]
        if adapted is not None and base is not None:
            change = f"{100 * (adapted / base - 1):+.1f} %" if base else ""
            table.add_row(metric.name, f"{base:.3f}", f"{adapted:.3f}", change)
    table.add_section()
    for label, value in lines.items():
        table.add_row(label, "", value, "")
    early = ", stopped early" if metrics.get("stopped_early") else ""
    steps = f"{metrics['steps']:,} ({metrics['epochs']:g} epochs{early})"
    table.add_row("steps", "", steps, "")
    kept, ranked_by = metrics["kept_step"], task.ranked_by().name
    table.add_row("  weights kept", "", _kept_words(task.config, metrics, ranked_by), "")
    if kept != metrics["steps"] and metrics[f"last_{ranked_by}"] is not None:
        last = f"{metrics[f'last_{ranked_by}']:.3f}"
        table.add_row(f"  {ranked_by} of the last", "", last, "")
    table.add_row("seconds of training", "", f"{metrics['train_seconds']:.1f}", "")
    if metrics["step_seconds_median"] is not None:
        table.add_row("seconds a step, median", "", f"{metrics['step_seconds_median']:.4f}", "")
    if metrics["tokens_per_second"] is not None:
        table.add_row("tokens a second", "", f"{metrics['tokens_per_second']:,.0f}", "")
        total = sum(metrics["time_split"].values()) or 1.0
        for name, seconds in metrics["time_split"].items():
            where = "elsewhere" if name == "other" else f"in the {name}"
            table.add_row(f"  time {where}", "", f"{100 * seconds / total:.1f} %", "")
    return table


def _kept_words(config: Config, metrics: Metrics, ranked_by: str) -> str:
    kept = f"step {metrics['kept_step']:,}"
    if config.trainer.keep == "last":
        return f"{kept}, the last"
    validated = metrics[validation_key(ranked_by)] is not None
    return f"{kept}, the best" if validated else f"{kept}, not validated"


def _quiet() -> None:
    """Lightning's advice on workers, loggers and tips is about choices that are made here."""
    for library in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    for advice in (
        "does not have many workers",
        "in eval mode at the start",
        "treespec, LeafSpec",
        "You have overridden `on_before_batch_transfer`",
        "callbacks used to create the checkpoint",  # trainer.patience=null, to train longer
        "AMP with fp16 is not supported on CPU",  # which is refused
    ):
        warnings.filterwarnings("ignore", message=f".*{advice}.*")
