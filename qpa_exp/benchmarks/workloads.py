"""One training step in several ways, at the shapes of the paper's models, with random weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from qpa_exp.adapters.peft_model import build_peft_model, make_peft_config
from qpa_exp.adapters.qpa_model import ClassicalModel, QPAModel, get_qpa_model
from qpa_exp.benchmarks.measuring import Seconds, fit_exponent, side_by_side
from qpa_exp.benchmarks.shapes import Shape
from qpa_exp.cli import compose_config
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError
from qpa_exp.fast_head.accelerator import AdaptedHead, adapts_head_alone
from qpa_exp.fast_head.hidden_tables import Backbone
from qpa_exp.fast_head.low_rank_loss import FinalLogits
from qpa_exp.generator.generator import Generator
from qpa_exp.machine import keep_freed_memory, release_freed_memory, stock_memory

_SEED = 0
_RANK = 4
_RELATIVES: dict[str, dict[str, Any]] = {
    "random": {"variant": "random"},
    "mps": {"mapping": "mps"},
    "distributed": {"ansatz": "distributed"},
    "blend": {"blend": "0.5", "shots": "20x"},
}
"""What is measured as ``qpa_fast_<name>`` beside ``tuned``, whose keys hold otherwise."""


def make_model(shape: Shape) -> PreTrainedModel:
    """Return Transformers' own model of this shape: random weights, frozen, in evaluation mode."""
    arguments: dict[str, Any]
    if shape.family == "gpt2":
        size = {"n_embd": shape.width, "n_layer": shape.layers, "n_head": max(1, shape.width // 64)}
        arguments = {**size, "n_positions": max(1024, shape.tokens)}
    else:
        heads = max(1, shape.width // 256)
        arguments = {
            "hidden_size": shape.width, "num_hidden_layers": shape.layers, "head_dim": 256,
            "num_attention_heads": heads, "num_key_value_heads": 1,
            "intermediate_size": 4 * shape.width,
            "max_position_embeddings": max(1024, shape.tokens),
        }  # fmt: skip
        if shape.soft_cap is not None:
            arguments["final_logit_softcapping"] = shape.soft_cap
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model(shape.family, vocab_size=shape.vocab, **arguments, **special)
    torch.manual_seed(_SEED)
    return AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()


class Workload:
    """The steps at one shape. They share the frozen weights, and each has its own adapter.

    Attributes:
        notes: what was left out or replaced, a line each.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.notes: list[str] = []
        if shape.reduced_from:
            self.notes.append(
                f"{shape.name}: a vocabulary of {shape.vocab:,}, not {shape.reduced_from:,}."
            )
        self.base = make_model(shape)
        stream = torch.Generator().manual_seed(_SEED)
        self.ids = torch.randint(shape.vocab, (1, shape.tokens), generator=stream)
        self.hidden = self._computed(Backbone(self.base)).clone()

    @property
    def final(self) -> FinalLogits:
        """What the model does to its head's output."""
        return FinalLogits(soft_cap=self.shape.soft_cap)

    def steps(self) -> dict[str, Callable[[], object]]:
        """Everything that is timed: from a batch to new weights, AdamW included."""
        return {name: self.step(name) for name in self._makers()}

    def step(self, name: str) -> Callable[[], object]:
        """Make one of :meth:`steps`, and not the others."""
        return self._makers()[name]()

    def _makers(self) -> dict[str, Callable[[], Callable[[], object]]]:
        makers: dict[str, Callable[[], Callable[[], object]]] = {
            "floor": self.floor,
            "lora_naive": lambda: self.naive(self.lora()),
            "lora_fast": lambda: self.fast(self.lora()),
            "qpa_naive": lambda: self.naive(self.qpa(self.naive_backend)),
            "qpa_fast": lambda: self.fast(self.qpa("statevector")),
            "qpa_fast_tuned": lambda: self.fast(self._generated(QPAConfig())),
        }
        generated = lambda keys: self.fast(self._generated(QPAConfig(**keys)))  # noqa: E731
        for name, keys in _RELATIVES.items() if self.shape.relatives else ():
            makers[f"qpa_fast_{name}"] = partial(generated, keys)
        if self.shape.layers:
            makers |= {
                "lora_fast_uncached": lambda: self.fast(self.lora(), cached=False),
                "qpa_fast_uncached": lambda: self.fast(self.qpa("statevector"), cached=False),
                "qpa_fast_bf16": lambda: self.fast(self.qpa("statevector"), low=torch.bfloat16),
            }
        return makers

    # --- models ---------------------------------------------------------------------------------

    @cached_property
    def naive_backend(self) -> str:
        """TorchQuantum, which the paper's authors used, where it is installed."""
        try:
            self.qpa("torchquantum")
        except (InputError, ValueError) as error:
            self.notes.append(f"qpa_naive has the statevector, not TorchQuantum: {error}")
            return "statevector"
        return "torchquantum"

    def _fresh_base(self) -> PreTrainedModel:
        """Return a model of its own, since PEFT changes what it is given, on the same weights."""
        shared = {id(t): t for t in (*self.base.parameters(), *self.base.buffers())}
        return copy.deepcopy(self.base, shared)

    def _lora_config(self) -> LoraConfig:
        return LoraConfig(
            r=_RANK, lora_alpha=2 * _RANK, target_modules=["lm_head"], task_type="CAUSAL_LM"
        )

    def lora(self) -> Any:
        """PEFT's own LoRA of rank 4 on the head."""
        return self._classical(self._lora_config())

    def method(self, name: str) -> Any:
        """Return any method of ``peft=`` on the head, as conf/ has it.

        Raises:
            InputError: it is not for this head, or not for a head alone.
        """
        config = compose_config([f"peft={name}"])
        model = self._classical(make_peft_config(config.peft))
        if not adapts_head_alone(model):
            raise InputError(f"{name} changes more than the head.")
        return model

    def _classical(self, config: PeftConfig) -> Any:
        return ClassicalModel(build_peft_model(self._fresh_base(), config, _SEED)).train()

    def qpa(self, backend: str) -> QPAModel:
        """Return the same, generated."""
        return self._generated(_paper(n_mlp=self.shape.n_mlp, backend=backend))

    def _generated(self, config: QPAConfig) -> QPAModel:
        config = replace(config, seed=_SEED)
        return get_qpa_model(self._fresh_base(), self._lora_config(), config).train()

    # --- steps ----------------------------------------------------------------------------------

    def floor(self) -> Callable[[], object]:
        """One product of the hidden states with the frozen head."""
        hidden = self.hidden.flatten(0, 1)
        weight: Tensor = self.base.get_output_embeddings().weight.detach()
        out = torch.empty(len(weight), len(hidden))
        return lambda: torch.mm(weight, hidden.T, out=out)

    def naive(self, model: Any) -> Callable[[], object]:
        """Return the whole model, its logits all at once, transformers' own loss, autograd.

        With memory as a process has it that knows nothing of this package.
        """
        optimizer = _optimizer(model)

        def step() -> None:
            with stock_memory():
                optimizer.zero_grad()
                model(input_ids=self.ids, labels=self.ids).loss.backward()
                optimizer.step()

        return step

    def fast(
        self, model: Any, *, cached: bool = True, low: torch.dtype | None = None
    ) -> Callable[[], object]:
        """Step as a run does: hidden states from a table or the backbone, then the head's loss."""
        head, optimizer = AdaptedHead(model, self.final, low), _optimizer(model)
        targets = self.ids[:, 1:]
        weights = torch.full(targets.shape, 1 / targets.numel())
        backbone = Backbone(model.language_model())

        def step() -> None:
            optimizer.zero_grad()
            hidden = self.hidden if cached else self._computed(backbone)
            model.begin_step()
            head.loss(hidden, targets, weights)[0].backward()
            model.end_step()
            optimizer.step()

        return step

    def _computed(self, backbone: Backbone) -> Tensor:
        return backbone.hidden(self.ids, torch.ones_like(self.ids))[:, :-1]

    def bf16_perplexity(self) -> float:
        """Return the base model's perplexity with products in bfloat16, over that in float32, less
        1.
        """
        targets = self.ids[:, 1:]
        weights = torch.full(targets.shape, 1 / targets.numel())
        nats = []
        model = self.lora()
        for low in (None, torch.bfloat16):
            with torch.no_grad(), model.disable_adapter():
                loss, _ = AdaptedHead(model, self.final, low).loss(self.hidden, targets, weights)
                nats.append(float(loss))
        return math.exp(nats[1] - nats[0]) - 1


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)


# --- growth -----------------------------------------------------------------------------------

_SMALL = Shape("growth", "gpt2", vocab=16384, width=256, tokens=256, n_mlp=256)


@dataclass(frozen=True)
class Growth:
    """Seconds at some values of one size.

    Attributes:
        what: which size, and what is timed.
        sizes: what the exponent is of; 2^N for qubits.
    """

    name: str
    what: str
    values: list[int]
    sizes: list[int]
    times: list[Seconds]

    @property
    def exponent(self) -> float:
        """Return the exponent in seconds = c * size^exponent."""
        return fit_exponent(self.sizes, [time.median for time in self.times])

    def record(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return {
            "what": self.what,
            "values": self.values,
            "sizes": self.sizes,
            "seconds": [time.record() for time in self.times],
            "exponent": self.exponent,
        }


def measure_growth(rounds: int, quick: bool) -> list[Growth]:
    """Measure how the generator grows with qubits, layers and n_mlp, a step with its tokens."""
    cut = 3 if quick else None
    generator, step = "generator, forward and backward", "QPA step, hidden states at hand"
    plans: list[tuple[str, str, list[int], Callable[[int], Callable[[], object]]]] = [
        ("n_qubits", f"{generator}; n_mlp = 16, L = 8", [8, 10, 12, 14, 16],
         lambda n: _generate(n_mlp=16, n_chunks=2**n, n_layers=8)),
        ("n_layers", f"{generator}; N = 10, n_mlp = 16", [8, 16, 32, 64, 128],
         lambda n: _generate(n_mlp=16, n_chunks=2**10, n_layers=n)),
        ("n_mlp", f"{generator}; N = 7, L = 8", [256, 1024, 4096, 8192, 16384],
         lambda n: _generate(n_mlp=n, n_chunks=2**7, n_layers=8)),
        ("tokens", f"{step}; head 16384 x 256", [64, 128, 256, 512, 1024],
         lambda n: _step(replace(_SMALL, tokens=n))),
        ("vocab", f"{step}; 256 tokens, width 256", [4096, 8192, 16384, 32768, 65536],
         lambda n: _step(replace(_SMALL, vocab=n))),
    ]  # fmt: skip
    grown = []
    for name, what, values, make in plans:
        taken = values[:cut]
        times = side_by_side({str(n): make(n) for n in taken}, rounds)
        sizes = [2**n for n in taken] if name == "n_qubits" else taken
        grown.append(Growth(name, what, taken, sizes, [times[str(n)] for n in taken]))
    return grown


def _generate(n_mlp: int, n_chunks: int, n_layers: int) -> Callable[[], object]:
    config = _paper(n_mlp=n_mlp, n_layers=n_layers, seed=0)
    generator = Generator(n_mlp * n_chunks, config).train()
    return lambda: generator().sum().backward()


def _paper(**changed: Any) -> QPAConfig:
    """Return the paper's generator, with some keys changed."""
    return replace(compose_config(["qpa=paper"]).qpa, **changed)


def _step(shape: Shape) -> Callable[[], object]:
    work = Workload(shape)
    return work.fast(work.qpa("statevector"))


# --- memory -----------------------------------------------------------------------------------

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_STEPS = 2


def can_measure() -> bool:
    """Whether this system tells a process its peak (Linux does)."""
    return _STATUS.is_file() and _RESET.is_file()


def measure_memory(shape: Shape, steps: list[str], threads: int) -> dict[str, float | None]:
    """MiB above the weights, by name of the step; None where a process did not end well."""
    found: dict[str, float | None] = {}
    for name in steps:  # each in a process of its own
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as one:
            done = one.submit(peak_mib, shape, name, threads)
            found[name] = None if done.exception() else done.result()
    return found


def peak_mib(shape: Shape, step: str, threads: int) -> float:
    """MiB between what the process holds before its first step and the peak of its steps.

    The model, its hidden states and the adapter are there before; the optimizer's moments, which
    the first step makes, count as the step's.
    """
    torch.set_num_threads(threads)
    do = Workload(shape).step(step)
    torch.mm(torch.ones(256, 256), torch.ones(256, 256))  # the library's own start-up
    release_freed_memory()  # or a step would take what building the model has left
    before = _mib("VmRSS")
    keep_freed_memory()
    _RESET.write_text("5", encoding="ascii")  # the peak begins anew
    for _ in range(_STEPS):
        do()
    return _mib("VmHWM") - before


def _mib(field: str) -> float:
    values = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="utf-8").splitlines())
    return int(values[field].split()[0]) / 1024
