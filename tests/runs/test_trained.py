"""``export`` and ``generate`` on a real run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from qpa_exp import export, generate
from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.runs import directory
from qpa_exp.runs.train import run
from qpa_exp.runs.trained import load_run

Configure = Callable[..., Config]


@pytest.mark.parametrize("variant", ["tuned", "off"])
def test_a_run_is_exported_and_goes_on_writing(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str], variant: str
) -> None:
    config = configure(f"qpa={variant}", "trainer.max_steps=4")
    metrics = run(config, tmp_path / "run")
    base = config.model.name_or_path

    export.main([f"run={tmp_path / 'run'}", f"out={tmp_path / 'adapter'}"])
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert f"{metrics['perplexity']:.3f}" in card
    assert base in card

    export.main([f"run={tmp_path / 'run'}", f"out={tmp_path / 'merged'}", "format=merged"])
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(tmp_path / "merged")

    capsys.readouterr()
    prompt = "a ${circuit} rotates"
    generate.main([f"run={tmp_path / 'run'}", f"prompt={prompt}", "max_new_tokens=5"])
    printed = capsys.readouterr().out
    assert printed.count(prompt) == 2
    assert "base model" in printed
    assert "adapted" in printed


def test_sampling_repeats_with_its_seed(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(configure("trainer.max_steps=1"), tmp_path / "run")
    capsys.readouterr()
    texts = []
    for seed in (1, 1, 2):
        sampling = ["prompt=the circuit", "temperature=1.5", f"seed={seed}"]
        generate.main([f"run={tmp_path / 'run'}", *sampling])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run=x", "out=y", "formt=peft"], "it takes run, out, format, overwrite"),
        (["run=x", "out=y", "format=onnx"], "is unknown: give one of peft, merged, qpa"),
        (["out=y"], "run has no value"),
        (["run"], "write key=value"),
    ],
)
def test_bad_options_are_one_sentence(arguments: list[str], says: str) -> None:
    with pytest.raises(InputError) as caught:
        export.main(arguments)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_that_is_not_complete_is_refused(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run directory"):
        export.main([f"run={tmp_path}", f"out={tmp_path / 'out'}"])
    directory.claim(tmp_path, configure())
    with pytest.raises(InputError, match=r"is not complete: continue it with"):
        export.main([f"run={tmp_path}", f"out={tmp_path / 'out'}"])


def test_what_is_trained_on_a_gguf_file_is_exported_for_its_base_model(
    configure: Configure,
    write_gguf: Callable[..., Path],
    small_llama: LlamaForCausalLM,
    tmp_path: Path,
) -> None:
    written = write_gguf(tmp_path / "small.gguf")
    keys = {"name_or_path": str(tmp_path), "gguf_file": written.name, "base_model": "some/model"}
    run(
        configure("trainer.max_steps=2", *(f"model.{k}={v}" for k, v in keys.items())),
        tmp_path / "run",
    )
    saved = directory.read_config(tmp_path / "run").model
    assert {key: getattr(saved, key) for key in keys} == keys

    export.main([f"run={tmp_path / 'run'}", f"out={tmp_path / 'adapter'}"])
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "base_model: some/model\n" in card
    assert 'from_pretrained("some/model")' in card
    assert "`small.gguf`" in card
    plain = PeftModel.from_pretrained(copy.deepcopy(small_llama), tmp_path / "adapter")
    assert plain.peft_config["default"].base_model_name_or_path == "some/model"
    trained = load_run(tmp_path / "run").model
    assert trained.to_peft().peft_config["default"].base_model_name_or_path == "some/model"
    ids = torch.arange(1, 13)[None]
    torch.testing.assert_close(plain(ids).logits, trained(ids).logits, rtol=1e-4, atol=1e-4)
