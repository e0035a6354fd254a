"""The compiled passes over the logits: their functions, their rounding, and their threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qpa_exp.fast_head import logit_passes
from qpa_exp.fast_head.logit_passes import LOWEST, Terms, add_product, exponentiate

WITHIN = st.floats(-80, 80, width=32)


def passed_through(z, **more):
    """exp of the logits ``z``, (vocab, tokens), and the sums."""
    stored = torch.as_tensor(z).clone()
    left, right = torch.zeros(len(stored), 1), torch.zeros(1, stored.shape[1])
    none = torch.zeros(len(stored), 0)
    terms = Terms(left, right, **more)
    sums, _ = exponentiate(stored, None, terms, torch.zeros(stored.shape[1]), none, fast=True)
    return stored, sums


@given(z=arrays(np.float32, (1, 40), elements=WITHIN))
def test_exponentials_are_numpys_to_a_few_roundings(z):
    expected = np.where(z[0] < LOWEST, 0, np.exp(z[0].astype(np.float64)))
    np.testing.assert_allclose(passed_through(z)[1], expected, rtol=3e-7)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(gap=st.floats(0, 200, width=32))
def test_of_a_confident_model_nothing_is_so_small_that_it_is_slow(gap, dtype, fast):
    """A processor takes many times as long for numbers below 1.2e-38, and for their products."""
    stored = torch.full((9, 16), -gap, dtype=dtype)
    stored[0] = 0
    terms, b = Terms(torch.zeros(9, 1), torch.zeros(1, 16)), torch.full((9, 4), 1e-4)
    sums, towards = exponentiate(stored, None, terms, torch.zeros(16), b, fast=fast)
    found = torch.cat([stored.float() * 1e-4, towards.float()])
    assert ((found == 0) | (found > torch.finfo(torch.float32).tiny)).all()
    expected = 1 + 8 * torch.exp(-torch.full((), gap).to(dtype).double())
    torch.testing.assert_close(sums, expected.expand(16), rtol=1e-6, atol=0)


@given(z=arrays(np.float32, (1, 40), elements=WITHIN), cap=st.sampled_from([5.0, 30.0]))
def test_the_soft_cap_and_its_slope_are_those_of_tanh(z, cap):
    stored, sums = passed_through(z, soft_cap=cap)
    bent = np.tanh(z[0].astype(np.float64) / cap)
    np.testing.assert_allclose(sums, np.exp(cap * bent), rtol=1e-5)
    np.testing.assert_allclose(stored[0] / sums, 1 - bent**2, rtol=0, atol=1e-6)


def test_what_overflows_is_too_large_for_the_loss_and_nan_stays_nan():
    _, sums = passed_through(torch.tensor([[torch.nan, torch.inf, -torch.inf, 0.0]]))
    assert sums[0].isnan()
    assert sums[1] > 1e30
    assert sums[2] < 1e-30
    assert sums[3] == 1


def test_sums_of_a_diverged_update_are_no_number_without_a_warning():
    rows = logit_passes._SHARED_ROWS  # summed together; the next ones apart from them
    b = torch.full((2 * rows, 1), torch.inf)
    b[rows:] = -torch.inf
    terms = Terms(torch.zeros(2 * rows, 1), torch.zeros(1, 1))
    _, towards = exponentiate(torch.zeros(2 * rows, 1), None, terms, torch.zeros(1), b, fast=True)
    assert towards.isnan().all()


@given(z=arrays(np.float32, (3, 20), elements=WITHIN))
def test_bfloat16_is_rounded_as_torch_rounds(z):
    z = torch.from_numpy(z).bfloat16()
    stored, _ = passed_through(z)
    exact, _ = passed_through(z.float())
    assert torch.equal(stored, exact.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 4, 7])
def test_threads_change_no_more_than_the_order_of_sums(dtype, rank, monkeypatch):
    stream = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=stream)

    z, left, right = draw(101, 9).to(dtype), 0.3 * draw(101, rank), draw(rank, 9)
    b = draw(101, rank)
    columns, found = draw(9, rank), []
    for threads in (1, 3):
        monkeypatch.setattr(logit_passes, "_WORTH_THREADS", 0)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        stored, to = z.clone(), torch.zeros(101, rank)
        sums, towards = exponentiate(stored, None, Terms(left, right), torch.zeros(9), b, fast=True)
        add_product(stored, columns, to, fast=True)
        found.append((stored, sums, towards, to))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-4)
    expected = (z.double() + (left @ right).double()).exp()
    torch.testing.assert_close(found[0][1].double(), expected.sum(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(found[0][2].double(), b.double().T @ expected, rtol=1e-5, atol=1e-3)
    expected = stored.double() @ columns.double()
    torch.testing.assert_close(found[0][3].double(), expected, rtol=1e-5, atol=1e-4)
