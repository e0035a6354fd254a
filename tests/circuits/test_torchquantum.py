"""The real TorchQuantum beside a real Qiskit."""

from __future__ import annotations

import subprocess
import sys

import pytest

_BEFORE = """
import sys
import qiskit, qiskit_aer
from qiskit.circuit import Parameter
first = sys.modules["qiskit"]
"""
_IMPORT = """
import sys, torch
from qpa_exp.circuits.backends.torchquantum import STOOD_IN, import_torchquantum
tq = import_torchquantum()
assert tq.__version__ == "0.1.8", tq.__version__
assert import_torchquantum() is tq
device = tq.QuantumDevice(n_wires=2, bsz=1)
tq.functional.hadamard(device, wires=0)
assert abs(device.get_states_1d()[0, 0].abs().item() ** 2 - 0.5) < 1e-6
assert "torchpack" not in sys.modules and "torchvision" not in sys.modules
"""
_AFTER = """
import qiskit, qiskit_aer
from qiskit import QuantumCircuit, transpile
circuit = QuantumCircuit(1)
circuit.h(0)
circuit.measure_all()
assert sum(qiskit_aer.AerSimulator().run(circuit, shots=10).result().get_counts().values()) == 10
"""
_BACK = "assert sys.modules['qiskit'] is first and Parameter is qiskit.circuit.Parameter"


@pytest.mark.parametrize("script", [_IMPORT + _AFTER, _BEFORE + _IMPORT + _AFTER + _BACK])
def test_qiskit_is_the_real_one_before_and_after(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_where_it_is_not_installed_the_sentence_says_how_to():
    script = """
import sys
from qpa_exp.circuits.backends.torchquantum import import_torchquantum
from qpa_exp.errors import InputError
sys.modules["opt_einsum"] = None
try:
    import_torchquantum()
except InputError as error:
    assert "pip install --no-deps torchquantum==0.1.8" in str(error), error
    assert "opt_einsum" in str(error), error
else:
    raise AssertionError("imported")
assert not [name for name in sys.modules if name.startswith("torchquantum")]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
