"""A small random language model in the hub's format, and the variants as conf/ defines them."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GPT2LMHeadModel, LlamaForCausalLM, PretrainedConfig, PreTrainedModel

# Torch, transformers and qpa_exp are imported inside the fixtures: the process that only hands out
# the tests has no use for them, and the type-checking import hook comes after this file.

# One thread each, commands that are started included: the tests themselves run side by side.
os.environ["OMP_NUM_THREADS"] = "1"
# No test needs a hub, and asking for one that is not there takes half a minute.
os.environ["HF_HUB_OFFLINE"] = "1"
# Looking for cycles among all that the libraries have imported is a tenth of the time.
gc.set_threshold(50_000, 20, 100)
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=30)
settings.load_profile("repeatable")

VOCABULARY, WIDTH, POSITIONS = 61, 16, 32


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", metavar="FILE", help="write the table of methods and families")


@pytest.fixture(scope="session")
def method_overrides() -> dict[str, list[str]]:
    """Command-line overrides that fit each PEFT method to the small models."""
    from families import OVERRIDES

    return OVERRIDES


@pytest.fixture(scope="session", autouse=True)
def _once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No bars, and a cache of its own: hidden states of these models are no use to anybody else."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(1)
    if not torch.accelerator.is_available():  # else torch notes the stack at every seed for them
        torch.cuda.manual_seed_all = torch.xpu.manual_seed_all = lambda seed: None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QPA_EXP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _on_its_own() -> Iterator[None]:
    """A test draws the same random numbers alone and among others, and has one thread."""
    import random

    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def refusal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """``refusal(main, ["qpa.n_mlp=0"], directory)``: the one line with which a command ends.

    In this process: a command of its own would take seconds to import what is here already.
    """
    from qpa_exp.cli import run_command

    def refuse(main: Callable[[list[str]], Any], arguments: list[str], directory: Path) -> str:
        monkeypatch.chdir(directory)
        monkeypatch.setattr("sys.argv", ["qpa_exp", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_command(main)
        assert ended.value.code == 2
        err = capfd.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return refuse


@pytest.fixture(scope="session")
def small_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of two layers, 16 wide, with random weights, and a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("small_gpt2")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = GPT2Config(
            vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=POSITIONS,
            bos_token_id=0, eos_token_id=0, initializer_range=0.2,
        )  # fmt: skip
        GPT2LMHeadModel(shape).save_pretrained(directory)
    words = {"<|endoftext|>": 0} | {f"w{i}": i for i in range(1, VOCABULARY)}
    word_level = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    word_level.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=word_level, eos_token="<|endoftext|>", model_max_length=POSITIONS
    ).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def make_gpt2(small_directory: Path) -> Callable[[], GPT2LMHeadModel]:
    """The small model, a new one at each call: PEFT changes the one that it is given."""
    from transformers import GPT2LMHeadModel

    return lambda: GPT2LMHeadModel.from_pretrained(small_directory).eval()


@pytest.fixture(scope="session")
def batch() -> dict[str, Tensor]:
    """Right-padded examples of 12, 7 and 0 tokens, and labels that leave the padding out."""
    import torch

    mask = (torch.arange(12) < torch.tensor([[12], [7], [0]])).long()
    ids = torch.randint(1, VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(1)) * mask
    labels = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.fixture(scope="session")
def qpa_config() -> Callable[..., Any]:
    """``qpa_config("released", n_mlp=16)``: a variant as conf/qpa defines it, fields replaced."""
    from qpa_exp.cli import compose_config
    from qpa_exp.generator.rules import VARIANTS

    shipped = {variant: compose_config([f"qpa={variant}"]).qpa for variant in VARIANTS}
    return lambda variant, **changed: dataclasses.replace(shipped[variant], **changed)


# --- many families ------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def architectures() -> dict[str, PretrainedConfig]:
    """The shapes of small models of many families, by name: 48 tokens, 16 wide, 32 positions."""
    import families

    return families.architectures(48, 16, 32)


@pytest.fixture(scope="session")
def make_model(architectures: dict[str, PretrainedConfig]) -> Callable[[str], PreTrainedModel]:
    """``make_model("llama")``: a new one at each call, always with the same random weights."""
    import torch
    from transformers import AutoModelForCausalLM

    def make(name: str) -> PreTrainedModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return AutoModelForCausalLM.from_config(architectures[name]).eval()

    return make


@pytest.fixture(scope="session")
def tokens() -> Tensor:
    """(3, 12) random tokens of these models."""
    import torch

    return torch.randint(1, 48, (3, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def run_config(method_overrides: dict[str, list[str]]) -> Callable[..., Any]:
    """``run_config("dora", "peft.r=2")``: a run's config, at the size of these models."""
    from qpa_exp.cli import compose_config

    @functools.cache
    def compose(method: str, *overrides: str) -> Any:
        fitting = method_overrides.get(method, [])
        return compose_config([
            f"peft={method}", "qpa.n_mlp=8", "data.max_length=16", *fitting, *overrides,
        ])  # fmt: skip

    return lambda *asked: copy.deepcopy(compose(*asked))


