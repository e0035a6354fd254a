"""The circuit measured through Qiskit Runtime's SamplerV2: by Aer, a recorded or a real device.

``qpa.device=aer`` has no noise; ``fake_torino`` and ``fake_fez`` are Aer with the noise model of
the recorded device, the same that ``density_matrix`` computes exactly. These run here, in Runtime's
local testing mode. Any other name is an IBM device of the account that Qiskit Runtime has saved. No
credential passes through here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qpa_exp.circuits.recorded_devices import RECORDED, noise_model, record_of, restrict, snapshot
from qpa_exp.circuits.simulator import Simulator
from qpa_exp.circuits.to_qiskit import QISKIT, angle_places, measured_circuit, transpile_for
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError, sentence_end
from qpa_exp.files import read_json, write_json
from qpa_exp.machine import user_cache

if TYPE_CHECKING:
    from qiskit import QuantumCircuit


class QiskitSampler(Simulator):
    """Frequencies of outcomes; a batch of circuits is one job.

    A real device costs money, so its counts are kept in the user's cache, and no circuit is
    measured twice there. Aer and the recorded devices measure again: their seed gives the same.
    """

    label = "Qiskit"
    samples = True
    reads = ("qpa.device",)

    def prepare(self) -> None:
        """Find the device, and transpile the circuit for it."""
        _ = self._transpiled

    @cached_property
    def _found(self) -> Any:
        """The device."""
        QISKIT.check("qpa.backend=qiskit")
        # Qiskit would report every pass, and Runtime every job, which here is every step.
        for library in ("qiskit", "qiskit_ibm_runtime"):
            logging.getLogger(library).setLevel(logging.WARNING)
        return _find_device(self.config.device)

    @cached_property
    def _transpiled(self) -> QuantumCircuit:
        circuit = measured_circuit(self.ansatz, self.n_qubits, self.config.n_layers)
        return transpile_for(circuit, self._found)

    @cached_property
    def _runs_on(self) -> Any:
        """The device, or in a recorded one's place Aer with its noise on the qubits in use."""
        if self.config.device not in RECORDED:
            return self._found
        from qiskit_aer import AerSimulator

        circuit = self._transpiled
        used = {circuit.find_bit(qubit).index for step in circuit.data for qubit in step.qubits}
        return AerSimulator(noise_model=restrict(noise_model(self.config.device), used))

    @classmethod
    def record_versions(cls, config: QPAConfig) -> dict[str, str]:
        """Qiskit's packages, and the day of a recorded device's record."""
        return QISKIT.versions() | record_of(config.device)

    @classmethod
    def check(cls, config: QPAConfig) -> None:
        """Refuse what does not measure real shots, or a device without a name."""
        if config.shots is None:
            raise InputError(
                "qpa.shots=null: qpa.backend=qiskit measures, so say how often, for example "
                "qpa.shots=20x for 20 * 2^N."
            )
        known = ", ".join(["aer", *RECORDED])
        if not re.fullmatch(r"\w+", config.device):
            raise InputError(
                f"qpa.device={config.device} is no name of a device: give {known}, "
                "or an IBM device such as ibm_torino."
            )
        if config.device.startswith("fake_") and config.device not in RECORDED:
            raise InputError(
                f"qpa.device={config.device} is not among the recorded devices: give {known}, "
                "or an IBM device such as ibm_torino."
            )

    @classmethod
    def bytes_needed(cls, config: QPAConfig, n_qubits: int) -> int:
        """Return the state in double precision where this machine simulates it, and the
        frequencies.
        """
        return 2**n_qubits * (16 + 2 * 4)

    def __call__(
        self, theta: Float[Tensor, "*batch layers rotations qubits"]
    ) -> Float[Tensor, "*batch states"]:
        """There are no exact probabilities here."""
        raise NotImplementedError

    def sample(
        self, theta: Float[Tensor, "*batch layers rotations qubits"], shots: int, seed: int
    ) -> Float[Tensor, "*batch states"]:
        """Return the frequencies in ``shots`` measurements of each circuit.

        ``seed`` is that of a simulated measurement; one of a real device it only names.
        """
        batch, shape = theta.shape[:-3], theta.shape[-3:]
        angles = theta.detach().to("cpu", torch.float64).reshape(-1, *shape).numpy()
        measure = self._measure if self._is_simulated else self._measure_once
        frequencies = [self._frequencies(one, shots) for one in measure(angles, shots, seed)]
        return torch.stack(frequencies).to(theta).view(*batch, -1)

    @property
    def _is_simulated(self) -> bool:
        return self.config.device in ("aer", *RECORDED)

    def _measure_once(self, angles: np.ndarray, shots: int, seed: int) -> list[Counts]:
        """Return the counts that are kept; measure the other circuits, and keep theirs."""
        names = [self._name(one, shots, seed) for one in angles]
        found = {name: read_counts(name, shots) for name in names}
        missing = {name: place for place, name in enumerate(names) if found[name] is None}
        if missing:
            measured = self._measure(angles[list(missing.values())], shots, seed)
            for name, counts in zip(missing, measured, strict=True):
                write_json(_path(name), counts)
                found[name] = counts
        return [found[name] or {} for name in names]

    def _measure(self, angles: np.ndarray, shots: int, seed: int) -> list[Counts]:
        """One job for all circuits."""
        from qiskit_ibm_runtime import SamplerV2

        sampler = SamplerV2(mode=self._runs_on)
        if self._is_simulated:
            sampler.options.simulator.seed_simulator = seed
        places = angle_places(self.ansatz, self.n_qubits, self.config.n_layers)
        flat = angles.reshape(len(angles), -1)
        columns = [flat[:, places[p.name]] for p in self._transpiled.parameters]
        job = sampler.run([(self._transpiled, np.stack(columns, axis=-1))], shots=shots)
        outcome = job.result()[0].data.outcome
        return [outcome.get_int_counts(place) for place in range(len(angles))]

    def _frequencies(self, counts: Counts, shots: int) -> Float[Tensor, " states"]:
        frequencies = torch.zeros(2**self.n_qubits, dtype=torch.float64)
        for state, count in counts.items():
            frequencies[state] = count / shots
        return frequencies

    def _name(self, angles: np.ndarray, shots: int, seed: int) -> str:
        """Return a digest of the device, the gates, the angles, the shots and the seed."""
        listed = self.ansatz.gates(self.n_qubits, self.config.n_layers)
        record = {
            "device": self.config.device,
            "device_version": str(getattr(self._found, "backend_version", "")),
            "gates": [(gate.name, gate.qubits, gate.angle) for gate in listed],
            "angles": angles.tobytes().hex(),
            "shots": shots,
            "seed": seed,
        }
        text = json.dumps(record, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


ENTRY = QiskitSampler


def _find_device(name: str) -> Any:
    """Aer, a recorded device, or an IBM device of the saved account; a Qiskit backend."""
    if name == "aer":
        from qiskit_aer import AerSimulator

        return AerSimulator()
    if name in RECORDED:
        return snapshot(name)
    from qiskit_ibm_runtime import QiskitRuntimeService

    try:
        return QiskitRuntimeService().backend(name)
    except Exception as error:  # of its network, its account, its list of devices
        raise InputError(
            f"qpa.device={name} cannot be reached through Qiskit Runtime: {sentence_end(error)}"
        ) from error


# --- a real device's counts on disk, so that nobody pays twice for the same circuit -----------

Counts = dict[int, int]
"""How often each basis state was measured."""


def read_counts(name: str, shots: int) -> Counts | None:
    """Return the counts of that name; None where there are none, or none that can be read."""
    try:
        counts = {int(state): int(n) for state, n in (read_json(_path(name)) or {}).items()}
    except (ValueError, TypeError):
        return None
    return counts if sum(counts.values()) == shots else None


def _path(name: str) -> Path:
    return user_cache() / "qiskit" / name[:2] / f"{name}.json"
