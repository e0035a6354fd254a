"""A generated LoRA trained by Hugging Face's Trainer, evaluated, saved, and left as PEFT adapter.

    python examples/hf_trainer.py --model openai-community/gpt2 --text notes.txt --out adapter

Without arguments it takes the bundled model and Python's own help texts.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from pydoc_data.topics import topics

from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from qpa_exp import QPAConfig, QPAModel, get_qpa_model
from qpa_exp.lm.loading import BUNDLED


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(BUNDLED["qpa_exp/tiny"]))
    parser.add_argument("--text", type=Path, default=None, help="a text file")
    parser.add_argument("--out", type=Path, default=Path("outputs/hf_trainer"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--length", type=int, default=64, help="tokens an example")
    return parser.parse_args()


def blocks(text: str, tokenizer: PreTrainedTokenizerBase, length: int) -> Dataset:
    """Return the text as examples of ``length`` tokens, the last incomplete one left out."""
    ids = tokenizer(text).input_ids
    rows = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
    if len(rows) < 2:  # one to train on, and one to test
        raise SystemExit(
            f"The text has {len(ids)} tokens: give --text with at least {2 * length}, or a smaller "
            "--length."
        )
    return Dataset.from_dict({"input_ids": rows})


def main() -> None:
    args = arguments()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    text = args.text.read_text(encoding="utf-8") if args.text else "\n\n".join(topics.values())
    data = blocks(text, tokenizer, args.length).train_test_split(test_size=0.1, seed=0)

    base = AutoModelForCausalLM.from_pretrained(args.model)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["lm_head"])
    model = get_qpa_model(base, lora, QPAConfig())
    model.print_trainable_parameters()

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(args.out / "checkpoints"),
            max_steps=args.steps,
            learning_rate=args.lr,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            logging_steps=10,
            report_to="none",
            seed=0,
        ),
        train_dataset=data["train"],
        eval_dataset=data["test"].select(range(min(64, len(data["test"])))),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    print(f"perplexity {math.exp(before):.2f} -> {math.exp(after):.2f}")

    # The generator alone, as in every checkpoint; and what leaves for everywhere: a plain adapter.
    trainer.save_model(str(args.out / "generator"))
    again = QPAModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(args.model), args.out / "generator"
    )
    again.to_peft().save_pretrained(str(args.out))
    print(f"Written to {args.out}")


if __name__ == "__main__":
    main()
