"""What a circuit's numbers depend on besides torch: packages, and the devices' records."""

from __future__ import annotations

from importlib.metadata import version

from qpa_exp.circuits.to_qiskit import NOISE_OF, SNAPSHOTS, snapshot
from qpa_exp.config import NO_CIRCUIT, Backend, Noise, QPAConfig, Variant

_QISKIT = ("qiskit", "qiskit-aer", "qiskit-ibm-runtime")


def versions(config: QPAConfig) -> dict[str, str]:
    """By package, and by the name of a recorded device its version and the day of the record."""
    if config.variant == Variant.off or config.ansatz in NO_CIRCUIT:
        return {}
    if config.backend == Backend.torchquantum:
        return {"torchquantum": version("torchquantum")}
    recorded = NOISE_OF.get(Noise(config.noise), config.device)
    if config.backend == Backend.statevector or (
        config.backend == Backend.density_matrix and config.noise == Noise.none
    ):
        return {}
    found = {package: version(package) for package in _QISKIT}
    if recorded in SNAPSHOTS:
        device = snapshot(recorded)
        day = device.properties().last_update_date.date().isoformat()
        found[recorded] = f"{device.backend_version} ({day})"
    return found
