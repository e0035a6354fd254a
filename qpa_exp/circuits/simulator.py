"""What every back end is: a batch of angles in, a batch of probabilities out."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError
from qpa_exp.machine import free_memory

MOST_QUBITS = 30
"""A sanity limit, one for all back ends; before it, memory is the limit."""


class Simulator(ABC):
    """A circuit's probabilities from its angles, by one back end.

    A back end is a module of this package with the name that ``qpa.backend`` gives it, and with
    its simulator's class as ``BACKEND``. It is imported where it is chosen and nowhere else.

    Attributes:
        samples: measures by itself: :meth:`sample` is to be called, not the simulator.
    """

    samples: ClassVar[bool] = False

    def __init__(self, config: QPAConfig, ansatz: str, n_qubits: int) -> None:
        self.config = config
        self.ansatz = ansatz
        self.n_qubits = n_qubits

    def __deepcopy__(self, memo: dict[int, Any]) -> Simulator:
        """Nothing in it is trained: a copied model may share it."""
        return self

    def prepare(self) -> None:  # noqa: B027
        """Do now what needs to be done once; not called by ``plan``, which only counts."""

    @property
    @abstractmethod
    def bytes_needed(self) -> int:
        """Of memory to evaluate one circuit and its slopes."""

    @abstractmethod
    def __call__(
        self, theta: Float[Tensor, "*batch layers rotations qubits"]
    ) -> Float[Tensor, "*batch states"]:
        """The probabilities of the 2^N basis states, the first qubit the most significant bit."""

    def sample(
        self, theta: Float[Tensor, "*batch layers rotations qubits"], shots: int, seed: int
    ) -> Float[Tensor, "*batch states"]:
        """The basis states' frequencies in ``shots`` measurements of each circuit."""
        raise NotImplementedError


def make_simulator(config: QPAConfig, ansatz: str, n_qubits: int) -> Simulator:
    """The simulator that ``config.backend`` names.

    Raises:
        InputError: too many qubits for it, or for this machine's memory.
    """
    if n_qubits > MOST_QUBITS:
        raise InputError(
            f"{n_qubits} qubits are more than the {MOST_QUBITS} that any back end takes: "
            "raise qpa.n_mlp, each doubling saves a qubit."
        )
    module = importlib.import_module(f"qpa_exp.circuits.{config.backend}")
    simulator: Simulator = module.BACKEND(config, ansatz, n_qubits)
    _check_memory(simulator)
    return simulator


def _check_memory(simulator: Simulator) -> None:
    n_circuits = simulator.config.n_circuits
    needed, free = simulator.bytes_needed / 2**30, free_memory() / 2**30
    needed *= n_circuits
    if needed > free:
        several = f"{n_circuits} circuits of " if n_circuits > 1 else ""
        raise InputError(
            f"{several}{simulator.n_qubits} qubits need about {needed:.3g} GiB of memory with "
            f"qpa.backend={simulator.config.backend} and {free:.3g} GiB are free: "
            "raise qpa.n_mlp, each doubling saves a qubit."
        )
