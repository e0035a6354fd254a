"""Score a merged model, or a base model with an exported adapter, by lm-evaluation-harness.

    qpa-exp export run=<run> out=merged format=merged
    python examples/lm_eval/score.py --model merged --text test.txt --max-length 128
    qpa-exp export run=<run> out=adapter
    python examples/lm_eval/score.py --model adapter/base_model --adapter adapter --text test.txt \
        --max-length 128

``--model`` of an adapter is the language model that it belongs to, as its card says; the bundled
one lies in ``base_model`` within the export. Nothing of qpa_exp is imported.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import lm_eval
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(model: str, adapter: str | None) -> Any:
    """Return the model, and the adapter on it.

    lm-eval's own ``peft=`` ties the head to the embedding again once the adapter is there, which
    ends in an error where the adapter is on a tied head. So the head is not tied by then.
    """
    base = AutoModelForCausalLM.from_pretrained(model)
    if adapter is None:
        return base
    adapted = PeftModel.from_pretrained(base, adapter)
    base.config.tie_word_embeddings = False
    return adapted


def score(
    model: str, text: Path, max_length: int, adapter: str | None = None, batch_size: int = 8
) -> dict[str, float]:
    """``word_perplexity``, ``byte_perplexity`` and ``bits_per_byte`` of a text file.

    Args:
        model: a hub id or a directory, with its tokenizer.
        text: a file of UTF-8, which is one document.
        max_length: the window: tokens that the model sees before the last one that it predicts.
        adapter: the directory of a PEFT adapter for the model.
        batch_size: windows at once.
    """
    task = yaml.safe_load(Path(__file__).with_name("own_text.yaml").read_text(encoding="utf-8"))
    task["dataset_kwargs"]["data_files"] = {"test": str(text.resolve())}
    scored = lm_eval.simple_evaluate(
        model=HFLM(
            load(model, adapter),
            tokenizer=AutoTokenizer.from_pretrained(model),
            max_length=max_length,
            batch_size=batch_size,
        ),
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),  # its thousands of others are not read
        bootstrap_iters=0,  # there is one document: no standard error
    )
    found = scored["results"][task["task"]]
    return {name.partition(",")[0]: value for name, value in found.items() if ",none" in name
            and isinstance(value, float)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Perplexities of a text, by lm-eval.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--max-length", type=int, default=128)
    options = parser.parse_args()
    figures = score(options.model, options.text, options.max_length, options.adapter)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
