"""A language model with a PEFT method on it, whether its tensors are trained or generated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import AbstractContextManager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from transformers import PreTrainedModel

from qpa_exp.adapters.peft_model import train_adapter_only
from qpa_exp.adapters.saved_method import load_weights, peft_config_of
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError, one_line
from qpa_exp.files import read_plain, whole_file, write_json
from qpa_exp.files.whole_directory import part_of
from qpa_exp.generator.rules import VARIANTS

if TYPE_CHECKING:
    from qpa_exp.generator.generator import Generator


class AdaptedModel(nn.Module):
    """A frozen language model and a PEFT method on it: what a run asks of either kind.

    It is called as the language model is: ``model(input_ids=..., labels=...).loss.backward()``
    leaves gradients in what is trained. :class:`ClassicalModel` trains the method's own tensors;
    in :class:`~qpa_exp.adapters.qpa_model.QPAModel` a generator makes them.

    Attributes:
        peft_model: HF PEFT's model of the method.
        generator: what makes the method's tensors; None where they are trained themselves.
    """

    peft_model: PeftModel
    generator: Generator | None

    # --- one step of an optimizer ---------------------------------------------------------------

    def begin_step(self) -> None:
        """Say that an optimizer step begins: what is generated is then generated once for it."""

    def end_step(self) -> None:
        """Give the trained parameters the gradients of all batches since the step began."""

    def refresh(self) -> None:
        """Bring what is generated up to date with the parameters, as every forward pass does."""

    def trained_tensors(self) -> list[Tensor]:
        """Where the gradients of the language model's loss end: the method's parameters here.

        For a loss that is computed piece by piece and adds gradients up itself.
        """
        return [p for p in self.peft_model.parameters() if p.requires_grad]

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return what an optimizer trains, by the names that checkpoints have."""
        named = self.peft_model.named_parameters()
        return {f"peft_model.{name}": p for name, p in named if p.requires_grad}

    @property
    def circuit_evaluations(self) -> Tensor | None:
        """How often a circuit has been evaluated in this process; None where there is none."""
        if self.generator is None or not VARIANTS[self.generator.config.variant].circuit:
            return None
        evaluations: Any = self.generator.circuit.evaluations
        return torch.as_tensor(evaluations)

    def compile_generator(self) -> None:
        """Make the generator faster, where there is one."""

    def disable_adapter(self) -> AbstractContextManager[None]:
        """Within this context the model is the untouched language model."""
        raise NotImplementedError

    # --- what is inside, and what is left of it -------------------------------------------------

    def language_model(self) -> Any:
        """Return the language model as transformers has it, with the method's layers in it."""
        return self.peft_model.get_base_model()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Write text: the language model's own ``generate``."""
        raise NotImplementedError

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write what was trained, and nothing of the language model."""
        raise NotImplementedError

    def to_peft(self) -> PeftModel:
        """Return a plain PEFT model of the same tensors."""
        raise NotImplementedError


class ClassicalModel(AdaptedModel):
    """A PEFT method whose own tensors are trained (``qpa=off``)."""

    generator = None

    def __init__(self, peft_model: PeftModel) -> None:
        super().__init__()
        self.peft_model = peft_model
        self.train(peft_model.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the language model's own output."""
        return self.peft_model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Write text: the language model's own ``generate``."""
        return self.peft_model.generate(*args, **kwargs)

    def train(self, mode: bool = True) -> ClassicalModel:
        """Set the training mode of what is trained; the backbone stays in evaluation mode."""
        super().train(mode)
        train_adapter_only(self.peft_model, mode)
        return self

    @property
    def device(self) -> torch.device:
        """Where the language model lies."""
        return self.peft_model.device

    def disable_adapter(self) -> AbstractContextManager[None]:
        """Within this context the model is the untouched language model."""
        context: AbstractContextManager[None] = self.peft_model.disable_adapter()
        return context

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the adapter in PEFT's format."""
        save_adapter(self.peft_model, save_directory)

    def to_peft(self) -> PeftModel:
        """PEFT's model itself."""
        return self.peft_model

    @classmethod
    def from_pretrained(cls, model: PreTrainedModel, directory: str | Path) -> ClassicalModel:
        """Return the model that :meth:`save_pretrained` saved, on the same language model.

        Evaluating.

        Raises:
            InputError: the directory is missing, or holds no adapter for this model.
        """
        source = Path(directory)
        config, weights = read_adapter(source)
        try:
            loaded = PeftModel.from_pretrained(model, str(source), config=config)
        except Exception as error:  # PEFT, safetensors and torch each have errors for damage
            raise InputError(f"{directory} cannot be loaded: {one_line(error)[:300]}") from error
        has = get_peft_model_state_dict(loaded, save_embedding_layers=False)
        if not same_shapes(weights, has):
            file = source / SAFETENSORS_WEIGHTS_NAME
            raise InputError(f"{file} does not hold the tensors of its own {CONFIG_NAME}.")
        return cls(loaded).eval()


