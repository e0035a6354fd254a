"""The circuit in TorchQuantum (Wang et al. 2022), the library that the paper's authors used."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from qpa_exp.circuits.ansatz import gates
from qpa_exp.circuits.simulator import Simulator
from qpa_exp.circuits.torchquantum_import import import_torchquantum

_NAMES = {"cx": "cnot", "h": "hadamard", "x": "paulix", "z": "pauliz", "id": "i"}
"""Where its functional interface does not take the name of OpenQASM."""


class TorchQuantum(Simulator):
    """One call of its functional interface for each gate; complex64, as the package is."""

    def prepare(self) -> None:
        """Import the package."""
        import_torchquantum()

    @property
    def bytes_needed(self) -> int:
        """Autograd keeps the state at every gate."""
        n_gates = sum(1 for _ in gates(self.ansatz, self.n_qubits, self.config.n_layers))
        return 2**self.n_qubits * 8 * (n_gates + 4)

    def __call__(
        self, theta: Float[Tensor, "*batch layers rotations qubits"]
    ) -> Float[Tensor, "*batch states"]:
        """The probabilities of the 2^N basis states, in theta's precision."""
        tq = import_torchquantum()
        batch, shape = theta.shape[:-3], theta.shape[-3:]
        angles = theta.reshape(-1, *shape)
        device = tq.QuantumDevice(n_wires=shape[-1], bsz=len(angles), device=theta.device)
        for gate in gates(self.ansatz, shape[-1], shape[0]):
            call = getattr(tq.functional, _NAMES.get(gate.name, gate.name))
            params = None if gate.angle is None else angles[:, *gate.angle]
            call(device, wires=list(gate.qubits), params=params)
        states = torch.view_as_real(device.get_states_1d())
        return states.square().sum(-1).to(theta.dtype).view(*batch, -1)


BACKEND = TorchQuantum
