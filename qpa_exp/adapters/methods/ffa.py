"""``ffa``: the paper's feed-forward adapter, a bottleneck inserted before a linear layer.

m = 2 k (k/4) + k/4 + k for a layer of k inputs and a reduction of 4. The layer is in
``_ffa_layer``, which needs torch and PEFT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qpa_exp.adapters.catalogue import Method
from qpa_exp.config import PeftMethodConfig

if TYPE_CHECKING:
    from peft import PeftConfig


def _config_class() -> type[PeftConfig]:
    from qpa_exp.adapters.methods._ffa_layer import FFAConfig

    return FFAConfig


def _head_count(peft: PeftMethodConfig, vocabulary: int, width: int) -> int | None:
    """Two layers between the head's k inputs and k / reduction, with their biases."""
    reduction = peft.options.get("reduction")
    activations = {"gelu", "relu", "tanh"}
    if set(peft.options) != {"reduction", "activation"} or type(reduction) is not int:
        return None
    if not 1 <= reduction <= width or peft.options["activation"] not in activations:
        return None
    inner = width // reduction
    return 2 * width * inner + inner + width


ENTRY = Method("FFA", _config_class, head_count=_head_count)
