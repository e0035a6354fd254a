"""TRL's SFTTrainer and DPOTrainer: they train, save and load a generated adapter."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from model_logits import logits
from peft import PeftModel

from qpa_exp import QPAConfig, QPALoraConfig, QPAModel

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

F32 = {"bf16": False}  # TRL leaves its autocast to 16 bits on the model: it would be compared
PAIRS = [{"prompt": f"w{4 + i} w5", "completion": f" w{9 + i} w8 w7"} for i in range(8)]
CHATS = [
    {"messages": [{"role": "user", "content": f"w{4 + i} w5"},
                  {"role": "assistant", "content": f"w{9 + i} w8"}]}
    for i in range(8)
]  # fmt: skip
FORMS = {
    "prompt and completion": (PAIRS, {}),
    "messages": (CHATS, {"assistant_only_loss": True}),
    "packing": (PAIRS, {"packing": True, "max_length": 16}),
}


def check_saved(trainer: Any, before: torch.Tensor, make_base: Any, place: Path) -> None:
    """It has learned, and what it saved is the generator alone, which loads again."""
    trainer.save_model(str(place))
    after = logits(trainer.model)
    assert not torch.equal(after, before)
    assert (place / "adapter_model.safetensors").stat().st_size < 1500
    for read in (QPAModel, PeftModel):
        assert torch.equal(logits(read.from_pretrained(make_base(), place)), after)


@pytest.mark.parametrize("form", FORMS)
def test_sft_trains_on_each_form_of_data(
    form: str, make_qpa: Any, make_base: Any, tokenizer: Any, arguments: Any, tmp_path: Path
) -> None:
    rows, given = FORMS[form]
    model = make_qpa()
    before = logits(model)
    trainer = SFTTrainer(
        model=model, processing_class=tokenizer, train_dataset=Dataset.from_list(rows),
        args=SFTConfig(str(tmp_path / "out"), **arguments | F32 | given),
    )  # fmt: skip
    trainer.train()
    check_saved(trainer, before, make_base, tmp_path / "saved")


def test_sft_builds_it_from_a_config(
    make_base: Any, tokenizer: Any, arguments: Any, tmp_path: Path
) -> None:
    config = QPALoraConfig(
        r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", qpa=QPAConfig(n_mlp=16)
    )
    trainer = SFTTrainer(
        model=make_base(), processing_class=tokenizer, train_dataset=Dataset.from_list(PAIRS),
        args=SFTConfig(str(tmp_path / "out"), **arguments | F32), peft_config=config,
    )  # fmt: skip
    before = logits(trainer.model)
    trainer.train()
    check_saved(trainer, before, make_base, tmp_path / "saved")


def test_sft_refuses_an_adapter_on_the_head(
    make_qpa: Any, tokenizer: Any, arguments: Any, tmp_path: Path
) -> None:
    """TRL reads the head's weight itself; transformers' own Trainer trains such a model."""
    with pytest.raises(ValueError, match="adapter to `lm_head` is not supported"):
        SFTTrainer(
            model=make_qpa(["lm_head"]), processing_class=tokenizer,
            train_dataset=Dataset.from_list(PAIRS),
            args=SFTConfig(str(tmp_path / "out"), **arguments | F32),
        )  # fmt: skip


@pytest.mark.parametrize("built_by", ["get_qpa_model", "TRL"])
def test_dpo_trains_against_where_it_started(
    built_by: str, make_qpa: Any, make_base: Any, tokenizer: Any, arguments: Any, tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"w{4 + i} w5", "chosen": " w8 w7", "rejected": f" w{9 + i} w6"}
        for i in range(8)
    ]
    model, config = make_base(), None
    if built_by == "TRL":
        config = QPALoraConfig(
            r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", qpa=QPAConfig(n_mlp=16)
        )
    else:
        model = make_qpa()
    before, shown = logits(model), {"logging_strategy": "steps", "logging_steps": 1}
    trainer = DPOTrainer(
        model=model, processing_class=tokenizer, train_dataset=Dataset.from_list(rows),
        args=DPOConfig(str(tmp_path / "out"), **arguments | F32 | shown), peft_config=config,
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(0.6931, abs=1e-4)  # ln 2: it is its own reference
    assert losses[-1] < losses[0]
    check_saved(trainer, before, make_base, tmp_path / "saved")
