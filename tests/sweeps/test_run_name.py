"""The same name is the same run, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qpa_exp.config import Config
from qpa_exp.sweeps import run_name as fingerprint
from qpa_exp.sweeps.run_name import run_name
from qpa_exp.sweeps.studies import Work

Configure = Callable[..., Config]


@pytest.mark.parametrize(
    "change",
    [
        "qpa.n_mlp=32", "seed=1", "optim.lr=1e-3", "peft.r=2", "data.max_length=8", "qpa=off",
        "trainer.max_steps=3", "data.layout=lines",
    ],
)  # fmt: skip
def test_what_changes_the_numbers_changes_the_name(configure: Configure, change: str) -> None:
    assert run_name(configure(), Work.train) != run_name(configure(change), Work.train)


@pytest.mark.parametrize(
    "change",
    [
        "logger=tensorboard", "logger.group=g", "trainer.progress_bar=true",
        "model.recipe.batch_size=7",  # data.batch_size is given, which refers to it
    ],
)  # fmt: skip
def test_what_does_not_change_them_leaves_it(configure: Configure, change: str) -> None:
    assert run_name(configure(), Work.train) == run_name(configure(change), Work.train)


def test_without_a_generator_its_keys_have_no_part(configure: Configure) -> None:
    names = {run_name(configure("qpa=off", f"qpa.n_mlp={n}"), Work.train) for n in (16, 32)}
    assert len(names) == 1
    assert names.pop().startswith("lora-off-")


def test_the_text_counts_and_not_where_it_lies(configure: Configure, tmp_path: Path) -> None:
    def named(directory: str, text: str) -> str:
        (tmp_path / directory).mkdir()
        for split in ("train", "validation", "test"):
            (tmp_path / directory / f"{split}.txt").write_text(text * 50)
        return run_name(configure(f"data.path={tmp_path / directory}"), Work.train)

    one, same, other = named("a", "a text\n"), named("b", "a text\n"), named("c", "another\n")
    assert one == same != other


def test_the_work_counts(configure: Configure) -> None:
    assert run_name(configure(), Work.train) != run_name(configure(), Work.gradient_variance)


def test_comments_docstrings_and_layout_of_the_code_do_not_count(tmp_path: Path) -> None:
    files = {
        "one.py": 'def f(x):\n    """Text."""\n    return x + 1\n',
        "two.py": "# A comment\n\ndef f( x ):\n    '''Other.'''\n\n    return (x + 1)\n",
        "three.py": "def f(x):\n    return x + 2\n",
    }
    codes = []
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        codes.append(fingerprint._code_of(tmp_path / name))
    assert codes[0] == codes[1] != codes[2]
