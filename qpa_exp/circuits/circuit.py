"""A circuit as a module: its angles, and the probabilities that a back end computes from them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qpa_exp.circuits import statevector
from qpa_exp.circuits.ansatz import theta_shape
from qpa_exp.config import Ansatz, Backend
from qpa_exp.errors import InputError

Simulate = Callable[[Tensor, Ansatz], Tensor]

BACKENDS: dict[Backend, tuple[Simulate, int]] = {
    Backend.statevector: (statevector.probabilities, statevector.MAX_QUBITS),
}
"""For each back end: theta, ansatz -> probabilities, and the most qubits that it takes."""


class Circuit(nn.Module):
    """``n_layers`` repetitions of an ansatz on ``n_qubits`` qubits, starting from |0...0>.

    Attributes:
        theta: trainable angles (n_layers, rotations in a layer, n_qubits) in radians, uniform in
            (-pi, pi) at the start.
    """

    theta: Float[nn.Parameter, "layers rotations qubits"]

    def __init__(
        self,
        n_qubits: int,
        n_layers: int,
        ansatz: Ansatz = Ansatz.ry,
        backend: Backend = Backend.statevector,
    ) -> None:
        """Raises InputError where the back end cannot hold that many qubits."""
        super().__init__()
        self.ansatz = ansatz
        self._simulate, most = BACKENDS[backend]
        if n_qubits > most:
            raise InputError(
                f"{n_qubits} qubits are more than the {most} of qpa.backend={backend}: "
                "raise qpa.n_mlp, each doubling saves a qubit."
            )
        self.theta = nn.Parameter(torch.empty(theta_shape(ansatz, n_qubits, n_layers)))
        nn.init.uniform_(self.theta, -math.pi, math.pi)

    @property
    def n_qubits(self) -> int:
        """The paper's N."""
        return self.theta.shape[-1]

    def forward(self) -> Float[Tensor, " states"]:
        """The 2^N measurement probabilities of the basis states."""
        return self._simulate(self.theta, self.ansatz)
