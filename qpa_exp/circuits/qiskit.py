"""The circuit measured through Qiskit Runtime's SamplerV2: by Aer, a recorded or a real device.

``qpa.device=aer`` has no noise; ``fake_torino`` and ``fake_fez`` are Aer with the noise model of
the recorded device, the same that ``density_matrix`` computes exactly. These run here, in Runtime's
local testing mode. Any other name is an IBM device of the account that Qiskit Runtime has saved. No
credential passes through here.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qpa_exp.circuits.ansatz import gates
from qpa_exp.circuits.noise import noise_model, restrict
from qpa_exp.circuits.shots_cache import Counts, digest, read_counts, write_counts
from qpa_exp.circuits.simulator import Simulator
from qpa_exp.circuits.to_qiskit import (
    SNAPSHOTS,
    angle_places,
    measured_circuit,
    require_qiskit,
    snapshot,
    transpile_for,
)
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError, sentence_end

if TYPE_CHECKING:
    from qiskit import QuantumCircuit


class QiskitSampler(Simulator):
    """Frequencies of outcomes; a batch of circuits is one job, and no circuit is measured twice."""

    samples = True

    def __init__(self, config: QPAConfig, ansatz: str, n_qubits: int) -> None:
        super().__init__(config, ansatz, n_qubits)
        require_qiskit("qpa.backend=qiskit")
        self._device: Any = None
        self._version = ""
        self._circuit: QuantumCircuit | None = None

    def prepare(self) -> None:
        """Find the device, and transpile the circuit for it."""
        # Qiskit would report every pass, and Runtime every job, which here is every step.
        for library in ("qiskit", "qiskit_ibm_runtime"):
            logging.getLogger(library).setLevel(logging.WARNING)
        device = _find_device(self.config.device)
        circuit = measured_circuit(self.ansatz, self.n_qubits, self.config.n_layers)
        self._version = str(getattr(device, "backend_version", ""))
        self._circuit = transpile_for(circuit, device)
        self._device = device
        if self.config.device in SNAPSHOTS:
            self._device = _noisy_aer(self.config.device, self._circuit)

    @property
    def bytes_needed(self) -> int:
        """The state in double precision where this machine simulates it, and the frequencies."""
        return 2**self.n_qubits * (16 + 2 * 4)

    def __call__(
        self, theta: Float[Tensor, "*batch layers rotations qubits"]
    ) -> Float[Tensor, "*batch states"]:
        """There are no exact probabilities here."""
        raise NotImplementedError

    def sample(
        self, theta: Float[Tensor, "*batch layers rotations qubits"], shots: int, seed: int
    ) -> Float[Tensor, "*batch states"]:
        """The frequencies in ``shots`` measurements of each circuit.

        ``seed`` is that of a simulated measurement; one of a real device it only names.
        """
        batch, shape = theta.shape[:-3], theta.shape[-3:]
        angles = theta.detach().to("cpu", torch.float64).reshape(-1, *shape).numpy()
        names = [self._name(one, shots, seed) for one in angles]
        found = {name: read_counts(name, shots) for name in names}
        missing = [place for place, name in enumerate(names) if found[name] is None]
        if missing:
            measured = self._measure(angles[missing], shots, seed)
            for place, counts in zip(missing, measured, strict=True):
                write_counts(names[place], counts)
                found[names[place]] = counts
        frequencies = torch.stack([self._frequencies(found[name] or {}, shots) for name in names])
        return frequencies.to(theta).view(*batch, -1)

    def _measure(self, angles: np.ndarray, shots: int, seed: int) -> list[Counts]:
        """One job for all circuits."""
        from qiskit_ibm_runtime import SamplerV2

        if self._circuit is None:
            self.prepare()
        assert self._circuit is not None
        sampler = SamplerV2(mode=self._device)
        if _is_local(self.config.device):
            sampler.options.simulator.seed_simulator = seed
        places = angle_places(self.ansatz, self.n_qubits, self.config.n_layers)
        columns = [angles[:, *places[p.name]] for p in self._circuit.parameters]
        job = sampler.run([(self._circuit, np.stack(columns, axis=-1))], shots=shots)
        outcome = job.result()[0].data.outcome
        return [outcome.get_int_counts(place) for place in range(len(angles))]

    def _frequencies(self, counts: Counts, shots: int) -> Float[Tensor, " states"]:
        frequencies = torch.zeros(2**self.n_qubits, dtype=torch.float64)
        for state, count in counts.items():
            frequencies[state] = count / shots
        return frequencies

    def _name(self, angles: np.ndarray, shots: int, seed: int) -> str:
        """A digest of the device, the gates, the angles, the shots and the seed."""
        if self._device is None:
            self.prepare()
        listed = gates(self.ansatz, self.n_qubits, self.config.n_layers)
        return digest({
            "device": self.config.device,
            "device_version": self._version,
            "gates": [(gate.name, gate.qubits, gate.angle) for gate in listed],
            "angles": angles.tobytes().hex(),
            "shots": shots,
            "seed": seed,
        })  # fmt: skip


BACKEND = QiskitSampler


def _is_local(name: str) -> bool:
    return name == "aer" or name.startswith("fake_")


def _noisy_aer(name: str, circuit: QuantumCircuit) -> Any:
    """Aer with the recorded device's errors on the qubits that the circuit uses."""
    from qiskit_aer import AerSimulator

    used = {circuit.find_bit(qubit).index for step in circuit.data for qubit in step.qubits}
    return AerSimulator(noise_model=restrict(noise_model(name), used))


def _find_device(name: str) -> Any:
    """Aer, a recorded device, or an IBM device of the saved account; a Qiskit backend."""
    if name == "aer":
        from qiskit_aer import AerSimulator

        return AerSimulator()
    if name.startswith("fake_"):
        if name not in SNAPSHOTS:
            raise InputError(
                f"qpa.device={name} is not among the recorded devices: give fake_torino, "
                "fake_fez, or an IBM device such as ibm_torino."
            )
        return snapshot(name)
    from qiskit_ibm_runtime import QiskitRuntimeService

    try:
        return QiskitRuntimeService().backend(name)
    except Exception as error:  # of its network, its account, its list of devices
        raise InputError(
            f"qpa.device={name} cannot be reached through Qiskit Runtime: {sentence_end(error)}"
        ) from error
