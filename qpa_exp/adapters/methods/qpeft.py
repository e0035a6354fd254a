"""``qpeft``: an update between columns of two Pauli-parametrised orthogonal matrices.

After Quantum-PEFT (Koike-Akino, Tonin et al., ICLR 2025, arXiv:2503.05431). Theirs: an update
U L V^T of a frozen weight, (d, k), whose factors are orthogonal and made from few angles, so that
what is trained grows with the logarithm of the dimension. Of the paper the abstract was at hand;
the details are our reading of it, in ``_qpeft_layer``, which needs torch and PEFT.

m = r + (2 n_layers + 1) (p + q) - 4 n_layers for p = ceil(log2 d) and q = ceil(log2 k), at least 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qpa_exp.adapters.catalogue import Method
from qpa_exp.config import PeftMethodConfig

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


def _config_class() -> type[PeftConfig]:
    from qpa_exp.adapters.methods._qpeft_layer import QPEFTConfig

    return QPEFTConfig


def _head_count(peft: PeftMethodConfig, vocabulary: int, width: int) -> int | None:
    n_layers, r = peft.options.get("n_layers"), peft.r
    if set(peft.options) - {"n_layers", "scale"} or type(n_layers) is not int or n_layers < 1:
        return None
    if r is None or not 1 <= r <= min(vocabulary, width):
        return None
    qubits = sum(max(1, (size - 1).bit_length()) for size in (vocabulary, width))
    return r + (2 * n_layers + 1) * qubits - 4 * n_layers


def _as_lora(model: PeftModel) -> PeftModel:
    from qpa_exp.adapters.methods._qpeft_layer import as_lora

    return as_lora(model)


ENTRY = Method("Quantum-PEFT", _config_class, head_count=_head_count, as_pefts=_as_lora)
