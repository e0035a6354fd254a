"""One run, in this process: what it measures, what it leaves, what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config

from qpa_exp.adapters.qpa_model import QPAModel
from qpa_exp.config import Config
from qpa_exp.data.datamodule import TextDataModule
from qpa_exp.errors import InputError
from qpa_exp.lm.loading import load_model, load_tokenizer
from qpa_exp.runs import directory
from qpa_exp.runs.module import AdapterModule, Divergence
from qpa_exp.runs.train import resume, run

Configure = Callable[..., Config]
CrashesAt = Callable[[int], AbstractContextManager[None]]

KEYS = {
    "status", "perplexity", "perplexity_padded", "base_perplexity", "base_perplexity_padded",
    "loss", "trainable_params", "generated_params", "target_params", "n_chunks", "n_qubits",
    "epochs", "steps", "train_seconds", "step_seconds_median", "tokens_per_second", "time_split",
    "stopped_early",
    "seed", "versions", "data_sha256", "model_revision",
    "circuit_evaluations", "bits_per_byte", "base_bits_per_byte", "word_perplexity",
    "base_word_perplexity", "kept_step", "validation_perplexity", "last_perplexity",
    "last_perplexity_padded", "last_bits_per_byte", "last_word_perplexity", "n_mlp",
    "train_tokens",
}  # fmt: skip


def transformers_perplexities(
    model: torch.nn.Module, data: TextDataModule, *, padded: bool
) -> float:
    """exp of transformers' own loss over the test split, each prediction counted once."""
    nats = count = 0.0
    for batch in data.test_dataloader():
        labels = batch["input_ids"] if padded else batch["labels"]
        predicted = int((labels[:, 1:] != -100).sum())
        if predicted:
            with torch.no_grad():
                nats += float(model(**{**batch, "labels": labels}).loss) * predicted
            count += predicted
    return math.exp(nats / count)


@pytest.mark.parametrize("layout", ["blocks", "lines"])
def test_perplexities_agree_with_transformers_own_loss(
    configure: Configure, tmp_path: Path, layout: str
) -> None:
    config = configure(f"data.layout={layout}")
    metrics = run(config, tmp_path / "run")

    data = TextDataModule(config.data, load_tokenizer(config.model), config.seed)
    base = load_model(config.model)
    adapted = QPAModel.from_pretrained(load_model(config.model), tmp_path / "run" / "generator")
    adapted.eval()
    for model, prefix in ((base, "base_"), (adapted, "")):
        expected = transformers_perplexities(model, data, padded=False)
        assert metrics[f"{prefix}perplexity"] == pytest.approx(expected, rel=1e-4)
        if layout == "lines":
            expected = transformers_perplexities(model, data, padded=True)
            assert metrics[f"{prefix}perplexity_padded"] == pytest.approx(expected, rel=1e-4)
        else:
            assert metrics[f"{prefix}perplexity_padded"] is None
    assert metrics["loss"] == pytest.approx(math.log(metrics["perplexity"]), rel=1e-5)


def test_a_run_learns_and_leaves_what_is_promised(configure: Configure, tmp_path: Path) -> None:
    config = configure()
    returned = run(config, tmp_path / "run")

    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert written == returned
    assert set(written) == KEYS
    assert written["status"] == "complete"
    assert written["perplexity"] < 0.9 * written["base_perplexity"]
    assert written["epochs"] == pytest.approx(2)
    assert len(written["data_sha256"]) == 64
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert directory.read_config(tmp_path / "run") == config
    steps, losses = directory.read_curve(tmp_path / "run", "train/loss")
    assert len(steps) == written["steps"]
    assert losses[-1] < losses[0]


def test_the_tuned_variant_starts_at_exactly_the_base_models_loss(
    configure: Configure, tmp_path: Path
) -> None:
    run(configure("data.test_split=validation", "trainer.max_steps=1"), tmp_path / "run")
    _, validation = directory.read_curve(tmp_path / "run", "validation/loss")
    _, base = directory.read_curve(tmp_path / "run", "test/base_loss")
    assert validation[0] == base[0]


