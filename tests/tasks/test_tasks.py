"""What a run trains for: what is promised of every task, and of each."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qpa_exp import generate, tasks
from qpa_exp.cli import compose_config
from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.runs import directory
from qpa_exp.runs.module import AdapterModule, Divergence
from qpa_exp.runs.progress import Stopwatch
from qpa_exp.runs.train import resume, run
from qpa_exp.runs.trained import load_run
from qpa_exp.task import TASKS

Configure = Callable[..., Config]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_names_what_the_rest_of_the_system_asks_for(name: str) -> None:
    task = TASKS[name]
    assert task.metrics
    assert task.ranked_by() in task.metrics
    assert task.label
    means = dict.fromkeys(task.measures, 1.0)
    made = task(compose_config([]), Stopwatch()).figures(means)
    assert set(made) <= {"loss", *(metric.name for metric in task.metrics)}
    assert {"loss", task.ranked_by().name} <= set(made)
    nothing = task(compose_config([]), Stopwatch()).figures(dict.fromkeys(task.measures, math.nan))
    assert all(math.isnan(value) for value in nothing.values())


# --- a NaN is a NaN -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoilt", "at_step", "says"),
    [("validation", 0, "validation/"), ("validation", 2, "validation/"), ("test", 2, "test/")],
)
def test_a_run_whose_figures_have_a_nan_says_so_and_is_not_complete(
    configure: Configure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoilt: str,
    at_step: int,
    says: str,
) -> None:
    """One NaN in one batch: it must not be left out of the mean."""
    proper = getattr(AdapterModule, f"{spoilt}_step")

    def poisoned(self: AdapterModule, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        proper(self, batch, batch_idx)
        if batch_idx == 0 and self.trainer.global_step == at_step:
            means = self.validation if spoilt == "validation" else self.adapted
            one = torch.ones(())
            means.update(dict.fromkeys(self.task.measures, (math.nan * one, one)))

    monkeypatch.setattr(AdapterModule, f"{spoilt}_step", poisoned)
    with pytest.raises(Divergence, match=f"{says}.* is not a number"):
        run(configure("trainer.max_steps=2", "trainer.validate_every_n_steps=2"), tmp_path / "run")
    written = directory.read_metrics(tmp_path / "run")
    assert written["status"] == "diverged"
    assert "is not a number" in written["error"]
    assert written["perplexity"] is None
    assert ": NaN" not in (tmp_path / "run" / "metrics.json").read_text()
    with pytest.raises(InputError, match="cannot be continued"):
        resume(tmp_path / "run")


# --- sequence classification ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts whose class follows from one of their words, in files of three forms."""
    place = tmp_path_factory.mktemp("labelled")
    rows = [
        (
            f"the {word} of number {i}, and more",
            "physics" if word in ("qubit", "state") else "words",
        )
        for i in range(20)
        for word in ("qubit", "noun", "state", "verb")
    ]
    lines = [f'"{text}",{name}' for text, name in rows]
    (place / "all.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    records = [json.dumps({"said": text, "about": name}) for text, name in rows]
    (place / "all.jsonl").write_text("\n".join(records) + "\n")
    splits = place / "splits"
    splits.mkdir()
    for split, part in (("train", lines[:56]), ("valid", lines[56:64]), ("test", lines[64:])):
        (splits / f"{split}.csv").write_text("text,label\n" + "\n".join(part) + "\n")
    return place


@pytest.fixture
def classify(small_model_dir: Path, labelled: Path) -> Configure:
    given = [
        "task=seq_cls", "model=hf", f"model.name_or_path={small_model_dir}", "data=labelled",
        f"data.path={labelled / 'splits'}", "data.max_length=16", "data.batch_size=4",
        "peft.target_modules=[c_attn]", "optim.lr=1e-2", "trainer.max_epochs=10",
        "trainer.progress_bar=false",
    ]  # fmt: skip
    return lambda *more: compose_config([*given, *more])


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["tuned", pytest.param("off", marks=pytest.mark.long)])
def test_a_classifier_learns_is_saved_and_comes_back(
    classify: Configure, tmp_path: Path, variant: str
) -> None:
    metrics = run(classify(f"qpa={variant}"), tmp_path / "run")
    assert metrics["status"] == "complete"
    assert metrics["class_names"] == ["physics", "words"]
    assert metrics["accuracy"] > max(0.8, metrics["base_accuracy"])
    assert "perplexity" not in metrics

    config = directory.read_config(tmp_path / "run")
    one, other = (load_run(tmp_path / "run").model for _ in range(2))
    ids = torch.arange(1, 13).view(1, -1)
    with torch.no_grad():
        assert torch.equal(one(input_ids=ids).logits, other(input_ids=ids).logits)
        plain = one.to_peft()(input_ids=ids).logits
        torch.testing.assert_close(plain, one(input_ids=ids).logits)
    assert config.task == "seq_cls"
    with pytest.raises(InputError, match="writes no text"):
        generate.main([f"run={tmp_path / 'run'}", "prompt=the"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["data=pydoc", "data.layout=lines"], "give data=labelled data.path="),
        (["data.layout=blocks"], "give data.layout=lines"),
        (["peft.target_modules=[lm_head]"], "has no lm_head"),
    ],
)
def test_what_cannot_be_classified_is_refused_before_anything_is_read(
    classify: Configure, given: list[str], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        classify("data.path=null", *given) if "data=pydoc" in given else classify(*given)


# --- a task of one's own --------------------------------------------------------------------------

OWN = '''
"""Language modelling, ranked by bits a token."""

import math

from qpa_exp.task import Metric
from qpa_exp.tasks.causal_lm import CausalLM


class Bits(CausalLM):
    label = "bits a token"
    metrics = (Metric("bits", "bits a token"),)

    def figures(self, means):
        return {"loss": means["text"], "bits": means["text"] / math.log(2)}


ENTRY = Bits
'''


@pytest.mark.slow
def test_a_task_is_one_file(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bits.py").write_text(OWN)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    bits = run(configure("task=bits", "trainer.max_steps=3"), tmp_path / "own")
    known = run(configure("trainer.max_steps=3"), tmp_path / "known")
    assert bits["bits"] == pytest.approx(math.log2(known["perplexity"]), rel=1e-6)
    assert bits["base_bits"] == pytest.approx(math.log2(known["base_perplexity"]), rel=1e-6)
    names = [
        load_file(tmp_path / p / "generator" / "adapter_model.safetensors")
        for p in ("own", "known")
    ]
    for key in names[0]:  # the fast head knows the package's own task alone
        torch.testing.assert_close(names[0][key], names[1][key], rtol=1e-4, atol=1e-5)
