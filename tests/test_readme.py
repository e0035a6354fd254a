"""The README's commands do what it says they do."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import warnings
from pathlib import Path

import pytest

from qpa_exp.cli import compose_config

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

# A run of the README's is cut short here; all else of it is as printed.
SHORT = ["trainer.max_steps=2", "trainer.limit_eval_batches=1", "trainer.progress_bar=false"]
SHORTER = {
    "optim=cobyla": "optim.max_evaluations=50",
    "sweep=": "hydra.sweeper.only_plan=true",  # make reproduce-all SCALE=smoke runs them all
}
NEEDS_A_DOWNLOAD = re.compile(
    r"model=(gpt2|gemma|smollm2)|experiment=|data=(wikitext2|ptb)(?!.*data\.path)"
)


def commands(page: str = README) -> list[str]:
    """Every line of every ``bash`` block, comments off, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    bare = [line.split("  #")[0].strip() for line in lines]
    return [line for line in bare if line and not line.startswith("#")]


MAKE = [c for c in commands() if c.startswith("make ")]
PYTHON = [c for c in commands() if c.startswith("python -m ")]


def test_every_command_is_one_that_is_tested_here() -> None:
    others = set(commands()) - set(MAKE) - set(PYTHON)
    elsewhere = {"python examples/hf_trainer.py --steps 20"}  # tests/test_examples.py
    servers = {"pip install .", "wandb sync <directory>", "tensorboard --logdir outputs"}
    assert others <= elsewhere | servers
    assert MAKE
    assert PYTHON


@pytest.mark.parametrize("command", MAKE)
def test_make_knows_the_target(command: str) -> None:
    done = subprocess.run(
        [*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def python(arguments: list[str], cwd: Path) -> None:
    """``python -m`` with these arguments, in this process: importing it all takes seconds."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of runs this short, and of what was imported before
        patch.chdir(cwd)
        patch.setattr("sys.argv", arguments)
        try:
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            assert not ended.code  # noqa: PT017


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands for the places that a reader fills in: a run, a text, a model."""
    run = tmp_path_factory.mktemp("readme") / "run"
    python(["qpa_exp", *SHORT, f"hydra.run.dir={run}"], run.parent)
    rows = [f"line {i} of two classes,{'odd' if i % 2 else 'even'}" for i in range(80)]
    labelled = run.parent / "labelled.csv"
    labelled.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    return {
        "<run>": str(run),
        "<a text file or a directory>": str(ROOT / "LICENSE"),
        "<a CSV, JSON-lines or parquet file>": str(labelled),
        "<a hub id or directory>": str(ROOT / "qpa_exp" / "lm" / "tiny"),
    }


def test_the_commands_on_text_compose() -> None:
    found = commands((ROOT / "docs" / "text.md").read_text(encoding="utf-8"))
    assert found
    for command in found:
        _, _, module, *arguments = shlex.split(command)
        assert module == "qpa_exp"
        compose_config(arguments)


@pytest.mark.slow
@pytest.mark.parametrize("command", PYTHON)
def test_the_command_runs(command: str, stand_ins: dict[str, str], tmp_path: Path) -> None:
    for place, stand_in in stand_ins.items():
        command = command.replace(place, stand_in)
    _, _, module, *arguments = shlex.split(command)
    if module == "qpa_exp" and NEEDS_A_DOWNLOAD.search(command):
        compose_config([a for a in arguments if a != "-m"])
        return
    trains = module == "qpa_exp" and "resume=" not in command
    more = [given for word, given in SHORTER.items() if word in command]
    python([module, *arguments, *(SHORT + more if trains else [])], tmp_path)
