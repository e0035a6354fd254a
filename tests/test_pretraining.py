"""The recipe of the shipped language model, and the shipped model itself."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

import qpa_exp.lm
from pretraining import docstrings
from pretraining.__main__ import main, parse_args, pretrain
from pretraining.docstrings import (
    collect_docstrings,
    decontaminate,
    file_docstrings,
    gather_corpus,
    split_held_out,
)
from pretraining.tokenizer import END_OF_TEXT
from pretraining.training import (
    Recipe,
    batch_loss,
    build_model,
    cut_blocks,
    held_out_loss,
    learning_rate,
    training_batches,
)
from qpa_exp.errors import InputError

SHIPPED = Path(qpa_exp.lm.__file__).parent / "tiny"
UNIFORM_LOSS = math.log(16384)
SENTENCE = (
    "If the optional argument is given, the function returns a list of all the values "
    "in the sequence; otherwise it raises an exception."
)
MODULE = '''"""Module text.

    Second line.
"""
raise RuntimeError("must never be executed")

class Box:
    """A box."""
    def open(self):
        """Open the box."""

async def wait():
    """Wait for the box."""

add_newdoc("pkg", "thing", ("shape", """
    The shape of the thing, as a tuple of whole numbers.
    """))
other_call("pkg", "a long string that no documentation function ever receives")
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small source tree that must be parsed, never run."""
    root = tmp_path / "package"
    (root / "tests").mkdir(parents=True)
    (root / "b.py").write_text('"""Shared text."""\n')
    (root / "a.py").write_text(MODULE)
    (root / "c.py").write_text('"""Shared text."""\ndef f():\n    """Only in c."""\n')
    (root / "broken.py").write_text('def (:\n    """Lost."""\n')
    (root / "tests" / "test_a.py").write_text('"""Text of a test module."""\n')
    return root


def _tiny_recipe() -> Recipe:
    return Recipe(
        steps=2, batch_tokens=64, short_block=8, long_block=32, vocab_size=300, n_embd=16, n_layer=1
    )


def _tiny_texts() -> list[str]:
    return [f"Return the item number {i} of the sequence, or None." for i in range(300)]


# --- text -------------------------------------------------------------------------------------


def test_file_docstrings_finds_docstrings_and_documentation_calls(package: Path) -> None:
    assert sorted(file_docstrings(package / "a.py")) == [
        "A box.",
        "Module text.\n\nSecond line.",
        "Open the box.",
        "The shape of the thing, as a tuple of whole numbers.",
        "Wait for the box.",
    ]


def test_collecting_skips_tests_and_duplicates_and_is_deterministic(package: Path) -> None:
    found = collect_docstrings({"package": package})
    texts = found["package"]
    assert texts[-2:] == ["Shared text.", "Only in c."]
    assert len(texts) == len(set(texts)) == 7
    assert collect_docstrings({"package": package}) == found


def test_duplicates_across_sources_belong_to_the_first_in_order(package: Path) -> None:
    roots = {"z": package / "z", "y": package / "y"}
    for source, module in (("z", "c.py"), ("y", "b.py")):
        roots[source].mkdir()
        (package / module).rename(roots[source] / module)
    found = collect_docstrings(roots)
    assert found == {"y": ["Shared text."], "z": ["Only in c."]}


def test_decontaminate_compares_long_lines_without_regard_to_spacing() -> None:
    line = "An expression list containing at least one comma yields a tuple."
    reference = [f"Heading\n   {line}\nshort line"]
    docs = [f"Intro.\n\n  {line.replace(' ', '  ')}\n", "short line", f"{line} And more."]
    assert decontaminate(docs, reference) == (docs[1:], 1)


