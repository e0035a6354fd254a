"""What an ansatz is: the moments of one repetition of a circuit, and the gates that they make.

Nothing here needs torch, so that a circuit can be checked, counted and drawn without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError
from qpa_exp.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Int32
    from torch import nn

_H = 1 / math.sqrt(2)
_Matrix = tuple[tuple[complex | float | int, ...], ...]


@dataclass(frozen=True)
class GateKind:
    """What a gate's name stands for: a rotation by its Pauli string, or a fixed matrix."""

    pauli: str | None = None
    controlled: bool = False
    fixed: _Matrix | None = None

    @property
    def has_angle(self) -> bool:
        """Whether it turns by an angle."""
        return self.pauli is not None

    @property
    def n_qubits(self) -> int:
        """On how many qubits it acts."""
        if self.pauli is not None:
            return len(self.pauli) + self.controlled
        assert self.fixed is not None
        return len(self.fixed).bit_length() - 1

    @property
    def permutes(self) -> bool:
        """Whether all that it does is to move basis states."""
        return self.fixed is not None and all(
            entry in (0, 1) for row in self.fixed for entry in row
        )

    @property
    def is_real(self) -> bool:
        """Whether its matrix has real entries at every angle."""
        if self.pauli is not None:
            return self.pauli.count("Y") % 2 == 1
        assert self.fixed is not None
        return all(entry.imag == 0 for row in self.fixed for entry in row)


def _permutation(*images: int) -> _Matrix:
    return tuple(tuple(int(j == image) for j in range(len(images))) for image in images)


GATES: dict[str, GateKind] = {
    "rx": GateKind("X"),
    "ry": GateKind("Y"),
    "rz": GateKind("Z"),
    "rxx": GateKind("XX"),
    "ryy": GateKind("YY"),
    "rzz": GateKind("ZZ"),
    "crx": GateKind("X", controlled=True),
    "cry": GateKind("Y", controlled=True),
    "crz": GateKind("Z", controlled=True),
    "id": GateKind(fixed=_permutation(0, 1)),
    "x": GateKind(fixed=_permutation(1, 0)),
    "z": GateKind(fixed=((1, 0), (0, -1))),
    "h": GateKind(fixed=((_H, _H), (_H, -_H))),
    "s": GateKind(fixed=((1, 0), (0, 1j))),
    "sx": GateKind(fixed=((0.5 + 0.5j, 0.5 - 0.5j), (0.5 - 0.5j, 0.5 + 0.5j))),
    "cx": GateKind(fixed=_permutation(0, 1, 3, 2)),
    "cz": GateKind(fixed=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, -1))),
    "swap": GateKind(fixed=_permutation(0, 2, 1, 3)),
}
"""What the names of OpenQASM and Qiskit stand for."""


def every_qubit(n_qubits: int) -> list[tuple[int, ...]]:
    """One place for each qubit.

    Examples:
        >>> every_qubit(3)
        [(0,), (1,), (2,)]
    """
    return [(qubit,) for qubit in range(n_qubits)]


def neighbours(n_qubits: int) -> list[tuple[int, ...]]:
    """Each qubit and the next one, in order: none where there is one qubit alone.

    Examples:
        >>> neighbours(3)
        [(0, 1), (1, 2)]
    """
    return [(qubit, qubit + 1) for qubit in range(n_qubits - 1)]


