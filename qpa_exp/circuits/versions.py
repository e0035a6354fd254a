"""What a circuit's numbers depend on besides torch: packages, and the devices' records."""

from __future__ import annotations

from importlib.metadata import version

from qpa_exp.circuits.ansatz import NO_CIRCUIT
from qpa_exp.circuits.to_qiskit import NOISE_OF, SNAPSHOTS, snapshot
from qpa_exp.config import QPAConfig

_QISKIT = ("qiskit", "qiskit-aer", "qiskit-ibm-runtime")


def versions(config: QPAConfig) -> dict[str, str]:
    """By package, and by the name of a recorded device its version and the day of the record."""
    if config.variant == "off" or config.ansatz in NO_CIRCUIT:
        return {}
    if config.backend == "torchquantum":
        return {"torchquantum": version("torchquantum")}
    recorded = NOISE_OF.get(config.noise, config.device)
    if config.backend == "statevector" or (
        config.backend == "density_matrix" and config.noise == "none"
    ):
        return {}
    found = {package: version(package) for package in _QISKIT}
    if recorded in SNAPSHOTS:
        device = snapshot(recorded)
        day = device.properties().last_update_date.date().isoformat()
        found[recorded] = f"{device.backend_version} ({day})"
    return found
