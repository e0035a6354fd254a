"""A generated LoRA trained by TRL's SFTTrainer on prompts and answers, saved and loaded again.

    python examples/trl_sft.py --model openai-community/gpt2 --data pairs.jsonl --out adapter

Each line of the data is ``{"prompt": "...", "completion": "..."}``; chat messages work as well, see
TRL's documentation. Without arguments it takes the bundled model and Python's own help texts.
TRL reads the head's weight itself, so the method targets the attention; an adapter on lm_head is
trained with transformers' Trainer, as ``hf_trainer.py`` shows.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from pydoc_data.topics import topics

from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from qpa_exp import QPAConfig, QPALoraConfig
from qpa_exp.lm.loading import BUNDLED


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(BUNDLED["qpa_exp/tiny"]))
    parser.add_argument("--data", default=None, help="a JSONL file")
    parser.add_argument("--targets", nargs="+", default=["c_attn"], help="names of linear layers")
    parser.add_argument("--out", type=Path, default=Path("outputs/trl_sft"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, default=1e-2)
    return parser.parse_args()


def pairs(file: str | None) -> Dataset:
    """Return a prompt and its answer in each row."""
    if file is not None:
        return Dataset.from_json(file)
    rows = [{"prompt": f"{name}\n", "completion": text[:400]} for name, text in topics.items()]
    return Dataset.from_list(rows)


def main() -> None:
    args = arguments()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    data = pairs(args.data).train_test_split(test_size=0.1, seed=0)

    # What makes it a generated LoRA: PEFT's LoraConfig with one field more.
    lora = QPALoraConfig(
        r=4, lora_alpha=8, target_modules=args.targets, task_type="CAUSAL_LM", qpa=QPAConfig()
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(args.model),
        args=SFTConfig(
            output_dir=str(args.out / "checkpoints"),
            max_steps=args.steps,
            learning_rate=args.lr,
            per_device_train_batch_size=4,
            max_length=128,
            bf16=False,
            report_to="none",
            logging_steps=10,
            seed=0,
        ),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        processing_class=tokenizer,
        peft_config=lora,
    )
    trainer.model.print_trainable_parameters()
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    print(f"loss {before:.4f} -> {after:.4f}")

    # The generator alone. PEFT loads it where qpa_exp is imported; what leaves for everywhere is
    # the plain adapter.
    trainer.save_model(str(args.out / "generator"))
    base = AutoModelForCausalLM.from_pretrained(args.model)
    loaded = PeftModel.from_pretrained(base, str(args.out / "generator"))
    loaded.to_peft().save_pretrained(str(args.out))
    print(f"Written to {args.out}")


if __name__ == "__main__":
    main()
