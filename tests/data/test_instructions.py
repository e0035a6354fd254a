"""Instructions: the answers alone carry loss, as in TRL; packed examples do not see each other."""

from __future__ import annotations

import copy
import itertools
import json
import re
from pathlib import Path

import datasets
import pytest
import torch
import trl
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from qpa_exp.config import DataConfig
from qpa_exp.data.datamodule import TextDataModule
from qpa_exp.data.instructions import pack, template_text, tokenise_records
from qpa_exp.errors import InputError
from qpa_exp.lm.loading import BUNDLED

PLAIN = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '\n' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
PAIRS = [
    {"prompt": f"Define qubit {i}:", "completion": f" a state of {i} levels"} for i in range(12)
]


def chat(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]


CHATS = [
    {"messages": chat("What is it?", f"A map {i}.", "And that?", "A state.")} for i in range(12)
]
CHAT_PAIRS = [
    {"prompt": chat("What is it?"), "completion": [{"role": "assistant", "content": f"A map {i}."}]}
    for i in range(12)
]
SHAREGPT = [
    {
        "conversations": [
            {"from": {"user": "human", "assistant": "gpt"}[each["role"]], "value": each["content"]}
            for each in row["messages"]
        ]
    }
    for row in CHATS
]
FORMS = {"pairs": PAIRS, "chats": CHATS, "chat pairs": CHAT_PAIRS, "ShareGPT": SHAREGPT}


@pytest.fixture(scope="module")
def tiny():
    return AutoTokenizer.from_pretrained(BUNDLED["qpa_exp/tiny"])


def write(file: Path, rows) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def data_of(path: Path, tokenizer, rows, **fields) -> TextDataModule:
    given = {"layout": "lines", "max_length": 48, "batch_size": 4} | fields
    given["path"] = str(write(path / "a.jsonl", rows))
    return TextDataModule(DataConfig(name="instruct", **given), tokenizer, seed=0)


def answered(data: TextDataModule, row: int = 0, role: str = "train") -> str:
    """What carries loss in one example."""
    examples = data.examples[role]
    return data.tokenizer.decode(examples.input_ids[row][examples.answers[row]])


@pytest.mark.parametrize(
    ("form", "template", "says"),
    [
        ("pairs", None, " a state of 0 levels<|endoftext|>"),
        ("chats", PLAIN, "A map 0.\nA state.\n"),
        ("chats", MARKED, "A map 0.\nA state.\n"),
        ("ShareGPT", PLAIN, "A map 0.\nA state.\n"),
        ("chat pairs", PLAIN, "A map 0.\n"),
    ],
)
def test_the_answers_alone_carry_loss(tmp_path, tiny, form, template, says) -> None:
    data = data_of(tmp_path, tiny, FORMS[form], chat_template=template)
    assert answered(data) == says
    batch = next(iter(data.test_dataloader()))
    assert torch.equal(batch["labels"] != -100, data.examples["test"].answers)
    size = data.examples["train"].size
    assert size.tokens == int(data.examples["train"].answers.sum())
    text = says.removesuffix("\n").removesuffix("<|endoftext|>")
    assert (size.words, size.bytes) == (9 * len(text.split()), 9 * len(text))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("form", "template", "loss"),
    [
        ("pairs", None, "completion_only_loss"),
        ("chat pairs", PLAIN, "completion_only_loss"),
        ("chats", MARKED, "assistant_only_loss"),
    ],
)
def test_labels_are_those_of_trl(tmp_path, tiny, form, template, loss, small_model_dir) -> None:
    trl = pytest.importorskip("trl")
    from transformers import AutoModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(BUNDLED["qpa_exp/tiny"])
    tokenizer.chat_template = template
    given = {"max_length": 18, "report_to": [], "use_cpu": True, "shuffle_dataset": False}
    trainer = trl.SFTTrainer(
        AutoModelForCausalLM.from_pretrained(small_model_dir),
        trl.SFTConfig(str(tmp_path), **{loss: True}, **given),
        train_dataset=datasets.Dataset.from_list(FORMS[form]), processing_class=tokenizer,
    )  # fmt: skip
    examples = data_of(
        tmp_path, tiny, FORMS[form], split="train", chat_template=template, max_length=18
    ).examples["train"]
    for n in range(len(examples)):
        ids = examples.input_ids[n, : examples.lengths[n]]
        assert ids.tolist() == trainer.train_dataset[n]["input_ids"]
        labels = ids.masked_fill(~examples.answers[n, : len(ids)], -100)
        assert labels.tolist() == list(trainer.train_dataset[n]["labels"])