@dataclass(frozen=True)
class InBlocks:
    """The neighbours within blocks of ``size`` qubits, the last as small as what is left.

    None is two blocks: half of the qubits each, the first one more where their number is odd.
    """

    size: int | None = None

    def __call__(self, n_qubits: int) -> list[tuple[int, ...]]:
        """Return the pairs of neighbours, none of which lies across two blocks."""
        size = self.size or -(-n_qubits // 2)
        return [pair for pair in neighbours(n_qubits) if pair[1] % size]


def ring(n_qubits: int) -> list[tuple[int, ...]]:
    """Return the neighbours, and then (N, 1); none where there is one qubit alone.

    Examples:
        >>> ring(3)
        [(0, 1), (1, 2), (2, 0)]
    """
    closing = [(n_qubits - 1, 0)] if n_qubits > 1 else []
    return neighbours(n_qubits) + closing


@dataclass(frozen=True)
class Moment:
    """One gate of :data:`GATES` on each of the places that ``where`` lists for N qubits.

    A gate that turns takes the angle of its last qubit, so a moment has N angles.

    Raises:
        InputError: there is no such gate.

    Examples:
        >>> from qpa_exp.circuits.ansatz import Moment, neighbours
        >>> Moment("cz", neighbours).where(3)
        [(0, 1), (1, 2)]
    """

    gate: str
    where: Callable[[int], list[tuple[int, ...]]]

    def __post_init__(self) -> None:
        """Refuse a gate that is not known."""
        if self.gate not in GATES:
            raise InputError(f"The gate {self.gate} is unknown: give one of {', '.join(GATES)}.")

    def places(self, n_qubits: int) -> list[tuple[int, ...]]:
        """Return what ``where`` lists, checked.

        Raises:
            InputError: a place that is not as many different qubits as the gate acts on.
        """
        needed, found = GATES[self.gate].n_qubits, self.where(n_qubits)
        for place in found:
            fit = isinstance(place, tuple) and len(place) == needed
            if not fit or len({*place} & {*range(n_qubits)}) != needed:
                qubits = "1 qubit" if needed == 1 else f"{needed} different qubits"
                raise InputError(
                    f"The gate {self.gate} cannot stand on {place}: on a circuit of {n_qubits} "
                    f"qubits its place is a tuple of {qubits} from 0 to {n_qubits - 1}."
                )
        return found

    @property
    def has_angles(self) -> bool:
        """Whether its gates turn by angles."""
        return GATES[self.gate].has_angle


RX, RY, RZ = (Moment(gate, every_qubit) for gate in ("rx", "ry", "rz"))
CNOT_CHAIN = Moment("cx", neighbours)


@dataclass(frozen=True)
class Gate:
    """One gate: its qubits counted from 0 (the paper's qubit 1), its angle's place in theta."""

    name: str
    qubits: tuple[int, ...]
    angle: tuple[int, int, int] | None = None
    """(layer, rotation, qubit): an index into theta; None for a gate without an angle."""


@dataclass(frozen=True)
class Ansatz:
    """An entry of ``qpa.ansatz``: one repetition of a circuit, or a control without one.

    Args:
        label: its name in figures.
        moments: of one repetition, in the order in which they act; none without a circuit.
        trained: whether angles are trained, or without a circuit one number a chunk.
        reads_feature: whether the mapping model reads what it gives through ``qpa.feature``.
        control: makes the module that stands in the circuit's place, as :meth:`make` does.
        moments_under: gives the moments under a config; None where they are always the same.
        more_keys: config keys that it reads besides those that every ansatz of its kind reads.

    A circuit in which no gate turns has nothing to train.

    Examples:
        >>> from qpa_exp.circuits.ansatz import CNOT_CHAIN, RY, Ansatz
        >>> [gate.name for gate in Ansatz("R_Y", (RY, CNOT_CHAIN)).gates(n_qubits=2, n_layers=1)]
        ['ry', 'ry', 'cx']
    """

    label: str
    moments: Sequence[Moment] = ()
    trained: bool = True
    reads_feature: bool = True
    control: Callable[[QPAConfig, int, int], nn.Module] | None = None
    moments_under: Callable[[QPAConfig], Sequence[Moment]] | None = None
    more_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Take a list of moments, too."""
        object.__setattr__(self, "moments", tuple(self.moments))

    def under(self, config: QPAConfig) -> Ansatz:
        """Return the ansatz as the keys of ``config`` have it."""
        if self.moments_under is None:
            return self
        return replace(self, moments=self.moments_under(config))

    @property
    def has_circuit(self) -> bool:
        """Whether there is a circuit, for a back end to evaluate."""
        return bool(self.moments)

    @property
    def trains_circuit(self) -> bool:
        """Whether it has angles that are trained."""
        return self.trained and any(moment.has_angles for moment in self.moments)

    @property
    def is_whole(self) -> bool:
        """Whether it is a circuit as a user would train one: trained, and its gates entangle."""
        qubits = (len(places[0]) for m in self.moments if (places := m.where(2)))
        return self.trains_circuit and any(count > 1 for count in qubits)

    @property
    def is_real(self) -> bool:
        """Whether the circuit's amplitudes are real at all angles."""
        return all(GATES[moment.gate].is_real for moment in self.moments)

    def theta_shape(self, n_qubits: int, n_layers: int) -> tuple[int, int, int]:
        """Return the shape of the circuit's angles: (n_layers, rotations in a layer, n_qubits)."""
        return n_layers, sum(moment.has_angles for moment in self.moments), n_qubits

    def gates(self, n_qubits: int, n_layers: int) -> Iterator[Gate]:
        """Every gate of the circuit, in the order in which they act on |0...0>.

        Raises:
            InputError: a gate cannot stand where it should.
        """
        for layer in range(n_layers):
            rotation = 0
            for moment in self.moments:
                for qubits in moment.places(n_qubits):
                    angle = (layer, rotation, qubits[-1]) if moment.has_angles else None
                    yield Gate(moment.gate, qubits, angle)
                rotation += moment.has_angles

    def reads(self, config: Any) -> list[str]:
        """Return the keys that have an effect beside it."""
        keys = ["qpa.squash"] if self.reads_feature else []
        keys += self.more_keys
        if self.has_circuit:
            keys += ["qpa.n_layers", "qpa.backend", "qpa.shots", "qpa.final_shots", "qpa.blend"]
            if config.qpa.blend is not None:
                keys.append("qpa.blend_hidden")
            if self.trains_circuit:
                keys += ["qpa.gradient", "trainer.gradient_variance_starts"]
            if config.qpa.n_circuits > 1:
                keys.append("qpa.share_angles")
        return keys

    def count(self, config: QPAConfig, n_qubits: int, n_chunks: int) -> int:
        """How many numbers are trained, besides the mapping model's."""
        if not self.trained:
            return 0
        if not self.has_circuit:
            return n_chunks * config.n_circuits
        copies = 1 if config.share_angles else config.n_circuits
        return copies * math.prod(self.theta_shape(n_qubits, config.n_layers))

    def make(self, config: QPAConfig, n_qubits: int, n_chunks: int) -> nn.Module:
        """Return a control's module: it gives at least ``n_chunks`` numbers for each circuit.

        Draws its start from torch's global stream.
        """
        assert self.control is not None
        return self.control(config, n_qubits, n_chunks)


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


def side_by_side(config: QPAConfig, *shape: int) -> tuple[int, ...]:
    """``shape`` for each of ``config.n_circuits`` circuits; one alone has no axis for it."""
    return shape if config.n_circuits == 1 else (config.n_circuits, *shape)


# --- gates that only move basis states: however many there are, they are one order --------------


def order_of(gates: Iterable[Gate], n_qubits: int) -> Int32[np.ndarray, " states"]:
    """Where to read the amplitudes: number y of the new state is number ``order[y]`` of the old.

    Args:
        gates: that permute (``GATES[name].permutes``), in the order in which they act.
        n_qubits: of the state.

    Examples:
        >>> order_of([Gate("cx", (0, 1))], n_qubits=2).tolist()
        [0, 1, 3, 2]
    """
    import numpy as np

    order = np.arange(2**n_qubits, dtype=np.int32).reshape([2] * n_qubits)
    for gate in gates:
        fixed = GATES[gate.name].fixed
        assert fixed is not None
        sources, first = [row.index(1) for row in fixed], range(len(gate.qubits))
        led = np.moveaxis(order, gate.qubits, first)
        moved = led.reshape(len(sources), -1)[sources].reshape(led.shape)
        order = np.moveaxis(moved, first, gate.qubits)
    return order.flatten()


def inverse_of(order: Int32[np.ndarray, " states"]) -> Int32[np.ndarray, " states"]:
    """Return the order that undoes this one."""
    import numpy as np

    return np.argsort(order).astype(order.dtype)
