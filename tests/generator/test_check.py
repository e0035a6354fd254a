"""What a generator's config may hold: names, variants, and keys that something reads."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qpa_exp.cli import conf_dir
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError
from qpa_exp.generator.rules import REGISTRIES, VARIANTS, check_generator

FIXED = [(name, key) for name in VARIANTS for key in VARIANTS[name].fixed]
OTHER = {
    "anchor": True, "mapping_init": "kaiming", "scale": 0.5, "feature": "log", "shuffle": True,
    "window": 2, "n_circuits": 2, "mapping_hidden": [3], "activation": "tanh",
    "center": True, "squash": True, "basis_order": "random", "mapping": "mps",
}  # fmt: skip


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.key)
def test_a_name_that_is_not_there_is_refused_with_those_that_are(registry):
    config = replace(QPAConfig(), **{registry.key.removeprefix("qpa."): "other"})
    with pytest.raises(InputError) as caught:
        check_generator(config)
    sentence = str(caught.value)
    assert sentence.startswith(f"{registry.key}=other is unknown: give one of ")
    assert all(name in sentence for name in registry)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_accepted_as_it_is_defined(qpa_config, name):
    config = qpa_config(name)
    check_generator(config)
    for key, value in VARIANTS[name].fixed.items():
        assert getattr(config, key) == value
    assert VARIANTS[name].label
    assert (conf_dir() / "qpa" / f"{name}.yaml").is_file()


@pytest.mark.parametrize(("name", "key"), FIXED)
def test_what_defines_a_published_variant_cannot_be_changed_under_its_name(qpa_config, name, key):
    fixed = VARIANTS[name].fixed[key]
    other = not fixed if isinstance(fixed, bool) else OTHER[key]
    if other == fixed:
        other = "fixed"
    if key == "feature":
        other = {"paper": "log", "released": "squashed"}[name]
    config = qpa_config(name, **{key: other})
    with pytest.raises(InputError, match=rf"^qpa\.{key}=.*: qpa={name} has .*qpa=tuned") as caught:
        check_generator(config)
    assert "\n" not in str(caught.value)
    if key != "mapping":  # beside it, the keys of the published one have no effect
        check_generator(replace(config, variant="tuned", squash=key == "squash"))
    check_generator(config, saved=True)


@pytest.mark.parametrize(
    "keys",
    [{"ansatz": "rx"}, {"window": 9}, {"spsa_step": 0.2}, {"n_mlp": 7}, {"gradient": "spsa"}],
)
def test_without_a_generator_no_key_of_it_has_an_effect(keys):
    (key,) = keys
    with pytest.raises(InputError, match=rf"^qpa\.{key}=.* has no effect: qpa\.variant=off does"):
        check_generator(QPAConfig(variant="off", **keys))
    check_generator(QPAConfig(variant="off", seed=7))


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"spsa_step": 0.2}, r"qpa\.spsa_step=0\.2 has no effect: qpa\.gradient=autograd does not"),
        ({"share_angles": True}, r"qpa\.share_angles=true has no effect: qpa\.ansatz=ry does not"),
        ({"ansatz": "none", "n_layers": 3}, r"qpa\.n_layers=3 has no effect"),
        ({"ansatz": "classical", "gradient": "spsa"}, r"qpa\.gradient=spsa has no effect"),
        ({"ansatz": "gaussian", "squash": True}, r"qpa\.squash=true has no effect"),
        ({"ansatz": "gaussian", "final_shots": "9"}, r"qpa\.final_shots=9 has no effect"),
    ],
)
def test_a_key_that_nothing_reads_is_refused(keys, sentence):
    with pytest.raises(InputError, match=sentence):
        check_generator(QPAConfig(**keys))


@pytest.mark.parametrize(
    "keys",
    [
        {"gradient": "spsa", "spsa_step": 0.2},
        {"n_circuits": 2, "share_angles": True},
        {"ansatz": "classical", "feature": "probability", "squash": True},
        {"ansatz": "gaussian", "n_circuits": 3, "window": 2},
        {"feature": "squashed", "squash": True},
    ],
)
def test_a_key_that_something_reads_is_accepted(keys):
    check_generator(QPAConfig(**keys))
