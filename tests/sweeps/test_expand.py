"""From parts and a command line to runs."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from qpa_exp.errors import InputError
from qpa_exp.sweeps.prepare import expand, labels, spell

PARTS = [{"peft": "lora", "qpa": "off", "peft.r": [1, 2]}, {"qpa": "tuned", "qpa.n_mlp": [16, 32]}]


def test_parts_are_products_that_follow_each_other() -> None:
    runs = expand(PARTS, {"seed": [1, 2], "trainer.max_epochs": 3}, [])
    assert len(runs) == 2 * 2 + 2 * 2
    assert list(runs[0].items()) == [
        ("seed", "1"), ("trainer.max_epochs", "3"), ("peft", "lora"), ("qpa", "off"),
        ("peft.r", "1"),
    ]  # fmt: skip
    assert "peft.r" not in runs[-1]


def test_the_command_line_takes_the_place_of_parts_and_a_part_that_of_fixed() -> None:
    runs = expand(PARTS, {"peft.r": 8, "seed": 1}, ["peft.r=4", "seed=5,6"])
    assert {run["peft.r"] for run in runs} == {"4"}
    assert {run["seed"] for run in runs} == {"5", "6"}
    assert len(runs) == 2 * (1 + 2)
    assert {run["peft.r"] for run in expand(PARTS, {"peft.r": 8}, [])} == {"1", "2", "8"}


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("a=1,2", ["1", "2"]),
        ("a=range(1,4)", ["1", "2", "3"]),
        ("a=choice(x,y)", ["x", "y"]),
        ("a=[1,2]", ["[1,2]"]),
        ("a=null", ["null"]),
        ("a='x y'", ["'x y'"]),
    ],
)
def test_every_discrete_form_of_hydras_is_an_axis(argument: str, values: list[str]) -> None:
    assert [run["a"] for run in expand([{}], {}, [argument])] == values


@pytest.mark.parametrize("argument", ["a=interval(0,1)", "~a", "a=range(1,1)"])
def test_what_is_no_list_of_values_is_refused(argument: str) -> None:
    with pytest.raises(InputError):
        expand([{}], {}, [argument])


def test_a_run_that_two_parts_describe_appears_once() -> None:
    assert len(expand([{"a": [1, 2]}, {"a": [2, 3]}], {}, [])) == 3


def test_no_values_make_no_runs() -> None:
    assert expand([{"a": []}, {"a": 1}], {}, []) == [{"a": "1"}]


def test_labels_hold_what_differs_and_no_seed() -> None:
    runs = expand(PARTS, {"seed": [1, 2], "model": "tiny"}, [])
    names = labels(runs)
    assert names[0] == names[2] == "peft=lora qpa=off peft.r=1"
    assert "seed" not in "".join(names)
    assert "model" not in "".join(names)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), min_size=1).filter(
        lambda text: text.strip() == text and not text.endswith("\\")
    ),
    lambda inner: st.lists(inner, max_size=3),
)  # fmt: skip


@given(values)
def test_a_spelled_value_is_read_back_by_hydra(value: object) -> None:
    read = OverridesParser.create().parse_override(f"key={spell(value)}").value()
    assert unquoted(read) == value or unquoted(read) == str(value)


def unquoted(value: object) -> object:
    """Hydra's own types for quoted text, as plain text."""
    if isinstance(value, list):
        return [unquoted(item) for item in value]
    return getattr(value, "text", value)
