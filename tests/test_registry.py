"""The names that a config key may have, and the one rule for keys without effect."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpa_exp import tasks
from qpa_exp.errors import InputError
from qpa_exp.registry import Registry, refuse_unread


@dataclass
class Engine:
    name: str = "plain"
    noise: float = 0.0
    device: str = "none"


@dataclass
class Settings:
    kind: str = "on"
    engine: Engine = field(default_factory=Engine)


KIND = Registry(
    "kind",
    {"on": SimpleNamespace(reads=("engine.name", "engine.noise", "engine.device")), "off": None},
    decides=("engine.name", "engine.noise", "engine.device"),
)
ENGINES = Registry(
    "engine.name",
    {
        "plain": None,
        "noisy": SimpleNamespace(reads=("engine.noise",)),
        "real": SimpleNamespace(reads=lambda config: ("engine.device", "engine.noise")),
    },
    decides=("engine.noise", "engine.device"),
)
READ = {  # written out by hand
    ("on", "plain"): {"engine.name"},
    ("on", "noisy"): {"engine.name", "engine.noise"},
    ("on", "real"): {"engine.name", "engine.noise", "engine.device"},
}


@given(
    kind=st.sampled_from(["on", "off"]),
    name=st.sampled_from(["plain", "noisy", "real"]),
    noise=st.sampled_from([0.0, 0.5]),
    device=st.sampled_from(["none", "lab"]),
    swapped=st.booleans(),
)
def test_a_key_may_differ_from_its_default_exactly_where_something_reads_it(
    kind, name, noise, device, swapped
):
    config = Settings(kind, Engine(name, noise, device))
    changed = {
        f"engine.{key}"
        for key in ("name", "noise", "device")
        if getattr(config.engine, key) != getattr(Engine(), key)
    }
    registries = [ENGINES, KIND] if swapped else [KIND, ENGINES]
    unread = changed - READ.get((kind, name), set())
    if not unread:
        refuse_unread(config, registries)
        return
    with pytest.raises(InputError) as caught:
        refuse_unread(config, registries)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert any(sentence.startswith(f"{key}=") for key in unread)
    assert "has no effect" in sentence


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(InputError, match=r"engine\.name=nosy is unknown: give one of plain, noisy"):
        _ = ENGINES["nosy"]
    assert "nosy" not in ENGINES
    assert list(ENGINES) == ["plain", "noisy", "real"]


def test_a_module_on_the_folders_path_is_an_entry(tmp_path, monkeypatch):
    registry = Registry("task", "qpa_exp.tasks")
    before = list(registry)
    (tmp_path / "juggling.py").write_text("ENTRY = 'three balls'\n")
    (tmp_path / "_helper.py").write_text("ENTRY = 'no entry'\n")
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    assert list(registry) == sorted([*before, "juggling"])
    assert registry["juggling"] == "three balls"