def test_marks_and_turns_agree_where_the_template_marks_what_it_adds(tmp_path, tiny) -> None:
    found = [
        data_of(tmp_path, tiny, CHATS, chat_template=template).examples["train"]
        for template in (PLAIN, MARKED)
    ]
    assert torch.equal(found[0].input_ids, found[1].input_ids)
    assert torch.equal(found[0].answers, found[1].answers)


THOUGHT = chat("What is it?", "<think>\nSo.\n</think>\n\nA map.", "And that?", "A state.")
TEMPLATES = sorted(
    file.name
    for file in (Path(trl.__file__).parent / "chat_templates").glob("*.jinja")
    if not file.stem.endswith("_training")
)


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_are_found_whatever_a_family_of_models_makes_of_earlier_turns(
    tiny, name: str
) -> None:
    """Qwen3 drops thoughts from earlier turns, Phi-3 ends the last one otherwise, and so on."""
    tiny = copy.deepcopy(tiny)
    tiny.bos_token = tiny.eos_token
    template = (Path(trl.__file__).parent / "chat_templates" / name).read_text()
    for messages in (CHATS[0]["messages"], THOUGHT):
        record = json.dumps({"messages": messages})
        if name in ("idefics3.jinja", "llava_next.jinja", "smolvlm.jinja"):  # lists of parts
            with pytest.raises(InputError, match=r"does not write what|cannot write this chat"):
                list(tokenise_records([record], tiny, template))
            with pytest.raises(InputError, match=r"does not write what|cannot write this chat"):
                list(tokenise_records([json.dumps(CHAT_PAIRS[0])], tiny, template))
            continue
        ((_, ids, loss),) = tokenise_records([record], tiny, template)
        runs = [
            tiny.decode([token for token, _ in run])
            for carries, run in itertools.groupby(zip(ids, loss, strict=True), lambda at: at[1])
            if carries
        ]
        said = ("A map", "A state.")
        assert len(runs) == len(said)
        for text, words in zip(runs, said, strict=True):
            assert words in text
            assert "What" not in text
            assert "that?" not in text
        if "qwen3" in name or "phi" in name or "llama" in name:
            assert re.search(r"A map.*\S", runs[0])
            assert re.search(r"A state\..*<\|\w+\|", runs[1])


@pytest.mark.parametrize("given", ["file", "text"])
def test_a_template_is_a_file_or_its_text(tmp_path, given) -> None:
    (tmp_path / "chat.jinja").write_text(PLAIN)
    assert template_text(str(tmp_path / "chat.jinja") if given == "file" else PLAIN) == PLAIN


def test_a_longer_example_is_cut_and_one_without_an_answer_left_out(tmp_path, tiny, caplog) -> None:
    rows = [*PAIRS, {"prompt": "why " * 40, "completion": "x"}]
    data = data_of(tmp_path, tiny, rows * 2, max_length=10)
    assert len(data.examples["train"]) == 19
    assert "1 of 20 examples are longer" in caplog.text
    assert "1 have no answer left" in caplog.text
    with pytest.raises(InputError, match=r"No answer begins within data\.max_length=2 tokens"):
        data_of(tmp_path, tiny, rows, max_length=2).setup()


# --- packing --------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30))
def test_packing_holds_every_example_once_within_the_width(lengths: list[int]) -> None:
    rows = pack(lengths, 9)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 9 for row in rows)
    assert len(rows) <= 1 + 1.5 * sum(lengths) / 9 + sum(length > 4 for length in lengths)


