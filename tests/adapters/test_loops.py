"""The model in a user's own loop: checkpointing, autocast, accumulation, compile, processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from qpa_exp.adapters.peft_model import checkpoint_activations
from qpa_exp.adapters.qpa_model import QPAModel, get_qpa_model
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError

# A layer of the attention and one of the MLP, and the class of the blocks around them.
PLACES = {"gpt2": ["c_attn", "c_fc"], "llama": ["q_proj", "up_proj"], "opt": ["q_proj", "fc1"]}


@pytest.fixture
def make(make_model: Any) -> Callable[[str], QPAModel]:
    """A model adapted in every block and at the head, some way into its training."""

    def built(family: str) -> QPAModel:
        lora = LoraConfig(r=2, target_modules=[*PLACES[family], "lm_head"])
        model = get_qpa_model(make_model(family), lora, QPAConfig(n_mlp=16, n_layers=2)).train()
        torch.manual_seed(3)
        with torch.no_grad():
            for p in model.generator.parameters():
                p.add_(0.1 * torch.randn_like(p))
        return model

    return built


def step(model: QPAModel, tokens: Tensor, call: Any = None) -> tuple[float, Tensor]:
    """The loss, and the gradient of everything that is trained."""
    loss = (model if call is None else call)(input_ids=tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    return loss.item(), gradient(model)


def gradient(model: QPAModel) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.generator.parameters()])


@pytest.mark.parametrize("family", PLACES)
def test_checkpointed_layers_compute_twice_and_the_same(make: Any, tokens: Tensor, family: str):
    expected = step(make(family), tokens)
    model = make(family)
    model.activation_checkpointing_enable()
    layer = next(m for name, m in model.named_modules() if name.endswith(PLACES[family][0]))
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    loss, grad = step(model, tokens)
    assert len(calls) == 2
    assert loss == pytest.approx(expected[0])
    torch.testing.assert_close(grad, expected[1])


@pytest.mark.parametrize("between", ["a second pass", "text", "another adapter's pass"])
@pytest.mark.parametrize("enabled", ["after", "before"])
def test_a_checkpointed_layer_reads_in_the_backward_pass_what_it_read_before(
    make_model: Any, tokens: Tensor, between: str, enabled: str
):
    def gradients(checkpointed: bool) -> Tensor:
        base = make_model("llama")
        if checkpointed and enabled == "before":
            base.activation_checkpointing_enable()
        lora = LoraConfig(r=2, target_modules=["q_proj"])
        config = QPAConfig(n_mlp=8, basis_order="random", anchor=False)  # each pass draws
        model = get_qpa_model(base, lora, config).train()
        model.add_adapter("other", model.peft_config["default"])
        if checkpointed and enabled == "after":
            model.activation_checkpointing_enable()
        torch.manual_seed(3)
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        if between == "a second pass":
            loss = loss + model(input_ids=tokens.flip(1), labels=tokens, use_cache=False).loss
        elif between == "text":
            model.generate(input_ids=tokens, max_new_tokens=1, pad_token_id=0)
        else:
            model.eval()
            with torch.no_grad():
                model(input_ids=tokens, adapter_names=["other"] * len(tokens))
        loss.backward()
        return gradient(model)

    torch.testing.assert_close(gradients(True), gradients(False))


def test_reentrant_checkpointing_is_refused_where_a_layer_in_it_is_generated(
    make: Any, make_model: Any, tokens: Tensor
):
    model = make("llama")
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(InputError, match="'use_reentrant': False"):
        step(model, tokens)
    head = get_qpa_model(make_model("llama"), LoraConfig(target_modules=["lm_head"]), QPAConfig())
    head.train().gradient_checkpointing_enable({"use_reentrant": True})
    step(head, tokens)


def test_checkpointing_lets_no_dropout_of_the_backbone_act(make_model: Any, tokens: Tensor):
    base = make_model("opt")
    for module in base.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.9  # OPT's layers apply their own, by their mode
    model = get_qpa_model(base, LoraConfig(r=2, target_modules=["fc1"]), QPAConfig(n_mlp=16))
    expected = model.eval()(input_ids=tokens).logits
    model.train().activation_checkpointing_enable()
    assert torch.equal(model(input_ids=tokens).logits, expected)


def test_a_classical_run_checkpoints_too(make_model: Any, peft_config: Any, tokens: Tensor):
    from qpa_exp.adapters.peft_model import build_peft_model
    from qpa_exp.adapters.qpa_model import ClassicalModel

    def trained(checkpointed: bool) -> list[Tensor]:
        base = make_model("llama")
        built = build_peft_model(base, peft_config("lora", "peft.target_modules=[q_proj]"), seed=1)
        if checkpointed:
            checkpoint_activations(base)
        model = ClassicalModel(built).train()
        model(input_ids=tokens, labels=tokens).loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    torch.testing.assert_close(trained(True), trained(False))


def test_under_autocast_the_generator_keeps_its_32_bits(make: Any, tokens: Tensor):
    model = make("llama")
    exact, _ = step(model, tokens)
    vector = model.generator().detach()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.generator(), vector)
        loss = model(input_ids=tokens, labels=tokens).loss
    assert loss.item() == pytest.approx(exact, rel=1e-2)


def test_gradients_gather_over_several_backward_passes(make: Any, tokens: Tensor):
    whole = step(make("gpt2"), tokens)[1]
    model = make("gpt2")
    for row in tokens:  # rows of equal length: the mean of the losses is the loss of all
        (model(input_ids=row[None], labels=row[None]).loss / len(tokens)).backward()
    torch.testing.assert_close(gradient(model), whole, atol=1e-5, rtol=1e-4)


_COMPILED = """
import copy, torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from qpa_exp import QPAConfig, get_qpa_model

