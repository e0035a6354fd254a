"""Every form of data is trained on; packed instructions have the losses that they have alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from families import architectures
from transformers import AutoModelForCausalLM

from qpa_exp.adapters.qpa_model import adapt
from qpa_exp.cli import compose_config
from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.runs.callbacks import Stopwatch
from qpa_exp.runs.train import RunParts, build, run
from qpa_exp.task import TASKS

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
TEXTS = [{"text": f"a state of {i} qubits, and what it is for, is measured"} for i in range(30)]
PAIRS = [
    {"prompt": f"What has {i} qubits?", "completion": " A state" + i % 3 * " and more"}
    for i in range(30)
]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"What has {i} qubits?"},
            {"role": "assistant", "content": "A state."},
            {"role": "user", "content": "And then?"},
            {"role": "assistant", "content": "Nothing" + i % 3 * " more"},
        ]
    }
    for i in range(30)
]


def _table(end: str, rows: Any) -> Callable[[Path], str]:
    def write(place: Path) -> str:
        table = datasets.Dataset.from_list(rows)
        if end == "saved":
            table.save_to_disk(place / "saved")
            return str(place / "saved")
        {"jsonl": table.to_json, "csv": table.to_csv, "parquet": table.to_parquet}[end](
            place / f"a.{end}"
        )
        return str(place / f"a.{end}")

    return write


def _folder(path: str) -> Callable[[Path], str]:
    def write(place: Path) -> str:
        for n, row in enumerate(TEXTS):
            file = place / "notes" / str(n % 2) / f"{n}.md"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(row["text"] + "\n")
        return path.format(place)

    return write


FORMS: dict[str, tuple[Callable[[Path], str], list[str]]] = {
    **{f"text {end}": (_table(end, TEXTS), ["data=text"])
       for end in ("jsonl", "csv", "parquet", "saved")},
    "text folder": (_folder("{}/notes"), ["data=text"]),
    "text glob": (_folder("{}/notes/**/*.md"), ["data=text"]),
    "text list": (_folder("[" + ",".join(f"{{0}}/notes/{n % 2}/{n}.md" for n in range(30)) + "]"),
                  ["data=text", "data.layout=lines"]),
    "pairs": (_table("jsonl", PAIRS), ["data=instruct"]),
    "pairs csv": (_table("csv", PAIRS), ["data=instruct", "data.layout=packed"]),
    "chats": (_table("parquet", CHATS), ["data=instruct", f"data.chat_template={TEMPLATE}"]),
    "chats packed": (_table("saved", CHATS), ["data=instruct", f"data.chat_template={TEMPLATE}",
                                              "data.layout=packed"]),
}  # fmt: skip


@pytest.fixture
def given(small_model_dir: Path) -> list[str]:
    datasets.disable_progress_bars()
    return [
        "model=hf", f"model.name_or_path={small_model_dir}", "data.max_length=40",
        "data.batch_size=4", "trainer.max_steps=2", "trainer.progress_bar=false", "optim.lr=1e-2",
        "trainer.max_epochs=1", "trainer.log_every_n_steps=1",
    ]  # fmt: skip


@pytest.fixture
def form(given: list[str], tmp_path: Path) -> Callable[..., Config]:
    def configure(name: str, *more: str) -> Config:
        write, overrides = FORMS[name]
        datasets.disable_progress_bars()
        return compose_config([*given, *overrides, f"data.path={write(tmp_path)}", *more])

    return configure


@pytest.mark.parametrize(
    ("name", "target"),
    [*((name, "lm_head") for name in FORMS), ("pairs csv", "c_attn"), ("chats", "c_attn")],
)
def test_every_form_is_trained_for_two_steps(form, name: str, target: str) -> None:
    parts = build(form(name, f"peft.target_modules=[{target}]"))
    batches = list(parts.data.train_dataloader())
    before = float(parts.task.loss(parts.model, batches[0]).detach())
    optimizer = torch.optim.SGD([p for p in parts.model.parameters() if p.requires_grad], lr=0.3)
    for _ in range(2):
        optimizer.zero_grad()
        parts.model.begin_step()
        parts.task.loss(parts.model, batches[0]).backward()
        parts.model.end_step()
        optimizer.step()
    after = float(parts.task.loss(parts.model, batches[0]).detach())
    assert math.isfinite(before)
    assert after < before


def total(parts: RunParts) -> tuple[float, int]:
    """Nats of all training examples' answers, and their number."""
    parts.model.eval()
    batches = [parts.task.look_up(batch) for batch in parts.data.train_dataloader()]
    with torch.no_grad():
        found = [parts.task.measure(parts.model, batch)["text"] for batch in batches]
    return sum(float(nats) for nats, _ in found), sum(int(count) for _, count in found)


@pytest.mark.parametrize("form_name", ["pairs", "chats"])
@pytest.mark.parametrize("target", ["lm_head", "c_attn"])
def test_packed_losses_are_those_of_the_examples_alone(form, form_name: str, target: str) -> None:
    """With the fast head, with its tables in memory, and without it."""
    cache = ["off", "memory"] if target == "lm_head" else ["auto"]
    common = [f"peft.target_modules=[{target}]", "seed=3"]
    found = []
    for layout, mode in [("lines", cache[0])] + [("packed", mode) for mode in cache]:
        parts = build(form(form_name, *common, f"data.layout={layout}", f"data.cache={mode}"))
        parts.task.prepare()
        found.append(total(parts))
    for nats, count in found[1:]:
        assert count == found[0][1]
        assert nats == pytest.approx(found[0][0], rel=1e-5)


@pytest.mark.slow
def test_a_run_measures_the_answers(form, tmp_path: Path) -> None:
    metrics = run(form("pairs", "data.layout=packed"), tmp_path / "run")
    assert metrics["status"] == "complete"
    assert metrics["perplexity"] < metrics["base_perplexity"]
    assert metrics["perplexity_padded"] is None
    assert metrics["bits_per_byte"] > 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["train_tokens"] > 50


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["peft=prompt_tuning", "peft.options.num_virtual_tokens=4"], "virtual tokens"),
        (["peft=prefix", "peft.options.length=40"], "belong to the places of a row"),
    ],
)
def test_a_method_of_places_is_not_packed(form, more: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        build(form("pairs csv", *more))


@pytest.mark.parametrize("family", architectures(48, 16, 32))
def test_a_model_whose_packed_examples_see_each_other_is_refused(form, family: str) -> None:
    config = form("pairs", "data.layout=packed", "peft.target_modules=[lm_head]", "peft.r=2")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(architectures(48, 16, 32)[family]).eval()
    task = TASKS["causal_lm"](config, Stopwatch())
    model = adapt(base, config)
    if family in ("opt", "mamba"):
        with pytest.raises(InputError, match=r"see each other: give data\.layout=lines"):
            task.check_model(model)
    else:
        task.check_model(model)