@pytest.fixture(scope="session")
def peft_config(run_config: Callable[..., Any]) -> Callable[..., Any]:
    """``peft_config("dora", "peft.r=2")``: PEFT's config, at the size of these models."""
    from qpa_exp.adapters.peft_model import make_peft_config

    return lambda *asked: make_peft_config(run_config(*asked).peft)


# --- a run of a few seconds ---------------------------------------------------------------------

_SENTENCES = [
    "the circuit rotates every qubit and entangles it with the next",
    "a basis state is labelled by the bits that a measurement finds",
    "the mapping model turns a probability into a chunk of weights",
    "the language model is frozen and only the generator is trained",
    "an adapter is small and a model is large",
]


@pytest.fixture(scope="session")
def text_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of three split files, small enough for an epoch in a second."""
    directory = tmp_path_factory.mktemp("text")
    for split, n in (("train", 60), ("validation", 12), ("test", 12)):
        lines = [f"{_SENTENCES[i % 5]} {i}" for i in range(n)]
        (directory / f"{split}.txt").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return directory


@pytest.fixture
def overrides(small_model_dir: Path, text_dir: Path) -> list[str]:
    """A run of a few seconds: 2 epochs of about 14 batches on a small random GPT-2."""
    return [
        "model=hf",
        f"model.name_or_path={small_model_dir}",
        "data=text",
        f"data.path={text_dir}",
        "data.max_length=16",
        "data.batch_size=4",
        "optim.lr=5e-3",
        "trainer.max_epochs=2",
        "trainer.progress_bar=false",
        "trainer.log_every_n_steps=1",
        "trainer.checkpoint_every_n_steps=4",
    ]


@pytest.fixture
def configure(overrides: list[str]) -> Callable[..., Any]:
    """The config of that run, with more overrides."""
    from qpa_exp.cli import compose_config

    return lambda *more: compose_config([*overrides, *more])


@pytest.fixture(scope="session")
def small_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 of 64 positions with the bundled tokenizer, in the hub's own format."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

    from qpa_exp.lm.loading import BUNDLED

    directory = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    config = GPT2Config(vocab_size=16384, bos_token_id=0, eos_token_id=0, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(BUNDLED["qpa_exp/tiny"]).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def small_llama() -> LlamaForCausalLM:
    """A random Llama of two layers, 32 wide, for the tokens of :func:`write_gguf`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        rms_norm_eps=1e-5, bos_token_id=0, eos_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def write_gguf(small_llama: LlamaForCausalLM) -> Callable[..., Path]:
    """``write_gguf(file, kind="Q4_1")``: the small Llama as llama.cpp writes it, and a tokenizer.

    ``without`` are names of tensors and of metadata that it lacks.
    """
    import gguf
    from tokenizers import pre_tokenizers

    config = small_llama.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}

    def tensors() -> Iterator[tuple[str, Any]]:
        for name, tensor in small_llama.state_dict().items():
            weight, layer = tensor.numpy(), name.split(".")[-2]
            if layer in heads:  # halves of each head become pairs
                halves = weight.reshape(heads[layer], 2, -1, weight.shape[-1])
                weight = halves.swapaxes(1, 2).reshape(weight.shape)
            yield names.get_name(name, try_suffixes=(".weight",)), weight

    def write(
        file: Path, kind: str = "F32", architecture: str = "llama", without: Collection[str] = ()
    ) -> Path:
        writer = gguf.GGUFWriter(file, architecture)
        writer.add_name("small")
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)
        if "tokenizer" not in without:
            letters = sorted(pre_tokenizers.ByteLevel.alphabet())
            writer.add_tokenizer_model("gpt2")
            writer.add_token_list(["<|endoftext|>", *letters, "th", "the", "in"])
            writer.add_token_types([3] + [1] * (config.vocab_size - 1))
            writer.add_token_merges(["t h", "th e", "i n"])
            writer.add_bos_token_id(0)
            writer.add_eos_token_id(0)
        for name, weight in tensors():
            if name not in without:
                as_type = gguf.GGMLQuantizationType[kind if weight.ndim == 2 else "F32"]
                data = gguf.quants.quantize(weight, as_type)
                writer.add_tensor(name, data, raw_dtype=as_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file

    return write
