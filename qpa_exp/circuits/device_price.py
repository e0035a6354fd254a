"""What one training run would cost on a device: circuits, shots, gates, depth, seconds.

    seconds = steps * circuits of a step * shots * (duration of the circuit + delay)

The circuit is transpiled to the device's own gates and qubits, with its measurement. The duration
is that of its longest path, by the gates' and the measurement's durations in the device's snapshot;
the delay is the device's default between two shots (``default_rep_delay``). Both are IBM's own, as
Qiskit Runtime ships them. Left out is what cannot be known beforehand: the queue, and what every
job takes besides its shots, to be loaded and read out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qpa_exp.circuits.ansatz import ansatz_of
from qpa_exp.circuits.gradients import GRADIENTS
from qpa_exp.circuits.recorded_devices import RECORDED, record_of, snapshot
from qpa_exp.circuits.to_qiskit import QISKIT, measured_circuit, transpile_for
from qpa_exp.config import QPAConfig, count_shots
from qpa_exp.errors import InputError

SHOTS = "20x"
"""Where ``qpa.shots`` is null: the paper's 20 * 2^N."""


@dataclass(frozen=True)
class DevicePrice:
    """One circuit on a device, and what a run's steps would take of it.

    Attributes:
        device: the name of the recorded device.
        record: its version, and the day of its record.
        n_qubits: of the circuit.
        n_angles: of the circuit.
        gates: after transpiling, measurements apart.
        two_qubit_gates: of these.
        depth: after transpiling.
        duration: of the circuit and its measurement, in seconds.
        delay: between two shots, in seconds.
        shots: of a circuit.
        circuits: of a step, by the gradient rules that a device can follow.
    """

    device: str
    record: str
    n_qubits: int
    n_angles: int
    gates: int
    two_qubit_gates: int
    depth: int
    duration: float
    delay: float
    shots: int
    circuits: dict[str, int]

    def seconds(self, rule: str, steps: int) -> float:
        """Count the seconds of device time for so many steps under a gradient rule."""
        return steps * self.circuits[rule] * self.shots * (self.duration + self.delay)


def price(config: QPAConfig, n_qubits: int, device: str) -> DevicePrice:
    """Return the price of a circuit of ``n_qubits`` qubits on a recorded device.

    Args:
        config: of a generator with a circuit.
        n_qubits: the paper's N.
        device: one of :data:`~qpa_exp.circuits.recorded_devices.RECORDED`.

    Raises:
        InputError: no such device, no circuit, more qubits than it has, or Qiskit is missing.

    Examples:
        >>> from qpa_exp.circuits.device_price import price
        >>> from qpa_exp.config import QPAConfig
        >>> price(QPAConfig(), 2, "fake_torino").circuits  # doctest: +SKIP
        {'parameter_shift': 33, 'spsa': 3}
    """
    if device not in RECORDED:
        raise InputError(f"price={device} is unknown: give {' or '.join(RECORDED)}.")
    ansatz = ansatz_of(config)
    if not ansatz.has_circuit:
        raise InputError(f"qpa.ansatz={config.ansatz} has no circuit to run on a device.")
    QISKIT.check(f"price={device}")
    found = snapshot(device)
    circuit = measured_circuit(ansatz, n_qubits, config.n_layers)
    on_device: Any = transpile_for(circuit, found)
    n_angles = len(on_device.parameters)
    shots = count_shots(config.shots or SHOTS, n_qubits)
    assert shots is not None
    return DevicePrice(
        device=device,
        record=" ".join(record_of(device).values()),
        n_qubits=n_qubits,
        n_angles=n_angles,
        gates=on_device.size() - n_qubits,
        two_qubit_gates=on_device.num_nonlocal_gates(),
        depth=on_device.depth(),
        duration=on_device.estimate_duration(found.target, unit="s"),
        delay=found.configuration().default_rep_delay,
        shots=shots,
        circuits=_circuits(config, n_angles if ansatz.trained else 0),
    )


def _circuits(config: QPAConfig, n_angles: int) -> dict[str, int]:
    """Return the step's own circuits, and those of its slopes.

    One without trained angles has none.
    """
    if n_angles == 0:
        return {"not trained": config.n_circuits}
    return {
        name: config.n_circuits * (1 + method.circuits(n_angles))
        for name, method in GRADIENTS.items()
        if method.circuits is not None
    }
