"""Every PEFT method, trained itself and generated, on small models of three kinds."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from qpa_exp.adapters.catalogue import METHODS, option_nodes
from qpa_exp.adapters.counts import count
from qpa_exp.adapters.peft_model import build_peft_model, make_peft_config, trainable_tensors
from qpa_exp.adapters.qpa_model import ClassicalModel, QPAModel, adapt, get_qpa_model
from qpa_exp.cli import compose_config, conf_dir
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError
from qpa_exp.lm.loading import load_model
from qpa_exp.plan import plan

VOCABULARY, WIDTH = 48, 16  # of the small models
ARCHITECTURES = ["gpt2", "gpt2_untied", "llama"]
METHOD_NAMES = list(METHODS)
# The paper's and those that were looked at closely; of each other method one architecture is tried.
CLOSELY = {"lora", "dora", "prefix", "ffa"}
# These start near the unchanged model, not at it: their first loss is their own.
OWN_START = {
    "prefix_tuning", "vblora", "unilora", "prompt_tuning", "p_tuning", "cartridge", "c3a", "hra",
}  # fmt: skip
HEAD = VOCABULARY + WIDTH


def on(architectures: list[str]) -> Any:
    """Every method on these architectures; most on one of them alone, in turn."""
    cells = []
    for row, method in enumerate(METHOD_NAMES):
        for column, architecture in enumerate(architectures):
            kept = method in CLOSELY or row % len(architectures) == column
            marks = () if kept else pytest.mark.long
            cells.append(pytest.param(method, architecture, marks=marks))
    return pytest.mark.parametrize(("method", "architecture"), cells)


everywhere = on(ARCHITECTURES)
in_two_places = on(["gpt2_untied", "llama"])
some_methods = pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=() if m in CLOSELY else pytest.mark.long) for m in METHOD_NAMES],
)


def loss_of(model: Any, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, labels=tokens, use_cache=False).loss


def logits_of(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


def train(model: Any, tokens: Tensor, lr: float, steps: int = 8) -> list[float]:
    # The backbone's dropout stays off, as in a run; first and last there is no noise either.
    losses = [loss_of(model.eval(), tokens).item()]
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    for _ in range(steps):
        loss = loss_of(model, tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return [*losses, loss_of(model, tokens).item()]


@pytest.fixture
def make_qpa(make_model: Any, peft_config: Any) -> Callable[..., QPAModel]:
    def make(method: str, architecture: str = "gpt2", **fields: Any) -> QPAModel:
        config = QPAConfig(**({"n_mlp": 8, "n_layers": 2} | fields))
        return get_qpa_model(make_model(architecture), peft_config(method), config)

    return make


@pytest.fixture
def make_off(make_model: Any, peft_config: Any) -> Callable[..., ClassicalModel]:
    def make(method: str, architecture: str = "gpt2", *overrides: str) -> ClassicalModel:
        config = peft_config(method, *overrides)
        return ClassicalModel(build_peft_model(make_model(architecture), config, seed=3))

    return make


def test_every_method_can_be_named_and_a_file_of_conf_names_one() -> None:
    assert set(option_nodes()) == set(METHOD_NAMES)
    assert {path.stem for path in (conf_dir() / "peft").glob("*.yaml")} < set(METHOD_NAMES)
    assert all(METHODS[method].label for method in METHOD_NAMES)
    for method in ("loha", "p_tuning", "prefix"):
        assert compose_config([f"peft={method}"]).peft.method == method


@everywhere
def test_only_the_method_is_trained(method: str, architecture: str, make_off: Any) -> None:
    model = make_off(method, architecture)
    named = trainable_tensors(model)
    m = sum(p.numel() for _, p in named)
    assert m == {
        "lora": 4 * HEAD,
        "dora": 4 * HEAD + VOCABULARY,
        "prefix": 16 * WIDTH,
        "ffa": 2 * WIDTH * 4 + 4 + WIDTH,
        # Two layers of keys and values; the Llama has two heads of four for them.
        "prefix_tuning": 4 * 2 * 2 * (8 if architecture == "llama" else WIDTH),
        "ia3": VOCABULARY,
        "vera": VOCABULARY + 8,
        "vblora": (HEAD // 8) * 4 * 8 + 8 * 8,
        "tinylora": 8,
        "unilora": 64,
        "randlora": 4 * 4 + 4 * WIDTH,
        "fourierft": 50,
    }.get(method, m)
    assert m > 0
    assert all(p.is_floating_point() for _, p in named)


@everywhere
def test_the_start_is_the_unchanged_model(
    method: str, architecture: str, make_model: Any, make_off: Any, make_qpa: Any, tokens: Tensor
) -> None:
    base = loss_of(make_model(architecture), tokens).item()
    own = loss_of(make_off(method, architecture).eval(), tokens).item()
    generated = make_qpa(method, architecture, seed=3)
    assert loss_of(generated, tokens).item() == own
    if method in OWN_START:
        assert abs(own - base) < 0.5
    else:
        assert own == base


@in_two_places
def test_training_lowers_the_loss(
    method: str, architecture: str, make_off: Any, make_qpa: Any, tokens: Tensor
) -> None:
    steps = 40 if method == "pvera" else 8  # it trains under noise
    for model, lr in (
        (make_off(method, architecture), 1e-2),
        (make_qpa(method, architecture), 5e-3),
    ):
        losses = train(model, tokens, lr, steps)
        assert losses[-1] < losses[0]


@everywhere
def test_disabled_it_is_the_base_model(
    method: str, architecture: str, make_model: Any, make_qpa: Any, tokens: Tensor
) -> None:
    base = logits_of(make_model(architecture), tokens)
    model = make_qpa(method, architecture)
    train(model, tokens, 5e-3, steps=2)
    adapted = logits_of(model, tokens)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    with model.disable_adapter():
        assert torch.equal(logits_of(model, tokens), base)
        assert model(input_ids=tokens, use_cache=False).logits.shape == base.shape
    assert not torch.equal(adapted, base)
    assert torch.equal(logits_of(model, tokens), adapted)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    place = "base_model.generators.default."
    assert trained == {f"{place}{name}" for name, _ in model.generator.named_parameters()}


@in_two_places
def test_saved_and_as_an_adapter_it_is_the_same_model(
    method: str, architecture: str, make_model: Any, make_qpa: Any, tokens: Tensor, tmp_path: Path
) -> None:
    model = make_qpa(method, architecture)
    train(model, tokens, 5e-3, steps=2)
    model.save_pretrained(tmp_path / "generator")
    loaded = QPAModel.from_pretrained(make_model(architecture), tmp_path / "generator").eval()
    assert torch.equal(logits_of(loaded, tokens), logits_of(model, tokens))

    plain = model.to_peft()
    torch.testing.assert_close(
        logits_of(plain, tokens), logits_of(model, tokens), rtol=0, atol=1e-5
    )

    own = {p.data_ptr() for _, p in trainable_tensors(plain)}
    shared = {p.data_ptr() for p in model.parameters()}
    assert own
    assert not own & shared
    assert {p.data_ptr() for p in plain.parameters()} - own <= shared
    assert {b.data_ptr() for b in plain.buffers()} <= {b.data_ptr() for b in model.buffers()}

    plain.save_pretrained(str(tmp_path), save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(make_model(architecture), str(tmp_path)).eval()
    torch.testing.assert_close(
        logits_of(loaded, tokens), logits_of(model, tokens), rtol=0, atol=1e-5
    )


@some_methods
def test_the_gradient_is_that_of_trained_tensors(
    method: str, make_qpa: Any, tokens: Tensor
) -> None:
    model = make_qpa(method)
    train(model, tokens, 5e-3, steps=2)
    plain = model.to_peft()
    names = list(model.base_model.generated_tensors())
    for _, tensor in (named := trainable_tensors(plain)):
        tensor.grad = None
    assert [name for name, _ in named] == names
    loss_of(plain, tokens).backward()

    model.begin_step()
    loss_of(model, tokens).backward()
    trained = torch.cat([tensor.grad.flatten() for _, tensor in named])
    torch.testing.assert_close(model.base_model.vector.grad, trained, rtol=1e-4, atol=1e-6)


@some_methods
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_other_variants_train(
    method: str, variant: str, make_model: Any, peft_config: Any, qpa_config: Any, tokens: Tensor
) -> None:
    config = qpa_config(variant, n_mlp=8, n_layers=2)
    model = get_qpa_model(make_model("gpt2"), peft_config(method), config)
    loss = loss_of(model.train(), tokens)
    loss.backward()
    assert torch.isfinite(loss)
    grads = [p.grad for p in model.generator.parameters()]
    assert any(grad is not None and grad.abs().sum() > 0 for grad in grads)


@some_methods
def test_generation_with_and_without_a_cache(method: str, make_qpa: Any, tokens: Tensor) -> None:
    model = make_qpa(method)
    train(model, tokens, 5e-3, steps=4)
    asked = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    prompt = {"input_ids": tokens[:1, :6], "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    cached = model.generate(**prompt, **asked, use_cache=True)
    greedy = prompt["input_ids"]
    for _ in range(4):
        greedy = torch.cat([greedy, logits_of(model, greedy)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(cached, greedy[:, : cached.shape[1]])


# --- counts -----------------------------------------------------------------------------------


def planned(*overrides: str) -> Any:
    return plan(compose_config(list(overrides)))


@in_two_places
def test_plan_counts_what_is_built(
    method: str, architecture: str, make_model: Any, architectures: Any, run_config: Any
) -> None:
    config = run_config(method)
    config.model.architecture = architectures[architecture].to_dict()
    for variant in (config.qpa.variant, "off"):
        config.qpa.variant = variant
        assert plan(config) == count(adapt(make_model(architecture), config))


@pytest.mark.parametrize(
    ("overrides", "m", "target"),
    [
        (["model=gpt2", "peft=prefix"], 393_216, 50257 * 768),
        (["model=gpt2", "peft=ffa"], 2 * 768 * 192 + 192 + 768, 50257 * 768),
        (["model=gpt2", "peft=dora"], 4 * (50257 + 768) + 50257, 50257 * 768),
        (["model=gpt2", "peft=dora", "peft.r=1"], 50257 + 768 + 50257, 50257 * 768),
        (["model=gemma", "peft=prefix"], 512 * 2048, 256000 * 2048),
        (["model=gemma", "peft=ffa"], 2 * 2048 * 512 + 512 + 2048, 256000 * 2048),
        (["model=gemma", "peft=dora"], 4 * (256000 + 2048) + 256000, 256000 * 2048),
        (["model=gemma2", "peft=prefix"], 512 * 2304, 256000 * 2304),
        (["model=gemma2", "peft=ffa"], 2 * 2304 * 576 + 576 + 2304, 256000 * 2304),
        (["model=gpt2_xl", "peft=dora"], 4 * (50257 + 1600) + 50257, 50257 * 1600),
    ],
)
def test_the_papers_classical_counts(overrides: list[str], m: int, target: int) -> None:
    counts = planned(*overrides, "data=wikitext2", "qpa=off")
    assert counts.trainable_params == counts.generated_params == m
    assert counts.target_params == target


def mapping_params(n_mlp: int, n_qubits: int) -> int:
    sizes = [n_qubits + 1, 32, 64, 128, 128, 64, 32, 32, n_mlp]
    return sum(n_in * n_out + n_out for n_in, n_out in itertools.pairwise(sizes))


@pytest.mark.parametrize(
    ("model", "method", "m"),
    [
        ("gpt2", "prefix", 393_216),
        ("gpt2", "ffa", 295_872),
        ("gpt2", "dora", 254_357),
        ("gemma", "prefix", 1_048_576),
        ("gemma", "ffa", 2_099_712),
        ("gemma", "dora", 1_288_192),
    ],
)
@pytest.mark.parametrize("n_mlp", [1024, 8192])
def test_the_papers_generated_counts(model: str, method: str, m: int, n_mlp: int) -> None:
    counts = planned(
        f"model={model}", f"peft={method}", "data=wikitext2", "qpa=paper", f"qpa.n_mlp={n_mlp}"
    )
    qubits = (-(-m // n_mlp) - 1).bit_length()
    assert counts.generated_params == m
    assert (counts.n_chunks, counts.n_qubits) == (-(-m // n_mlp), qubits)
    assert counts.trainable_params == 8 * qubits + mapping_params(n_mlp, qubits)


def test_the_papers_printed_prefix_count() -> None:
    counts = planned("model=gpt2", "peft=prefix", "data=wikitext2", "qpa=paper", "qpa.n_mlp=1024")
    assert counts.trainable_params == 72_552


# Methods that compute with the head's weights while they are built: minutes at this size.
COMPUTES = {"frod", "shira"}
# One side of GPT-2's head is 50257, which nothing divides but 29 and 1733.
DIVIDES = {"vblora", "boft", "c3a", "gralora", "road", "deft"}


@pytest.mark.parametrize(
    ("model", "method"),
    [
        pytest.param(model, method, marks=() if method in CLOSELY else pytest.mark.long)
        for model in ("gpt2", "gemma2")
        for method in METHOD_NAMES
        if method not in COMPUTES
    ],
)
def test_every_model_can_be_planned(model: str, method: str) -> None:
    overrides = [f"model={model}", f"peft={method}", "qpa=off"]
    if method == "trainable_tokens":
        overrides.append("peft.options.token_indices=[1,2]")
    if method == "vblora" and model.startswith("gpt2"):
        with pytest.raises(InputError, match=r"50257.*divisible"):
            planned(*overrides)
        overrides.append("peft.target_modules=[c_attn]")
    assert planned(*overrides).generated_params > 0


@pytest.mark.parametrize("method", ["dora", "prefix", "ffa", "vera", "unilora", "tinylora"])
def test_plan_counts_the_bundled_model(method: str) -> None:
    config = compose_config([f"peft={method}", "qpa=off"])
    assert plan(config) == count(adapt(load_model(config.model), config))


# --- DoRA -------------------------------------------------------------------------------------


def test_dora_keeps_the_magnitudes_last(make_off: Any) -> None:
    kinds = [
        name.split("lm_head.")[1].split(".")[0] for name, _ in trainable_tensors(make_off("dora"))
    ]
    assert kinds == ["lora_B", "lora_A", "lora_magnitude_vector"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dora_starts_at_the_norms_of_the_rows(architecture: str, make_off: Any) -> None:
    model = make_off("dora", architecture)
    head = model.language_model().lm_head
    norms = head.base_layer.weight.double().norm(dim=1)
    magnitudes = head.lora_magnitude_vector["default"].weight
    torch.testing.assert_close(magnitudes.double(), norms, rtol=1e-5, atol=0)


def test_dora_on_gpt2s_transposed_layers(
    make_off: Any, make_model: Any, make_qpa: Any, peft_config: Any, tokens: Tensor
) -> None:
    model = make_off("dora", "gpt2", "peft.target_modules=[c_attn]").eval()
    layer = model.language_model().transformer.h[0].attn.c_attn
    norms = layer.base_layer.weight.norm(dim=0)  # Conv1D holds (inputs, outputs)
    torch.testing.assert_close(layer.lora_magnitude_vector["default"].weight, norms)
    base = loss_of(make_model("gpt2"), tokens).item()
    assert loss_of(model, tokens).item() == base
    config = peft_config("dora", "peft.target_modules=[c_attn]")
    generated = get_qpa_model(make_model("gpt2"), config, QPAConfig(n_mlp=8, n_layers=2))
    assert loss_of(generated, tokens).item() == base


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dora_on_weights_of_16_bits(
    dtype: torch.dtype, make_model: Any, peft_config: Any, tokens: Tensor
) -> None:
    base = logits_of(make_model("gpt2").to(dtype), tokens)
    model = build_peft_model(make_model("gpt2").to(dtype), peft_config("dora"), seed=0).eval()
    assert torch.equal(logits_of(model, tokens), base)


def test_dora_refuses_a_row_of_zeros(make_model: Any, peft_config: Any) -> None:
    model = make_model("llama")
    model.lm_head.weight.data[7] = 0.0  # as a padding token's row may be
    with pytest.raises(InputError, match=r"lm_head has rows of zeros \(1 of them\)"):
        build_peft_model(model, peft_config("dora"), seed=0)


def test_dora_on_the_bundled_model() -> None:
    config = compose_config(["peft=dora"])
    tokens = torch.arange(1, 33)[None]
    base = loss_of(load_model(config.model), tokens).item()
    adapted = get_qpa_model(load_model(config.model), make_peft_config(config.peft), config.qpa)
    assert loss_of(adapted, tokens).item() == base


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["peft=prefix", "peft.r=4"], "peft.r=4 is no key of peft=prefix"),
        (["peft=ia3", "peft.lora_alpha=4"], "peft.lora_alpha=4 is no key of peft=ia3"),
        (["peft=prefix_tuning", "peft.target_modules=[c_attn]"], "no key of peft=prefix_tuning"),
        (["peft=loha", "peft.lora_alpha=8"], "peft.lora_alpha=8 is no key of peft=loha"),
        (["peft=boft", "peft.r=8"], "peft.r=8 is no key of peft=boft"),
        (["peft=vera", "peft.options.d_inital=1"], "did you mean d_initial"),
        (["peft=vera", "peft.options.r=4"], "write peft.r=4"),
        (["peft=lora", "peft.options.use_dora=true"], "no option of peft=lora"),
        (["peft=lora", "peft.options.bias=all"], "no option of peft=lora"),
        (["peft=fourierft", "peft.options.n_frequency=many"], "give a whole number"),
        (["peft=vera", "peft.options.d_initial=true"], "give a number"),
        (["peft=deft", "peft.options.decomposition_method=qx"], "give relu or qr"),
        (["peft=fourierft", "peft.options.random_loc_seed=x"], "give a whole number or null"),
        (["peft=loha", "peft.options.rank_pattern=[1]"], "give a table or null"),
        (["peft=lily", "peft.options.scaling=x"], "give a number"),
        (["peft=adalora"], "peft=adalora cannot be used here: it prunes its ranks"),
        (["peft=xlora"], "peft=xlora cannot be used here"),
        (["peft=lorra"], "peft=lorra is unknown: give one of .*lora"),
        (["peft=ffa", "peft.options.activation=sine"], "one of gelu, relu, tanh"),
        (["peft=ffa", "peft.options.reduction=0"], "too small"),
        (["peft=tinylora", "peft.options.u=0"], "`u` should be a positive"),
        (["peft=prefix", "peft.options.length=0"], "too small"),
    ],
)
def test_a_bad_key_is_refused(overrides: list[str], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        make_peft_config(compose_config(overrides).peft)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "overrides", "sentence"),
    [
        ("lora", ["peft.target_modules=[lm_haed]"], "nearest are lm_head"),
        ("dora", ["peft.r=17"], "peft.r=17 is larger than lm_head, .* at most 16"),
        ("tinylora", ["peft.r=17"], "peft.r=17 is larger"),
        ("ffa", ["peft.options.reduction=17"], "leaves nothing of 16 inputs"),
        ("ffa", ["peft.target_modules=[ln_f]"], "ln_f is a LayerNorm, not a linear layer"),
        ("prefix", ["peft.target_modules=[wte]"], "wte is a Embedding, not a linear layer"),
        ("fourierft", ["peft.options.n_frequency=100000"], "PEFT refuses"),
        ("vblora", ["peft.options.vector_length=7"], "divisible"),
        ("prefix_tuning", ["peft.options.num_virtual_tokens=0"], "trains no tensors"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    method: str, overrides: list[str], sentence: str, make_off: Any
) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        make_off(method, "gpt2", *overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["peft=prefix", "peft.options.length=64"],
            "length=64 is shorter than data.max_length=128",
        ),
        (["peft=prefix_tuning", "data.max_length=500"], "less 20 virtual tokens: give at most 492"),
    ],
)
def test_examples_that_do_not_fit_the_method(overrides: list[str], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        planned(*overrides)


def test_a_larger_rank_is_no_error_for_vera(make_off: Any) -> None:
    assert make_off("vera", "gpt2", "peft.r=32") is not None


def test_plan_prints_prefix_tunings_target(capsys: pytest.CaptureFixture[str]) -> None:
    from qpa_exp.plan import main

    main(["peft=prefix_tuning", "qpa=off"])
    assert "the whole model" in capsys.readouterr().out
    main(["peft=prefix_tuning", "qpa=off", "format=json"])
    record = json.loads(capsys.readouterr().out)
    assert record == dataclasses.asdict(planned("peft=prefix_tuning", "qpa=off")) | {
        "target_percent": record["target_percent"]
    }


@pytest.mark.parametrize(("architecture", "layers"), [("gpt2", 4), ("llama", 7)])
def test_all_linear_reaches_every_layer_of_every_block(
    architecture: str, layers: int, make_model: Any, peft_config: Any, tokens: Tensor
) -> None:
    config = peft_config("lora", "peft.target_modules=[all-linear]")
    model = get_qpa_model(make_model(architecture), config, QPAConfig(n_mlp=8, scale=0.3))
    assert len(model.generated_tensors()) == 2 * 2 * layers  # A and B, two blocks
    losses = train(model, tokens, lr=1e-2)
    assert losses[-1] < losses[0]
