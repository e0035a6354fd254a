"""What PEFT and transformers do with a PeftModel, done with a generated one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from model_logits import logits
from peft import PeftModel, get_peft_model
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import AutoModelForCausalLM, pipeline

from qpa_exp import InputError, QPAConfig, QPALoraConfig, QPAModel

pytestmark = pytest.mark.filterwarnings("default")
TOKENS = torch.randint(4, 64, (4, 12), generator=torch.Generator().manual_seed(1))


def step(model: Any, times: int = 2) -> torch.Tensor:
    """Train a little; the logits after that."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(times):
        optimizer.zero_grad()
        model.train()(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
    return logits(model)


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", None])
@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "lm_head"]])
def test_peft_itself_builds_saves_and_loads_one(
    targets: list[str], task_type: str | None, make_base: Any, tmp_path: Path
) -> None:
    config = QPALoraConfig(
        r=2, target_modules=targets, task_type=task_type, qpa=QPAConfig(n_mlp=16)
    )
    model = get_peft_model(make_base(), config)
    assert type(model).__module__.startswith("peft.")
    trained = step(model)
    model.save_pretrained(str(tmp_path))
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 1500  # no copy of the head
    for name in ("default", "other"):
        loaded = PeftModel.from_pretrained(make_base(), str(tmp_path), adapter_name=name)
        assert torch.equal(logits(loaded), trained)
    assert torch.equal(logits(QPAModel.from_pretrained(make_base(), tmp_path)), trained)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(make_base()))
    assert torch.equal(logits(model), trained)
    torch.testing.assert_close(logits(model.to_peft()), trained, rtol=0, atol=1e-5)


def test_a_saved_one_is_refused_on_another_language_model(make_base: Any, tmp_path: Path) -> None:
    config = QPALoraConfig(r=2, target_modules=["q_proj"], qpa=QPAConfig(n_mlp=16))
    get_peft_model(make_base(), config).save_pretrained(str(tmp_path))
    other = make_base()
    del other.model.layers[1]
    with pytest.raises(InputError, match="saved for another language model"):
        PeftModel.from_pretrained(other, str(tmp_path))


@pytest.mark.parametrize("way", ["from_pretrained", "load_adapter", "add_adapter"])
def test_transformers_alone_does_not_load_the_language_model_without_its_adapter(
    way: str, make_base: Any, tmp_path: Path
) -> None:
    base = make_base()
    base.save_pretrained(tmp_path / "base")
    config = QPALoraConfig(
        r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", qpa=QPAConfig(n_mlp=16)
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config)
    model.save_pretrained(str(tmp_path / "saved"))
    calls = {
        "from_pretrained": lambda: AutoModelForCausalLM.from_pretrained(tmp_path / "saved"),
        "load_adapter": lambda: base.load_adapter(str(tmp_path / "saved")),
        "add_adapter": lambda: base.add_adapter(config),
    }
    with pytest.raises(InputError, match=r"load it with QPAModel\.from_pretrained"):
        calls[way]()


def test_it_has_what_the_tools_touch(make_qpa: Any) -> None:
    model, own = make_qpa(), sum(p.numel() for p in make_qpa().generator.parameters())
    assert isinstance(model, PeftModel)
    base = model.get_base_model()
    assert model.get_input_embeddings() is base.get_input_embeddings()
    assert model.get_output_embeddings() is base.get_output_embeddings()
    assert model.base_model.model is base
    assert model.can_generate()
    assert model.generation_config is base.generation_config
    assert (model.dtype, model.device) == (torch.float32, torch.device("cpu"))
    assert model.name_or_path == base.name_or_path
    assert model.peft_config["default"].r == 2
    assert model.get_nb_trainable_parameters()[0] == own
    assert model.num_parameters(only_trainable=True) == own
    model.add_model_tags(["qpa"])
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()
    assert base.is_activation_checkpointing
    before = model.train()(input_ids=TOKENS, labels=TOKENS).loss
    model.gradient_checkpointing_disable()
    assert not base.is_activation_checkpointing
    torch.testing.assert_close(model(input_ids=TOKENS, labels=TOKENS).loss, before)


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj"]])
def test_merged_it_is_a_plain_model_and_the_adapted_one_stays(
    targets: list[str], make_qpa: Any, make_base: Any, tmp_path: Path
) -> None:
    model = make_qpa(targets)
    trained = step(model)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), trained, rtol=0, atol=1e-5)
    merged.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded), trained, rtol=0, atol=1e-5)
    assert torch.equal(logits(model), trained)
    assert torch.equal(logits(model.unload()), logits(make_base()))