def test_checkpoints_and_saved_runs_hold_no_weight_of_the_language_model(
    configure: Configure, tmp_path: Path
) -> None:
    metrics = run(configure(), tmp_path / "run")
    kept = directory.checkpoints(tmp_path / "run")
    assert [checkpoint.name for checkpoint in kept] == ["step=00000024.ckpt", "step=00000028.ckpt"]
    for checkpoint in kept:
        saved = torch.load(checkpoint, weights_only=True)["state_dict"]
        assert all(name.startswith("model.generator.") for name in saved)
        assert sum(value.numel() for value in saved.values()) == metrics["trainable_params"]
    total = sum(file.stat().st_size for file in (tmp_path / "run").rglob("*") if file.is_file())
    each = 4 * 4 * metrics["trainable_params"]  # weights, the best of them, and two moments
    assert total < len(kept) * each + 4 * metrics["trainable_params"] + 250_000  # the picture


def test_off_trains_pefts_own_lora_and_leaves_an_adapter_that_peft_loads(
    configure: Configure, tmp_path: Path
) -> None:
    config = configure("qpa=off")
    metrics = run(config, tmp_path / "run")
    assert metrics["trainable_params"] == metrics["generated_params"]
    assert metrics["n_qubits"] is metrics["n_chunks"] is None
    assert metrics["perplexity"] < metrics["base_perplexity"]

    base = AutoModelForCausalLM.from_pretrained(config.model.name_or_path)
    adapted = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").eval()
    data = TextDataModule(config.data, load_tokenizer(config.model), config.seed)
    expected = transformers_perplexities(adapted, data, padded=False)
    assert metrics["perplexity"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_other_variants_run_to_the_end(
    configure: Configure, tmp_path: Path, variant: str
) -> None:
    metrics = run(configure(f"qpa={variant}", "trainer.max_steps=3"), tmp_path / "run")
    assert math.isfinite(metrics["perplexity"])


@pytest.mark.long
def test_a_gemma2_of_random_weights_runs_to_the_end(
    configure: Configure, small_model_dir: Path, tmp_path: Path
) -> None:
    shape = Gemma2Config(
        vocab_size=16384, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=64,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path / "gemma2")
    AutoTokenizer.from_pretrained(small_model_dir).save_pretrained(tmp_path / "gemma2")
    metrics = run(configure(f"model.name_or_path={tmp_path / 'gemma2'}"), tmp_path / "run")
    assert metrics["status"] == "complete"
    assert metrics["perplexity"] < metrics["base_perplexity"]


# --- interruption ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step", [14, *(pytest.param(step, marks=pytest.mark.long) for step in (6, 21))]
)
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(
    configure: Configure, tmp_path: Path, crashes_at: CrashesAt, step: int
) -> None:
    # Everything that is random takes part: dropout, a fresh basis order at each step.
    config = configure("peft.lora_dropout=0.2", "qpa.basis_order=random")
    run(config, tmp_path / "whole")

    with crashes_at(step):
        run(config, tmp_path / "crashed")
    assert not (tmp_path / "crashed" / "metrics.json").exists()
    resumed = resume(tmp_path / "crashed")

    whole = load_file(tmp_path / "whole" / "generator" / "adapter_model.safetensors")
    other = load_file(tmp_path / "crashed" / "generator" / "adapter_model.safetensors")
    assert all(torch.equal(whole[name], other[name]) for name in whole)
    assert resumed["perplexity"] == directory.read_metrics(tmp_path / "whole")["perplexity"]
    steps, losses = directory.read_curve(tmp_path / "crashed", "train/loss")
    assert (steps, losses) == directory.read_curve(tmp_path / "whole", "train/loss")


