"""``task=seq_cls``: it learns, on any of transformers' classifiers, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from qpa_exp import export, generate, plan, score
from qpa_exp.adapters.counts import count
from qpa_exp.adapters.formats import FORMATS
from qpa_exp.cli import compose_config
from qpa_exp.config import Config
from qpa_exp.data.datamodule import TextSize
from qpa_exp.errors import InputError
from qpa_exp.runs import directory
from qpa_exp.runs.callbacks import Stopwatch
from qpa_exp.runs.train import build, run
from qpa_exp.runs.trained import load_run
from qpa_exp.task import TASKS

Configure = Callable[..., Config]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts whose class follows from one of their words, in files of three forms."""
    place = tmp_path_factory.mktemp("labelled")
    rows = [
        (
            f"the {word} of number {i}, and more",
            "physics" if word in ("qubit", "state") else "words",
        )
        for i in range(20)
        for word in ("qubit", "noun", "state", "verb")
    ]
    lines = [f'"{text}",{name}' for text, name in rows]
    (place / "all.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    records = [json.dumps({"said": text, "about": name}) for text, name in rows]
    (place / "all.jsonl").write_text("\n".join(records) + "\n")
    splits = place / "splits"
    splits.mkdir()
    for split, part in (("train", lines[:56]), ("valid", lines[56:64]), ("test", lines[64:])):
        (splits / f"{split}.csv").write_text("text,label\n" + "\n".join(part) + "\n")
    return place


@pytest.fixture
def classify(small_model_dir: Path, labelled: Path) -> Configure:
    given = [
        "task=seq_cls", "model=hf", f"model.name_or_path={small_model_dir}", "data=labelled",
        f"data.path={labelled / 'splits'}", "data.max_length=16", "data.batch_size=4",
        "peft.target_modules=[c_attn]", "optim.lr=1e-2", "trainer.max_epochs=10",
        "trainer.progress_bar=false",
    ]  # fmt: skip
    return lambda *more: compose_config([*given, *more])


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["tuned", pytest.param("off", marks=pytest.mark.long)])
def test_a_classifier_learns_is_saved_and_comes_back(
    classify: Configure, tmp_path: Path, variant: str
) -> None:
    metrics = run(classify(f"qpa={variant}"), tmp_path / "run")
    assert metrics["status"] == "complete"
    assert metrics["class_names"] == ["physics", "words"]
    assert metrics["accuracy"] > max(0.8, metrics["base_accuracy"])
    assert "perplexity" not in metrics

    config = directory.read_config(tmp_path / "run")
    one, other = (load_run(tmp_path / "run").model for _ in range(2))
    ids = torch.arange(1, 13).view(1, -1)
    with torch.no_grad():
        assert torch.equal(one(input_ids=ids).logits, other(input_ids=ids).logits)
        plain = one.to_peft()(input_ids=ids).logits
        torch.testing.assert_close(plain, one(input_ids=ids).logits)
    assert config.task == "seq_cls"
    with pytest.raises(InputError, match="writes no text"):
        generate.main([f"run={tmp_path / 'run'}", "prompt=the"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["data=pydoc", "data.layout=lines"], "give data=labelled data.path="),
        (["data.layout=blocks"], "give data.layout=lines"),
        (["peft.target_modules=[lm_head]"], "has no lm_head"),
    ],
)
def test_what_cannot_be_classified_is_refused_before_anything_is_read(
    classify: Configure, given: list[str], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        classify("data.path=null", *given) if "data=pydoc" in given else classify(*given)


# --- the models that people classify with ---------------------------------------------------------


def _byte_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """Bytes, with what encoders put around a text."""
    bpe = Tokenizer(models.BPE(unk_token=special["unk_token"]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = ["bos_token", "pad_token", "eos_token", "unk_token", "mask_token"]
    added = [special[name] for name in names if name in special]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        ["some text"], trainers.BpeTrainer(special_tokens=added, initial_alphabet=alphabet)
    )
    first, last = added[0], special.get("eos_token", added[0])
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        special_tokens=[(each, bpe.token_to_id(each)) for each in {first, last}],
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **special)


_SIZES = {
    "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "initializer_range": 0.5,
}  # fmt: skip
ENCODERS = {
    "roberta": (
        RobertaConfig(**_SIZES, max_position_embeddings=66, pad_token_id=1),
        {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    ),
    "bert": (
        BertConfig(**_SIZES, max_position_embeddings=64),
        {"pad_token": "[PAD]", "unk_token": "[UNK]"},
    ),
}


@pytest.fixture(params=ENCODERS)
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    architecture, special = ENCODERS[request.param]
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(architecture).save_pretrained(tmp_path / "m")
    _byte_tokenizer(**special).save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def test_an_encoder_reads_a_text_as_transformers_has_it_read(
    classify: Configure, encoder: Path
) -> None:
    config = classify(
        f"model.name_or_path={encoder}", "peft.target_modules=[query]", "data.max_length=64"
    )
    task = TASKS["seq_cls"](config, Stopwatch())
    data = task.data()
    batch = data.examples["test"][list(range(8))]
    ours = task.load_model(data.tokenizer, data.corpus.class_names)
    theirs = AutoModelForSequenceClassification.from_pretrained(encoder).eval()
    texts = data.corpus.splits["test"][:8]
    given = data.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        found = ours(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        torch.testing.assert_close(found, theirs(**given).logits)


def test_its_longest_text_is_what_it_has_positions_for(classify: Configure, encoder: Path) -> None:
    given = [f"model.name_or_path={encoder}", "peft.target_modules=[query]"]
    build(classify(*given, "data.max_length=64"), "off")
    with pytest.raises(InputError, match="beyond the 64 positions"):
        build(classify(*given, "data.max_length=65"), "off")


def test_an_encoder_with_a_decoder_is_refused_in_a_sentence(
    classify: Configure, tmp_path: Path
) -> None:
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    BartForSequenceClassification(
        BartConfig(vocab_size=300, d_model=8, max_position_embeddings=64, **sizes, **heads)
    ).save_pretrained(tmp_path)
    _byte_tokenizer(**ENCODERS["roberta"][1]).save_pretrained(tmp_path)
    config = classify(f"model.name_or_path={tmp_path}", "peft.target_modules=[q_proj]")
    with pytest.raises(InputError, match="is a bart, an encoder with a decoder"):
        build(config, "off")


@pytest.mark.parametrize("names", [["words", "physics"], ["physics", "words"]])
def test_a_trained_head_keeps_its_classes(
    classify: Configure, small_model_dir: Path, tmp_path: Path, names: list[str]
) -> None:
    trained = AutoModelForSequenceClassification.from_pretrained(
        small_model_dir, id2label=dict(enumerate(names)), pad_token_id=0
    )
    trained.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(small_model_dir).save_pretrained(tmp_path)
    parts = build(classify(f"model.name_or_path={tmp_path}"), "off")
    head = parts.model.language_model().score
    assert torch.equal(head.original_module.weight, trained.score.weight)
    assert parts.data.corpus.class_names == names
    example = int(parts.data.examples["train"][[0]]["labels"])
    assert names[example] == "physics"  # the qubit of the first text


@pytest.fixture
def five_classes(tmp_path: Path) -> str:
    """Texts of five classes, of different lengths."""
    lines = [f"{'w3 ' * (1 + i % 4)}w4,class {i % 5}" for i in range(40)]
    (tmp_path / "five.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    return f"data.path={tmp_path / 'five.csv'}"


def test_a_plan_counts_the_classifier_that_the_run_trains(
    classify: Configure, five_classes: str
) -> None:
    config = classify(five_classes)
    assert plan.plan(config) == count(build(config, "off").model)


def test_a_plan_says_where_it_does_not_know_the_classes(
    classify: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    plan.plan(classify("data.path=someone/texts"))
    assert "someone/texts is not read for a plan" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("base", ["never a classifier", "of two classes"])
def test_the_card_of_an_export_loads_it(
    classify: Configure, small_model_dir: Path, five_classes: str, tmp_path: Path, base: str
) -> None:
    """The base has no padding token, and not the classes of the text."""
    place = small_model_dir
    if base == "of two classes":
        place = tmp_path / "base"
        AutoModelForSequenceClassification.from_pretrained(small_model_dir).save_pretrained(place)
        AutoTokenizer.from_pretrained(small_model_dir).save_pretrained(place)
    where = tmp_path / "run"
    steps = ["trainer.max_steps=2", "trainer.log_every_n_steps=1"]
    run(classify(f"model.name_or_path={place}", five_classes, *steps), where)
    trained = load_run(where).model
    given = {"input_ids": torch.tensor([[5, 6, 7, 8], [9, 3, 0, 0]])}  # the second is padded
    for form in FORMATS:
        out = tmp_path / form
        export.main([f"run={where}", f"out={out}", f"format={form}"])
        (program,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
        made: dict[str, Any] = {}
        program = program.replace("<this directory>", str(out))
        exec(program.replace("<the language model>", str(place)), made)
        model = made["model"].eval()
        assert list(model.config.id2label.values()) == [f"class {i}" for i in range(5)]
        with torch.no_grad():
            torch.testing.assert_close(model(**given).logits, trained(**given).logits)


@pytest.mark.parametrize(
    ("label", "says"),
    [
        (lambda i: f"{i / 7:.3f}", "has 40 classes in 40 texts"),
        (lambda i: f"{i % 30}", "has 30 classes in 40 texts"),
        (lambda i: f"{i % 20}", None),
    ],
)
def test_a_class_for_each_text_is_refused(
    classify: Configure, tmp_path: Path, label: Callable[[int], str], says: str | None
) -> None:
    lines = [f"some words,{label(i)}" for i in range(40)]
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    data = TASKS["seq_cls"](classify(f"data.path={tmp_path / 'a.csv'}"), Stopwatch()).data()
    if says is None:
        assert len(data.corpus.class_names) == 20
    else:
        with pytest.raises(InputError, match=f"{says}.*regression"):
            data.setup()


def test_a_score_refuses_what_a_run_does(small_directory: Path, tmp_path: Path) -> None:
    """OPT counts positions by its mask: examples of a packed row see each other."""
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 16, "num_hidden_layers": 1}
    tokenizer = AutoTokenizer.from_pretrained(small_directory)
    OPTForCausalLM(
        OPTConfig(vocab_size=len(tokenizer), num_attention_heads=2, **sizes)
    ).save_pretrained(tmp_path / "opt")
    tokenizer.save_pretrained(tmp_path / "opt")
    rows = [{"prompt": "the qubit", "completion": f" number {i}"} for i in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = ["model=hf", f"model.name_or_path={tmp_path / 'opt'}", "data=instruct"]
    config = compose_config([*given, f"data.path={tmp_path / 'a.jsonl'}", "data.layout=packed"])
    for measure in (score.score, lambda config: build(config, "off")):
        with pytest.raises(InputError, match="examples of one row see each other"):
            measure(config)


def test_a_split_without_words_has_a_perplexity_and_no_figure_of_its_text() -> None:
    task = TASKS["causal_lm"](compose_config([]), Stopwatch())
    assert task.figures_of_text({"text": 1.0}, TextSize(tokens=3, bytes=3, words=0)).keys() == {
        "bits_per_byte"
    }
    assert task.figures_of_text({"text": 1.0}, TextSize(tokens=3, bytes=0, words=0)) == {}