def test_gather_corpus_drops_the_language_reference(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = "The shape of the thing, as a tuple of whole numbers."
    monkeypatch.setattr(docstrings, "evaluation_texts", lambda: [reference])
    texts, about = gather_corpus({"numpy": package})
    assert reference not in texts
    assert about["dropped_as_contaminated"] == 1
    assert about["docstrings"] == len(texts) == 6
    assert about["characters"] == about["sources"]["numpy"]["characters"]
    assert len(about["sources"]["numpy"]["sha256"]) == 64


def test_the_evaluation_corpus_is_never_a_source() -> None:
    texts = docstrings.evaluation_texts()
    assert decontaminate(texts, texts)[1] > 0.95 * len(texts)
    assert "pydoc_data" in docstrings.SKIPPED_DIRS


def test_held_out_split_is_seeded_and_about_one_percent() -> None:
    texts = [f"text {i}" for i in range(5000)]
    training, held_out = split_held_out(texts, seed=0)
    assert sorted(training + held_out) == sorted(texts)
    assert 25 <= len(held_out) <= 80
    assert split_held_out(texts, seed=0) == (training, held_out)
    assert split_held_out(texts, seed=1)[1] != held_out
    # A text stays on its side whatever else is in the corpus.
    assert set(split_held_out(texts[:2500], seed=0)[1]) <= set(held_out)


# --- batches ----------------------------------------------------------------------------------


def test_blocks_are_consecutive_tokens_and_visit_the_text_once_per_pass() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = cut_blocks(torch.arange(101), 10, 3, generator)
    batch = torch.cat([next(blocks) for _ in range(3)])
    assert batch.shape == (9, 11)
    assert torch.equal(batch - batch[:, :1], torch.arange(11).expand(9, 11))
    assert len(set(batch[:, 0].tolist())) == 9


def test_blocks_need_enough_text() -> None:
    with pytest.raises(ValueError, match="needs 10"):
        next(cut_blocks(torch.arange(10), 10, 1, torch.Generator()))


def test_batches_mix_both_lengths_and_repeat_with_the_seed() -> None:
    stream = torch.arange(2000)
    first, second = (training_batches(stream, _tiny_recipe()) for _ in range(2))
    drawn = [next(first) for _ in range(40)]
    assert {tuple(batch.shape) for batch in drawn} == {(8, 9), (2, 33)}
    assert all(torch.equal(batch, next(second)) for batch in drawn)


# --- loss and schedule ------------------------------------------------------------------------


def test_chunked_loss_and_gradients_match_plain_cross_entropy() -> None:
    model = build_model(Recipe(vocab_size=300, n_embd=16, n_layer=1, long_block=200))
    with torch.no_grad():
        model.lm_head.weight.mul_(20.0)  # logits of ordinary size
    batch = torch.randint(300, (2, 101), generator=torch.Generator().manual_seed(0))
    loss = batch_loss(model, batch)
    loss.backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    logits = model(batch[:, :-1]).logits
    expected = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=2e-3)
    for grad, parameter in zip(grads, model.parameters(), strict=True):
        assert parameter.grad is not None
        assert (grad - parameter.grad).norm() <= 0.03 * parameter.grad.norm()


def test_held_out_loss_of_an_untrained_model_is_uniform() -> None:
    model = build_model(Recipe(vocab_size=300, n_embd=16, n_layer=1, long_block=32))
    stream = torch.arange(290)
    assert held_out_loss(model, stream, 32) == pytest.approx(math.log(300), abs=0.1)
    assert math.isnan(held_out_loss(model, stream[:5], 32))


def test_learning_rate_warms_up_then_falls_to_zero() -> None:
    recipe = Recipe(steps=1000)
    rates = [learning_rate(step, recipe) for step in range(1000)]
    peak = rates.index(max(rates))
    assert rates[peak] == pytest.approx(recipe.peak_lr)
    assert 29 <= peak <= 30
    assert rates[0] == pytest.approx(recipe.peak_lr / 30)
    assert rates[-1] < 1e-4 * recipe.peak_lr


