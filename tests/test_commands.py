"""``qpa-exp`` and what its commands have in common: help, version, completion, several values."""

from __future__ import annotations

import contextlib
import pydoc
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qpa_exp
from qpa_exp import completion, reproduce, script
from qpa_exp.__main__ import main as train
from qpa_exp.__main__ import own_directory
from qpa_exp.cli import compose_config, known_keys, refuse_several
from qpa_exp.errors import InputError
from qpa_exp.runs.directory import claim

COMMANDS = sorted(script.COMMANDS)


def test_every_module_with_a_main_is_a_command() -> None:
    package = Path(qpa_exp.__file__).parent
    mains = [file for file in package.rglob("*.py") if "    run_command(main" in file.read_text()]
    names = {str(file.relative_to(package).with_suffix("")) for file in mains} - {"completion"}
    assert {name.removesuffix("/__main__").replace("__main__", "train") for name in names} == set(
        script.COMMANDS
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_what_python_m_starts(command: str) -> None:
    module = "qpa_exp" if command == "train" else f"qpa_exp.{command}"
    assert script.program([command, "a=b"]) == ["-m", module, "a=b"]


@pytest.mark.parametrize("arguments", [["qpa.n_mlp=3"], ["-m", "sweep=fig2"], ["--cfg", "job"]])
def test_overrides_alone_train(arguments: list[str]) -> None:
    assert script.program(arguments) == ["-m", "qpa_exp", *arguments]


HYDRAS_OWN = [["--cfg", "job"], ["--cfg", "all", "--resolve"], ["--run"]]
NOT_ALLOWED = ["foo=1", "qpa.n_mpl=3", "seed=[", "qpa.n_mlp=x", "peft=nope", "~seed", "seed=1,2"]


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra's own log stays with the stream that the first test of this process had."""
    monkeypatch.setattr("logging.raiseExceptions", False)


@pytest.mark.parametrize("override", NOT_ALLOWED)
@pytest.mark.parametrize("flags", HYDRAS_OWN, ids=" ".join)
def test_hydras_own_flags_refuse_in_one_sentence_too(
    refusal: Callable[..., str], quiet: None, tmp_path: Path, flags: list[str], override: str
) -> None:
    sentence = refusal(train, [*flags, override], tmp_path)
    assert sentence.startswith("error: ")
    assert override.strip("~").partition("=")[0] in sentence


@pytest.mark.parametrize(
    "flags", [["--resolve"], ["--cfg", "job", "--info"], ["--cfg", "job", "-m"], ["-cn", "mine"]]
)
def test_flags_that_do_not_go_together_are_one_sentence(
    refusal: Callable[..., str], quiet: None, tmp_path: Path, flags: list[str]
) -> None:
    assert flags[-1] in refusal(train, flags, tmp_path)


def test_it_becomes_the_command_with_its_exit_status() -> None:
    program = "from qpa_exp.script import main; main()"
    for arguments, status, says in (
        (["plan", "qpa.n_mlp=0"], 2, "error: qpa.n_mlp=0 is too small"),
        (["plann"], 2, "error: plann is no command of qpa-exp: did you mean plan?"),
        (["--version"], 0, f"qpa_exp {qpa_exp.__version__}"),
        (["export", "--version"], 0, f"qpa_exp {qpa_exp.__version__}"),
        ([], 0, "qpa-exp <command>"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == status
        assert says in (done.stderr if status else done.stdout)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "benchmark"])
def test_help_has_examples_that_the_command_can_read(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = script.module_of(command)
    module = import_module(f"{name}.__main__" if command in ("train", "report") else name)
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    with pytest.raises(SystemExit) as ended:
        _as_main(module)
    page = capsys.readouterr().out
    assert not ended.value.code
    examples = [line for line in page.splitlines() if line.startswith(f"  qpa-exp {command} ")]
    assert examples
    assert all(len(line) <= 100 for line in page.splitlines())
    assert "``" not in page


def _as_main(module: object) -> None:
    """The last lines of a command's file, as ``python -m`` runs them."""
    source = Path(str(module.__file__)).read_text(encoding="utf-8")  # type: ignore[attr-defined]
    last = source.rpartition('if __name__ == "__main__":\n')[2]
    exec(last.strip(), vars(module))


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("qpa-exp ", {"plan", "export", "qpa."}),
        ("qpa-exp pla", {"plan"}),
        ("qpa-exp export ", {"run=", "out=", "format=", "overwrite="}),
        ("qpa-exp plan model=gpt2 peft=lo", {"peft=lora", "format="}),
        ("qpa-exp qpa.n_m", {"qpa.n_mlp="}),
    ],
)
def test_a_tab_is_answered(
    line: str, offers: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setattr(sys, "argv", ["completion.py", "-sc", "query=bash"])
    completion.main(["-sc", "query=bash"])
    assert offers <= set(capsys.readouterr().out.split())


@pytest.fixture
def begin_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """``begin_at_once(*overrides)``: two runs in one second, and their directories."""
    monkeypatch.chdir(tmp_path)
    clock = SimpleNamespace(now=lambda: datetime(2026, 1, 2, 3, 4, 5))
    monkeypatch.setattr("hydra.core.utils.datetime", clock)
    monkeypatch.setattr("qpa_exp.runs.train.prepare", lambda config, run_dir: (run_dir, config))
    monkeypatch.setattr("qpa_exp.runs.train.begin", lambda prepared: claim(*prepared))

    def begin(*overrides: str) -> list[str]:
        for _ in range(2):
            train(list(overrides))
        return sorted(place.parent.name for place in Path("outputs").rglob("config.yaml"))

    return begin


def test_runs_that_begin_in_one_second_have_a_directory_each(
    begin_at_once: Callable[..., list[str]],
) -> None:
    assert begin_at_once() == ["2026-01-02_03-04-05", "2026-01-02_03-04-05-2"]


def test_a_key_of_another_launcher_says_so(refusal: Callable[..., str], tmp_path: Path) -> None:
    said = refusal(train, ["-m", "seed=1,2", "hydra.launcher.n_jobs=2"], tmp_path)
    assert "hydra.launcher.n_jobs is not a key of this launcher: choose one that has it" in said


@pytest.mark.parametrize("given", ["hydra.run.dir=out/mine", "trainer.devices=2"])
def test_a_directory_that_was_given_or_is_shared_by_processes_stays_as_it_is(
    begin_at_once: Callable[..., list[str]], given: str
) -> None:
    with pytest.raises(InputError, match="holds a run already"):
        begin_at_once(given)


def test_a_directory_of_its_own_is_nobody_else_s_and_goes_when_it_is_empty(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool, contextlib.ExitStack() as stack:
        run_dir = tmp_path / "out" / "run"
        own = list(pool.map(lambda _: stack.enter_context(own_directory(run_dir)), range(8)))
        assert len(set(own)) == 8
        assert run_dir in own
    assert list(tmp_path.iterdir()) == []


def test_the_public_names_are_listed_before_they_are_imported() -> None:
    program = "import sys, qpa_exp; print(*dir(qpa_exp)); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    shown = {name for name in done.stdout.split() if not name.startswith("__")}
    assert shown == set(qpa_exp.__all__), done.stderr
    page = pydoc.plain(pydoc.render_doc(qpa_exp))
    assert all(name in page.partition("NAME")[2] for name in qpa_exp.__all__)


# --- several values -------------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    st.sampled_from([key for key in known_keys() if "." in key and not key.startswith("model.")]),
    st.sampled_from(["32,64", "a,b", "range(1,3)", "choice(1,2)", "null,1", "[a],[b]"]),
)
def test_several_values_of_any_key_say_that_m_is_missing(key: str, values: str) -> None:
    with pytest.raises(InputError, match="needs -m, as in python -m qpa_exp -m "):
        refuse_several([f"{key}={values}"])


@pytest.mark.parametrize("value", ["[32,64]", "'a,b'", "(a|b)", "null", "{a:1,b:2}"])
def test_one_value_is_one(value: str) -> None:
    refuse_several([f"peft.target_modules={value}"])


def test_the_command_says_so_and_how_a_list_is_written(
    tmp_path: Path, refusal: Callable[..., str]
) -> None:
    assert "-m qpa.n_mlp=32,64" in refusal(train, ["qpa.n_mlp=32,64"], tmp_path)
    with pytest.raises(InputError, match=r"a list is peft.target_modules=\[a,b\], "):
        compose_config(["peft.target_modules=a,b"])
    assert list(tmp_path.iterdir()) == []


# --- reproduce ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "studies is missing: give studies="),
        (["scale=smoke"], "studies is missing: give studies="),
        (["study=fig2"], "study is no option of reproduce: did you mean studies="),
        (["sweep=fig2"], "did you mean studies="),
        (["fig2"], "write studies=fig2"),
        (["studies=fig2", "scal=smoke"], "did you mean scale="),
        (["studies=fig2", "qpa.n_mpl=3"], "did you mean qpa.n_mlp"),
        (["studies="], "studies= is unknown"),
    ],
)
def test_reproduce_starts_nothing_that_was_not_named(
    arguments: list[str], says: str, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    assert says in refusal(reproduce.main, arguments, tmp_path)
    assert list(tmp_path.iterdir()) == []
