"""What a text costs, against transformers and Hugging Face's own guide to perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from qpa_exp.cli import compose_config
from qpa_exp.config import Config
from qpa_exp.data.datamodule import TextSize
from qpa_exp.lm.loading import BUNDLED
from qpa_exp.runs.callbacks import Stopwatch
from qpa_exp.runs.train import run
from qpa_exp.tasks.causal_lm import CausalLM

Configure = Callable[..., Config]
SHORT = ["trainer.max_steps=1", "trainer.log_every_n_steps=1", "trainer.progress_bar=false"]


@torch.no_grad()
def sliding_window(directory: Path, text: str, max_length: int, stride: int) -> tuple[float, int]:
    """Total nats and scored tokens, as https://huggingface.co/docs/transformers/perplexity has it.

    Bar one line: a window without a scored token has a loss that is no number.
    """
    model = AutoModelForCausalLM.from_pretrained(directory)
    encodings = AutoTokenizer.from_pretrained(directory)(text, return_tensors="pt", verbose=False)
    seq_len = encodings.input_ids.size(1)
    nll_sum, n_tokens, prev_end_loc = 0.0, 0, 0
    for begin_loc in range(0, seq_len, stride):
        end_loc = min(begin_loc + max_length, seq_len)
        trg_len = end_loc - prev_end_loc
        input_ids = encodings.input_ids[:, begin_loc:end_loc]
        target_ids = input_ids.clone()
        target_ids[:, :-trg_len] = -100
        num_loss_tokens = int((target_ids[:, 1:] != -100).sum())
        if num_loss_tokens:
            nll_sum += float(model(input_ids, labels=target_ids).loss) * num_loss_tokens
        n_tokens += num_loss_tokens
        prev_end_loc = end_loc
        if end_loc == seq_len:
            break
    return nll_sum, n_tokens


@pytest.mark.parametrize(
    "more",
    [["data.cache=memory"], ["data.cache=off"], ["peft.target_modules=[c_attn]"]],
    ids=["hidden states from a table", "the fast head", "the whole model"],
)
def test_a_stride_scores_as_hugging_faces_guide(
    configure: Configure, small_model_dir: Path, text_dir: Path, tmp_path: Path, more: list[str]
) -> None:
    config = configure("data.stride=5", *SHORT, *more)
    metrics = run(config, tmp_path / "run")
    text = (text_dir / "test.txt").read_text()
    nats, scored = sliding_window(small_model_dir, text, config.data.max_length, stride=5)
    assert metrics["base_perplexity"] == pytest.approx(math.exp(nats / scored), rel=1e-4)
    bits = nats / math.log(2) / len(text.encode()) * (scored + 1) / scored  # all but the first
    assert metrics["base_bits_per_byte"] == pytest.approx(bits, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["blocks", "lines"])
def test_the_bundled_models_figures_are_transformers_own(
    text_dir: Path, tmp_path: Path, layout: str
) -> None:
    given = ["data=text", f"data.path={text_dir}", f"data.layout={layout}", "data.max_length=32"]
    found = run(compose_config([*given, *SHORT]), tmp_path / "run")

    text = (text_dir / "test.txt").read_text()
    parts = [text] if layout == "blocks" else text.removesuffix("\n").split("\n")
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED["qpa_exp/tiny"])
    rows = [tokenizer(part, return_tensors="pt", verbose=False).input_ids[0] for part in parts]
    tokens = sum(map(len, rows))
    if layout == "blocks":
        rows = [row for row in rows[0].split(32) if len(row) == 32]
    model = AutoModelForCausalLM.from_pretrained(BUNDLED["qpa_exp/tiny"])
    nats = scored = 0.0
    for row in rows:
        ids = row[None, :32].long()
        if ids.shape[1] > 1:
            with torch.no_grad():
                nats += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
            scored += ids.shape[1] - 1
    total = nats / scored * tokens
    expected = {
        "base_perplexity": math.exp(nats / scored),
        "base_bits_per_byte": total / math.log(2) / len("".join(parts).encode()),
        "base_word_perplexity": math.exp(total / len(text.split())),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_a_word_perplexity_beyond_all_numbers_is_left_out() -> None:
    task = CausalLM(compose_config([]), Stopwatch())
    size = TextSize(tokens=10_000, bytes=20_000, words=1)  # no white space in it
    assert task.figures_of_text({"text": 2.0}, size) == {
        "bits_per_byte": pytest.approx(2 * 10_000 / math.log(2) / 20_000)
    }
    assert math.isnan(task.figures_of_text({"text": math.nan}, size)["word_perplexity"])
