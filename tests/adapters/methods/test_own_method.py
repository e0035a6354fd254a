"""A PEFT method of one's own: one file, and nothing else is touched."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftType
from torch import Tensor

from qpa_exp.adapters import methods
from qpa_exp.adapters.catalogue import METHODS
from qpa_exp.adapters.counts import count
from qpa_exp.adapters.qpa_model import adapt, load_adapted
from qpa_exp.cli import compose_config, register_schema
from qpa_exp.plan import plan

WIDTH = 16

FILE = '''
"""``stretch``: one factor for each input of a linear layer."""

from dataclasses import dataclass

import torch
from peft import PeftConfig, PeftType
from torch import nn

from qpa_exp.adapters.catalogue import Method
from qpa_exp.adapters.methods._input_layer import InputLayer, InputTuner, register


@dataclass
class StretchConfig(PeftConfig):
    start: float = 1.0
    target_modules: list[str] | set[str] | str | None = None

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType("QPA_STRETCH")


class StretchLayer(InputLayer):
    adapter_layer_names = ("qpa_stretch_factors",)
    other_param_names = ()

    def __init__(self, base_layer):
        super().__init__(base_layer)
        self.qpa_stretch_factors = nn.ParameterDict()

    def add_adapter(self, name, config):
        start = torch.full((self.in_features,), config.start)
        self.qpa_stretch_factors[name] = nn.Parameter(start)

    def change(self, x, name):
        return x * self.qpa_stretch_factors[name].to(x.dtype)


class StretchTuner(InputTuner):
    prefix = "qpa_stretch_"
    tuner_layer_cls = StretchLayer


register("qpa_stretch", StretchConfig, StretchTuner)
ENTRY = Method("stretch", lambda: StretchConfig, head_count=lambda peft, vocabulary, width: width)
'''


@pytest.fixture
def stretch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A directory of the user's own, with the method's file, on the package's path."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "stretch.py").write_text(FILE)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path / "methods")])
    importlib.invalidate_caches()
    register_schema.cache_clear()
    yield
    sys.modules.pop("qpa_exp.adapters.methods.stretch", None)


@pytest.mark.usefixtures("stretch")
@pytest.mark.parametrize("variant", ["tuned", "off"])
def test_it_plans_trains_saves_and_loads(
    variant: str, make_model: Any, architectures: Any, tokens: Tensor, tmp_path: Path
) -> None:
    config = compose_config(["peft=stretch", "peft.options.start=1.0", f"qpa={variant}"])
    config.model.architecture = architectures["gpt2"].to_dict()
    config.data.max_length, config.qpa.n_mlp = 16, 8
    assert METHODS["stretch"].label == "stretch"
    assert "stretch" in METHODS

    model = adapt(make_model("gpt2"), config)
    assert plan(config) == count(model)
    assert count(model).generated_params == WIDTH
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model.train()(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == make_model("gpt2")(input_ids=tokens, labels=tokens).loss.item()
    assert losses[-1] < losses[0]

    model.save_pretrained(tmp_path / "saved")
    loaded = load_adapted(make_model("gpt2"), tmp_path / "saved", config)
    with torch.no_grad():
        expected = model.eval()(input_ids=tokens).logits
        assert torch.equal(loaded(input_ids=tokens).logits, expected)
    assert PeftType("QPA_STRETCH") == model.peft_model.active_peft_config.peft_type