def test_packed_rows_hold_the_examples_with_positions_of_their_own(tmp_path, tiny) -> None:
    rows = [*PAIRS, {"prompt": "", "completion": "nothing before it"}]
    lines, packed = (
        data_of(tmp_path, tiny, rows, layout=layout, split="train").examples["train"]
        for layout in ("lines", "packed")
    )
    assert len(packed) < len(lines)
    assert packed.input_ids.shape[1] == 48
    begins = [
        (row, int(place)) for row in range(len(packed))
        for place in (packed.position_ids[row] == 0).nonzero()[:, 0]
        if place < packed.lengths[row]
    ]  # fmt: skip
    found = sorted(
        packed.input_ids[row, place : place + n].tolist()
        for row, place in begins
        for n in [int((packed.position_ids[row, place:].diff() != 1).nonzero()[:1].sum()) + 1]
    )
    real = [lines.input_ids[i, : lines.lengths[i]].tolist() for i in range(len(lines))]
    assert [ids for ids in found if ids in real] == sorted(real)
    assert int(packed.answers.sum()) == int(lines.answers.sum())
    assert not packed.answers[packed.position_ids == 0].any()  # none is predicted from another


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "fields", "says"),
    [
        (CHATS, {}, "has no chat template: give data.chat_template="),
        (CHATS, {"chat_template": "no/such.jinja"}, "neither a file nor a template"),
        (CHATS, {"chat_template": "{% for %}"}, "cannot write this chat: TemplateSyntaxError"),
        (CHATS, {"chat_template": "{{ raise_exception('no') }}"}, "cannot write this chat.*no"),
        (CHATS, {"chat_template": "{{ messages | length }}"}, "does not write what the assistant"),
        (
            CHATS,
            {
                "chat_template": "{% for m in messages %}{{ m['content'] | length }}"
                "{{ messages | length }}{{ m['content'] }}{% endfor %}"
            },
            "writes message 2 otherwise",
        ),
        (
            CHATS,
            {"chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"},
            "SecurityError",
        ),
        (PAIRS, {"chat_template": PLAIN}, "has no effect on prompts"),
        (PAIRS, {"layout": "blocks"}, "data.layout=blocks is none of data=instruct"),
        (
            [{"messages": chat("only a question")}] * 9,
            {"chat_template": PLAIN},
            "no message of the",
        ),
        ([{"messages": []}] * 9, {}, "has no chat in 'messages'|holds no chats"),
        ([{"messages": [{"role": "user"}]}] * 9, {}, "Row 1 .* has no chat"),
        ([{"messages": [{"from": "human", "content": "a"}]}] * 9, {}, "Row 1 .* has no chat"),
        ([{"messages": [{"role": "user", "content": ["a"]}]}] * 9, {}, "Row 1 .* has no chat"),
        ([{"messages": "a chat"}] * 9, {}, "holds no chats"),
        ([{"prompt": "a", "completion": ""}] * 9, {}, "Column 'completion' .* empty|Row 1"),
        ([{"prompt": "a", "completion": None}] * 9, {}, "holds nothing"),
        ([*PAIRS, {"prompt": "a"}], {}, "Row 13 .* has no 'completion'"),
        ([{"prompt": 1, "completion": "b"}] * 9, {}, "holds int64"),
        ([{"prompt": {"a": "b"}, "completion": "b"}] * 9, {}, "holds nested values"),
        ([{"instruction": "a", "output": "b"}] * 9, {}, "data.prompt_column="),
        ([{**PAIRS[0], **CHATS[0]}] * 9, {}, "give data.column=messages"),
        (PAIRS, {"column": "prompt"}, "holds no chats"),
        ([{**CHATS[0], "q": "a"}] * 9, {"prompt_column": "q"}, "data.prompt_column=q and"),
        ([{"q": "a", **CHATS[0]}] * 9, {"completion_column": "q"}, "data.completion_column=q are"),
        (
            [{**PAIRS[0], "q": "a", "chats": chat("a")}] * 9,
            {"prompt_column": "q", "column": "chats"},
            "read without data.column",
        ),
    ],
)
def test_what_is_no_instruction_is_refused(tmp_path, tiny, rows, fields, says) -> None:
    with pytest.raises(InputError, match=says) as caught:
        data_of(tmp_path, tiny, rows, **fields).setup()
    assert "\n" not in str(caught.value)


def test_other_columns_are_named(tmp_path, tiny) -> None:
    rows = [{"instruction": row["prompt"], "output": row["completion"], "n": 1} for row in PAIRS]
    named = {"prompt_column": "instruction", "completion_column": "output"}
    assert answered(data_of(tmp_path, tiny, rows, **named)).startswith(" a state of 0")
    rows = [{"conversations": row["messages"]} for row in CHATS]
    data = data_of(tmp_path, tiny, rows, column="conversations", chat_template=PLAIN)
    assert answered(data) == "A map 0.\nA state.\n"
