"""transformers' Trainer with its default arguments: it saves, loads and resumes the generator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from model_logits import logits
from peft import PeftModel
from transformers import Trainer, TrainerCallback, TrainingArguments

from qpa_exp import QPAModel

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

ATTENTION, HEAD = ["q_proj", "v_proj"], ["lm_head"]
PLACES = pytest.mark.parametrize(
    ("targets", "tied"), [(HEAD, True), (HEAD, False), (ATTENTION, True)]
)


@PLACES
def test_what_it_saves_by_default_is_the_generator_and_loads_again(
    targets: list[str], tied: bool, make_qpa: Any, make_base: Any, examples: Any, arguments: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    model = make_qpa(targets, tied)
    before = logits(model)
    trainer = Trainer(
        model=model, args=TrainingArguments(str(tmp_path), **arguments, save_steps=2),
        train_dataset=examples,
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    after = logits(model)
    assert not torch.equal(after, before)
    for name in ("saved", "checkpoint-4"):
        weights = tmp_path / name / "adapter_model.safetensors"
        assert weights.stat().st_size < 1000
        assert not (tmp_path / name / "model.safetensors").exists()
        for read in (QPAModel, PeftModel):
            assert torch.equal(logits(read.from_pretrained(make_base(tied), weights.parent)), after)


def test_the_best_weights_are_loaded_at_the_end(
    make_qpa: Any, make_base: Any, examples: Any, arguments: Any, tmp_path: Path
) -> None:
    given = arguments | {"learning_rate": 1.0}  # the first step goes too far, or the last does
    trainer = Trainer(
        model=make_qpa(), train_dataset=examples, eval_dataset=examples.select(range(4)),
        args=TrainingArguments(
            str(tmp_path), **given, save_steps=1, eval_steps=1, eval_strategy="steps",
            load_best_model_at_end=True,
        ),
    )  # fmt: skip
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert torch.equal(logits(QPAModel.from_pretrained(make_base(), best)), logits(trainer.model))
    losses = [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-6)


class _Killed(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


@PLACES
def test_killed_and_resumed_it_ends_with_the_same_weights(
    targets: list[str], tied: bool, make_qpa: Any, examples: Any, arguments: Any, tmp_path: Path
) -> None:
    def train(name: str, *callbacks: Any, resume: bool = False) -> torch.Tensor:
        model = make_qpa(targets, tied)
        args = TrainingArguments(str(tmp_path / name), **arguments, save_steps=2)
        trainer = Trainer(model=model, args=args, train_dataset=examples, callbacks=list(callbacks))
        trainer.train(resume_from_checkpoint=resume or None)
        return logits(model)

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("killed", _Killed())
    assert torch.equal(train("killed", resume=True), whole)


def test_checkpointing_label_smoothing_and_noisy_embeddings_have_an_effect_of_their_own(
    make_qpa: Any, examples: Any, arguments: Any, tmp_path: Path
) -> None:
    def train(name: str, **more: Any) -> torch.Tensor:
        model = make_qpa()
        args = TrainingArguments(str(tmp_path / name), **arguments, save_strategy="no", **more)
        Trainer(model=model, args=args, train_dataset=examples).train()
        return logits(model)

    plain = train("plain")
    assert not torch.equal(train("noisy", neftune_noise_alpha=5.0), plain)
    assert not torch.equal(train("smooth", label_smoothing_factor=0.1), plain)
    checkpointed = train("checkpointed", gradient_checkpointing=True)
    torch.testing.assert_close(checkpointed, plain, rtol=0, atol=1e-4)


_TWO = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {here!r})
from model_logits import logits
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from qpa_exp import QPAConfig, QPAModel, get_qpa_model

base = lambda: AutoModelForCausalLM.from_pretrained({base!r})
model = get_qpa_model(base(), LoraConfig(r=2, target_modules=["lm_head"]), QPAConfig(n_mlp=16))
ids = torch.randint(4, 64, (16, 12), generator=torch.Generator().manual_seed(1)).tolist()
args = TrainingArguments(
    {out!r}, max_steps=4, per_device_train_batch_size=2, learning_rate=0.05, report_to="none",
    disable_tqdm=True, use_cpu=True, ddp_backend="gloo", save_steps=4,
)
trainer = Trainer(model, args, train_dataset=Dataset.from_dict({{"input_ids": ids, "labels": ids}}))
assert trainer.args.world_size == 2
trainer.train()
trainer.accelerator.wait_for_everyone()
again = QPAModel.from_pretrained(base(), Path({out!r}) / "checkpoint-4")
assert torch.equal(logits(again), logits(model))
print("equal", flush=True)
trainer.accelerator.wait_for_everyone()
torch.distributed.destroy_process_group()
"""


@pytest.mark.long
def test_two_processes_under_accelerate_save_one_generator(make_base: Any, tmp_path: Path) -> None:
    make_base().save_pretrained(tmp_path / "base")
    here, base, out = (str(p) for p in (Path(__file__).parent, tmp_path / "base", tmp_path / "out"))
    script = tmp_path / "two.py"
    script.write_text(_TWO.format(here=here, base=base, out=out), encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, script], capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == 2
