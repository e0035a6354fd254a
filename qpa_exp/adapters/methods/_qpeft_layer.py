"""The layer of ``qpeft``: y = W x + scale U L V^T x, with U and V out of two circuits.

Our reading of Quantum-PEFT's Pauli parametrisation (arXiv:2503.05431). For a side of d there are
q = ceil(log2 d) qubits: R_Y on all of them, and then ``n_layers`` times CZ on the pairs (1, 2),
(3, 4), ... and R_Y on their qubits, CZ on the pairs (2, 3), (4, 5), ... and R_Y on theirs. That is
a real orthogonal matrix of 2^q rows from (2 n_layers + 1) q - 2 n_layers angles. Its first r
columns, cut to d rows, are U: the states in which the circuit ends from |0>, |1>, ..., |r-1>. So
they come from the package's own simulator. Where d is no power of two, the cut takes a little off
the columns' lengths. L is a diagonal of r numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from peft import LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qpa_exp.adapters.methods._input_layer import InputLayer, InputTuner, register
from qpa_exp.circuits.ansatz import RY, Ansatz, Moment
from qpa_exp.circuits.circuit import FinalState


@dataclass
class QPEFTConfig(PeftConfig):
    """Which layers, and how large the update is.

    Attributes:
        r: columns of each factor, the rank of the update.
        n_layers: of each circuit; more of them reach more orthogonal matrices.
        scale: a constant factor on the update: how far one step of the optimizer takes it.
        target_modules: names of linear layers, or a regular expression.
    """

    r: int = 4
    n_layers: int = 1
    scale: float = 16.0
    target_modules: list[str] | set[str] | str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for sizes below 1."""
        super().__post_init__()
        self.peft_type = PeftType("QPA_QPEFT")
        for key in ("r", "n_layers"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} is too small: give at least 1.")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale={self.scale} is out of range: give a number above 0.")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)


# --- the circuit ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pairs:
    """(first, first + 1), (first + 2, first + 3) and so on."""

    first: int

    def __call__(self, n_qubits: int) -> list[tuple[int, ...]]:
        return [(qubit, qubit + 1) for qubit in range(self.first, n_qubits - 1, 2)]


@dataclass(frozen=True)
class _InPairs(_Pairs):
    """The qubits of these pairs, one after the other."""

    def __call__(self, n_qubits: int) -> list[tuple[int, ...]]:
        return [(qubit,) for pair in super().__call__(n_qubits) for qubit in pair]


def pauli_ansatz(n_layers: int) -> Ansatz:
    """Return the whole circuit, with a CNOT in each CZ's place: its angles are turned to match.

    CZ = R_Y(-pi/2) CNOT R_Y(pi/2) on the second qubit, and before and after every CZ stands an
    R_Y on it. A CNOT moves basis states, for which the simulator has its fastest loops.
    """
    moments = [RY]
    for _ in range(n_layers):
        for first in (0, 1):
            moments += [Moment("cx", _Pairs(first)), Moment("ry", _InPairs(first))]
    return Ansatz("$R_Y$, CZ", tuple(moments))


class OrthogonalColumns(nn.Module):
    """Makes of the angles ``r`` columns of an orthogonal matrix, cut to ``d`` rows.

    Attributes:
        n_angles: (2 n_layers + 1) q - 2 n_layers.
    """

    places: Tensor
    offsets: Tensor

    def __init__(self, d: int, r: int, n_layers: int) -> None:
        super().__init__()
        self.d, n_qubits = d, max(1, (d - 1).bit_length())
        self.ansatz = pauli_ansatz(n_layers)
        _, rotations, _ = self.ansatz.theta_shape(n_qubits, 1)
        gates = list(self.ansatz.gates(n_qubits, 1))
        turned = [gate.angle for gate in gates if gate.angle is not None]
        places = [rotation * n_qubits + qubit for _, rotation, qubit in turned]
        self.n_angles = len(places)
        offsets = torch.zeros(r, 1, rotations, n_qubits, device="cpu")
        bits = torch.arange(n_qubits - 1, -1, -1, device="cpu")
        # R_Y(angle + pi) on |0> is R_Y(angle) on |1>: so a circuit starts at another state.
        starts = torch.arange(r, device="cpu")[:, None] >> bits & 1
        offsets[:, 0, 0] = math.pi * starts
        last, next_ = [0] * n_qubits, 0  # the rotation that turned a qubit last, and the next one
        for gate in gates:
            if gate.angle is not None:
                next_ = gate.angle[1]
                last[gate.angle[2]] = next_
                continue
            (_, second) = gate.qubits
            following = min(y for _, y, z in turned if z == second and y > last[second])
            offsets[:, 0, last[second], second] += math.pi / 2
            offsets[:, 0, following, second] -= math.pi / 2
        self.register_buffer("places", torch.tensor(places, device="cpu"), persistent=False)
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, angles: Float[Tensor, " angles"]) -> Float[Tensor, "d r"]:
        """Return the columns; differentiable once."""
        _, _, rotations, n_qubits = self.offsets.shape
        places, offsets = self.places.to(angles.device), self.offsets.to(angles)
        theta = angles.new_zeros(rotations * n_qubits).index_put((places,), angles)
        starts = theta.view(1, rotations, n_qubits) + offsets
        states: Tensor = FinalState.apply(starts, self.ansatz, False)
        return states[:, : self.d].T


