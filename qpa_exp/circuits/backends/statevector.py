"""The default: exact, and fast enough to sit in a training step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qpa_exp.circuits.ansatz import ansatz_of
from qpa_exp.circuits.simulator import Simulator
from qpa_exp.config import QPAConfig

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Statevector(Simulator):
    """The state of N qubits as 2^N amplitudes: see :mod:`~qpa_exp.circuits.circuit`."""

    label = "state vector"

    @classmethod
    def bytes_needed(cls, config: QPAConfig, n_qubits: int) -> int:
        """Count the state, the pair that goes back, its copies, the CNOTs' indices, the slopes."""
        amplitude = 4 if ansatz_of(config).is_real else 8
        return 2**n_qubits * (9 * amplitude + 2 * 4 + 3 * 4)

    def __call__(
        self, theta: Float[Tensor, "*batch layers rotations qubits"]
    ) -> Float[Tensor, "*batch states"]:
        """|<i|psi(theta)>|^2 for every basis state i."""
        from qpa_exp.circuits.circuit import probabilities

        return probabilities(theta, self.ansatz)


ENTRY = Statevector
