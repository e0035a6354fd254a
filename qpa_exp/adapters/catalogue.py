"""The PEFT methods that ``peft=`` names.

They are PEFT's own registry, and one file each in ``methods/``. Nothing here imports PEFT, which
takes 9 seconds: it is asked only where a model is built, or where no formula says how large it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path
from typing import TYPE_CHECKING, Any

from qpa_exp.config import Config, PeftMethodConfig
from qpa_exp.errors import InputError
from qpa_exp.registry import Registry

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


@dataclass(frozen=True)
class Method:
    """One PEFT method.

    Attributes:
        label: its name in figures and tables.
        config_class: gives PEFT's config class for it, and makes the method known to PEFT where
            it is one of our own. It may import torch and PEFT.
        fixed: what it always sets there.
        head_count: (its keys, vocabulary, width) -> m on lm_head alone, by formula; None where
            only building tells. Without it m is counted on a model without storage.
        check: refuses what other keys must not be beside it, with an InputError.
        as_pefts: of one of our own, from its PEFT model to one of a type that PEFT has, with the
            same update, for exports; the model that it is given must not be used after it. None
            where PEFT has nothing like it.

    Examples:
        >>> from qpa_exp.adapters.catalogue import METHODS
        >>> METHODS["dora"].fixed, METHODS["prefix"].config_class().__name__
        ({'use_dora': True}, 'PrefixConfig')
    """

    label: str
    config_class: Callable[[], type[PeftConfig]]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    head_count: Callable[[PeftMethodConfig, int, int], int | None] = lambda *_: None
    check: Callable[[Config], None] = lambda _: None
    as_pefts: Callable[[PeftModel], PeftModel] | None = None


# --- PEFT's registry --------------------------------------------------------------------------

_REFUSED = {
    "adalora": "it prunes its ranks by calls that the training loop must make; take peft=lora",
    "adamss": "a clustering of the weights decides how its tensors are cut, so that nothing can "
    "be planned, or loaded, by the model's shapes",
    "cpt": "it has a loss of its own, over a mask of token types that each batch must bring",
    "multitask_prompt_tuning": "it needs the number of a task with each batch; "
    "take peft=prompt_tuning",
    "osf": "it turns the gradients of its own tensors, which generated tensors do not have",
    "poly": "it needs the number of a task with each batch; take peft=lora",
    "shadow": "it trains a second language model beside the first, with a loss of its own",
    "xlora": "it mixes LoRA adapters that have been trained before; take peft=lora",
}
"""What of PEFT's registry cannot be trained and generated here, and why."""

_LABELS = {
    "adaption_prompt": "LLaMA-Adapter", "beft": "BEFT", "boft": "BOFT", "c3a": "C3A",
    "deft": "DEFT", "delora": "DeLoRA", "dora": "DoRA", "fourierft": "FourierFT", "frod": "FRoD",
    "glora": "GLoRA", "gralora": "GraLoRA", "hira": "HiRA", "hra": "HRA", "ia3": "(IA)³",
    "lily": "Lily", "ln_tuning": "LN tuning", "loha": "LoHa", "lokr": "LoKr", "lora": "LoRA",
    "miss": "MiSS", "oft": "OFT", "p_tuning": "P-tuning", "peanut": "PEANuT",
    "prefix_tuning": "prefix tuning", "prompt_tuning": "prompt tuning", "psoft": "PSOFT",
    "pvera": "PVeRA", "randlora": "RandLoRA", "road": "RoAd", "shira": "SHiRA",
    "tinylora": "TinyLoRA", "trainable_tokens": "trainable tokens", "unilora": "Uni-LoRA",
    "vblora": "VB-LoRA", "vera": "VeRA", "waveft": "WaveFT",
}  # fmt: skip


@functools.cache
def pefts_types() -> tuple[str, ...]:
    """Return the names of PEFT's registry, in lower case.

    PEFT has them in a file that imports nothing, which is run apart from the package.
    """
    package = find_spec("peft")
    assert package is not None
    assert package.origin is not None
    names = run_path(str(Path(package.origin).with_name("utils") / "peft_types.py"))
    return tuple(member.value.lower() for member in names["PeftType"])


