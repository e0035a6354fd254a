"""Every PEFT method on every family of language models: train, export, load, compare.

``pytest tests/training/test_matrix.py --matrix FILE`` writes what it found as a table.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families import ADAPTABLE, architectures
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from qpa_exp import QPAModel, export
from qpa_exp.cli import compose_config
from qpa_exp.config import Config, PeftMethod
from qpa_exp.errors import InputError
from qpa_exp.training.results import read_curve
from qpa_exp.training.run import run
from qpa_exp.training.trained import GENERATOR, load_run

pytestmark = pytest.mark.slow

VOCABULARY, WIDTH, POSITIONS = 64, 16, 32  # the tokenizer has 61 words of these
METHOD_NAMES = [method.value for method in PeftMethod]
FAMILIES = list(ADAPTABLE)
# Layers of this package, which a plain transformers or PEFT model has no place for.
OWN_LAYERS = {"prefix", "ffa"}
# PEFT merges no prefix into weights; a prefix of keys and values needs a cache of those.
NEVER_MERGED = {"prefix_tuning"}
NEEDS_ATTENTION = {"prefix_tuning"}


class Matrix:
    """What was found, cell by cell."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str], str] = {}

    def markdown(self) -> str:
        """A table, methods by families."""
        lines = ["| | " + " | ".join(FAMILIES) + " |", "| --- " * (len(FAMILIES) + 1) + "|"]
        for method in METHOD_NAMES:
            found = [self.cells.get((method, family), "not run") for family in FAMILIES]
            lines.append(f"| {method} | " + " | ".join(found) + " |")
        return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def matrix(request: pytest.FixtureRequest) -> Iterator[Matrix]:
    found = Matrix()
    yield found
    file = request.config.getoption("--matrix")
    if file:
        Path(file).write_text(found.markdown(), encoding="utf-8")


@pytest.fixture(scope="module")
def word_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text in which a word is likely to be followed by the next of a short list."""
    directory = tmp_path_factory.mktemp("words")
    draw = random.Random(0)
    for split, n in (("train", 240), ("validation", 24), ("test", 24)):
        starts = [draw.randrange(1, 20) for _ in range(n)]
        lines = [" ".join(f"w{1 + (start + i) % 20}" for i in range(15)) for start in starts]
        (directory / f"{split}.txt").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def family_directory(
    small_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A random model of a family in the hub's format, with the tokenizer of whole words."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            directory = made[family] = tmp_path_factory.mktemp(family)
            torch.manual_seed(0)
            shape = architectures(VOCABULARY, WIDTH, POSITIONS)[family]
            model = AutoModelForCausalLM.from_config(shape)
            if model.get_output_embeddings().bias is not None:
                torch.nn.init.normal_(model.get_output_embeddings().bias)
            model.save_pretrained(directory)
            PreTrainedTokenizerFast.from_pretrained(small_directory).save_pretrained(directory)
        return made[family]

    return make


@pytest.fixture
def configure_cell(
    family_directory: Callable[[str], Path], word_text: Path, method_overrides: Any
) -> Callable[..., Config]:
    """One epoch of a method on a family."""

    def configure(method: str, family: str, *more: str) -> Config:
        lr = 1e-3 if method == "randlora" else 1e-2  # its directions are many: conf/model too
        return compose_config([
            "model=hf", f"model.name_or_path={family_directory(family)}", f"peft={method}",
            *method_overrides[method], "data=text", f"data.path={word_text}",
            "data.max_length=16", "data.batch_size=4", "qpa.n_mlp=8", "qpa.scale=0.1",
            f"optim.lr={lr}", "trainer.max_epochs=1", "trainer.progress_bar=false", *more,
        ])  # fmt: skip

    return configure


def logits_of(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=tokens, use_cache=False).logits


@pytest.mark.parametrize(("method", "family"), list(itertools.product(METHOD_NAMES, FAMILIES)))
def test_it_trains_and_leaves_what_others_load(
    method: str,
    family: str,
    configure_cell: Callable[..., Config],
    family_directory: Callable[[str], Path],
    matrix: Matrix,
    tmp_path: Path,
) -> None:
    config = configure_cell(method, family)
    if method in NEEDS_ATTENTION and family == "mamba":
        with pytest.raises(InputError):
            run(config, tmp_path / "run")
        matrix.cells[method, family] = "refused: no attention"
        return
    run(config, tmp_path / "run")
    losses = read_curve(tmp_path / "run", "validation/loss")[1]
    assert losses[-1] < losses[0]

    tokens = torch.randint(1, VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(1))
    trained = logits_of(load_run(tmp_path / "run").model, tokens)
    loaders = {"qpa": lambda base, place: QPAModel.from_pretrained(base, place)}
    if method not in OWN_LAYERS:
        loaders["peft"] = PeftModel.from_pretrained
        if method not in NEVER_MERGED:
            loaders["merged"] = lambda base, place: AutoModelForCausalLM.from_pretrained(place)
    for form, load in loaders.items():
        place = tmp_path / form
        export.main([f"run={tmp_path / 'run'}", f"out={place}", f"format={form}"])
        base = AutoModelForCausalLM.from_pretrained(family_directory(family))
        torch.testing.assert_close(
            logits_of(load(base, place), tokens), trained, atol=1e-5, rtol=1e-5
        )
    assert (tmp_path / "run" / GENERATOR).is_dir()
    matrix.cells[method, family] = f"{losses[0]:.2f} → {losses[-1]:.2f}; {', '.join(loaders)}"


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_and_mlp_are_targets_too(
    family: str, configure_cell: Callable[..., Config], tmp_path: Path
) -> None:
    targets = ",".join(ADAPTABLE[family])
    config = configure_cell("lora", family, f"peft.target_modules=[{targets}]")
    run(config, tmp_path / "run")
    losses = read_curve(tmp_path / "run", "validation/loss")[1]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("method", ["lora", "dora", "prefix", "ffa"])
def test_frozen_weights_of_16_bits(
    method: str,
    dtype: str,
    configure_cell: Callable[..., Config],
    family_directory: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    run(configure_cell(method, "llama", f"model.dtype={dtype}"), tmp_path / "run")
    losses = read_curve(tmp_path / "run", "validation/loss")[1]
    assert losses[-1] < losses[0]
    tokens = torch.arange(1, 13)[None]
    trained = logits_of(load_run(tmp_path / "run").model, tokens)
    export.main([f"run={tmp_path / 'run'}", f"out={tmp_path / 'qpa'}", "format=qpa"])
    base = AutoModelForCausalLM.from_pretrained(family_directory("llama"), dtype=dtype)
    loaded = logits_of(QPAModel.from_pretrained(base, tmp_path / "qpa"), tokens)
    assert torch.equal(loaded, trained)
