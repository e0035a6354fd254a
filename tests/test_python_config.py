"""``qpa_exp.QPAConfig``: what Python code makes is what the config files make, and checked."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpa_exp import QPAConfig, config
from qpa_exp.cli import compose_config
from qpa_exp.errors import InputError
from qpa_exp.generator.rules import VARIANTS

FIELDS = {item.name: item for item in dataclasses.fields(config.QPAConfig)}


@pytest.mark.parametrize("variant", ["paper", "released", "tuned"])
def test_a_variant_is_what_its_config_file_says(variant):
    shipped = compose_config([f"qpa={variant}"]).qpa
    changed = {} if variant == "tuned" else {"n_mlp": shipped.n_mlp}
    assert getattr(QPAConfig, variant)(**changed, n_layers=8) == shipped
    assert getattr(QPAConfig, variant)(seed=3) != shipped


@pytest.mark.parametrize("variant", [v for v in VARIANTS if VARIANTS[v].fixed])
def test_a_published_name_alone_is_refused(variant):
    with pytest.raises(InputError, match=rf"write QPAConfig\.{variant}"):
        QPAConfig(variant=variant)
    with pytest.raises(InputError, match="makes it what it is"):
        getattr(QPAConfig, variant)(activation="tanh")


def wrong_values() -> Any:
    """A field, and a value that no generator can have there."""
    anything = [None, -1, 0, 1.5, "other", [0], ["a"], {}, math.nan, math.inf, 2**70, object()]
    everywhere = [{}, object(), ["a"], {"a": 1}, b"1"]

    def of(name: str) -> Any:
        bounds, kind = FIELDS[name].metadata, str(FIELDS[name].type)
        wrong = list(everywhere)
        if kind.startswith("int") or kind.startswith("float"):
            wrong += ["other", True, math.nan, math.inf, 2**70, [1]]
            wrong += [bounds["least"] - 1] if "least" in bounds else []
            wrong += [0, -1] if bounds.get("positive") else []
        elif kind == "bool":
            wrong += [v for v in anything if v not in (0, 1)]
        elif kind.startswith("list"):
            wrong += [1, "other", [0], [-1], [1.5], [2**40]]
        else:
            wrong += ["", "../other", "other", -1.5, [1]]
        return st.tuples(st.just(name), st.sampled_from(wrong))

    names = [name for name in FIELDS if name != "device"]  # any name of a device of IBM's
    return st.sampled_from(names).flatmap(of)


@given(wrong_values())
def test_every_wrong_value_is_refused_in_one_sentence_when_it_is_made(wrong):
    name, value = wrong
    with pytest.raises(InputError) as caught:
        QPAConfig(**{name: value})
    sentence = str(caught.value)
    assert sentence.startswith(f"qpa.{name}")
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"noise": "ibm_torino"}, r"qpa\.noise=ibm_torino has no effect"),
        ({"gradient": "psr"}, r"qpa\.gradient=psr is unknown"),
        ({"squash": True}, r"qpa\.squash=true and qpa\.feature=normal"),
    ],
)
def test_values_that_contradict_each_other_are_refused(keys, sentence):
    with pytest.raises(InputError, match=sentence):
        QPAConfig(**keys)


def test_numbers_and_tuples_are_taken_as_python_has_them():
    made = QPAConfig(shots=20, mapping_hidden=(8, 4))
    assert (made.shots, made.mapping_hidden) == ("20", [8, 4])
