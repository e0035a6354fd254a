"""How the time of a step grows with each size, and the exponent of that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from qpa_exp.benchmarks.measuring import Seconds, fit_exponent, side_by_side
from qpa_exp.benchmarks.workloads import Shape, Workload
from qpa_exp.config import QPAConfig
from qpa_exp.generator.generator import Generator

_SMALL = Shape("growth", "gpt2", vocab=16384, width=256, tokens=256, n_mlp=256)


@dataclass(frozen=True)
class Growth:
    """Seconds at some values of one size.

    Attributes:
        what: which size, and what is timed.
        sizes: what the exponent is of; 2^N for qubits.
    """

    name: str
    what: str
    values: list[int]
    sizes: list[int]
    times: list[Seconds]

    @property
    def exponent(self) -> float:
        """Of the size, in seconds = c * size^exponent."""
        return fit_exponent(self.sizes, [time.median for time in self.times])

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "what": self.what,
            "values": self.values,
            "sizes": self.sizes,
            "seconds": [time.record() for time in self.times],
            "exponent": self.exponent,
        }


def measure_growth(rounds: int, quick: bool) -> list[Growth]:
    """Of the generator with qubits, layers and n_mlp; of a step with tokens and vocabulary."""
    cut = 3 if quick else None
    generator, step = "generator, forward and backward", "QPA step, hidden states at hand"
    plans: list[tuple[str, str, list[int], Callable[[int], Callable[[], object]]]] = [
        ("n_qubits", f"{generator}; n_mlp = 16, L = 8", [8, 10, 12, 14, 16],
         lambda n: _generate(n_mlp=16, n_chunks=2**n, n_layers=8)),
        ("n_layers", f"{generator}; N = 10, n_mlp = 16", [8, 16, 32, 64, 128],
         lambda n: _generate(n_mlp=16, n_chunks=2**10, n_layers=n)),
        ("n_mlp", f"{generator}; N = 7, L = 8", [256, 1024, 4096, 8192, 16384],
         lambda n: _generate(n_mlp=n, n_chunks=2**7, n_layers=8)),
        ("tokens", f"{step}; head 16384 x 256", [64, 128, 256, 512, 1024],
         lambda n: _step(replace(_SMALL, tokens=n))),
        ("vocab", f"{step}; 256 tokens, width 256", [4096, 8192, 16384, 32768, 65536],
         lambda n: _step(replace(_SMALL, vocab=n))),
    ]  # fmt: skip
    grown = []
    for name, what, values, make in plans:
        taken = values[:cut]
        times = side_by_side({str(n): make(n) for n in taken}, rounds)
        sizes = [2**n for n in taken] if name == "n_qubits" else taken
        grown.append(Growth(name, what, taken, sizes, [times[str(n)] for n in taken]))
    return grown


def _generate(n_mlp: int, n_chunks: int, n_layers: int) -> Callable[[], object]:
    config = QPAConfig(n_mlp=n_mlp, n_layers=n_layers, seed=0)
    generator = Generator(n_mlp * n_chunks, config).train()
    return lambda: generator().sum().backward()


def _step(shape: Shape) -> Callable[[], object]:
    work = Workload(shape)
    return work.fast(work.qpa("statevector"))
