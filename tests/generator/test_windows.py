"""A linear layer of windows against the same with every window written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import linear

from qpa_exp.generator import generator as windows
from qpa_exp.generator.generator import basis_bits, in_windows, linear_in_windows


def places(n_states: int, n: int, window: int, step: int = 1) -> Tensor:
    """Of what each window reads."""
    return (step * torch.arange(n)[:, None] + torch.arange(window)) % n_states


@given(
    n_states=st.integers(1, 20), n=st.integers(1, 20), window=st.integers(1, 50),
    step=st.integers(1, 5), n_circuits=st.integers(1, 3),
)  # fmt: skip
def test_windows_are_read_in_a_ring(n_states, n, window, step, n_circuits):
    features = torch.arange(n_circuits * n_states).float().view(n_circuits, n_states)
    expected = features[:, places(n_states, n, window, step)]
    assert torch.equal(in_windows(features, n, window, step), expected)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n_chunks=st.integers(1, 70), window=st.integers(1, 9), n_out=st.integers(1, 5),
    n_circuits=st.integers(1, 3), in_order=st.booleans(), with_bits=st.booleans(),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_chunks_taken_together_give_the_same_outputs_and_gradients(
    monkeypatch, n_chunks, window, n_out, n_circuits, in_order, with_bits, seed
):
    monkeypatch.setattr(windows, "_WORTH_IT", 0)
    torch.manual_seed(seed)
    n_qubits = max(1, (n_chunks - 1).bit_length())
    n_bits = n_qubits if with_bits else 0
    n_in = n_bits + n_circuits * window
    sizes = ((n_circuits, 2**n_qubits), (n_out, n_in), (n_out,))
    given_ = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
    features, weight, bias = given_
    states = torch.arange(n_chunks) if in_order else torch.randperm(2**n_qubits)[:n_chunks]
    bits = basis_bits(states, n_qubits).double()[:, :n_bits]
    found = linear_in_windows(bits, *given_, window, in_order=in_order)[:n_chunks]
    read = features[:, places(2**n_qubits, n_chunks, window)]
    expected = linear(torch.cat([bits, *read], dim=1), weight, bias)
    torch.testing.assert_close(found, expected)
    towards = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, given_, towards), torch.autograd.grad(expected, given_, towards)
    )


@pytest.mark.parametrize(("n_chunks", "together"), [(1032, 1), (3190, 8), (16128, 16)])
def test_only_where_the_windows_are_large_are_chunks_taken_together(n_chunks, together):
    bits = basis_bits(torch.arange(n_chunks), 14)
    weight = torch.zeros(64, 14 + 128)
    features = torch.zeros(1, 2**14)
    found = linear_in_windows(bits, features, weight, weight[:, 0], 128, in_order=True)
    assert len(found) == -(-n_chunks // together) * together
