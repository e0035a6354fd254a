"""A saved generator: ``generator.safetensors`` and ``qpa_config.json``, read as data only."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from peft import PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError
from qpa_exp.generator import Generator

WEIGHTS, CONFIG = "generator.safetensors", "qpa_config.json"
_FORMAT = 1


@dataclass(frozen=True)
class SavedGenerator:
    """What a directory holds, read and checked, before any model is built from it."""

    directory: Path
    qpa_config: QPAConfig
    peft_config: PeftConfig
    shapes: dict[str, list[int]]
    start_norm: float
    weights: dict[str, Tensor]

    def check_shapes(self, built: dict[str, list[int]]) -> None:
        """Refuse a language model whose tensors are not those that were generated."""
        if built != self.shapes:
            wrong = next(
                name for name in [*self.shapes, *built] if built.get(name) != self.shapes.get(name)
            )
            raise InputError(
                f"{self.directory} was saved for another language model: {wrong} has shape "
                f"{self.shapes.get(wrong)} there and {built.get(wrong)} here."
            )

    def load_into(self, generator: Generator) -> None:
        """Set the generator's weights; its start must be the one that was saved with them."""
        expected = {name: p.shape for name, p in generator.named_parameters()}
        if {name: p.shape for name, p in self.weights.items()} != expected:
            raise InputError(f"{self.directory / WEIGHTS} does not fit its own {CONFIG}.")
        generator.load_state_dict(self.weights)
        if not math.isclose(generator.start_norm(), self.start_norm, rel_tol=1e-4):
            raise InputError(
                f"{self.directory}: the start rebuilt from seed {self.qpa_config.seed} has norm "
                f"{generator.start_norm():.6g}, not the {self.start_norm:.6g} that was saved: "
                "this version of torch draws other numbers."
            )


def save(
    directory: str | Path,
    generator: Generator,
    peft_config: PeftConfig,
    shapes: dict[str, list[int]],
) -> None:
    """Write both files; ``directory`` is made where it does not exist."""
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    weights = {name: p.detach().cpu().contiguous() for name, p in generator.named_parameters()}
    save_file(weights, target / WEIGHTS, metadata={"format": "pt"})
    record = {
        "format": _FORMAT,
        "qpa_config": {k: _plain(v) for k, v in dataclasses.asdict(generator.config).items()},
        "peft_config": _peft_dict(peft_config),
        "shapes": shapes,
        "start_norm": generator.start_norm(),
    }
    (target / CONFIG).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read(directory: str | Path) -> SavedGenerator:
    """Read both files. Nothing that they name is imported or run.

    Raises:
        InputError: a file is missing, cut short or not what it should be.
    """
    source = Path(directory)
    for name in (CONFIG, WEIGHTS):
        if not (source / name).is_file():
            raise InputError(f"{source} is not a saved QPA model: it has no {name}.")
    try:
        record = json.loads((source / CONFIG).read_text(encoding="utf-8"))
        qpa_config = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(QPAConfig), record["qpa_config"])
        )
        return SavedGenerator(
            directory=source,
            qpa_config=qpa_config,  # type: ignore[arg-type]
            peft_config=PeftConfig.from_peft_type(**record["peft_config"]),
            shapes=record["shapes"],
            start_norm=float(record["start_norm"]),
            weights=load_file(source / WEIGHTS),
        )
    except SafetensorError as error:
        raise InputError(f"{source / WEIGHTS} is damaged or cut short: {error}.") from error
    except (ValueError, KeyError, TypeError, OmegaConfBaseException) as error:
        raise InputError(f"{source / CONFIG} is not a QPA config: {error!s}") from error


def _peft_dict(config: PeftConfig) -> dict[str, Any]:
    """PEFT's config as plain JSON, without the class names that its own loader would look up."""
    record = {key: _plain(value) for key, value in config.to_dict().items() if value is not None}
    for name in ("auto_mapping", "inference_mode", "runtime_config"):
        record.pop(name, None)
    return record


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return value.value if isinstance(value, Enum) else value
