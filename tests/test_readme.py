"""The commands and the Python of README and docs do what the pages say they do.

Each is run as it is printed, but for what stands below: what a reader fills in, and what makes it
short.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import pytest

from qpa_exp.cli import compose_config
from qpa_exp.lm.loading import BUNDLED
from qpa_exp.script import main as qpa_exp_script
from qpa_exp.sweeps import sweep
from qpa_exp.sweeps.prepare import expand

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TINY = str(BUNDLED["qpa_exp/tiny"])

# What a reader fills in, and what stands for it here. A place in <> that is not named is a
# directory with a text file for each split.
FILLED_IN = {
    "<run> trainer.max_epochs=8": "run trainer.max_steps=3",
    "<run>": "run",
    "run=outputs/notes": "run=run",
    "runs=outputs/notes": "runs=run",
    "model=smollm2": "model=tiny",
    "<a text file or a directory>": "notes.txt",
    "<a CSV, JSON-lines or parquet file>": "labelled.csv",
    "<a hub id or directory>": TINY,
    "<model>": TINY,
    "<file>": "notes.txt",
    "<hub id>": "owner/name",
    "data/wikitext-2": "texts",
    "data/ptb": "texts",
    "data.path=wikitext-2": "data.path=texts",
    'eval "$(qpa-exp -sc install=bash)"': "qpa-exp -sc install=bash",
}
# A run is cut short like this.
SHORT = [
    "trainer.max_steps=2", "trainer.limit_eval_batches=1", "trainer.progress_bar=false",
    "data.train_split=train[:20%]",
]  # fmt: skip
SHORTER = {
    "optim=cobyla": "optim.max_evaluations=50",
    "sweep=": "hydra.sweeper.only_plan=true",  # make reproduce-all SCALE=smoke runs them all
    "seed=1,2,3": "hydra.sweeper.only_plan=true",  # tests/sweeps runs some
    "optim.lr=0.01,0.03,0.1": "hydra.sweeper.only_plan=true",
    "qpa_exp.reproduce": "hydra.sweeper.only_plan=true",
    "data.path=chats.jsonl show=data": "data.chat_template=chat.jinja",  # the tiny model has none
}
# Of a command that needs a download the config is composed, and a Python block takes this model.
NEEDS_A_DOWNLOAD = re.compile(
    r"model=(gpt2|gemma)|model\.gguf_file|experiment=|data=(wikitext2|ptb)(?!.*data\.path)"
)
HUB = r"(?:HuggingFaceTB|openai-community)/[\w.-]+"
# What is tried elsewhere, or is another program's.
ELSEWHERE = {
    "pip install ": "tests/test_package.py",
    "python examples/": "tests/test_examples.py",
    "python -m pytest ": "the tests themselves",
    "python -m qpa_exp.benchmark": "tests/benchmarks",
    "python -m qpa_exp.dashboard": "needs a W&B account",
    "python -P -m qpa_exp": "the same with a flag of Python's",
    "python -m qpa_exp trainer=ddp": "tests/runs/test_command.py",
    "python -m qpa_exp -m seed=1,2,3 trainer=ddp": "tests/sweeps/test_processes.py",
    "python -m qpa_exp.report runs=outputs/studies/tiny pages=": "tests/report/test_docs_page.py",
    "python -m qpa_exp.report pages=": "tests/report/test_docs_page.py",
    ". .venv/bin/activate": "the shell's",
    "wandb ": "W&B's", "tensorboard ": "TensorBoard's",
}  # fmt: skip


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    """Every line of every ``bash`` block, comments off, continued lines joined."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    bare = [line.split("  #")[0].strip() for line in lines]
    return [" ".join(line.split()) for line in bare if line and not line.startswith("#")]


def filled_in(text: str) -> str:
    for place, stand_in in FILLED_IN.items():
        text = text.replace(place, stand_in)
    return re.sub(r"<[^<>\n]+>", "texts", text)


def at_once(commands: Iterable[str]) -> list[str]:
    """Commands that differ in their studies alone are one, which starts but once."""
    found: dict[str, list[str]] = {}
    for command in commands:
        named = re.search(r"(studies|sweep)=(\S+)", command)
        kind = command.replace(named[0], named[1] + "={}") if named else command
        found.setdefault(kind, []).extend(named[2].split(",") if named else [])
    join = lambda names: ",".join(dict.fromkeys(names))  # noqa: E731
    return [kind.format(join(names)) if names else kind for kind, names in found.items()]


EVERY = list(dict.fromkeys(command for page in PAGES for command in commands(page)))
MAKE = [c for c in EVERY if c.startswith("make ")]
HERE = at_once(filled_in(c) for c in EVERY if c not in MAKE and not c.startswith(tuple(ELSEWHERE)))
# CONTRIBUTING's blocks are files, which tests/test_contributing.py writes; the other page's are run
# by tests/ecosystem/test_how_to.py, which brings data and looks at what they leave.
OWN_TEST = ("CONTRIBUTING.md", "hugging_face.md")
WITH_PYTHON = [page for page in PAGES if blocks(page, "python") and page.name not in OWN_TEST]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_readme_is_short() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 1200


