"""PEFT methods on a frozen language model, trained as they are or generated."""

from qpa_exp.adapters.building import build_peft_model, train_adapter_only
from qpa_exp.adapters.methods.catalogue import make_peft_config
from qpa_exp.adapters.qpa_model import QPAModel, get_qpa_model

__all__ = [
    "QPAModel",
    "build_peft_model",
    "get_qpa_model",
    "make_peft_config",
    "train_adapter_only",
]