def _config_class(type_name: str) -> type[PeftConfig]:
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    config_class: type[PeftConfig] = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(type_name.upper())]
    return config_class


def _of_peft(name: str, type_name: str | None = None, **more: Any) -> Method:
    known_as = functools.partial(_config_class, type_name or name)
    return Method(_LABELS.get(name, name), known_as, **more)


def _lora_count(peft: PeftMethodConfig, vocabulary: int, width: int) -> int | None:
    """B and A, r (d + k) numbers; None for options, for PEFT's own r, and for one too large."""
    if peft.r is None or peft.r > min(vocabulary, width) or peft.options:
        return None
    return peft.r * (vocabulary + width)


def _dora_count(peft: PeftMethodConfig, vocabulary: int, width: int) -> int | None:
    """LoRA's, and a magnitude for each of the d outputs."""
    m = _lora_count(peft, vocabulary, width)
    return None if m is None else m + vocabulary


_WITH_MORE = {
    "lora": _of_peft("lora", fixed={"use_dora": False}, head_count=_lora_count),
    "dora": _of_peft("dora", "lora", fixed={"use_dora": True}, head_count=_dora_count),
    "frod": _of_peft("frod", fixed={"progressbar": False}),
}


# --- all of them ------------------------------------------------------------------------------


class _Methods(Registry[Method]):
    """Our own files first, then those of PEFT's names that can be trained and generated."""

    def __init__(self) -> None:
        super().__init__("peft.method", _WITH_MORE)
        self.own: Registry[Method] = Registry(self.key, f"{__package__}.methods")

    def __iter__(self) -> Iterator[str]:
        own = list(self.own)
        return iter([*own, *sorted({*pefts_types(), *_WITH_MORE} - {*_REFUSED, *own})])

    def __contains__(self, name: object) -> bool:
        if name in self.own:
            return True
        return name not in _REFUSED and (name in pefts_types() or name in _WITH_MORE)

    def __getitem__(self, name: str) -> Method:
        """Return the method of that name.

        Raises:
            InputError: there is none, or it is one of PEFT's that cannot work here.
        """
        if name in self.own:
            return self.own[name]
        if name in _REFUSED:
            raise InputError(f"peft={name} cannot be used here: {_REFUSED[name]}.")
        if name in _WITH_MORE or name not in self:
            return super().__getitem__(name)
        return _of_peft(name)


METHODS = _Methods()
"""Every method by name. A file that is added to ``methods/`` is known at once."""


def option_nodes() -> dict[str, dict[str, Any]]:
    """List what ``peft=<name>`` means to Hydra where conf/ has no file of that name."""
    return {name: {"method": name} for name in METHODS}


def unknown_method(name: str) -> str:
    """Why ``peft=<name>`` is no option, in one sentence."""
    try:
        METHODS[name]
    except InputError as error:
        return str(error).replace(f"{METHODS.key}=", "peft=")
    raise AssertionError(f"peft={name} is an option")


def check_method(config: Config) -> None:
    """Refuse a method that does not exist or cannot work, or other keys that do not fit it.

    Its own keys are checked where PEFT's config is made of them.
    """
    METHODS[config.peft.method].check(config)


def virtual_tokens(config: Config) -> int:
    """Positions of the language model that the method takes for itself, before each example."""
    return config.peft.options.get("num_virtual_tokens") or 0


def check_length(config: Config, limit: int | None) -> None:
    """Refuse examples beyond the model's positions, less those of the method's virtual tokens.

    Args:
        config: of the run.
        limit: the longest sequence that the model takes; None where it has no such limit.
    """
    virtual, length = virtual_tokens(config), config.data.max_length
    if limit is not None and length > limit - virtual:
        less = f" less {virtual} virtual tokens" if virtual else ""
        raise InputError(
            f"data.max_length={length} is beyond the {limit} positions of "
            f"model={config.model.name}{less}: give at most {limit - virtual}."
        )