def test_sentences_are_short() -> None:
    """Of the pages that are read from top to bottom: no more than 34 words each."""
    folders = {ROOT, ROOT / "docs" / "how-to", ROOT / "docs" / "concepts"}
    for page in (page for page in PAGES if page.parent in folders):
        text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        text = re.sub(r"^(\||#).*$", "", text, flags=re.MULTILINE)  # tables and headings
        text = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "code", text))
        for sentence in re.split(r"[.!?:;](?=[\s*)])|\n\s*(?=\n|- |\d\. )", text):
            assert len(re.findall(r"\w[\w'%.,-]*", sentence)) <= 34, (page.name, sentence)


def test_the_page_of_the_config_is_that_of_the_code() -> None:
    """python docs/write_config_page.py writes it again; here other tests may have added entries."""
    program = "import runpy, sys; print(runpy.run_path(sys.argv[1])['page'](), end='')"
    script = str(ROOT / "docs" / "write_config_page.py")
    command = [sys.executable, "-c", program, script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    written = done.stdout
    assert (ROOT / "docs" / "reference" / "config.md").read_text(encoding="utf-8") == written
    assert not [line for line in written.splitlines() if line.endswith("|  |")]


def test_every_command_is_one_that_is_tried() -> None:
    ours = ("python -m qpa_exp", "qpa-exp ")
    assert [c for c in HERE if not c.startswith(ours)] == []
    assert MAKE
    assert HERE


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


def started(command: str) -> list[str]:
    """The module and the arguments that a command starts; none where qpa-exp answers itself."""
    words = shlex.split(command)
    if words[0] == "qpa-exp":
        becomes: list[list[str]] = [[]]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", words)
            patch.setattr("os.execv", lambda _, arguments: becomes.append(arguments[1:]))
            qpa_exp_script()
        words = becomes[-1]
    return words[words.index("-m") + 1 :] if words else []


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what stands for a reader's own things: a run, texts, labelled texts."""
    place = tmp_path_factory.mktemp("reader")
    python(["qpa_exp", *SHORT, f"hydra.run.dir={place / 'run'}"], place)
    rows = [f"line {i} of two classes,{'odd' if i % 2 else 'even'}" for i in range(80)]
    (place / "labelled.csv").write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    shutil.copy(ROOT / "LICENSE", place / "notes.txt")
    turns = [{"role": "user", "content": "Odd?"}, {"role": "assistant", "content": "It is."}]
    chats = 40 * (json.dumps({"messages": turns}) + "\n")
    (place / "chats.jsonl").write_text(chats, encoding="utf-8")
    template = blocks(ROOT / "docs" / "how-to" / "your_data.md", "jinja")[0]
    (place / "chat.jinja").write_text(template, encoding="utf-8")
    (place / "texts").mkdir()
    for split in ("train", "validation", "test"):
        text = (ROOT / "LICENSE").read_text(encoding="utf-8")
        (place / "texts" / f"{split}.txt").write_text(8 * text, encoding="utf-8")
    return place


@pytest.fixture
def desk(made: Path, tmp_path: Path) -> Path:
    """A directory of a test's own with all of that in it."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("command", HERE)
def test_the_command_runs(command: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of each study the first run; tests/sweeps plans them all.
    monkeypatch.setattr(sweep, "expand", lambda *given: expand(*given)[:1])
    if not (words := started(command)):
        return
    module, *arguments = words
    if module == "qpa_exp" and NEEDS_A_DOWNLOAD.search(command) and "sweep=" not in command:
        compose_config([a for a in arguments if a != "-m"])
        return
    trains = module in ("qpa_exp", "qpa_exp.reproduce") and "resume=" not in command
    more = {given for word, given in SHORTER.items() if word in command and given not in command}
    python([module, *arguments, *(SHORT if trains else []), *more], desk)


@pytest.mark.slow
def test_every_key_of_metrics_has_its_meaning(made: Path) -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    for key in json.loads((made / "run" / "metrics.json").read_text()):
        named = re.sub(r"^(base|last)_(?!perplexity$)", "", key)
        assert f"`{named}`" in page, key


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_python_of_a_page_runs(page: Path, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of its blocks, one after the other."""
    program = filled_in("\n".join(blocks(page, "python")))
    monkeypatch.chdir(desk)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        space = {"__name__": "page"}
        exec(compile(re.sub(HUB, TINY, program), name_of(page), "exec"), space)


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two steps and a few blocks to test on; as committed it has outputs and no paths."""
    text = (ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8")
    assert '"image/png"' in text
    assert not re.search(r"/(home|root|tmp|Users|work)/", text)
    short = text.replace("STEPS = 200", "STEPS = 2").replace("N_TEST = 128", "N_TEST = 4")
    assert len(text) - len(short) == 4
    cells = [cell["source"] for cell in json.loads(short)["cells"] if cell["cell_type"] == "code"]
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of plt.show() where there is no screen
        exec(compile("\n".join("".join(cell) for cell in cells), "tutorial", "exec"), {})
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
