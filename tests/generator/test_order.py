"""The random order of the generated parameters."""

from __future__ import annotations

import torch

from qpa_exp.generator.generator import RandomOrder


def test_numbers_are_put_in_order_and_so_are_their_gradients():
    torch.manual_seed(0)
    order = RandomOrder(50)
    numbers = torch.randn(50, dtype=torch.float64, requires_grad=True)
    assert torch.equal(order(numbers), numbers[order.places])
    assert order.places.sort().values.tolist() == list(range(50))
    assert not torch.equal(order.places, torch.arange(50))
    assert torch.autograd.gradcheck(order, [numbers])


def test_the_order_is_drawn_from_the_global_stream():
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(RandomOrder(50).places)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_it_has_no_entry_in_a_checkpoint():
    assert not RandomOrder(5).state_dict()
