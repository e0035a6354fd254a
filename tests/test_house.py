"""The house: what a file's name tells, how few files a run needs, what an import brings along."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "qpa_exp"
MOST_FILES = 35


def run_program(program: str, directory: Path, *arguments: str) -> str:
    """What a program prints that runs in a process of its own, in this directory."""
    environment = os.environ | {
        "PYTHONPATH": str(PACKAGE.parent), "QPA_EXP_CACHE": str(directory / "cache"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=directory, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_name_means_one_thing() -> None:
    """No two modules share a name; an entry's name is the user's word, which two keys may share."""
    modules = [file for file in PACKAGE.rglob("*.py") if not file.stem.startswith("__")]
    packages = [file.parent for file in PACKAGE.rglob("__init__.py")]
    modules = [file for file in modules if file.stem != file.parent.name]  # a room's chief file
    entries = [file for file in modules if "\nENTRY = " in file.read_text(encoding="utf-8")]
    named = Counter(path.stem for path in {*modules, *packages} - set(entries))
    named.update({file.stem for file in entries})
    assert [name for name, times in named.items() if times > 1] == []


def test_no_room_names_anything_as_one_of_its_modules() -> None:
    """Python puts the module in that name's place as soon as somebody imports it."""
    for room in PACKAGE.rglob("__init__.py"):
        modules = {path.stem for path in room.parent.iterdir()} - {"__init__"}
        body = ast.parse(room.read_text(encoding="utf-8")).body
        named = {getattr(each, "name", "") for each in body}
        for each in body:
            if isinstance(each, ast.ImportFrom) and each.module != f"qpa_exp.{room.parent.name}":
                named |= {alias.asname or alias.name for alias in each.names}
            if isinstance(each, ast.Assign | ast.AnnAssign):
                targets = each.targets if isinstance(each, ast.Assign) else [each.target]
                named |= {target.id for target in targets if isinstance(target, ast.Name)}
        assert named & modules == set(), room


def test_no_module_imports_in_a_circle() -> None:
    """Inside functions and for types alone, too."""
    graph = grimp.build_graph("qpa_exp", cache_dir=None)
    modules = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    TopologicalSorter(modules).prepare()


def test_only_its_own_tests_need_the_fast_head() -> None:
    """Without the folder, tests/fast_head and tests/benchmarks, all others still pass."""
    for file in (PACKAGE.parent / "tests").rglob("*.py"):
        if "fast_head" not in file.parts:
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"^(from|import) qpa_exp\.fast_head", text, re.MULTILINE), file


@pytest.mark.long
@pytest.mark.slow
def test_a_default_run_needs_few_files(tmp_path: Path) -> None:
    short = ["trainer.max_steps=2", "trainer.limit_eval_batches=2", "hydra.run.dir=run"]
    files = json.loads(run_program(_FILES_CALLED, tmp_path, *short).splitlines()[-1])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["status"] == "complete"
    assert len(files) <= MOST_FILES, "\n".join(files)


_FILES_CALLED = """
import json, sys, threading
from pathlib import Path
import qpa_exp
package = str(Path(qpa_exp.__file__).parent)
seen, called = set(), set()
def note(frame, event, argument):
    code = frame.f_code
    if event != "call" or code in seen:
        return
    seen.add(code)
    # A module's and a class' own code is run by importing it; a function's has its own locals.
    if code.co_flags & 1 and code.co_filename.startswith(package):
        called.add(code.co_filename.removeprefix(package + "/"))
threading.setprofile(note)
sys.setprofile(note)
from qpa_exp.__main__ import main
main(sys.argv[1:])
sys.setprofile(None)
print(json.dumps(sorted(called)))
"""


def test_the_library_works_where_only_its_own_packages_are_installed(tmp_path: Path) -> None:
    """So it brings along nothing of what trains, sweeps and draws, which is for the commands."""
    run_program(_WITHOUT_EXTRAS, tmp_path)


_WITHOUT_EXTRAS = """
import sys
for name in ("hydra", "pytorch_lightning", "lightning", "torchmetrics", "datasets", "pandas",
             "pyarrow", "matplotlib", "PIL", "wandb", "tensorboard", "xxhash", "bitsandbytes"):
    sys.modules[name] = None  # as if it were not there
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, GPT2Config
from qpa_exp import QPAConfig, QPAModel, get_qpa_model
shape = GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1, n_positions=16)
make = lambda: AutoModelForCausalLM.from_config(shape)
model = get_qpa_model(make(), LoraConfig(r=2, target_modules=["lm_head"]), QPAConfig(n_mlp=16))
ids = torch.arange(8)[None]
model(input_ids=ids, labels=ids).loss.backward()
assert any(p.grad is not None for p in model.parameters())
model.save_pretrained("saved")
QPAModel.from_pretrained(make(), "saved").to_peft().save_pretrained("adapter")
"""


def test_a_command_without_its_packages_says_how_to_install_them(tmp_path: Path) -> None:
    program = "import sys; sys.modules['hydra'] = None; sys.argv = ['-m']; import qpa_exp"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: the commands need: pip install 'qpa-exp[experiments]'\n"
