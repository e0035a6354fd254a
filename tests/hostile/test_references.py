"""No reference reads what is not in the config: typed, in conf files, or in somebody's run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qpa_exp import export, plan
from qpa_exp.__main__ import main as train
from qpa_exp.cli import (
    compose_config,
    quoted,
    refuse_foreign_code,
    refuse_interpolations,
    to_config,
)
from qpa_exp.errors import InputError
from qpa_exp.report import __main__ as report
from qpa_exp.runs.directory import read_config

MARKER = "hf_a-secret-that-nobody-may-see"

SPELLINGS = [
    "${oc.env:SECRET_TOKEN}", "${ oc.env : SECRET_TOKEN }", "a${oc.env:SECRET_TOKEN}b",
    "${oc.env:SECRET_TOKEN,x}", "${oc.decode:${oc.env:SECRET_TOKEN}}",
    "${oc.select:nothing,${oc.env:SECRET_TOKEN}}", "${oc.create:${oc.env:SECRET_TOKEN}}",
    "${mul:${oc.env:SECRET_TOKEN},1}", "${now:${oc.env:SECRET_TOKEN}}", "${hydra:job.env_set}",
    "${${model.name}:SECRET_TOKEN}", "$\\{oc.env:SECRET_TOKEN\\}", "\\${oc.env:SECRET_TOKEN}",
    "\\\\${oc.env:SECRET_TOKEN}", "'${oc.env:SECRET_TOKEN}'", '"${oc.env:SECRET_TOKEN}"',
    "$'{'oc.env:SECRET_TOKEN}", "${oc.env:'SECRET_TOKEN'}", "${oc.dict.values:model}",
]  # fmt: skip
PLACES = [
    "logger.project={}", "+logger.project={}", "logger.tags=[a,{}]", "peft.options={{a:{{b:{}}}}}",
    "peft.options={{{}:1}}", "+model.architecture={{model_type:{}}}", "model={}", "{}=1",
    "data.path={}", "hydra.run.dir=out/{}", "logger.tags=[[{}]]", "seed=1,{}", "{}",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_what_is_typed_is_refused_before_anything_looks_at_it(spelling: str, place: str) -> None:
    with pytest.raises(InputError, match="is not allowed"):
        refuse_interpolations([place.format(spelling)])


@pytest.mark.parametrize(
    "override",
    ["qpa.n_mlp=${mul:2,32}", "seed=${qpa.n_mlp}", "hydra.run.dir=out/${now:%Y-%m-%d}/${seed}"],
)
def test_references_to_the_config_are_allowed(override: str) -> None:
    refuse_interpolations([override])


@pytest.mark.parametrize(
    "arguments",
    [
        ["logger=wandb", "logger.project=${oc.env:SECRET_TOKEN}"],
        ["-m", "seed=1", "logger.project=${oc.env:SECRET_TOKEN},x"],
        ["--cfg", "job", "--resolve", "logger.project=${oc.env:SECRET_TOKEN}"],
    ],
)
def test_no_command_resolves_one(
    refused: Callable[..., str], home: Path, untouched: None, arguments: list[str]
) -> None:
    assert "is not allowed" in refused(train, arguments)
    if not arguments[0].startswith("-"):
        assert "is not allowed" in refused(plan.main, arguments)


def test_a_conf_file_of_ones_own_is_refused_before_it_is_resolved(home: Path) -> None:
    from omegaconf import OmegaConf

    for key, spelling in [
        ("logger.project", "${oc.env:SECRET_TOKEN}"),
        ("peft.options", {"a": ["${oc.select:model.name,${oc.env:SECRET_TOKEN}}"]}),
        ("peft.options", {"${oc.env:SECRET_TOKEN}": 1}),
        ("logger.tags", ["${${model.name}:SECRET_TOKEN}"]),
    ]:
        composed = OmegaConf.structured(compose_config([]))
        OmegaConf.update(composed, key, spelling)
        with pytest.raises(InputError, match="is not allowed") as caught:
            to_config(composed)
        assert MARKER not in str(caught.value)


FOREIGN = {
    "callback": "hydra: {callbacks: {x: {_target_: builtins.print, _args_: [ran]}}}",
    "escaped": 'hydra: {callbacks: {x: {"\\x5ftarget_": builtins.print, _args_: [ran]}}}',
    "logging": "hydra: {job_logging: {handlers: {x: {class: subprocess.Popen, args: ran}}}}",
    "factory": "hydra: {job_logging: {formatters: {x: {(): os.getcwd}}}}",
    "elsewhere": "hydra: {searchpath: ['file:///tmp']}",
    "reference": "hydra: {run: {dir: 'out/${oc.env:SECRET_TOKEN}'}}",
    "ours": "logger: {project: '${oc.env:SECRET_TOKEN}'}",
    "commands": "hydra: {launcher: {setup: [touch here]}}",
    "environment": "hydra: {job: {env_set: {LD_PRELOAD: mine.so}}}",
    "elsewhere by steps": "defaults: [../../x]",
    "elsewhere in a table": "defaults: [{experiment: ../../x}]",
    "elsewhere in a list": "defaults: [{experiment: [a, ../x]}]",
    "elsewhere in place": "defaults: [_self_, {override /model: ../../x}]",
    "elsewhere for a package": "defaults: [{/experiment@qpa: ../../x}]",
    "anchor": "a: &a [1]\nb: *a",
}


@pytest.mark.parametrize("flag", ["--config-dir", "-cd", "--config-d", "--config-path", "-cp"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_nothing_in_a_directory_of_configs_is_run(
    refused: Callable[..., str], home: Path, untouched: None, tmp_path: Path, flag: str, kind: str
) -> None:
    (tmp_path / "theirs" / "experiment").mkdir(parents=True)
    file = tmp_path / "theirs" / "experiment" / "x.yaml"
    file.write_text(f"# @package _global_\n{FOREIGN[kind]}\n")
    sentence = refused(train, [flag, str(tmp_path / "theirs"), "experiment=x"])
    assert str(file) in sentence
    assert MARKER not in sentence


@pytest.mark.parametrize("linked", ["folder", "file"])
def test_nothing_that_such_a_directory_links_to_is_run(
    refused: Callable[..., str], home: Path, untouched: None, tmp_path: Path, linked: str
) -> None:
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "x.yaml").write_text(f"# @package _global_\n{FOREIGN['callback']}\n")
    place = tmp_path / "theirs" / "experiment"
    place.parent.mkdir()
    if linked == "folder":
        place.symlink_to(tmp_path / "evil")
    else:
        place.mkdir()
        (place / "x.yaml").symlink_to(tmp_path / "evil" / "x.yaml")
    sentence = refused(train, ["--config-dir", str(tmp_path / "theirs"), "experiment=x"])
    assert "is a link: a directory of configs holds none" in sentence


@pytest.mark.parametrize("flags", [[], ["-m"], ["--cfg", "job"], ["--config-dir", "."]])
@pytest.mark.parametrize(
    "override",
    ["experiment=../../x", "+experiment=[../x]", "model=a/../b", "+experiment@qpa.a=../x"],
)
def test_no_option_leads_out_of_the_configs(
    refused: Callable[..., str], untouched: None, flags: list[str], override: str
) -> None:
    assert f"{override} leads out of the configs" in refused(train, [*flags, override])


@pytest.mark.parametrize("prefix", ["", "+", "++"])
@pytest.mark.parametrize("flags", [[], ["-m"], ["--cfg", "job"]], ids=" ".join)
def test_no_override_leads_to_such_a_directory(
    refused: Callable[..., str], untouched: None, tmp_path: Path, flags: list[str], prefix: str
) -> None:
    place = f"{prefix}hydra.searchpath=[file://{tmp_path}]"
    assert "--config-dir" in refused(train, [*flags, place, "experiment=x"])


def test_a_directory_of_plain_configs_and_a_pickle_of_hydras(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "x.yaml").write_text("# @package _global_\nqpa: {n_mlp: 32}\nseed: ${qpa.n_mlp}\n")
    refuse_foreign_code(["--config-dir", str(tmp_path), "+x=y"])
    assert "pickle" in refused(train, ["--experimental-rerun", str(tmp_path / "config.pickle")])


@settings(max_examples=8)
@given(st.text(st.sampled_from("\\${}:.'\"xoc"), max_size=12))
def test_a_text_is_refused_or_taken_as_it_stands(text: str) -> None:
    override = f"logger.project={quoted(text + '.')}"
    try:
        project = compose_config(["logger=wandb", override]).logger.project
    except InputError:
        assert "$" in text
        assert "{" in text
    else:
        assert project == text + "."


# --- in what somebody else wrote ----------------------------------------------------------------

DOLLARS = ['"\\x24{', '"\\u0024{', '"\\U00000024{', '"$\\x7b', '"\\x24\\x7b', "'${", '"a${b} ${']


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(DOLLARS), st.data())
def test_a_reference_in_a_saved_config_is_refused_wherever_it_is(
    home: Path, enemys: Callable[[], Path], dollar: str, data: st.DataObject
) -> None:
    run = enemys()
    lines = (run / "config.yaml").read_text().splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    key, _, _ = lines[at].partition(":")
    secret = f"{dollar}oc.env:SECRET_TOKEN}}{dollar[0]}"
    indent = key[: len(key) - len(key.lstrip(" -"))]
    lines[at] = data.draw(st.sampled_from([f"{key}: {secret}", f"{indent}{secret}: 1"]))
    (run / "config.yaml").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError) as caught:
        read_config(run)
    assert MARKER not in str(caught.value)


def with_texts(value: Any, text: str) -> Any:
    """Every text in a JSON value replaced, but for the status that says that a run is complete."""
    if isinstance(value, dict):
        return {k: v if k == "status" else with_texts(v, text) for k, v in value.items()}
    if isinstance(value, list):
        return [with_texts(item, text) for item in value]
    return text if isinstance(value, str) else value


@pytest.mark.parametrize("spelling", ["${oc.env:SECRET_TOKEN}", "$SECRET_TOKEN"])
@pytest.mark.parametrize("name", ["metrics.json", "generator/qpa_config.json"])
def test_a_reference_in_a_saved_record_is_never_followed(
    home: Path, untouched: None, enemys: Callable[[], Path], ends: Callable[..., Any],
    name: str, spelling: str,
) -> None:  # fmt: skip
    run = enemys()
    saved = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps(with_texts(saved, spelling)))
    ends(export.main, [f"run={run}", "out=out/adapter"])
    ends(report.main, [f"runs={run}", "out=out/report"])
    ends(train, [f"resume={run}"])


def test_what_is_written_is_read_back_as_it_was(home: Path) -> None:
    from qpa_exp.runs.directory import claim

    for i, text in enumerate(["a: b", "'\"", "é\u2028\t", "!!int 1", "&a", "1", "null", "#"]):
        config = compose_config([])
        logger = dataclasses.replace(config.logger, project=text, tags=[text])
        config = dataclasses.replace(config, logger=logger)
        claim(home / "desk" / "out" / str(i), config)
        assert read_config(home / "desk" / "out" / str(i)) == config
