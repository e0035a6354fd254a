"""``export`` and ``generate`` on a real run."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from qpa_exp import export, generate
from qpa_exp.adapters.formats import FORMATS
from qpa_exp.cli import compose_config
from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.lm.loading import BUNDLED
from qpa_exp.runs import directory
from qpa_exp.runs.train import run
from qpa_exp.runs.trained import TrainedRun, base_of, load_run

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
    assert base not in card
    assert "`model.safetensors` with the sha256 `" in card

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


# --- the base model, on every kind of it ----------------------------------------------------------


@pytest.fixture
def bases(
    write_gguf: Callable[..., Path], tmp_path: Path, request: pytest.FixtureRequest
) -> list[str]:
    """Overrides for one kind of base model."""
    kind = request.param
    if kind == "gguf":
        file = write_gguf(tmp_path / "small.gguf")
        return [f"model.name_or_path={tmp_path}", f"model.gguf_file={file.name}"]
    return {"bundled": ["model=tiny"], "directory": []}[kind]


@pytest.mark.slow
@pytest.mark.parametrize("bases", ["bundled", "directory", "gguf"], indirect=True)
def test_no_export_names_a_place_on_this_machine_and_its_card_loads_it(
    configure: Configure, tmp_path: Path, bases: list[str]
) -> None:
    where = tmp_path / "run"
    run(configure("trainer.max_steps=2", "trainer.limit_eval_batches=1", *bases), where)
    trained = load_run(where)
    ids = torch.arange(1, 9)[None]
    expected = trained.model(ids).logits.detach()
    here = [str(tmp_path), str(Path.home()), sys.prefix, str(BUNDLED["qpa_exp/tiny"].parent)]
    here.append(trained.config.model.name_or_path if "model=tiny" not in bases else str(tmp_path))
    for form in FORMATS:
        out = tmp_path / form
        export.main([f"run={where}", f"out={out}", f"format={form}"])
        written = [file for file in out.rglob("*") if file.is_file()]
        for file in written:
            content = file.read_bytes()
            found = [place for place in here if len(place) > 5 and place.encode() in content]
            assert not found, (file, found)
        loaded = _as_the_card_says(out, trained)
        torch.testing.assert_close(loaded["model"].eval()(ids).logits, expected)
        if form == "peft" and "merged" in loaded:
            torch.testing.assert_close(
                loaded["merged"].eval()(ids).logits, expected, atol=1e-4, rtol=1e-4
            )


def _as_the_card_says(out: Path, trained: TrainedRun) -> dict[str, Any]:
    """What the card's own Python makes, with a place of this machine where it leaves one open."""
    from qpa_exp.lm.loading import load_model

    base = out.with_name("base")
    if not base.exists():
        load_model(trained.config.model).save_pretrained(base)
    card = (out / "README.md").read_text()
    names: dict[str, Any] = {}
    for program in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL):
        program = program.replace("<this directory>", str(out))
        exec(program.replace("<the language model>", str(base)), names)
    return names


def test_a_hub_id_is_named_as_it_is_and_one_that_is_given_later_too() -> None:
    hubs = compose_config(["model=gpt2"]).model
    revision = {"model_revision": "0" * 40}
    base = base_of(hubs, revision, FORMATS["peft"])
    assert base.name == hubs.name_or_path
    assert f'revision="{"0" * 40}"' in base.arguments
    given = base_of(compose_config([]).model, {}, FORMATS["peft"], "someone/tiny")
    assert (given.name, given.arguments) == ("someone/tiny", '"someone/tiny"')
    with pytest.raises(InputError, match="is no hub id"):
        base_of(hubs, revision, FORMATS["peft"], "/home/me/model")


def test_merged_on_a_tied_head_without_what_the_card_says_the_embedding_changes(
    make_gpt2: Callable[[], Any], batch: dict[str, Any]
) -> None:
    """So the card says it; where PEFT does it by itself one day, it need not."""
    lora = LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
    model = get_peft_model(make_gpt2(), lora).eval()
    expected = model(batch["input_ids"]).logits.detach()
    with pytest.warns(UserWarning, match="tie"):
        merged = model.merge_and_unload()
    assert not torch.allclose(merged(batch["input_ids"]).logits, expected, atol=1e-2)
