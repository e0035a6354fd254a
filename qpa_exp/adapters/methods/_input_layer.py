"""What our own PEFT methods share: layers that change what a linear layer is given.

They are tuners as PEFT's own are, so ``get_peft_model``, ``disable_adapter``, ``save_pretrained``
and ``PeftModel.from_pretrained`` work on them, once their modules have been imported.
"""

from __future__ import annotations

from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qpa_exp.adapters.peft_model import register
from qpa_exp.errors import InputError

__all__ = ["LINEAR", "InputLayer", "InputTuner", "register"]

LINEAR = (nn.Linear, Conv1D)
"""The layers that can be targeted; Conv1D is GPT-2's, a linear layer with its weight transposed."""


class InputLayer(nn.Module, BaseTunerLayer):
    """A linear layer with an adapter before it: ``base_layer(change(x))``.

    A subclass names its trainable tensors in ``adapter_layer_names``, and has ``add_adapter`` and
    ``change``.

    Examples:
        >>> import torch
        >>> from qpa_exp.adapters.methods._input_layer import InputLayer
        >>> class Gain(InputLayer):
        ...     adapter_layer_names = ("gain",)
        ...
        ...     def add_adapter(self, name, config):
        ...         self.gain = nn.ParameterDict({name: torch.full((self.in_features,), 2.0)})
        ...
        ...     def change(self, x, name):  # (..., in_features)
        ...         return x * self.gain[name]
        >>> layer = Gain(nn.Linear(3, 1, bias=False))
        >>> layer.add_adapter("default", None)
        >>> x = torch.rand(5, 3)
        >>> torch.equal(layer(x), layer.base_layer(2 * x))
        True
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        transposed = isinstance(self.get_base_layer(), Conv1D)
        self.in_features = self.get_base_weight().shape[0 if transposed else 1]
        self._disable_adapters = False
        self.merged_adapters = []

    def add_adapter(self, name: str, config: Any) -> None:
        """Make the trainable tensors of one adapter, at values that change nothing."""
        raise NotImplementedError

    def change(self, x: Tensor, name: str) -> Tensor:
        """Give the layer's input as the adapter ``name`` changes it, in the same shape and type."""
        raise NotImplementedError

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the linear layer on the changed input."""
        if not self.disable_adapters:
            for name in self.active_adapters:
                if name in self._get_available_adapters():
                    x = self.change(x, name)
        return self.base_layer(x, *args, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: what is done to the input is no change of the weight."""
        raise InputError(
            f"{type(self).__name__} cannot be merged into the weights: it changes the layer's "
            "input; keep the adapter beside the model."
        )

    def unmerge(self) -> None:
        """Nothing is ever merged."""


class InputTuner(BaseTuner):
    """Puts one :class:`InputLayer` on each targeted linear layer."""

    tuner_layer_cls: type[InputLayer]
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012

    def _new_layer(self, base_layer: nn.Module) -> InputLayer:
        return self.tuner_layer_cls(base_layer)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, self.tuner_layer_cls):
            target.add_adapter(adapter_name, peft_config)
            target.set_adapter(target.active_adapters, inference_mode=peft_config.inference_mode)
            return
        if not isinstance(target, LINEAR):
            raise ValueError(f"{current_key} is a {type(target).__name__}, not a linear layer.")
        layer = self._new_layer(target)
        layer.add_adapter(adapter_name, peft_config)
        layer._move_adapter_to_device_of_base_layer(adapter_name)
        layer.set_adapter([adapter_name], inference_mode=peft_config.inference_mode)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)
