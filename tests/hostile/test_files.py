"""Garbage in every file that the package reads: a sentence, or it is left out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import files_like, in_yaml

from qpa_exp import export, generate
from qpa_exp.__main__ import main as train
from qpa_exp.errors import InputError
from qpa_exp.report import __main__ as report
from qpa_exp.report.collect import collect
from qpa_exp.runs import directory


@cache
def configs_like(whole_run: Path) -> st.SearchStrategy[bytes]:
    """What may lie in the place of its config; to make this anew takes longer than an example."""
    return files_like(yaml.safe_load((whole_run / "config.yaml").read_text()), in_yaml)


def with_spoilt_config(home: Path, whole_run: Path, data: st.DataObject) -> Path:
    """A run whose config is drawn anew, and whose other files are whole."""
    run = home / "desk" / "out" / "run"
    if not run.exists():
        shutil.copytree(whole_run, run)
    (run / "config.yaml").write_bytes(data.draw(configs_like(whole_run)))
    return run


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_garbage_for_a_config_is_a_sentence_or_a_config(
    home: Path, whole_run: Path, data: st.DataObject
) -> None:
    """The other files of a run: tests/hostile/test_foreign_runs.py."""
    run = with_spoilt_config(home, whole_run, data)
    try:
        directory.read_config(run)
    except InputError as error:
        assert "config.yaml" in str(error)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_report_leaves_out_what_it_cannot_read(
    home: Path, whole_run: Path, data: st.DataObject
) -> None:
    run = with_spoilt_config(home, whole_run, data)
    try:
        for _ in collect([str(run)], None):
            pass
    except InputError as error:
        assert str(run) in str(error)


FILES = ["config.yaml", "metrics.json", "cache.json", "generator/qpa_config.json",
         "generator/adapter_model.safetensors", "csv/version_0/metrics.csv"]  # fmt: skip
"""Of a complete run, by the names that its directory has for them."""


@pytest.mark.parametrize(
    "content",
    [b"[" * 10_000, *(pytest.param(content, marks=pytest.mark.long) for content in (b"", b"{}"))],
)
@pytest.mark.parametrize("name", FILES)
def test_every_command_takes_a_spoilt_run_for_what_it_is(
    home: Path, untouched: None, enemys: Callable[[], Path], ends: Callable[..., Any],
    name: str, content: bytes,
) -> None:  # fmt: skip
    run = enemys()
    trained = sorted((run / "generator").glob("*.safetensors"))
    (trained[0] if name.endswith("safetensors") else run / name).write_bytes(content)
    ends(report.main, [f"runs={run}", "out=out/report"])
    ends(train, [f"resume={run}"])
    if content:
        ends(export.main, [f"run={run}", "out=out/adapter"])
    else:
        ends(generate.main, [f"run={run}", "prompt=the", "max_new_tokens=1"])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "kind",
    ["fifo", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("directory", "loop"))],
)
def test_every_command_takes_a_file_that_is_none_for_what_it_is(
    home: Path, untouched: None, enemys: Callable[[], Path], ends: Callable[..., Any],
    name: str, kind: str,
) -> None:  # fmt: skip
    run = enemys()
    trained = sorted((run / "generator").glob("*.safetensors"))
    file = trained[0] if name.endswith("safetensors") else run / name
    file.unlink()
    match kind:
        case "directory":
            file.mkdir()
        case "fifo":
            os.mkfifo(file)
        case "loop":
            file.symlink_to(file)
    ends(report.main, [f"runs={run}", "out=out/report"])
    ends(export.main, [f"run={run}", "out=out/adapter"])
    ends(train, [f"resume={run}"])