def test_the_plain_adapter_that_leaves_has_no_copy_of_the_head(
    make_qpa: Any, make_base: Any, tmp_path: Path
) -> None:
    model = make_qpa(["lm_head"])
    trained = step(model)
    model.to_peft().save_pretrained(str(tmp_path))
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 1000
    loaded = PeftModel.from_pretrained(make_base(), str(tmp_path))
    torch.testing.assert_close(logits(loaded), trained, rtol=0, atol=1e-5)


def test_it_is_copied_averaged_and_stored_within_a_step(make_qpa: Any, tmp_path: Path) -> None:
    model = make_qpa()
    loss = model.train()(input_ids=TOKENS, labels=TOKENS).loss
    twin = copy.deepcopy(model)
    loss.backward()
    trained = step(model)
    assert not torch.equal(logits(twin), trained)
    assert torch.equal(step(twin), logits(twin))
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    mean.update_parameters(model)
    assert torch.equal(logits(mean), trained)
    further = step(model)
    mean.update_parameters(model)
    assert not torch.equal(logits(mean), trained)
    assert not torch.equal(logits(mean), further)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = make_qpa()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(logits(other), further)
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        torch.save(model, tmp_path / "model.pt")  # torch's own word on parametrized modules


def test_a_second_adapter_has_a_generator_of_its_own(make_qpa: Any, tmp_path: Path) -> None:
    model = make_qpa()
    first = logits(model)
    trained = step(model)
    model.add_adapter("second", model.peft_config["default"])
    assert torch.equal(logits(model), trained)
    model.set_adapter("second")
    assert torch.equal(logits(model), first)
    step(model)
    model.set_adapter("default")
    assert torch.equal(logits(model), trained)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "second" / "adapter_model.safetensors").is_file()
    model.delete_adapter("second")
    assert torch.equal(logits(model), trained)


def test_a_pipeline_writes_with_it(make_qpa: Any, tokenizer: Any) -> None:
    model = make_qpa()
    step(model)
    write = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    (written,) = write("w4 w5 w6", max_new_tokens=3, do_sample=False, return_tensors=True)
    ids = tokenizer("w4 w5 w6", return_tensors="pt").input_ids
    expected = model.to_peft().generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    assert written["generated_token_ids"] == expected[0].tolist()


def test_it_is_pushed_to_the_hub(make_qpa: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, set[str]] = {}

    class Created:
        repo_id = "me/adapter"

    def commit(_: HfApi, repo_id: str, operations: Any, **__: Any) -> None:
        sent[repo_id] = {operation.path_in_repo for operation in operations}

    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: Created)
    monkeypatch.setattr(HfApi, "create_commit", commit)
    model = make_qpa()
    for pushed in (model, model.to_peft()):
        sent.clear()
        pushed.push_to_hub("me/adapter")
        assert {"adapter_model.safetensors", "adapter_config.json"} <= sent["me/adapter"]


def test_it_is_loaded_by_its_id_on_the_hub(
    make_base: Any, make_qpa: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the hub's own cache on this machine, which needs no network."""
    repository = tmp_path / "models--me--adapter"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    model = make_qpa().eval()
    for inside in ("", "second"):
        model.save_pretrained(repository / "snapshots" / ("0" * 40) / inside)
    cached = {"cache_dir": tmp_path, "local_files_only": True}
    for where in (cached, cached | {"subfolder": "second"}):
        again = QPAModel.from_pretrained(make_base(), "me/adapter", **where)
        assert torch.equal(logits(again), logits(model))
    with pytest.raises(InputError, match="you/adapter is no directory here, and cannot be had"):
        QPAModel.from_pretrained(make_base(), "you/adapter", **cached)
    with pytest.raises(TypeError, match="is_trained"):
        QPAModel.from_pretrained(make_base(), repository, is_trained=True)
