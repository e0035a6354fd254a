"""Second computations by Qiskit, and an ansatz of a user's own."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.quantum_info import Statevector
from scipy.stats import chisquare

# qpa_exp is imported inside the fixtures: the type-checking import hook comes after this file.

Reference = Callable[[str, np.ndarray], np.ndarray]
USER_ANSATZ = "of_a_user"


_USERS_FILE = """
from qpa_exp.circuits.ansatz import RZ, Ansatz, Moment, every_qubit, neighbours, ring

ENTRY = Ansatz(
    "of a user",
    (
        Moment("h", every_qubit),
        Moment("rx", lambda n_qubits: every_qubit(n_qubits)[::2]),
        Moment("crx", ring),
        Moment("swap", neighbours),
        RZ,
        Moment("rzz", neighbours),
        Moment("s", every_qubit),
        Moment("cz", neighbours),
        Moment("ry", every_qubit),
        Moment("x", every_qubit),
    ),
)
"""


@pytest.fixture(scope="session", autouse=True)
def user_ansatz(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``of_a_user``: every kind of gate that the package's own ansätze do not have."""
    from qpa_exp.circuits import ansatze

    directory = tmp_path_factory.mktemp("ansatze")
    (directory / f"{USER_ANSATZ}.py").write_text(_USERS_FILE)
    ansatze.__path__.append(str(directory))
    yield USER_ANSATZ
    ansatze.__path__.remove(str(directory))


@pytest.fixture
def add_ansatz(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, object], None]:
    """``add_ansatz("own", Ansatz(...))``: as if it were a file of the room."""

    def add(name: str, entry: object) -> None:
        module = ModuleType(f"qpa_exp.circuits.ansatze.{name}")
        module.ENTRY = entry  # type: ignore[attr-defined]
        module.__spec__ = ModuleSpec(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return add


@pytest.fixture(scope="session")
def by_qiskit() -> Reference:
    """``by_qiskit("ry", theta)``: the probabilities of the listed gates, by Qiskit."""
    from qpa_exp.circuits.ansatz import ANSATZE

    def probabilities(ansatz: str, theta: np.ndarray) -> np.ndarray:
        n_layers, _, n_qubits = theta.shape
        circuit = QuantumCircuit(n_qubits)
        for gate in ANSATZE[ansatz].gates(n_qubits, n_layers):
            angle = () if gate.angle is None else (theta[gate.angle],)
            # Qiskit counts from the least significant bit, the paper from the most.
            getattr(circuit, gate.name)(*angle, *(n_qubits - 1 - q for q in gate.qubits))
        return Statevector(circuit).probabilities()

    return probabilities


@pytest.fixture(scope="session")
def slopes_by_qiskit(by_qiskit: Reference) -> Callable[..., np.ndarray]:
    """``slopes_by_qiskit("ry", theta, weights)``: of weights @ probabilities, in every angle.

    By the parameter-shift rule; by central differences where a gate has none.
    """

    def slopes(ansatz: str, theta: np.ndarray, weights: np.ndarray) -> np.ndarray:
        exact = ansatz != USER_ANSATZ
        size = math.pi / 2 if exact else 1e-5
        found = np.zeros_like(theta)
        for place in np.ndindex(*theta.shape):
            step = np.zeros_like(theta)
            step[place] = size
            up, down = (weights @ by_qiskit(ansatz, theta + s) for s in (step, -step))
            found[place] = (up - down) / 2 if exact else (up - down) / (2 * size)
        return found

    return slopes


@pytest.fixture(scope="session")
def random_theta() -> Callable[..., np.ndarray]:
    """``random_theta("ry", 5, 2)``: angles of 5 qubits and 2 layers, always the same."""
    from qpa_exp.circuits.ansatz import ANSATZE

    def draw(ansatz: str, n_qubits: int, n_layers: int = 2) -> np.ndarray:
        shape = ANSATZE[ansatz].theta_shape(n_qubits, n_layers)
        return np.random.default_rng(n_qubits).uniform(-math.pi, math.pi, shape)

    return draw


@pytest.fixture(scope="session")
def qpa() -> Callable[..., object]:
    """``qpa(backend="qiskit", shots="20x")``: a ``QPAConfig``, its options by their words."""
    from qpa_exp.config import QPAConfig

    return QPAConfig


@pytest.fixture(scope="session")
def sampling_p_value() -> Callable[..., float]:
    """``sampling_p_value(frequencies, exact, shots)``: of a chi-square test.

    What is expected fewer than five times counts as one outcome; the impossible must not happen.
    """

    def p_value(frequencies: object, exact: object, shots: int) -> float:
        found = np.asarray(frequencies, dtype=np.float64) * shots
        expected = np.asarray(exact, dtype=np.float64) * shots
        likely = expected >= 5
        rest = expected[~likely].sum()
        if rest < 1e-6 * shots:
            assert found[~likely].sum() == 0
            observed, wanted = found[likely], expected[likely]
        else:
            observed = np.append(found[likely], found[~likely].sum())
            wanted = np.append(expected[likely], rest)
        return float(chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue)

    return p_value
