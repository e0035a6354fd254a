"""A generated LoRA in a training loop of one's own; no Trainer, no config files.

    python examples/bare_loop.py --model openai-community/gpt2 --text notes.txt --out adapter

Without arguments it takes the bundled model and trains on this file's own lines.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from qpa_exp import QPAConfig, get_qpa_model
from qpa_exp.lm.loading import BUNDLED


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(BUNDLED["qpa_exp/tiny"]))
    parser.add_argument("--text", type=Path, default=Path(__file__))
    parser.add_argument("--out", type=Path, default=Path("outputs/bare_loop"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, default=1e-2)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    base = AutoModelForCausalLM.from_pretrained(args.model)
    text = args.text.read_text(encoding="utf-8")
    ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=512).input_ids

    # The three lines that make the difference: a PEFT method, a generator, one model.
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["lm_head"])
    model = get_qpa_model(base, lora, QPAConfig())
    model.print_trainable_parameters()

    optimizer = torch.optim.AdamW(model.generator.parameters(), lr=args.lr)
    model.train()
    for step in range(args.steps):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0 or step == args.steps - 1:
            print(f"step {step:4}  loss {loss.item():.4f}")

    # What leaves is an ordinary adapter: PeftModel.from_pretrained reads it, no circuit needed.
    model.eval().to_peft().save_pretrained(str(args.out))
    print(f"Written to {args.out}")


if __name__ == "__main__":
    main()
