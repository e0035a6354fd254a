"""What may stand in the circuit's place, so that a study can tell what the circuit adds."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qpa_exp.circuits.ansatz import check_ansatz
from qpa_exp.circuits.circuit import Circuit
from qpa_exp.config import QPAConfig


class Uniform(nn.Module):
    """``ansatz=none``: every one of the 2^N probabilities is 1 / 2^N, and nothing is trained."""

    probabilities: Tensor
    evaluations = 0

    def __init__(self, n_qubits: int) -> None:
        super().__init__()
        self.n_qubits = n_qubits
        values = torch.full((2**n_qubits,), 0.5**n_qubits)
        self.register_buffer("probabilities", values, persistent=False)

    def forward(self) -> Float[Tensor, " states"]:
        """Always the same."""
        return self.probabilities


class Classical(nn.Module):
    """``ansatz=classical``: a softmax of free logits, one for each chunk.

    Attributes:
        logits: normally distributed at the start, about as uneven as a random circuit.
    """

    evaluations = 0

    def __init__(self, n_qubits: int, n_chunks: int) -> None:
        super().__init__()
        self.n_qubits = n_qubits
        self.logits = nn.Parameter(torch.randn(n_chunks))

    def forward(self) -> Float[Tensor, " chunks"]:
        """The chunks' probabilities; no other basis state has any."""
        return self.logits.softmax(0)


def make_circuit(config: QPAConfig, n_qubits: int, n_chunks: int) -> Circuit | Uniform | Classical:
    """The circuit that ``config`` describes, or the control that takes its place.

    Each is a module whose call gives at least ``n_chunks`` probabilities, with ``n_qubits`` and
    the count of circuit ``evaluations``. Draws its start from torch's global stream.

    Raises:
        InputError: an unknown ansatz, or what :class:`Circuit` refuses.
    """
    check_ansatz(config.ansatz)
    if config.ansatz == "none":
        return Uniform(n_qubits)
    if config.ansatz == "classical":
        return Classical(n_qubits, n_chunks)
    return Circuit(config, n_qubits)