def test_a_complete_run_is_only_read(configure: Configure, tmp_path: Path) -> None:
    metrics = run(configure("trainer.max_steps=2"), tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    assert resume(tmp_path / "run") == metrics
    assert sorted(tmp_path.rglob("*")) == before


# --- divergence -----------------------------------------------------------------------------


def test_a_loss_that_turns_nan_stops_the_run_and_keeps_the_last_good_checkpoint(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proper = AdapterModule.training_step

    def poisoned(self: AdapterModule, batch: dict[str, torch.Tensor], batch_idx: int) -> object:
        if self.global_step == 9:
            self.model.generator.circuit.theta.data.fill_(math.nan)
        return proper(self, batch, batch_idx)

    monkeypatch.setattr(AdapterModule, "training_step", poisoned)
    with pytest.raises(Divergence, match="step 10 is not a finite number") as caught:
        run(configure(), tmp_path / "run")
    checkpoint = directory.checkpoints(tmp_path / "run")[-1]
    assert str(checkpoint) in str(caught.value)
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["global_step"] == 8
    assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())
    written = directory.read_metrics(tmp_path / "run")
    assert written["status"] == "diverged"
    assert written["perplexity"] is None
    with pytest.raises(InputError, match="cannot be continued"):
        resume(tmp_path / "run")


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proper = AdapterModule.on_before_optimizer_step

    def poisoned(self: AdapterModule, optimizer: torch.optim.Optimizer) -> None:
        self.model.generator.circuit.theta.grad[0, 0, 0] = math.inf
        proper(self, optimizer)

    monkeypatch.setattr(AdapterModule, "on_before_optimizer_step", poisoned)
    with pytest.raises(Divergence, match="gradient at step 1 "):
        run(configure(), tmp_path / "run")


# --- what is refused ------------------------------------------------------------------------


def test_a_directory_that_holds_a_run_is_not_written_over(
    configure: Configure, tmp_path: Path
) -> None:
    directory.claim(tmp_path / "run", configure())
    with pytest.raises(InputError, match="holds a run already"):
        run(configure(), tmp_path / "run")


def test_a_precision_that_lightning_would_replace_is_refused(
    configure: Configure, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="precision=16-mixed is for GPUs: give bf16-mixed"):
        run(configure("trainer.precision=16-mixed", "trainer.accelerator=cpu"), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a run directory: it has no config\.yaml"):
        resume(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "qpa: {n_mlp: 0}\n",
        "qpa: {n_mlp: '${oc.env:HOME}'}\n",
        "_target_: os.system\n",
        "model: !!python/object/apply:os.system ['true']\n",
        "[1, 2]\n",
        "\x00",
    ],
)
def test_a_config_from_disk_is_data(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        resume(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "pickle"])
def test_a_damaged_checkpoint_is_refused_before_anything_is_loaded(
    configure: Configure, tmp_path: Path, damage: str
) -> None:
    directory.claim(tmp_path / "run", configure())
    checkpoint = tmp_path / "run" / "checkpoints" / "step=00000004.ckpt"
    checkpoint.parent.mkdir()
    torch.save({"state_dict": {"x": torch.zeros(1000)}}, checkpoint)
    whole = checkpoint.read_bytes()
    marker = tmp_path / "executed"
    torch.save(_Executes(str(marker)), checkpoint)
    content = {"cut": whole[:200], "empty": b"", "text": b"hello", "pickle": None}[damage]
    if content is not None:
        checkpoint.write_bytes(content)
    with pytest.raises(InputError, match="damaged, cut short or no checkpoint"):
        resume(tmp_path / "run")
    assert not marker.exists()


class _Executes:
    """Unpickled without care, it would make a file."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (Path(self.marker),)


def test_metrics_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    directory.write_metrics(tmp_path, {"status": "complete"})
    with pytest.raises(TypeError):
        directory.write_metrics(tmp_path, {"status": object()})
    assert directory.read_metrics(tmp_path) == {"status": "complete"}


def test_the_saved_config_is_plain_and_complete(configure: Configure, tmp_path: Path) -> None:
    config = configure("trainer.max_steps=1")
    directory.claim(tmp_path, config)
    text = (tmp_path / "config.yaml").read_text()
    assert "${" not in text
    assert "???" not in text
    assert dataclasses.asdict(directory.read_config(tmp_path)) == dataclasses.asdict(config)


@pytest.mark.parametrize(
    "change",
    [
        {"peft": {"options": {"rank_pattern": {0: 4}}}},
        {"logger": {"tags": ["a" * 2**17]}},
        {"data": {"path": [f"part-{n}.txt" for n in range(9000)]}},
        {"optim": {"lr": math.inf}},
    ],
)
def test_no_config_is_written_that_could_not_be_read(
    configure: Configure, tmp_path: Path, change: dict[str, dict[str, Any]]
) -> None:
    config = configure()
    for group, values in change.items():
        changed = dataclasses.replace(getattr(config, group), **values)
        config = dataclasses.replace(config, **{group: changed})
    with pytest.raises(InputError, match=r"^The config cannot be written down: "):
        directory.write_config(tmp_path, config)
    assert not list(tmp_path.iterdir())


def test_a_run_from_before_the_joins_keeps_its_own(configure: Configure, tmp_path: Path) -> None:
    directory.claim(tmp_path, configure("data=ptb", "data.layout=blocks"))
    file = tmp_path / "config.yaml"
    new = [line for line in file.read_text().splitlines() if line.strip() != "stride: null"]
    assert directory.read_config(tmp_path).data.join is None
    file.write_text("\n".join(line for line in new if line.strip() != "join: null"))
    assert directory.read_config(tmp_path).data.join == "eos"
