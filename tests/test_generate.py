"""What ``generate`` refuses before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from qpa_exp import generate
from qpa_exp.cli import compose_config
from qpa_exp.errors import InputError
from qpa_exp.generate import GenerateOptions, check_length


@pytest.mark.parametrize(
    ("given", "says"),
    [
        *((f"temperature={t}", "give 0, or a number from 0.001 to 100")
          for t in ("-1", "-1e-9", "1e-320", "101", "1e300")),
        *((f"temperature={t}", "give a finite number") for t in ("nan", "inf", "-inf")),
        *((f"max_new_tokens={n}", "give a whole number of at least 1") for n in ("0", "-1")),
        ("max_new_tokens=1000000000", "give at most 1048576"),
        ("seed=-1", "give a whole number of at least 0"),
        *((f"{key}={n}", "give less than 2^63") for key in ("max_new_tokens", "seed")
          for n in (2**63, 10**30)),
        ("prompt=", "is empty"),
        ("prompt=a\ud800b", "is not valid UTF-8"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(refusal, tmp_path: Path, given: str, says: str) -> None:
    options = ["run=nowhere", *([] if "prompt" in given else ["prompt=a"]), given]
    assert says in refusal(generate.main, options, tmp_path)


@pytest.mark.parametrize("run", ["nowhere", "~no_such_user/run", "/dev/null"])
def test_a_run_that_is_none_is_refused(refusal, tmp_path: Path, run: str) -> None:
    err = refusal(generate.main, [f"run={run}", "prompt=a"], tmp_path)
    assert f"{run} is not a run directory" in err


def test_more_tokens_than_the_model_has_positions_for() -> None:
    config = compose_config(["model=tiny"])
    options = GenerateOptions(run="run", prompt="a", max_new_tokens=500)
    check_length(12, options, config)
    with pytest.raises(InputError, match="13 tokens and max_new_tokens=500 are more than the 512"):
        check_length(13, options, config)
    with pytest.raises(InputError, match="has no token"):
        check_length(0, options, config)
