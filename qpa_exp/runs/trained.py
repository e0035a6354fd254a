"""A finished run, read back: its config, its results and its model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qpa_exp.adapters.formats import BASE_FILES, Format, adapted_head
from qpa_exp.adapters.qpa_model import AdaptedModel, load_adapted
from qpa_exp.config import Config, ModelConfig, validate
from qpa_exp.errors import InputError
from qpa_exp.files import file_sha256
from qpa_exp.generator.rules import VARIANTS
from qpa_exp.lm.loading import BUNDLED, load_tokenizer, local_place
from qpa_exp.runs import directory
from qpa_exp.runs.callbacks import Stopwatch
from qpa_exp.runs.directory import Metrics
from qpa_exp.task import TASKS

_CARD = """\
---
{metadata}library_name: {library}
pipeline_tag: {pipeline}
tags: [qpa, {method}]
---

# {title}, adapted by {how}

{base}

Trained on `{data}` ({layout}), seed {seed}, {steps:,} steps; the weights of step {kept:,}.{weights}

| | |
| --- | --- |
| trainable parameters | {trainable_params:,} |
| parameters of the method itself | {generated_params:,} |
{measured}

```python
{use}
```
{notes}
The data's sha256 is `{data_sha256}`. Made with {versions}.
"""

_WEIGHTS = """
Training and tests saw the base model's weights as the GGUF file `{}` has them."""

_TIED = """
## Before it is merged

This language model has one tensor for lm_head and the embedding. The adapter changes lm_head alone,
as long as it is an adapter. PEFT's `merge_and_unload` would change that one tensor, and so the
embedding, and give other logits. Give the head a tensor of its own first, or take
`format=merged`, where it has one:

```python
import torch

head = model.get_base_model().get_output_embeddings().base_layer
head.weight = torch.nn.Parameter(head.weight.detach().clone())
model.get_base_model().config.tie_word_embeddings = False
merged = model.merge_and_unload()
```
"""

_SERVERS = """
## On a server

The adapter is on lm_head, where not every server takes one. vLLM refuses it for a model whose class
does not list lm_head among its embedding modules (GPT-2, Gemma); llama.cpp's converter refuses it
where the head is tied to the embedding. `format=merged` is a plain model.
"""


@dataclass(frozen=True)
class Base:
    """The language model of a run, as others find it: never a path of this machine.

    Attributes:
        name: a hub id, or a directory within the export; None where it has no such name.
        shown: how the card calls it.
        says: a sentence about where it is.
        arguments: those of ``from_pretrained``, in Python.
        files: a directory that belongs into the export, so that the name exists.
    """

    name: str | None
    shown: str
    says: str
    arguments: str
    files: Path | None = None

    @property
    def on_hub(self) -> bool:
        """Whether its name is an id of the hub's, which may stand in the card's metadata."""
        return self.name is not None and self.files is None and self.name not in BUNDLED


def base_of(
    config: ModelConfig, metrics: dict[str, Any], form: Format, named: str | None = None
) -> Base:
    """Return what an export says about the language model that was trained on.

    Args:
        config: of the run's model.
        metrics: of the run.
        form: the export's.
        named: the hub id that somebody gives it now.

    Raises:
        InputError: what is given is no hub id.
    """
    named = named or config.base_model
    if named is not None:
        validate(dataclasses.replace(config, base_model=named), "model.")
        return Base(named, named, f"The language model is `{named}` of the hub.", f'"{named}"')
    if config.name_or_path in BUNDLED and (form.needs_us or form.complete):
        name = config.name_or_path
        says = f"The language model is `{name}`, which comes with the package qpa-exp."
        return Base(name, name, says, f"local_place({name!r})")
    if config.name_or_path in BUNDLED:
        says = f"The language model comes with the package qpa-exp; here it is in `{BASE_FILES}`."
        here = f'"<this directory>/{BASE_FILES}"'
        name = config.name_or_path
        return Base(f"./{BASE_FILES}", name, says, here, BUNDLED[name])
    place = local_place(config.name_or_path)
    if place.is_dir():
        files = [place / config.gguf_file] if config.gguf_file else place.glob("*.safetensors")
        sums = [f"`{file.name}` with the sha256 `{file_sha256(file)}`" for file in sorted(files)]
        says = f"The language model that was adapted has no name on the hub: {', '.join(sums)}."
        return Base(None, "A language model", says, '"<the language model>"')
    given = {"revision": metrics.get("model_revision"), "gguf_file": config.gguf_file}
    more = [f', {key}="{value}"' for key, value in given.items() if value is not None]
    name = config.name_or_path
    arguments = "".join([f'"{name}"', *more])
    return Base(name, name, f"The language model is `{name}` of the hub.", arguments)


def model_card(trained: TrainedRun, form: Format, base: Base) -> str:
    """Markdown with the hub's metadata: what was trained, what it measures, how to load it."""
    config, metrics = trained.config, trained.metrics
    kind = VARIANTS[config.qpa.variant]
    arguments = [base.arguments, *(f"{key}={value!r}" for key, value in trained.loading.items())]
    use = form.use.format(base=", ".join(arguments), auto=TASKS[config.task].auto_class)
    if "local_place(" in base.arguments:
        use = f"from qpa_exp.lm.loading import local_place\n{use}"
    return _CARD.format(
        metadata=f"base_model: {base.name}\n" if base.on_hub else "",
        title=base.shown,
        base=base.says,
        notes="" if form.complete or form.needs_us else _notes(trained.model),
        weights=_WEIGHTS.format(config.model.gguf_file) if config.model.gguf_file else "",
        library=form.library,
        method=config.peft.method,
        how=f"{config.peft.method} {kind.made_by}".rstrip(),
        pipeline="text-generation" if TASKS[config.task].writes_text else "text-classification",
        data=config.data.name,
        layout=config.data.layout,
        kept=metrics.get("kept_step") or metrics["steps"],
        measured=_measured(config, metrics),
        use=use,
        versions=", ".join(f"{name} {version}" for name, version in metrics["versions"].items()),
        **{key: metrics[key] for key in
           ("seed", "steps", "trainable_params", "generated_params", "data_sha256")},
    )  # fmt: skip


def _notes(model: AdaptedModel) -> str:
    """Return what an adapter on the output head means."""
    head, tied = adapted_head(model.peft_model)
    return "" if head is None else (_TIED if tied else "") + _SERVERS


def _measured(config: Config, metrics: dict[str, Any]) -> str:
    return "\n".join(
        f"| test {key} | {metrics[key]:.3f}; base model {metrics[f'base_{key}']:.3f} |"
        for key in (metric.name for metric in TASKS[config.task].metrics)
        if metrics[key] is not None
    )


@dataclass(frozen=True)
class TrainedRun:
    """A run that is complete, and the model that it trained, in evaluation mode.

    Attributes:
        config: of the run.
        metrics: of the run.
        model: what it trained.
        loading: what ``from_pretrained`` took beside the place of the language model.
    """

    config: Config
    metrics: Metrics
    model: AdaptedModel
    loading: dict[str, Any]


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
    given = load_tokenizer(config.model), metrics.get("class_names", [])
    base = task.load_model(*given)
    adapted = load_adapted(base, directory.trained(run_dir, config), config).eval()
    return TrainedRun(config, metrics, adapted, task.loading(*given))
