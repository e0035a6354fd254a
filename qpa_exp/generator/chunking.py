"""How m generated parameters are cut into chunks, and the qubits that takes (Eq. 5 to 8)."""

from __future__ import annotations

import logging
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chunking:
    """``m`` parameters in chunks of ``n_mlp``: one basis state of the circuit for each chunk."""

    m: int
    n_mlp: int

    @property
    def n_chunks(self) -> int:
        """ceil(m / n_mlp)."""
        return -(-self.m // self.n_mlp)

    @property
    def n_qubits(self) -> int:
        """ceil(log2 n_chunks), at least 1: enough basis states for the chunks (Eq. 8)."""
        return max(1, (self.n_chunks - 1).bit_length())

    def warn_if_oversized(self) -> None:
        """Say so where one chunk is larger than all that there is to generate."""
        if self.n_mlp > self.m:
            log.warning(
                "qpa.n_mlp=%d is larger than the %d parameters to generate: there is one chunk "
                "on one qubit, and the mapping model's last %d outputs are never used.",
                self.n_mlp, self.m, self.n_mlp - self.m,
            )  # fmt: skip
