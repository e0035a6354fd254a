"""QPA in PEFT's own comparison of methods: MetaMathQA, Llama-3.2-3B, accuracy on GSM8K.

PEFT keeps the comparison in its repository, under ``method_comparison/MetaMathQA``: an experiment
there is a directory with an ``adapter_config.json`` and a ``training_params.json``, and its
``run.py`` trains and tests it. This writes those files for a generated LoRA on the layers that the
suite's LoRA has (q_proj and v_proj), and starts ``run.py`` in a process that knows the type. On a
machine with one GPU, the hub and the suite's requirements:

    git clone https://github.com/huggingface/peft
    python examples/method_comparison/metamathqa.py --peft peft --budget 9000

``--trial`` needs none of that: the same files, a tiny random Llama and a few made-up problems,
through the suite's template, a training loop, generation and the reading of answers. It shows that
the path works, and no more. No result is claimed here: none has been run yet.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import sys
import tempfile
from pathlib import Path

import torch
from peft import PeftConfig, get_peft_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from qpa_exp import InputError, QPAConfig, QPALoraConfig
from qpa_exp.lm.loading import BUNDLED

WINDOWS = {9000: 123, 28000: 420}
"""How many probabilities at each budget a chunk of 64 parameters reads: the rank of 4 on 28 layers
has 1,146,880 parameters in 17,920 chunks, and 64 (16 + window) + 120 are trained."""
TEMPLATE = "Question: {query} Think step by step.\nAnswer:"
"""The suite's own."""
TRAINING = {"optimizer_kwargs": {"lr": 1e-2, "weight_decay": 0.01}}
"""What differs from the suite's default_training_params.json: the rate of ``tuned``."""


def write_experiment(directory: Path, budget: int) -> None:
    """Write the two files of an experiment with about ``budget`` trained parameters."""
    adapter = QPALoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
        qpa=QPAConfig(n_mlp=64, window=WINDOWS[budget]),
    )
    adapter.save_pretrained(str(directory))
    text = json.dumps(TRAINING, indent=2) + "\n"
    (directory / "training_params.json").write_text(text, encoding="utf-8")


def run_suite(clone: Path, budget: int) -> None:
    """PEFT's own run.py on the experiment, in its own directory."""
    suite = (clone / "method_comparison" / "MetaMathQA").resolve()
    if not (suite / "run.py").is_file():
        raise InputError(f"{suite} has no run.py: clone https://github.com/huggingface/peft there.")
    experiment = Path("experiments") / "qpa" / f"llama-3.2-3B-budget{budget}"
    write_experiment(suite / experiment, budget)
    os.chdir(suite)
    sys.path.insert(0, str(suite))
    sys.argv = ["run.py", "-v", str(experiment)]
    runpy.run_path("run.py", run_name="__main__")


# --- the trial --------------------------------------------------------------------------------

PROBLEMS = [
    {
        "query": f"Ann has {a} marbles and finds {b}. How many has she?",
        "response": f"{a} + {b} = {a + b}\nThe answer is: {a + b}",
    }
    for a in range(2, 6)
    for b in range(1, 4)
]


def answer(text: str) -> str | None:
    """Return the last number that a response names."""
    found = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
    return found[-1] if found else None


def trial(budget: int, steps: int) -> float:
    """Train a tiny random Llama on made-up problems; the share of answers that are right."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED["qpa_exp/tiny"])
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        bos_token_id=0, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        write_experiment(Path(directory), budget)
        config = PeftConfig.from_pretrained(directory)
        rate = json.loads((Path(directory) / "training_params.json").read_text())
    model = get_peft_model(LlamaForCausalLM(shape), config)
    model.print_trainable_parameters()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, **rate["optimizer_kwargs"])
    model.train()
    for step in range(steps):
        problem = PROBLEMS[step % len(PROBLEMS)]
        text = TEMPLATE.format(query=problem["query"]) + problem["response"] + tokenizer.eos_token
        ids = tokenizer(text, return_tensors="pt").input_ids
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step + 1}: loss {loss.item():.3f}")
    model.eval()
    right = 0
    for problem in PROBLEMS[:3]:
        given = tokenizer(TEMPLATE.format(query=problem["query"]), return_tensors="pt")
        with torch.no_grad():
            made = model.generate(
                **given, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.eos_token_id
            )
        text = tokenizer.decode(made[0, given.input_ids.shape[1] :])
        right += answer(text) == answer(problem["response"])
    return right / 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=int, choices=sorted(WINDOWS), default=9000)
    parser.add_argument("--peft", type=Path, help="a clone of huggingface/peft")
    parser.add_argument(
        "--trial", action="store_true", help="a tiny random model, made-up problems"
    )
    parser.add_argument("--steps", type=int, default=6, help="of the trial")
    args = parser.parse_args()
    if args.trial == (args.peft is not None):
        parser.error("give either --peft <a clone of huggingface/peft> or --trial")
    if args.peft is not None:
        run_suite(args.peft, args.budget)
    else:
        print(f"share of right answers: {trial(args.budget, args.steps):.2f}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
