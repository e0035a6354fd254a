"""Every key of the config, with values that nobody should give: a sentence, or it works."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qpa_exp.cli import as_typed, compose_config, explain, parse_options, quoted, to_config
from qpa_exp.config import Config, QPAConfig, validate
from qpa_exp.errors import InputError
from qpa_exp.generator.rules import count_generator
from qpa_exp.registry import dotted, read_key
from qpa_exp.runs.train import check_machine
from qpa_exp.sweeps.prepare import MOST_RUNS, expand
from qpa_exp.task import TASKS

NASTY: list[Any] = [
    "", "'", "é", "a b", "x" * 5000, "../..", "/dev/null", "a\nb\x1b[2J", "${", "???",
    math.nan, math.inf, -1, 0, 2**63, 2**64, 10**23, 10**4000, 1e308, 1e-320, True, None,
    [], [[1]], [math.nan], [10**12], ["${oc.env:SECRET_TOKEN}"], {"a": 1}, {"model_type": []},
    {"model_type": "gpt2", "vocab_size": -1},
]  # fmt: skip
KEYS = [key for key, item in dotted(Config()) if "Config" not in str(item.type)]


@pytest.fixture(scope="module")
def base() -> Iterator[DictConfig]:
    """A config that works, every reference resolved."""
    logging.disable(logging.WARNING)
    yield OmegaConf.structured(compose_config([]))
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("key", KEYS)
def test_no_value_of_a_key_ends_in_anything_but_a_sentence(base: DictConfig, key: str) -> None:
    try_all(base, key, NASTY[KEYS.index(key) % 7 :: 7])


@pytest.mark.long
@pytest.mark.parametrize("key", KEYS)
def test_nor_does_any_other(base: DictConfig, key: str) -> None:
    try_all(base, key, NASTY)


def try_all(base: DictConfig, key: str, values: list[Any]) -> None:
    for value in values:
        composed = base.copy()
        try:
            try:
                OmegaConf.update(composed, key, value)
                config = to_config(composed)
            except (OmegaConfBaseException, OverflowError) as error:
                raise InputError(explain(error)) from error
            TASKS[config.task].plan(config)
        except InputError as error:
            assert 0 < len(str(error)) <= 500
            assert str(error).isprintable()
        else:
            accepted = read_key(config, key)
            assert accepted == accepted  # no NaN
            assert "${" not in str(accepted)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (QPAConfig(n_mlp=10**23), "n_mlp"),
        (QPAConfig(n_layers=10**9), "n_layers"),
        (QPAConfig(n_circuits=10**9), "n_circuits"),
        (QPAConfig(seed=2**64), "seed"),
        (QPAConfig(mapping_hidden=[10**12]), "mapping_hidden"),
        (QPAConfig(scale=math.inf), "scale"),
    ],
)
def test_a_number_is_refused_with_its_key(config: QPAConfig, key: str) -> None:
    with pytest.raises(InputError, match=rf"^qpa\.{key}="):
        validate(config, "qpa.")


def test_a_generator_without_the_memory_is_refused_with_the_key_to_change() -> None:
    with pytest.raises(InputError, match=r"GiB are free: give a smaller qpa\.mapping_hidden"):
        count_generator(66048, QPAConfig(n_mlp=64, mapping_hidden=[2**24, 2**24]))


def test_more_processes_than_cores_are_refused_where_the_run_would_start() -> None:
    config = compose_config(["trainer.devices=4096"])
    with pytest.raises(InputError, match=r"trainer\.devices=4096 is more than the \d+ cores"):
        check_machine(config)


def test_a_logger_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("wandb", "tensorboard"):
        with pytest.raises(InputError, match=r"pip install 'qpa-exp\[loggers\]'"):
            check_machine(compose_config([f"logger={name}"]))


@pytest.mark.parametrize(
    "arguments",
    [
        [f"qpa.n_mlp=range(1,{10**12})"],
        ["qpa.n_mlp=range(1,200)", "seed=range(1,200)"],
        ["qpa.n_mlp=range(0.0,1.0,0.0000000001)"],
    ],
)
def test_a_sweep_of_too_many_runs_is_refused_before_it_is_written_out(arguments: list[str]) -> None:
    with pytest.raises(InputError, match=f"at most {MOST_RUNS:,}"):
        expand([{}], {}, arguments)


# --- text as it is typed ------------------------------------------------------------------------

_TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)


@settings(max_examples=100)
@given(_TEXT)
def test_a_quoted_text_is_read_as_it_is(text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_override(f"key={quoted(text)}").value() == text


@given(st.text(st.sampled_from("\\${}oc.env:SRT'\" a"), max_size=12))
def test_an_option_of_a_command_is_text(text: str) -> None:
    from qpa_exp.export import ExportOptions

    for typed in (text, text + "${oc.env:HOME}"):
        assert parse_options(ExportOptions, [f"run={typed}", "out=x"]).run == typed


@pytest.mark.parametrize(
    "path", ["~/my texts/a.txt", "o'neil/ä.txt", "a=b", "[x].txt", "(a)", 'say "a"', "a#b", "x;y"]
)
def test_a_path_works_as_it_is_typed(path: str) -> None:
    assert compose_config(["data=text", f"data.path={path}"]).data.path == path
    assert as_typed(as_typed([f"data.path={path}"])) == as_typed([f"data.path={path}"])
