"""What may stand in the circuit's place, so that a study can tell what the circuit adds."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qpa_exp.circuits.ansatz import check_ansatz
from qpa_exp.circuits.circuit import Circuit, side_by_side
from qpa_exp.config import QPAConfig


class Uniform(nn.Module):
    """``ansatz=none``: every one of the 2^N probabilities is 1 / 2^N, and nothing is trained."""

    probabilities: Tensor
    evaluations = 0

    def __init__(self, config: QPAConfig, n_qubits: int) -> None:
        super().__init__()
        self.n_qubits = n_qubits
        values = torch.full(side_by_side(config, 2**n_qubits), 0.5**n_qubits)
        self.register_buffer("probabilities", values, persistent=False)

    def forward(self) -> Float[Tensor, "*circuits states"]:
        """Always the same."""
        return self.probabilities


class Gaussian(nn.Module):
    """``ansatz=gaussian``: fixed normal numbers, which the mapping model reads as they are."""

    features: Tensor
    evaluations = 0

    def __init__(self, config: QPAConfig, n_qubits: int, n_chunks: int) -> None:
        super().__init__()
        self.n_qubits = n_qubits
        values = torch.randn(side_by_side(config, n_chunks))
        self.register_buffer("features", values, persistent=False)

    def forward(self) -> Float[Tensor, "*circuits chunks"]:
        """Always the same; the seed rebuilds them."""
        return self.features


class Classical(nn.Module):
    """``ansatz=classical``: a softmax of free logits, one for each chunk.

    Attributes:
        logits: normally distributed at the start, about as uneven as a random circuit.
    """

    evaluations = 0

    def __init__(self, config: QPAConfig, n_qubits: int, n_chunks: int) -> None:
        super().__init__()
        self.n_qubits = n_qubits
        self.logits = nn.Parameter(torch.randn(side_by_side(config, n_chunks)))

    def forward(self) -> Float[Tensor, "*circuits chunks"]:
        """The chunks' probabilities; no other basis state has any."""
        return self.logits.softmax(-1)


def make_circuit(
    config: QPAConfig, n_qubits: int, n_chunks: int
) -> Circuit | Uniform | Gaussian | Classical:
    """The circuit that ``config`` describes, or the control that takes its place.

    Each is a module whose call gives at least ``n_chunks`` probabilities for each of
    ``config.n_circuits`` circuits, with ``n_qubits`` and
    the count of circuit ``evaluations``. Draws its start from torch's global stream.

    Raises:
        InputError: an unknown ansatz, or what :class:`Circuit` refuses.
    """
    check_ansatz(config.ansatz)
    if config.ansatz == "none":
        return Uniform(config, n_qubits)
    if config.ansatz == "gaussian":
        return Gaussian(config, n_qubits, n_chunks)
    if config.ansatz == "classical":
        return Classical(config, n_qubits, n_chunks)
    return Circuit(config, n_qubits)
