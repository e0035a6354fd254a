"""A run goes on with the text and the files that it began with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from qpa_exp.config import Config
from qpa_exp.data.instructions import template_sha256
from qpa_exp.errors import InputError
from qpa_exp.runs import directory
from qpa_exp.runs.train import resume, run

Configure = Callable[..., Config]
CrashesAt = Callable[[int], AbstractContextManager[None]]

SHORT = (
    "trainer.max_steps=3",
    "trainer.checkpoint_every_n_steps=1",
    "trainer.limit_eval_batches=1",
)


@pytest.fixture
def own(
    configure: Configure, tmp_path: Path, text_dir: Path, small_model_dir: Path
) -> Callable[..., Config]:
    """The config of a short run with a text and a model of its own, in ``tmp_path``."""
    text = shutil.copytree(text_dir, tmp_path / "text")
    model = shutil.copytree(small_model_dir, tmp_path / "model")
    return lambda *more: configure(
        *SHORT, f"data.path={text}", f"model.name_or_path={model}", *more
    )


@pytest.mark.parametrize(("what", "file"), [("text", "train.txt"), ("model", "config.json")])
def test_a_run_does_not_go_on_with_another_text_or_model(
    own: Configure, tmp_path: Path, crashes_at: CrashesAt, what: str, file: str
) -> None:
    with crashes_at(2):
        run(own(), tmp_path / "run")
    changed = tmp_path / what / file
    before = changed.read_bytes()
    after = {"text": before.replace(b"e", b"a", 1), "model": before + b"\n"}[what]
    changed.write_bytes(after)
    with pytest.raises(InputError, match=f"another {what}: .* [0-9a-f]{{64}} .* [0-9a-f]{{64}}"):
        resume(tmp_path / "run")

    changed.write_bytes(before)
    metrics = resume(tmp_path / "run")
    changed.write_bytes(after)
    assert resume(tmp_path / "run") == metrics  # a complete run is only read
    with pytest.raises(InputError, match="began with another"):
        resume(tmp_path / "run", own("trainer.max_steps=4"))
    assert directory.read_metrics(tmp_path / "run") == metrics


def test_a_run_that_has_no_checkpoint_yet_starts_from_the_same_weights_or_not_at_all(
    own: Configure, tmp_path: Path, crashes_at: CrashesAt
) -> None:
    for rate in (1, 2):
        run(own(f"optim.lr={rate}e-3"), tmp_path / str(rate))
    for step in (0, 2):
        with crashes_at(step):
            run(own(f"init_from={tmp_path / '1'}"), tmp_path / f"crashed_at_{step}")
    shutil.rmtree(tmp_path / "1" / "generator")
    shutil.copytree(tmp_path / "2" / "generator", tmp_path / "1" / "generator")
    with pytest.raises(InputError, match="began with another init_from"):
        resume(tmp_path / "crashed_at_0")
    resume(tmp_path / "crashed_at_2")  # its own checkpoint holds all that it needs


def test_a_run_of_before_hashes_were_noted_goes_on(
    own: Configure, tmp_path: Path, crashes_at: CrashesAt
) -> None:
    with crashes_at(2):
        run(own(), tmp_path / "run")
    (tmp_path / "run" / directory.INPUTS).unlink()
    config = tmp_path / "model" / "config.json"
    config.write_bytes(config.read_bytes() + b"\n")
    assert resume(tmp_path / "run")["status"] == "complete"


def test_a_chat_template_is_told_by_its_content_where_it_is_a_file(
    configure: Configure, tmp_path: Path
) -> None:
    config = configure()
    assert template_sha256(config.data.chat_template) is None
    config.data.chat_template = "{{ messages }}" * 1000
    assert template_sha256(config.data.chat_template) is None
    config.data.chat_template = str(tmp_path / "chat.jinja")
    found = set()
    for text in ("a", "b"):
        (tmp_path / "chat.jinja").write_text(text)
        found.add(template_sha256(config.data.chat_template))
    assert len(found) == 2
