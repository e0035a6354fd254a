"""The examples in docstrings give what stands below them, and everything public has one."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import qpa_exp

ROOT = Path(__file__).resolve().parent.parent
MODULES = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for file in sorted((ROOT / "qpa_exp").rglob("*.py"))
    if ">>> " in file.read_text(encoding="utf-8")
]
PAGE = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
SHOWN = dict(re.findall(r"^::: (\S+)\n((?: +.*\n)*)", PAGE, re.MULTILINE))
"""What the reference shows, and how."""
OPTIONS = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL


def below_names(module: ModuleType) -> dict[str, str]:
    """The strings below a module's variables, which are their docstrings."""
    found = {}
    for one, other in pairwise(ast.parse(inspect.getsource(module)).body):
        if isinstance(one, ast.Assign | ast.AnnAssign) and isinstance(other, ast.Expr):
            name = one.target if isinstance(one, ast.AnnAssign) else one.targets[0]
            found[ast.unparse(name)] = ast.literal_eval(other.value)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_they_run(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = import_module(module)
    done = [doctest.testmod(loaded, optionflags=OPTIONS)]
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    for name, text in below_names(loaded).items():
        test = doctest.DocTestParser().get_doctest(text, vars(loaded).copy(), name, module, 0)
        done.append(runner.run(test))
    assert sum(one.failed for one in done) == 0, capsys.readouterr().out
    assert sum(one.attempted for one in done) > 0


def test_the_reference_shows_all_that_is_public() -> None:
    assert {f"qpa_exp.{name}" for name in qpa_exp.__all__} <= set(SHOWN)


@pytest.mark.parametrize("path", SHOWN)
def test_all_that_is_public_has_an_example(path: str) -> None:
    """Its methods, too, where the page shows them: an example of their own, or their class' one."""
    module, _, name = path.rpartition(".")
    public: Any = getattr(import_module(module), name)
    home = import_module(getattr(public, "__module__", module))
    text = below_names(home).get(name) or inspect.getdoc(public) or ""
    assert ">>> " in text
    if not inspect.isclass(public) or "members: false" in SHOWN[path] or name in below_names(home):
        return
    own = [of for of in public.__mro__ if of.__module__.startswith("qpa_exp.")]
    methods = {k: v for of in reversed(own) for k, v in vars(of).items() if not k.startswith("_")}
    for key, method in methods.items():
        if isinstance(method, property) or not callable(getattr(public, key)) or key == "forward":
            continue
        said = inspect.getdoc(getattr(public, key)) or ""
        assert ">>> " in said or f".{key}(" in text, f"{path}.{key} has no example"