def step(model, call):
    tokens = torch.arange(1, 13)[None]
    loss = call(input_ids=tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    return torch.cat([loss.view(1), *(p.grad.flatten() for p in model.generator.parameters())])

lora = LoraConfig(r=2, target_modules=["c_attn", "lm_head"])
base = AutoModelForCausalLM.from_pretrained({base!r})
model = get_qpa_model(base, lora, QPAConfig(n_mlp=16)).train()
expected = step(model, model)
model.zero_grad()
# All of torch.compile but the code generator, which needs a compiler on the machine.
torch.testing.assert_close(step(model, torch.compile(model, backend="aot_eager")), expected)
"""


@pytest.mark.long
@pytest.mark.slow
def test_compiled_it_computes_the_same(small_directory: Path):
    """In a process of its own: the type checks of these tests are not for the compiler."""
    script = _COMPILED.format(base=str(small_directory))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


_TWO_PROCESSES = """
import torch
import torch.distributed as dist
from peft import LoraConfig
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM
from qpa_exp import QPAConfig, get_qpa_model

def gradient(wrap, tokens):
    base = AutoModelForCausalLM.from_pretrained({base!r})
    lora = LoraConfig(r=2, target_modules=["c_attn", "lm_head"])
    model = get_qpa_model(base, lora, QPAConfig(n_mlp=16)).train()
    wrapped = wrap(model)  # its hooks last as it does
    wrapped(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.generator.parameters()])

def shard(model):
    for block in model.get_base_model().transformer.h:
        fully_shard(block)
    assert isinstance(next(block.parameters()), DTensor)
    return model

dist.init_process_group("gloo")
tokens = torch.randint(1, 61, (4, 12), generator=torch.Generator().manual_seed(1))
alone = gradient(lambda model: model, tokens)
shared = gradient(DistributedDataParallel, tokens[dist.get_rank() :: 2])
torch.testing.assert_close(shared, alone, atol=1e-6, rtol=1e-4)
torch.testing.assert_close(gradient(shard, tokens), alone)
print("equal", flush=True)
dist.barrier()  # gloo aborts a process whose peer leaves first
dist.destroy_process_group()
"""


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_share_the_batch_or_the_frozen_weights(small_directory: Path, tmp_path: Path):
    """DistributedDataParallel, and FSDP's ``fully_shard`` on the frozen blocks."""
    launch = [sys.executable, "-m", "torch.distributed.run"]
    script = tmp_path / "two.py"
    script.write_text(_TWO_PROCESSES.format(base=str(small_directory)), encoding="utf-8")
    done = subprocess.run(
        [*launch, "--standalone", "--nproc_per_node=2", script],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == 2
