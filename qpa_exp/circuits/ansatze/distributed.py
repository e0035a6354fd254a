"""The circuit of ``ry`` on several small processors: sub-circuits with no gate between them.

After the distributed ansatz of Liu, Lin, Chen 2024 (arXiv:2409.06992), of which the abstract was at
hand. Our reading: the N qubits are cut into blocks of ``qpa.block_size``, and every block is a
circuit of Eq. 1 by itself, so that p(x) is the product of the blocks' probabilities.
"""

from qpa_exp.circuits.ansatz import RY, Ansatz, InBlocks, Moment
from qpa_exp.config import QPAConfig


def _moments(config: QPAConfig) -> tuple[Moment, ...]:
    return RY, Moment("cx", InBlocks(config.block_size))


ENTRY = Ansatz(
    "$R_Y$, in blocks",
    (RY, Moment("cx", InBlocks())),
    moments_under=_moments,
    more_keys=("qpa.block_size",),
)