def read_adapter(source: Path) -> tuple[PeftConfig, dict[str, Tensor]]:
    """Return a saved adapter's config and tensors; nothing that they name is imported or run.

    Raises:
        InputError: it is missing or damaged.
    """
    if not (source / CONFIG_NAME).is_file():
        raise InputError(f"{source} is missing: the run's trained adapter is not there.")
    record = read_plain(source / CONFIG_NAME)
    try:
        config = peft_config_of(record)
    except (ValueError, TypeError, LookupError, AssertionError) as error:
        why = one_line(error)[:300].rstrip(".")
        raise InputError(f"{source / CONFIG_NAME} is no method's config: {why}.") from error
    return config, load_weights(source / SAFETENSORS_WEIGHTS_NAME)


def same_shapes(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether both have the same names, shapes and types."""
    pairs = ({name: (w.shape, w.dtype) for name, w in each.items()} for each in (one, other))
    return next(pairs) == next(pairs)


def save_adapter(model: PeftModel, directory: str | Path) -> None:
    """Write an adapter in PEFT's format, and nothing of the language model."""
    place = Path(directory)
    with part_of(place / "adapter") as part:
        # PEFT would add a copy of the embedding to an adapter on lm_head: it is not trained.
        model.save_pretrained(str(part), save_embedding_layers=False)
        for file in sorted(part.glob("adapter_*"), reverse=True):
            file.replace(place / file.name)


# --- a saved generator ------------------------------------------------------------------------

WEIGHTS, CONFIG = SAFETENSORS_WEIGHTS_NAME, "qpa_config.json"
OLD_WEIGHTS, OLD_WHOLE = "generator.safetensors", "modules.safetensors"
"""Files of earlier versions: the generator's weights, and those of modules trained whole."""
_FORMAT, _LOWEST_FIRST = 1, 2
"""The files' formats: of a variant that reads the bits lowest first, 1 read them otherwise."""


def save_generator(
    directory: str | Path,
    generator: Generator,
    peft_config: PeftConfig,
    shapes: dict[str, list[int]],
    weights: Mapping[str, Tensor],
) -> None:
    """Write a generator; the directory is made where there is none.

    Args:
        directory: where the files are written, one after the other.
        generator: whose config and start are written down.
        peft_config: of the method whose tensors it makes.
        shapes: of these tensors.
        weights: the generator's own, and those of modules that are trained whole.
    """
    target = Path(directory)
    stored = {name: p.detach().cpu().contiguous() for name, p in weights.items()}
    with whole_file(target / WEIGHTS) as written:
        written.write(to_bytes(stored, metadata={"format": "pt"}))
    record = {
        "format": format_of(generator.config),
        "qpa_config": {k: _plain(v) for k, v in dataclasses.asdict(generator.config).items()},
        "peft_config": peft_dict(peft_config),
        "shapes": shapes,
        "whole": sorted(set(weights) - {name for name, _ in generator.named_parameters()}),
        "start_norm": generator.start_norm(),
    }
    write_json(target / CONFIG, record)


def format_of(config: QPAConfig) -> int:
    """Return the format of a saved generator's files."""
    return _LOWEST_FIRST if VARIANTS[config.variant].lowest_first else _FORMAT


def peft_dict(config: PeftConfig) -> dict[str, Any]:
    """PEFT's config as plain JSON, without the class names that its own loader would look up."""
    record = {key: _plain(value) for key, value in config.to_dict().items() if value is not None}
    for name in ("auto_mapping", "inference_mode", "runtime_config"):
        record.pop(name, None)
    return record


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return value.value if isinstance(value, Enum) else value
