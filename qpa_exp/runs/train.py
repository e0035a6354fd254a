"""One run, from a config to its ``metrics.json``."""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from qpa_exp.adapters import QPAModel
from qpa_exp.adapters.build import adapt, count
from qpa_exp.adapters.counts import describe
from qpa_exp.adapters.formats import save_adapter
from qpa_exp.adapters.methods.catalogue import virtual_tokens
from qpa_exp.circuits.versions import versions as circuit_versions
from qpa_exp.config import Config
from qpa_exp.data import TextDataModule
from qpa_exp.errors import InputError, one_line
from qpa_exp.fast_head.cache import fingerprint
from qpa_exp.fast_head.short_way import StateTables, find_short_way
from qpa_exp.lm.loading import (
    check_length,
    load_architecture,
    load_model,
    load_tokenizer,
    loaded_revision,
)
from qpa_exp.machine import keep_freed_memory
from qpa_exp.runs import directory, results
from qpa_exp.runs.callbacks import (
    PlainBar,
    SayHowToResume,
    StepTimes,
    TerminalBar,
    checkpoints,
    newest_checkpoint,
)
from qpa_exp.runs.gradient_variance import GradientVariance
from qpa_exp.runs.loggers import log_summary, make_loggers
from qpa_exp.runs.module import AdapterModule, Divergence
from qpa_exp.runs.trained import ADAPTER, GENERATOR

log = logging.getLogger(__name__)

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """What a run is made of."""

    config: Config
    run_dir: Path
    module: AdapterModule
    data: TextDataModule
    times: StepTimes
    trainer: Trainer


def run(config: Config, run_dir: Path) -> Metrics:
    """Train and test as configured; everything that is written lies in ``run_dir``.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        InputError: something that was given cannot be used; then nothing has been written.
        Divergence: the loss or a gradient became NaN or infinite; ``metrics.json`` then says
            ``status: diverged``, and the last checkpoint is kept.
    """
    loaded = load(config)
    module, data = loaded.module, loaded.data
    rank_zero_only(directory.claim)(run_dir, config)
    rank_zero_only(directory.note_cache)(run_dir, loaded.tables.mode)
    rank_zero_only(log.info)("Run directory: %s", run_dir)
    loaded.tables.fill()
    parts = _assemble(config, run_dir, loaded)
    # The curves begin with the loss before the first step.
    parts.trainer.validate(module, data, verbose=False)
    return _train_and_test(parts, checkpoint=None)


def resume(run_dir: Path) -> Metrics:
    """Continue an interrupted run from its newest checkpoint; a complete one is only read.

    On a CPU the result is the same, bit for bit, as that of a run that was never interrupted.

    Raises:
        InputError: no run directory, a run that diverged, or a damaged checkpoint.
    """
    config = directory.read_config(run_dir)
    finished = results.read_metrics(run_dir)
    if finished is not None and finished["status"] == "complete":
        log.info("%s is complete.", run_dir)
        return finished
    if finished is not None:
        raise InputError(f"{run_dir} cannot be continued: {finished['error']}")
    checkpoint = newest_checkpoint(run_dir)
    check_checkpoint(checkpoint)
    loaded = load(config, directory.noted_cache(run_dir))
    log.info("Continuing %s from %s", run_dir, checkpoint.name if checkpoint else "its start")
    rank_zero_only(directory.note_cache)(run_dir, loaded.tables.mode)
    loaded.tables.fill()
    parts = _assemble(config, run_dir, loaded)
    if checkpoint is None:
        parts.trainer.validate(loaded.module, loaded.data, verbose=False)
    return _train_and_test(parts, checkpoint)


@dataclass(frozen=True)
class Loaded:
    """What a run trains, on what, and where the backbone's hidden states are kept."""

    module: AdapterModule
    data: TextDataModule
    tables: StateTables


def load(config: Config, cache: str | None = None) -> Loaded:
    """The model and the data of a run, loaded and checked; nothing is written.

    Args:
        config: of the run.
        cache: what ``data.cache=auto`` came to when the run began, where it goes on.
    """
    _quiet()
    keep_freed_memory()
    architecture = load_architecture(config.model)
    check_length(config.model, architecture, config.data.max_length, virtual_tokens(config))
    data = TextDataModule(config.data, load_tokenizer(config.model), config.seed)
    data.setup()
    mode = cache or config.data.cache
    base = load_model(config.model)
    identity = "" if mode == "off" else fingerprint(base)
    model = adapt(base, config).to(root_device(config))
    if config.trainer.compile and isinstance(model, QPAModel):
        model.compile_generator()
    way = find_short_way(model, config, data, identity)
    return Loaded(AdapterModule(model, config, way), data, StateTables(way, config, data, mode))


def root_device(config: Config) -> torch.device:
    """Where this process will train, which Lightning itself decides only later."""
    accelerator = config.trainer.accelerator
    if accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def _assemble(config: Config, run_dir: Path, loaded: Loaded) -> Parts:
    times = StepTimes()
    trainer = make_trainer(config, run_dir, times)
    return Parts(config, run_dir, loaded.module, loaded.data, times, trainer)


