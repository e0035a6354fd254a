"""The circuit's layer (``qpa.ansatz``), or a control in the circuit's place: one file each."""

from qpa_exp.circuits.ansatz import Ansatz
from qpa_exp.config import QPAConfig
from qpa_exp.registry import Registry

ANSATZE: Registry[Ansatz] = Registry(
    "qpa.ansatz",
    "qpa_exp.circuits.ansatze",
    decides=(
        "qpa.n_layers", "qpa.share_angles", "qpa.backend", "qpa.shots", "qpa.final_shots",
        "qpa.gradient", "qpa.squash", "trainer.gradient_variance_starts", "qpa.block_size",
        "qpa.blend", "qpa.blend_hidden",
    ),
)  # fmt: skip


def ansatz_of(config: QPAConfig) -> Ansatz:
    """Return the ansatz that ``config.ansatz`` names, as the config's other keys have it."""
    return ANSATZE[config.ansatz].under(config)
