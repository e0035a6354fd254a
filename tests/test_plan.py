"""``plan`` against the paper's counts and against models that are really built."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from transformers import AutoModelForCausalLM

from qpa_exp import plan as command
from qpa_exp import score
from qpa_exp.adapters.counts import count
from qpa_exp.adapters.qpa_model import adapt
from qpa_exp.circuits.device_price import DevicePrice
from qpa_exp.cli import compose_config
from qpa_exp.errors import InputError
from qpa_exp.lm.loading import load_architecture
from qpa_exp.plan import as_record, plan, price_table

GPT2_HEAD, GPT2_XL_HEAD = 50257 * 768, 50257 * 1600
GEMMA_HEAD, GEMMA2_HEAD = 256000 * 2048, 256000 * 2304


def planned(*overrides: str) -> dict[str, object]:
    return as_record(plan(compose_config(overrides)))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qpa_exp.plan", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


# --- the paper's counts -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "n_mlp", "n_chunks", "n_qubits", "trainable"),
    [
        ("gpt2", 256, 798, 10, 47_248),
        ("gpt2", 512, 399, 9, 55_656),
        ("gpt2", 1024, 200, 8, 72_512),
        ("gpt2", 2048, 100, 7, 106_264),
        ("gpt2", 4096, 50, 6, 173_808),
        ("gpt2", 8192, 25, 5, 308_936),
        ("gemma", 1024, 1008, 10, 72_592),
        ("gemma", 4096, 252, 8, 173_888),
        ("gemma", 8192, 126, 7, 309_016),
        ("gemma", 16258, 64, 6, 575_154),
        ("gemma", 32768, 32, 5, 1_119_944),
        ("gemma", 65536, 16, 4, 2_201_248),
    ],
)
def test_a_generated_lora_has_the_papers_count(model, n_mlp, n_chunks, n_qubits, trainable):
    record = planned(f"model={model}", "qpa=paper", f"qpa.n_mlp={n_mlp}")
    assert record["trainable_params"] == trainable
    assert (record["n_chunks"], record["n_qubits"]) == (n_chunks, n_qubits)


@pytest.mark.parametrize(
    ("model", "m", "target"),
    [
        ("gpt2", 204_100, GPT2_HEAD),
        ("gpt2_xl", 4 * (50257 + 1600), GPT2_XL_HEAD),
        ("gemma", 1_032_192, GEMMA_HEAD),
        ("gemma2", 4 * (256000 + 2304), GEMMA2_HEAD),
        ("tiny", 4 * (16384 + 128), 16384 * 128),
    ],
)
def test_a_classical_lora_trains_its_own_tensors(model, m, target):
    assert planned(f"model={model}", "qpa=off") == {
        "trainable_params": m,
        "generated_params": m,
        "target_params": target,
        "n_mlp": None,
        "n_chunks": None,
        "n_qubits": None,
        "target_percent": pytest.approx(100 * m / target),
    }


@pytest.mark.parametrize(
    ("model", "variant", "m", "n_chunks", "n_qubits", "trainable"),
    [
        ("gpt2_xl", "paper", 4 * (50257 + 1600), 102, 7, 106_264),
        ("gemma2", "released", 4 * (256000 + 2304), 127, 7, 309_016),
        ("gpt2", "tuned", 4 * (50257 + 768), 3190, 12, 9_120),
        ("tiny", "tuned", 4 * (16384 + 128), 1032, 11, 9_048),
    ],
)
def test_the_other_models_are_counted_by_their_own_shapes(
    model, variant, m, n_chunks, n_qubits, trainable
):
    record = planned(f"model={model}", f"qpa={variant}")
    assert record["generated_params"] == m
    assert (record["n_chunks"], record["n_qubits"]) == (n_chunks, n_qubits)
    assert record["trainable_params"] == trainable


def test_the_published_variants_cost_the_same():
    assert planned("model=gpt2", "qpa=paper") == planned("model=gpt2", "qpa=released")


def test_the_default_trains_a_seventh_of_lora():
    assert planned()["trainable_params"] < 10_000 < planned("qpa=off")["trainable_params"] / 6


@pytest.mark.parametrize("r", [1, 32])
def test_the_rank_multiplies_what_is_generated(r):
    assert planned("model=gpt2", f"peft.r={r}")["generated_params"] == r * (50257 + 768)


def test_several_targets_are_counted_together():
    record = planned("model=gpt2", "qpa=off", "peft.target_modules=[lm_head,c_attn]")
    attention = 12 * (768 * 2304 + 2304)
    assert record["target_params"] == GPT2_HEAD + attention
    assert record["trainable_params"] == 4 * (50257 + 768) + 12 * 4 * (768 + 2304)


# --- a model that is really built -------------------------------------------------------------

SMALL = {
    "gpt2": ["model=tiny", "model.architecture.n_embd=16", "model.architecture.vocab_size=61"],
    "gemma2": [
        "model=gemma2",
        "model.architecture.vocab_size=61",
        "model.architecture.hidden_size=16",
        "model.architecture.intermediate_size=32",
        "model.architecture.num_hidden_layers=2",
        "model.architecture.head_dim=8",
    ],
}
NOT_REMARKED = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")


@NOT_REMARKED
@pytest.mark.parametrize("family", sorted(SMALL))
@pytest.mark.parametrize("variant", ["tuned", "off"])
def test_the_plan_is_what_is_really_built(family, variant):
    config = compose_config([*SMALL[family], f"qpa={variant}", "peft.r=3"])
    model = adapt(AutoModelForCausalLM.from_config(load_architecture(config.model)), config)
    expected = plan(config)
    assert count(model) == expected
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == expected.trainable_params
    assert expected.target_params == 61 * 16


@NOT_REMARKED
def test_a_directory_is_planned_from_its_config_alone(small_directory, tmp_path):
    (tmp_path / "config.json").write_text((small_directory / "config.json").read_text())
    record = planned("model=hf", f"model.name_or_path={tmp_path}", "data.max_length=32")
    assert record["generated_params"] == 4 * (61 + 16)


# --- the command ------------------------------------------------------------------------------


def test_json_is_one_object_on_standard_output(capsys):
    command.main(["model=gpt2", "peft=lora", "peft.r=4", "qpa=paper", "format=json"])
    printed = capsys.readouterr().out
    record = json.loads(printed)
    assert printed.count("\n") == 1
    assert record.pop("target_percent") == pytest.approx(0.275, abs=5e-4)
    assert record == {
        "trainable_params": 106_264,
        "generated_params": 204_100,
        "target_params": GPT2_HEAD,
        "n_mlp": 2048,
        "n_chunks": 100,
        "n_qubits": 7,
    }


def test_a_mistake_is_one_line_on_standard_error_and_a_failure():
    done = run("model=gpt2", "qpa.n_mlp=0", "format=json")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "qpa.n_mlp" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_table_says_the_same_figures(capsys):
    command.main(["model=gpt2", "qpa=paper", "peft.r=4"])
    table = capsys.readouterr().out
    for figure in ("106,264", "204,100", "38,597,376", "0.275 %", "100", "7, L = 8"):
        assert figure in table


def test_an_unknown_format_is_refused():
    with pytest.raises(InputError, match="format=xml is unknown: give one of table, json"):
        command.main(["format=xml"])


def test_an_oversized_chunk_is_warned_of(caplog):
    assert planned("model=gpt2", "qpa.n_mlp=300000")["n_chunks"] == 1
    assert "qpa.n_mlp=300000" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["peft.target_modules=[lm_hed]"], "lm_hed is no module .*lm_head"),
        (["data.max_length=1025"], r"data\.max_length=1025 .*at most 1024"),
        (["qpa.ansatz=other"], r"qpa\.ansatz=other is unknown: give one of classical, "),
    ],
)
def test_what_could_not_run_is_refused(overrides, sentence):
    with pytest.raises(InputError, match=sentence):
        planned("model=gpt2", *overrides)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("resume=run", "resume=run goes on with that run: give it to qpa-exp train"),
        ("init_from=nowhere", "init_from=nowhere is neither a run nor the directory of a saved"),
    ],
)
@pytest.mark.parametrize("main", [command.main, score.main], ids=["plan", "score"])
def test_what_a_run_goes_on_from_is_not_passed_over(main, given, sentence):
    with pytest.raises(InputError, match=sentence):
        main([given])


# --- the data as the model sees it --------------------------------------------------------------

ROWS = {
    "text": {"text": "a state of some qubits, and what it is for"},
    "instruct": {"prompt": "What is it?", "completion": " A state."},
    "labelled": {"text": "a state of some qubits", "label": "physics"},
}


@pytest.mark.parametrize(
    ("name", "more", "carry"),
    [
        ("text", ["data.max_length=8"], [False] + [True] * 7),
        (
            "text",
            ["data.layout=lines", "data.max_length=20"],
            [False] + [True] * 19,
        ),  # padding, too
        ("instruct", [], [" A", " state", ".", "<|endoftext|>"]),
        (
            "instruct",
            ["data.layout=packed", "data.max_length=20"],
            2 * [" A", " state", ".", "<|endoftext|>"],
        ),
        ("labelled", ["task=seq_cls", "peft.target_modules=[c_attn]"], []),
    ],
)
def test_the_first_example_is_shown_with_what_carries_loss(
    tmp_path, capsys, name, more, carry
) -> None:
    rows = [ROWS[name] | ({"label": f"{i % 2}"} if name == "labelled" else {}) for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [f"data={name}", f"data.path={tmp_path / 'a.jsonl'}", *more]
    command.main([*given, "show=data", "format=json"])
    example = json.loads(capsys.readouterr().out)["example"]
    assert len(example["tokens"]) == len(example["loss"]) == len(example["input_ids"])
    said = [token for token, loss in zip(example["tokens"], example["loss"], strict=True) if loss]
    assert carry in (said, example["loss"])
    command.main([*given, "show=data"])
    printed = capsys.readouterr().out
    assert f"{len(example['tokens'])} tokens, {len(said)} carry loss" in printed
    assert ("class: 0" in printed) == (name == "labelled")
    if name == "instruct":
        assert "loss  [ A][ state][.][<|endoftext|>]" in printed


def test_what_is_to_be_shown_is_known() -> None:
    with pytest.raises(InputError, match=r"show=weights is unknown: give show=data"):
        command.main(["show=weights"])


# --- the price of a device --------------------------------------------------------------------


@pytest.mark.slow
def test_the_price_of_a_device_is_its_own_durations_times_its_shots(capsys):
    command.main(["qpa=paper", "qpa.n_mlp=8192", "price=fake_torino", "steps=7", "format=json"])
    priced = json.loads(capsys.readouterr().out)["device"]
    n, angles = 4, 8 * 4  # 66,048 parameters in 9 chunks
    assert (priced["n_qubits"], priced["n_angles"], priced["shots"]) == (n, angles, 20 * 2**n)
    assert priced["circuits"] == {"parameter_shift": 1 + 2 * angles, "spsa": 3}
    # A chain of 3 CNOTs a layer needs at least as many gates on two qubits.
    assert priced["two_qubit_gates"] >= 8 * 3
    assert priced["duration"] > 1e-6
    each = priced["duration"] + priced["delay"]
    assert priced["seconds"]["spsa"] == pytest.approx(7 * 3 * 320 * each)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["price=ibm_paris"], "price=ibm_paris is unknown: give fake_torino or fake_fez"),
        (["qpa=random", "price=fake_fez"], "price=fake_fez: qpa=random has no circuit"),
        (["qpa.ansatz=gaussian", "price=fake_fez"], "qpa.ansatz=gaussian has no circuit"),
        (["price=fake_fez", "steps=few"], "steps=few is no number of steps"),
        (["steps=9"], "steps=9 has no effect without price=<device>"),
    ],
)
def test_a_price_that_cannot_be_is_one_sentence(arguments, says):
    with pytest.raises(InputError, match=says):
        command.main(arguments)


def test_the_hours_of_a_cheap_run_are_not_rounded_away() -> None:
    priced = DevicePrice(
        device="fake_fez", record="", n_qubits=2, n_angles=16, gates=1, two_qubit_gates=1, depth=1,
        duration=1e-6, delay=249e-6, shots=80, circuits={"spsa": 3, "parameter_shift": 33},
    )  # fmt: skip
    hours = [*price_table(priced, steps=2_000).columns[1].cells]
    assert "0.033" in hours
    assert [*price_table(priced, steps=200_000).columns[1].cells][-1] == "36.7"