def _train_and_test(parts: Parts, checkpoint: Path | None) -> Metrics:
    trainer, module, data = parts.trainer, parts.module, parts.data
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except Divergence as error:
        _record_divergence(parts, error)
        raise
    save_trained(module.model, parts.run_dir)
    metrics = _metrics(parts, trainer.test(module, data, verbose=False)[0])
    if trainer.is_global_zero:
        _finish(parts, metrics)
    return metrics


def make_trainer(config: Config, run_dir: Path, times: StepTimes) -> Trainer:
    """Lightning's Trainer as the config asks for it."""
    ours = config.trainer
    callbacks: list[Callback] = [
        times,
        checkpoints(run_dir, ours.checkpoint_every_n_steps),
        SayHowToResume(run_dir),
    ]
    if ours.gradient_variance_starts is not None:
        callbacks.append(GradientVariance(ours.gradient_variance_starts))
    if ours.progress_bar:
        callbacks.append(TerminalBar(times) if Console().is_terminal else PlainBar(times))
    try:
        return Trainer(
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
            val_check_interval=_batches(ours.validate_every_n_steps, ours.accumulate_grad_batches),
            limit_val_batches=ours.limit_eval_batches,
            limit_test_batches=ours.limit_eval_batches,
            num_sanity_val_steps=0,
            inference_mode=False,  # what an evaluation keeps serves training too
            use_distributed_sampler=False,  # the data module deals the rows out itself
            enable_progress_bar=ours.progress_bar,
            enable_model_summary=False,
            logger=make_loggers(config, run_dir),
            callbacks=callbacks,
        )
    except (ValueError, RuntimeError) as error:  # MisconfigurationException is a RuntimeError
        raise InputError(
            f"The trainer cannot be set up as configured: {one_line(error)}"
        ) from error


def _batches(steps: int | None, accumulate: int) -> int | None:
    return None if steps is None else steps * accumulate


def check_checkpoint(path: Path | None) -> None:
    """Refuse a checkpoint that is cut short or is not one, before anything else is loaded."""
    if path is None:
        return
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        complete = {"state_dict", "optimizer_states", "loops"} <= set(saved)
    except Exception:  # the restricted unpickler meets damage with errors of every kind
        complete = False
    if not complete:
        raise InputError(
            f"{path} is damaged, cut short or no checkpoint: take it away to continue "
            "from the one before it, or from the start where there is none."
        )


@rank_zero_only
def save_trained(model: QPAModel | PeftModel, run_dir: Path) -> None:
    """Save what was trained: the generator, or under ``qpa=off`` the adapter in PEFT's format."""
    if isinstance(model, QPAModel):
        model.save_pretrained(run_dir / GENERATOR)
    else:
        save_adapter(model, run_dir / ADAPTER)


def _metrics(parts: Parts, tested: Mapping[str, float]) -> Metrics:
    """The record of a run; the figures of a test that has not been made are None."""
    trainer = parts.trainer
    batches = max(1, len(parts.data.train_dataloader()))
    perplexities = {
        key: tested.get(f"test/{key}")
        for base in ("", "base_")
        for key in (f"{base}perplexity", f"{base}perplexity_padded")
    }
    return {
        "status": "complete",
        **{k: v[-1] for k in ("gradient_variance", "expectation_variance")
           if (v := results.read_curve(parts.run_dir, k)[1])},
        **perplexities,
        "loss": tested.get("test/loss"),
        **dataclasses.asdict(count(parts.module.model)),
        "epochs": trainer.global_step * trainer.accumulate_grad_batches / batches,
        "steps": trainer.global_step,
        "train_seconds": parts.times.train_seconds,
        "step_seconds_median": parts.times.step_seconds_median,
        "tokens_per_second": parts.times.tokens_per_second,
        "time_split": parts.module.stopwatch.split(parts.times.batch_seconds),
        "seed": parts.config.seed,
        "circuit_evaluations": parts.module.circuit_evaluations,
        "versions": results.versions() | circuit_versions(parts.config.qpa),
        "model_revision": loaded_revision(parts.module.model.get_base_model()),
        "data_sha256": parts.data.corpus.sha256,
    }


def _record_divergence(parts: Parts, error: Divergence) -> None:
    checkpoint = newest_checkpoint(parts.run_dir)
    kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was due"
    error.args = (f"{str(error).rstrip('.')}; {kept}.",)
    if parts.trainer.is_global_zero:
        results.draw_curves(parts.run_dir)
        failed = {"status": "diverged", "error": str(error)}
        results.write_metrics(parts.run_dir, _metrics(parts, {}) | failed)


def _finish(parts: Parts, metrics: Metrics) -> None:
    """Write the results, last of all ``metrics.json``, and show them."""
    log_summary(parts.trainer.loggers, metrics)
    results.draw_curves(parts.run_dir)
    results.write_metrics(parts.run_dir, metrics)
    sizes = describe(parts.config, count(parts.module.model))
    Console().print(results.summary(sizes, metrics))
    log.info("Written to %s", parts.run_dir)


def _quiet() -> None:
    """Lightning's advice on workers, loggers and tips is about choices that are made here."""
    for library in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    for advice in (
        "does not have many workers",
        "Checkpoint directory",
        "in eval mode at the start",
        "treespec, LeafSpec",
    ):
        warnings.filterwarnings("ignore", message=f".*{advice}.*")
