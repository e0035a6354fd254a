"""A seed keeps its meaning: vectors and slopes as earlier versions made them."""

from __future__ import annotations

import pytest
import torch

from qpa_exp.config import TABLE_1, QPAConfig
from qpa_exp.generator.generator import Generator

MLP = {
    "window": 1, "feature": "probability", "mapping_hidden": list(TABLE_1), "scale": 0.02,
    "shuffle": False,
}  # fmt: skip
PUBLISHED = {**MLP, "anchor": False, "activation": "relu", "mapping_init": "default", "scale": 1.0}
SEARCHED = {
    "n_mlp": 64, "window": 128, "feature": "normal", "mapping_hidden": [], "scale": 0.1,
    "shuffle": True,
}  # fmt: skip
SEVERAL = {
    **MLP, "n_circuits": 4, "share_angles": True, "window": 3, "feature": "log", "shuffle": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("m", "keys", "total", "weighted", "slopes"),
    [
        (66_048, SEARCHED, 349.5180636343721, 60.842962246591924, 1582.8151762485504),
        (2000, {"n_mlp": 16, **MLP}, -1.9165190994972363, 0.3445075036142953, 0.10280974146735389),
        (2000, {"n_mlp": 16, **PUBLISHED}, -80.58443478448316, -2.836456479039043,
         -0.06688940717140213),
        (2000, {"n_mlp": 16, **SEVERAL}, 14.512581752293045, 4.295620871242136, 5.223509848117828),
    ],
    ids=["searched", "tuned", "paper", "several"],
)  # fmt: skip
def test_a_step_away_from_the_start_is_where_it_always_was(m, keys, total, weighted, slopes):
    generator = Generator(m, QPAConfig(**keys)).eval()
    with torch.no_grad():
        for parameter in generator.parameters():
            stream = torch.Generator().manual_seed(5)
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream))
    vector = generator()
    weights = torch.arange(m) % 7 - 3
    (vector @ weights.float()).backward()
    found = vector.detach().double()
    assert found.sum().item() == pytest.approx(total, rel=1e-5)
    assert (found * weights).sum().item() == pytest.approx(weighted, rel=1e-5)
    assert generator.circuit.theta.grad.double().sum().item() == pytest.approx(slopes, rel=1e-4)
