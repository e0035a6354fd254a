"""What a back end is: a batch of angles in, a batch of probabilities out; and what it refuses.

Nothing here needs torch, so that a config is checked, and its memory counted, without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar

from qpa_exp.circuits.ansatz import ansatz_of
from qpa_exp.circuits.gradients import GRADIENTS
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError, first_line
from qpa_exp.machine import free_memory
from qpa_exp.registry import Registry

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

MOST_QUBITS = 30
"""A sanity limit, one for all back ends; before it, memory is the limit."""


@dataclass(frozen=True)
class Packages:
    """What has to be installed, by the names that pip knows, and how to get it."""

    names: tuple[str, ...]
    install: str

    def check(self, what: str) -> None:
        """Refuse ``what`` in one sentence where a package cannot be imported."""
        for name in self.names:
            try:
                import_module(name.replace("-", "_"))
            except ImportError as error:
                raise self.missing(what, error) from error

    def missing(self, what: str, error: ImportError) -> InputError:
        """Return the sentence that says what is missing, and how to install it."""
        names = ", ".join(self.names)
        return InputError(f"{what} needs {names} ({first_line(error)}): {self.install}.")

    def versions(self) -> dict[str, str]:
        """Return the version of each package."""
        return {name: version(name) for name in self.names}


class Simulator(ABC):
    """An entry of ``qpa.backend``: the probabilities of one ansatz' circuits, from their angles.

    An entry is the class; what it says about itself and refuses needs no instance.

    Attributes:
        label: its name in figures.
        samples: measures by itself: :meth:`sample` is to be called, not the simulator.
        reads: the config keys that have an effect under it alone.
        config: of the generator; its ansatz is ``ansatz``.
        n_qubits: the paper's N.

    Examples:
        >>> import torch
        >>> from qpa_exp.circuits.simulator import make_simulator
        >>> from qpa_exp.config import QPAConfig
        >>> simulator = make_simulator(QPAConfig(backend="density_matrix"), n_qubits=2)
        >>> theta = torch.zeros(1, 8, 1, 2)  # (batch, layers, rotations, qubits), in radians
        >>> simulator(theta).tolist()  # (batch, states)
        [[1.0, 0.0, 0.0, 0.0]]
    """

    label: ClassVar[str]
    samples: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: QPAConfig, n_qubits: int) -> None:
        self.config, self.n_qubits = config, n_qubits
        self.ansatz = ansatz_of(config)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it is made from; what it has prepared is prepared again."""
        return type(self), (self.config, self.n_qubits)

    def __deepcopy__(self, memo: dict[int, Any]) -> Simulator:
        """Nothing in it is trained: a copied model may share it."""
        return self

    def prepare(self) -> None:  # noqa: B027
        """Do now what needs to be done once; not called where a model is only counted."""

    @classmethod  # noqa: B027
    def check(cls, config: QPAConfig) -> None:
        """Refuse keys that do not go together under this back end.

        Raises:
            InputError: one sentence with the key, its value, and what would be right.
        """

    @classmethod
    def record_versions(cls, config: QPAConfig) -> dict[str, str]:
        """Return the versions that its numbers depend on, besides torch's."""
        return {}

    @classmethod
    @abstractmethod
    def bytes_needed(cls, config: QPAConfig, n_qubits: int) -> int:
        """Estimate the memory that one circuit and its slopes take."""

    @abstractmethod
    def __call__(
        self, theta: Float[Tensor, "*batch layers rotations qubits"]
    ) -> Float[Tensor, "*batch states"]:
        """Return the probabilities of the 2^N basis states, the first qubit the most significant
        bit.
        """

    def sample(
        self, theta: Float[Tensor, "*batch layers rotations qubits"], shots: int, seed: int
    ) -> Float[Tensor, "*batch states"]:
        """Return the basis states' frequencies in ``shots`` measurements of each circuit."""
        raise NotImplementedError


BACKENDS: Registry[type[Simulator]] = Registry(
    "qpa.backend", "qpa_exp.circuits.backends", decides=("qpa.noise", "qpa.device")
)


def make_simulator(config: QPAConfig, n_qubits: int) -> Simulator:
    """Return the simulator that ``config.backend`` names, of circuits of ``config.ansatz``.

    Raises:
        InputError: too many qubits for it or for this machine's memory; a package is missing.
    """
    check_size(config, n_qubits)
    return BACKENDS[config.backend](config, n_qubits)


def check_circuit(config: QPAConfig, *, slopes: bool = True) -> None:
    """Refuse keys of the circuit that do not go together; nothing heavy is imported for it.

    Args:
        config: of the circuit.
        slopes: whether the circuit will be asked for slopes; a search without gradients asks for
            none.

    Raises:
        InputError: one sentence with the key, its value, and what would be right.
    """
    ansatz = ansatz_of(config)
    if ansatz.has_circuit:
        BACKENDS[config.backend].check(config)
    if not ansatz.trains_circuit:
        return
    method = GRADIENTS[config.gradient]
    if method.check is not None:
        method.check(config, None)
    if slopes and method.estimate is None and BACKENDS[config.backend].samples:
        raise no_slopes(config)


def no_slopes(config: QPAConfig) -> InputError:
    """Return the sentence for a gradient that needs exact probabilities, where there are none."""
    others = [name for name in GRADIENTS if GRADIENTS[name].estimate is not None]
    return InputError(
        f"qpa.gradient={config.gradient} needs a simulation to differentiate, which "
        f"qpa.backend={config.backend} is not: give qpa.gradient={' or '.join(others)}."
    )


def check_size(config: QPAConfig, n_qubits: int) -> None:
    """Refuse a circuit of too many qubits, or for which there is not the memory.

    Raises:
        InputError: it says how much is needed, and which key helps; or a gate of the ansatz cannot
            stand where it should, on so many qubits; or the gradient does not cover it.
    """
    ansatz = ansatz_of(config)
    if not ansatz.has_circuit:
        return
    if n_qubits > MOST_QUBITS:
        raise InputError(
            f"{n_qubits} qubits are more than the {MOST_QUBITS} that any back end takes: "
            "raise qpa.n_mlp, each doubling saves a qubit."
        )
    for moment in ansatz.moments:
        moment.places(n_qubits)
    method = GRADIENTS[config.gradient]
    if ansatz.trains_circuit and method.check is not None:
        method.check(config, n_qubits)
    needed = BACKENDS[config.backend].bytes_needed(config, n_qubits) * config.n_circuits
    free = free_memory()
    if needed > free:
        several = f"{config.n_circuits} circuits of " if config.n_circuits > 1 else ""
        raise InputError(
            f"{several}{n_qubits} qubits need about {needed / 2**30:.3g} GiB of memory with "
            f"qpa.backend={config.backend} and {free / 2**30:.3g} GiB are free: "
            "raise qpa.n_mlp, each doubling saves a qubit."
        )


def record_versions(config: QPAConfig) -> dict[str, str]:
    """Return what the circuit's numbers depend on besides torch: packages, and a device's record.

    Args:
        config: as it has been checked; without a circuit there is nothing to record.

    Examples:
        >>> from qpa_exp.circuits.simulator import record_versions
        >>> from qpa_exp.config import QPAConfig
        >>> record_versions(QPAConfig())
        {}
    """
    if not ansatz_of(config).has_circuit:
        return {}
    return BACKENDS[config.backend].record_versions(config)
