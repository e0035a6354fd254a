"""TorchQuantum (Wang et al. 2022), the library that the paper's authors used, version 0.1.8.

It imports a Qiskit plug-in for Qiskit versions before 1.0, torchpack, torchvision and others as
soon as it is imported. Its simulator needs none of them: torch, numpy and opt_einsum suffice. While
it is imported, empty modules stand in for those packages, also for a real Qiskit that is installed;
afterwards they are gone, and what was imported before is back.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from qpa_exp.circuits.ansatz import ansatz_of
from qpa_exp.circuits.simulator import Packages, Simulator
from qpa_exp.config import QPAConfig

_PACKAGE = Packages(
    ("torchquantum",), "pip install --no-deps torchquantum==0.1.8, and pip install opt_einsum"
)
_NAMES = {"cx": "cnot", "h": "hadamard", "x": "paulix", "z": "pauliz", "id": "i"}
"""Where its functional interface does not take the name of OpenQASM."""


class TorchQuantum(Simulator):
    """One call of its functional interface for each gate; complex64, as the package is."""

    label = "TorchQuantum"

    def prepare(self) -> None:
        """Import the package."""
        import_torchquantum()

    @classmethod
    def record_versions(cls, config: QPAConfig) -> dict[str, str]:
        """TorchQuantum alone has a version that counts."""
        return _PACKAGE.versions()

    @classmethod
    def bytes_needed(cls, config: QPAConfig, n_qubits: int) -> int:
        """Autograd keeps the state at every gate."""
        n_gates = sum(1 for _ in ansatz_of(config).gates(n_qubits, config.n_layers))
        return 2**n_qubits * 8 * (n_gates + 4)

    def __call__(
        self, theta: Float[Tensor, "*batch layers rotations qubits"]
    ) -> Float[Tensor, "*batch states"]:
        """Return the probabilities of the 2^N basis states, in theta's precision."""
        tq = import_torchquantum()
        batch, shape = theta.shape[:-3], theta.shape[-3:]
        angles = theta.reshape(-1, *shape)
        device = tq.QuantumDevice(n_wires=shape[-1], bsz=len(angles), device=theta.device)
        for gate in self.ansatz.gates(shape[-1], shape[0]):
            call = getattr(tq.functional, _NAMES.get(gate.name, gate.name))
            params = None if gate.angle is None else angles[:, *gate.angle]
            call(device, wires=list(gate.qubits), params=params)
        states = torch.view_as_real(device.get_states_1d())
        return states.square().sum(-1).to(theta.dtype).view(*batch, -1)


ENTRY = TorchQuantum


# --- importing it without the retired packages that it names ----------------------------------

STOOD_IN = (
    "qiskit", "qiskit_aer", "qiskit_ibm_runtime",
    "torchpack", "torchvision", "torchdiffeq", "pathos", "pyscf",
)  # fmt: skip
"""Packages that TorchQuantum names in import statements and whose content it does not need."""


@torch.inference_mode(False)  # it makes its gates' matrices
def import_torchquantum() -> ModuleType:
    """Return the real package ``torchquantum``.

    Raises:
        InputError: it is not installed, or one of what it does need is not.
    """
    if "torchquantum" in sys.modules:
        return sys.modules["torchquantum"]
    try:
        with _stand_ins():
            return importlib.import_module("torchquantum")
    except ImportError as error:
        for name in [n for n in sys.modules if _package(n) == "torchquantum"]:
            del sys.modules[name]
        raise _PACKAGE.missing("qpa.backend=torchquantum", error) from error


@contextmanager
def _stand_ins() -> Iterator[None]:
    finder = _Finder()
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if _stands_in(name)}
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if _stands_in(name)]:
            del sys.modules[name]
        sys.modules.update(hidden)


def _package(name: str) -> str:
    return name.partition(".")[0]


def _stands_in(name: str) -> bool:
    return _package(name) in STOOD_IN


class _Finder(MetaPathFinder, Loader):
    """Finds an empty module for every name inside the packages stood in for."""

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if _stands_in(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing in it."""


class _AnyAttribute(type):
    """Gives a class every attribute: an enumeration's members, for example."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls()


class _Nothing(metaclass=_AnyAttribute):
    """Can be made of anything, and inherited from."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...


class _Empty(ModuleType):
    """A module in which every name is a class of its own with nothing in it."""

    __file__ = ""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _AnyAttribute(name, (_Nothing,), {})