def test_options_default_to_the_shipped_recipe(tmp_path: Path) -> None:
    args = parse_args(["--out", str(tmp_path)])
    default = Recipe()
    assert (args.steps, args.seed, args.batch_tokens) == (
        default.steps,
        default.seed,
        default.batch_tokens,
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--out"),
        (["--out", "x", "--steps", "0"], "--steps: 0 is no whole number of at least 1"),
        (["--out", "x", "--steps", "1.5"], "--steps: 1.5 is no whole number"),
        (["--out", "x", "--peak-lr", "nan"], "--peak-lr: nan is no number of at least 0"),
        (["--out", "x", "--step-size", "1"], "unrecognized arguments: --step-size"),
    ],
)
def test_bad_options_are_named(arguments: list[str], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        parse_args(arguments)


def test_a_folder_that_cannot_be_made_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made a directory"):
        main(["--out", str(tmp_path / "file")])


def test_a_source_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(docstrings.SOURCES, "no_such_package", "MIT")
    with pytest.raises(InputError, match="no_such_package"):
        docstrings.installed_roots()


# --- a whole run ------------------------------------------------------------------------------


def test_a_short_run_writes_a_directory_that_transformers_loads(tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("first", "second")]
    records = [
        pretrain(_tiny_recipe(), _tiny_texts(), {"sources": {}, **_counts()}, out) for out in outs
    ]
    model = AutoModelForCausalLM.from_pretrained(outs[0])
    tokenizer = AutoTokenizer.from_pretrained(outs[0])
    text = "Return  the item,\n    naïvely: 42 "
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert model(torch.tensor([ids])).logits.shape == (1, len(ids), 300)
    assert records[0]["outcome"]["finished"]
    assert records[0]["outcome"]["steps"] == 2
    assert records[0]["outcome"]["tokens_seen"] == 128
    assert "unfinished" not in (outs[0] / "README.md").read_text()
    for name in ("model.safetensors", "tokenizer.json"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()


def _counts() -> dict[str, int]:
    return {"docstrings": 300, "characters": 15000, "dropped_as_contaminated": 0}


# --- the shipped model ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> tuple[torch.nn.Module, object]:
    """The shipped model and tokenizer, loaded by transformers' own classes."""
    model = AutoModelForCausalLM.from_pretrained(SHIPPED)
    return model.eval(), AutoTokenizer.from_pretrained(SHIPPED)


def test_shipped_model_has_the_documented_shape(shipped) -> None:  # type: ignore[no-untyped-def]
    model, tokenizer = shipped
    embedding = model.get_input_embeddings().weight
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert embedding.shape == (16384, 128)
    assert embedding.dtype == torch.float32
    assert model.get_output_embeddings().weight is embedding
    assert model.config.n_positions == 512
    assert (model.config.n_layer, model.config.n_head) == (4, 4)
    assert len(tokenizer) == 16384
    assert tokenizer.convert_tokens_to_ids(END_OF_TEXT) == 0
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0


def test_shipped_tokenizer_is_lossless(shipped) -> None:  # type: ignore[no-untyped-def]
    _, tokenizer = shipped
    text = " def f(x):\n    return 'naïve π €' , x . \t\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_shipped_directory_is_complete_and_small() -> None:
    sizes = {path.name: path.stat().st_size for path in SHIPPED.iterdir()}
    assert set(sizes) == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "recipe.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(sizes.values()) <= 8_000_000


def test_shipped_model_predicts_english(shipped) -> None:  # type: ignore[no-untyped-def]
    model, tokenizer = shipped
    ids = torch.tensor([[0, *tokenizer(SENTENCE)["input_ids"]]])
    with torch.no_grad():
        loss = model(ids, labels=ids).loss.item()
    assert loss < 0.6 * UNIFORM_LOSS


def test_shipped_record_describes_a_finished_run() -> None:
    record = json.loads((SHIPPED / "recipe.json").read_text(encoding="utf-8"))
    outcome = record["outcome"]
    assert outcome["finished"]
    assert outcome["steps"] == record["recipe"]["steps"] == Recipe().steps
    assert outcome["final_held_out_loss"] < 4.5
    assert record["corpus"]["characters"] > 15_000_000
    assert "pydoc_data" not in record["corpus"]["sources"]
