"""The layer of ``prefix``: one learned vector for each position, added to its input.

This is what the paper calls prefix tuning (PT): "prepended to the input of the target linear
layer", with exactly as many rows as the padded text has positions (512). A linear layer is applied
token by token, so such rows can act in one way alone: x_p -> x_p + v_p at position p. Li and
Liang's prefix tuning, keys and values in every layer, is ``prefix_tuning``.

m = length * k for a layer of k inputs. It starts at zero, which is the unchanged model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftType
from torch import Tensor, nn

from qpa_exp.adapters.methods._input_layer import InputLayer, InputTuner, register
from qpa_exp.errors import InputError


@dataclass
class PrefixConfig(PeftConfig):
    """Which layers, and how many positions.

    Attributes:
        length: positions that have a vector; a longer sequence is refused.
        target_modules: names of linear layers, or a regular expression.
    """

    length: int = 512
    target_modules: list[str] | set[str] | str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a length below 1."""
        super().__post_init__()
        self.peft_type = PeftType("QPA_PREFIX")
        if self.length < 1:
            raise ValueError(f"length={self.length} is too small: give at least 1.")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)


class Positions:
    """Where in its sequence each token of the current forward pass stands.

    A linear layer cannot tell: while text is generated it is given the newest token alone, and
    ``logits_to_keep`` leaves out tokens before the head. So the language model's own arguments
    are read when it is called: ``position_ids`` where they are given, as ``generate`` does for
    padded batches, otherwise the tokens' places after those in the key/value cache.
    """

    def __init__(self) -> None:
        self.given: Tensor | None = None
        self.kept: Tensor | None = None
        self.longest = 0

    def read(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Read the positions before each forward pass of the language model: a pre-hook."""
        positions = kwargs.get("position_ids")
        if positions is None:
            tokens = args[0] if args else kwargs.get("input_ids")
            tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
            if tokens is None:
                return
            cache = kwargs.get("past_key_values")
            begin = 0 if cache is None else int(cache.get_seq_length())
            self.longest = begin + tokens.shape[1]
            positions = torch.arange(begin, self.longest, device=tokens.device)[None]
        else:
            self.longest = int(positions.max()) + 1
        keep = kwargs.get("logits_to_keep", 0)
        self.given = positions
        # A keep of 0 is all of them; -0 begins at the first, as it must.
        self.kept = positions[:, -keep:] if isinstance(keep, int) else positions[:, keep]

    def clear(self, *_: Any) -> None:
        """Forget the positions after a forward pass of the language model: a hook."""
        self.given = self.kept = None

    def of(self, x: Tensor) -> tuple[Tensor, int]:
        """Return the positions in a layer's input (..., tokens, features), and 1 + the last of all.

        The positions are (1 or rows, tokens). Outside the language model's forward pass, the
        tokens count from 0.
        """
        tokens = x.shape[-2]
        if self.given is None:
            return torch.arange(tokens, device=x.device)[None], tokens
        rows = x.shape[0] if x.dim() == 3 else 1
        for positions in (self.given, self.kept):
            if positions is not None and tuple(positions.shape) in ((1, tokens), (rows, tokens)):
                return positions.to(x.device), self.longest
        raise InputError(
            f"peft=prefix cannot tell the positions of a layer's input of shape {list(x.shape)}: "
            "target a layer that is given one row of tokens for each text, such as lm_head."
        )


class PrefixLayer(InputLayer):
    """A linear layer whose input has the position's vector added."""

    adapter_layer_names = ("qpa_prefix_vectors",)
    other_param_names = ()

    def __init__(self, base_layer: nn.Module, positions: Positions) -> None:
        super().__init__(base_layer)
        self.positions = positions
        self.qpa_prefix_vectors = nn.ParameterDict()

    def add_adapter(self, name: str, config: PrefixConfig) -> None:
        """(length, in_features) zeros."""
        self.qpa_prefix_vectors[name] = nn.Parameter(torch.zeros(config.length, self.in_features))

    def change(self, x: Tensor, name: str) -> Tensor:
        """X + v[position].

        Raises:
            InputError: a position beyond the prefix.
        """
        vectors = self.qpa_prefix_vectors[name]
        positions, longest = self.positions.of(x)
        if longest > vectors.shape[0]:
            raise InputError(
                f"A sequence of {longest} tokens is longer than the prefix of {vectors.shape[0]}: "
                f"give peft.options.length={longest}, or shorter examples."
            )
        added = F.embedding(positions, vectors).to(x.dtype)
        return x + (added if x.dim() == 3 else added[0])


class PrefixTuner(InputTuner):
    """Puts a :class:`PrefixLayer` on each targeted layer, and reads the positions for them."""

    prefix = "qpa_prefix_"
    tuner_layer_cls = PrefixLayer

    def _new_layer(self, base_layer: nn.Module) -> PrefixLayer:
        if "positions" not in self.__dict__:
            self.positions = Positions()
            self.model.register_forward_pre_hook(self.positions.read, with_kwargs=True)
            self.model.register_forward_hook(self.positions.clear, always_call=True)
        return PrefixLayer(base_layer, self.positions)


register("qpa_prefix", PrefixConfig, PrefixTuner)