# --- the layer --------------------------------------------------------------------------------


class QPEFTLayer(InputLayer):
    """A linear layer with U L V^T beside its weight."""

    adapter_layer_names = ("qpa_qpeft_left", "qpa_qpeft_right", "qpa_qpeft_diagonal")
    other_param_names = ("columns", "scale")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        transposed = isinstance(self.get_base_layer(), Conv1D)
        self.out_features = self.get_base_weight().shape[1 if transposed else 0]
        self.qpa_qpeft_left = nn.ParameterDict()
        self.qpa_qpeft_right = nn.ParameterDict()
        self.qpa_qpeft_diagonal = nn.ParameterDict()
        self.columns: dict[str, tuple[OrthogonalColumns, OrthogonalColumns]] = {}
        self.scale: dict[str, float] = {}

    def add_adapter(self, name: str, config: QPEFTConfig) -> None:
        """Angles all around the circle, and a diagonal of zeros.

        Raises:
            ValueError: more columns than the layer has rows or columns.
        """
        smaller = min(self.in_features, self.out_features)
        if config.r > smaller:
            raise ValueError(
                f"r={config.r} is more than the {smaller} of the layer's smaller side."
            )
        sides = (self.out_features, self.in_features)
        left, right = (OrthogonalColumns(side, config.r, config.n_layers) for side in sides)
        self.columns[name], self.scale[name] = (left, right), config.scale
        for held, side in ((self.qpa_qpeft_left, left), (self.qpa_qpeft_right, right)):
            held[name] = nn.Parameter(math.pi * (2 * torch.rand(side.n_angles) - 1))
        self.qpa_qpeft_diagonal[name] = nn.Parameter(torch.zeros(config.r))

    def factors(self, name: str) -> tuple[Float[Tensor, "d r"], Float[Tensor, "r k"]]:
        """B = U and A = scale L V^T, in float32: the update is B A."""
        left, right = self.columns[name]
        diagonal = self.qpa_qpeft_diagonal[name]
        with torch.autocast(diagonal.device.type, enabled=False):
            b, a = left(self.qpa_qpeft_left[name]), right(self.qpa_qpeft_right[name])
            return b, (self.scale[name] * diagonal * a).T

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the linear layer, and the update of each active adapter."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if not self.disable_adapters:
            for name in self.active_adapters:
                if name in self._get_available_adapters():
                    b, a = self.factors(name)
                    result = result + F.linear(F.linear(x.to(a.dtype), a), b).to(result.dtype)
        return result


class QPEFTTuner(InputTuner):
    """Puts a :class:`QPEFTLayer` on each targeted layer."""

    prefix = "qpa_qpeft_"
    tuner_layer_cls = QPEFTLayer


register("qpa_qpeft", QPEFTConfig, QPEFTTuner)


# --- what leaves ------------------------------------------------------------------------------


@torch.no_grad()
def as_lora(model: PeftModel) -> PeftModel:
    """PEFT's own LoRA of rank r with the same update. ``model`` must not be used after it."""
    config = cast(QPEFTConfig, model.active_peft_config)
    language_model: Any = model.get_base_model()
    found = {}
    for path, layer in list(language_model.named_modules()):
        if isinstance(layer, QPEFTLayer):
            found[path] = layer.factors(model.active_adapter)
            parent, _, leaf = path.rpartition(".")
            setattr(language_model.get_submodule(parent), leaf, layer.base_layer)
    del language_model.peft_config  # of the layers that are gone; PEFT would warn of two adapters
    plain = LoraConfig(
        r=config.r, lora_alpha=config.r, target_modules=sorted(found), task_type=config.task_type
    )
    lora: Any = get_peft_model(language_model, plain)
    for path, (b, a) in found.items():
        made = lora.get_base_model().get_submodule(path)
        made.lora_B["default"].weight.copy_(b)
        made.lora_A["default"].weight.copy_(a)
    adapted: PeftModel = lora.eval()
    return adapted
