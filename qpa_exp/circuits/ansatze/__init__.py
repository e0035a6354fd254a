"""The circuit's layer (``qpa.ansatz``), or a control in the circuit's place: one file each."""

from qpa_exp.circuits.ansatz import Ansatz
from qpa_exp.registry import Registry

ANSATZE: Registry[Ansatz] = Registry(
    "qpa.ansatz",
    "qpa_exp.circuits.ansatze",
    decides=(
        "qpa.n_layers", "qpa.share_angles", "qpa.backend", "qpa.shots", "qpa.final_shots",
        "qpa.gradient", "qpa.squash", "trainer.gradient_variance_starts",
    ),
)  # fmt: skip
