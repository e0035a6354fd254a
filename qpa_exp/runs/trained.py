"""A finished run, read back: its config, its results and its model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qpa_exp.adapters.adapted import AdaptedModel
from qpa_exp.adapters.formats import Format
from qpa_exp.adapters.qpa_model import load_adapted
from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.generator.rules import VARIANTS
from qpa_exp.lm.loading import load_tokenizer
from qpa_exp.runs import directory
from qpa_exp.runs.callbacks import Stopwatch
from qpa_exp.runs.directory import Metrics
from qpa_exp.task import TASKS

_CARD = """\
---
base_model: {base}
library_name: {library}
pipeline_tag: {pipeline}
tags: [qpa, {method}]
---

# {base}, adapted by {how}

Trained on `{data}` ({layout}), seed {seed}, {steps:,} steps; the weights of step {kept:,}.{weights}

| | |
| --- | --- |
| trainable parameters | {trainable_params:,} |
| parameters of the method itself | {generated_params:,} |
{measured}

```python
{use}
```

The data's sha256 is `{data_sha256}`. Made with {versions}.
"""

_WEIGHTS = """
Training and tests saw the base model's weights as the GGUF file `{}` has them."""


def model_card(config: Config, metrics: dict[str, Any], form: Format) -> str:
    """Markdown with the hub's metadata: what was trained, what it measures, how to load it."""
    how = f"{config.peft.method} {VARIANTS[config.qpa.variant].made_by}".rstrip()
    return _CARD.format(
        base=config.model.base,
        weights=_WEIGHTS.format(config.model.gguf_file) if config.model.gguf_file else "",
        library=form.library,
        method=config.peft.method,
        how=how,
        pipeline="text-generation" if TASKS[config.task].writes_text else "text-classification",
        data=config.data.name,
        layout=config.data.layout,
        kept=metrics.get("kept_step") or metrics["steps"],
        measured=_measured(config, metrics),
        use=form.use.format(base=_base(config, metrics), auto=TASKS[config.task].auto_class),
        versions=", ".join(f"{name} {version}" for name, version in metrics["versions"].items()),
        **{key: metrics[key] for key in
           ("seed", "steps", "trainable_params", "generated_params", "data_sha256")},
    )  # fmt: skip


def _base(config: Config, metrics: dict[str, Any]) -> str:
    """The language model as ``from_pretrained``'s arguments, at the commit that was trained on."""
    given = {}
    if config.model.base_model is None:  # else the commit and the file are another model's
        given = {"revision": metrics.get("model_revision"), "gguf_file": config.model.gguf_file}
    more = [f', {key}="{value}"' for key, value in given.items() if value is not None]
    return "".join([f'"{config.model.base}"', *more])


def _measured(config: Config, metrics: dict[str, Any]) -> str:
    return "\n".join(
        f"| test {key} | {metrics[key]:.3f}; base model {metrics[f'base_{key}']:.3f} |"
        for key in (metric.name for metric in TASKS[config.task].metrics)
        if metrics[key] is not None
    )


@dataclass(frozen=True)
class TrainedRun:
    """A run that is complete, and the model that it trained, in evaluation mode."""

    config: Config
    metrics: Metrics
    model: AdaptedModel


def load_run(run_dir: Path) -> TrainedRun:
    """Read a complete run back.

    Raises:
        InputError: no run directory, a run that is not complete, or files that are damaged.
    """
    config = directory.read_config(run_dir)
    metrics = directory.read_metrics(run_dir)
    if metrics is None or metrics.get("status") != "complete":
        raise InputError(
            f"{run_dir} is not complete: continue it with python -m qpa_exp resume={run_dir}"
        )
    task = TASKS[config.task](config, Stopwatch())
    base = task.load_model(load_tokenizer(config.model), metrics.get("class_names", []))
    return TrainedRun(
        config, metrics, load_adapted(base, directory.trained(run_dir, config), config).eval()
    )
