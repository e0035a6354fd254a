"""What the circuit's keys mean to the generator, to a saved model, to ``plan`` and to a run."""

from __future__ import annotations

import json

import pytest
import torch

from qpa_exp import plan as command
from qpa_exp.cli import compose_config
from qpa_exp.errors import InputError
from qpa_exp.generator.generator import Generator
from qpa_exp.plan import as_record, plan

M, N_MLP = 200, 16  # 13 chunks on 4 qubits

CIRCUITS = [
    {"ansatz": "rx"},
    {"ansatz": "ry_rz", "shots": "20x"},
    {"ansatz": "product", "shots": "20x", "final_shots": "1000x"},
    {"ansatz": "frozen", "shots": "20x"},
    {"ansatz": "classical"},
    {"ansatz": "none"},
    {"shots": "10x", "gradient": "parameter_shift"},
    {"gradient": "spsa"},
    {"backend": "torchquantum"},
    {"backend": "density_matrix", "noise": "ibm_torino", "shots": "20x", "n_layers": 1},
]


@pytest.fixture(params=CIRCUITS, ids=lambda keys: ",".join(map(str, keys.values())))
def make(request, qpa):
    """``make()``: a generator with this circuit; ``make(anchor=False)`` replaces keys."""
    return lambda **keys: Generator(
        M, qpa(**{"n_mlp": N_MLP, "n_layers": 2} | request.param | keys)
    )


def test_an_evaluated_generator_starts_at_exactly_zero_and_then_moves(make):
    generator = make().eval()
    for _ in range(2):
        assert generator().count_nonzero() == 0
    generator.train()
    optimizer = torch.optim.SGD(generator.parameters(), lr=0.1)
    (generator() @ torch.randn(M, generator=torch.Generator().manual_seed(0))).backward()
    optimizer.step()
    generator.eval()
    assert generator().count_nonzero() > M / 2
    assert torch.equal(generator(), generator())


def test_every_circuit_stands_beside_the_same_mapping_model(make, qpa):
    other = make()
    plain = Generator(M, qpa(n_mlp=N_MLP, n_layers=other.config.n_layers))
    for ours, theirs in zip(other.mapping.parameters(), plain.mapping.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_global_stream_is_left_alone_while_building(make):
    stream = torch.get_rng_state()
    make()
    assert torch.equal(torch.get_rng_state(), stream)


def test_its_weights_rebuild_it(make):
    generator = make().eval()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.05)
    again = make().eval()
    again.load_state_dict(generator.state_dict())
    assert torch.equal(again(), generator())
    assert again.start_norm() == generator.start_norm() > 0


def test_a_training_generator_draws_shots_and_the_seed_repeats_them(qpa):
    generator = Generator(M, qpa(n_mlp=N_MLP, shots="20x")).train()
    torch.manual_seed(3)
    first = [generator() for _ in range(2)]
    assert not torch.equal(first[0], first[1])
    torch.manual_seed(3)
    assert all(torch.equal(generator(), vector) for vector in first)


@pytest.mark.parametrize(
    ("keys", "angles"),
    [
        ([], 8 * 11),
        (["qpa.ansatz=rx_rz"], 2 * 8 * 11),
        (["qpa.ansatz=frozen"], 0),
        (["qpa.ansatz=none"], 0),
        (["qpa.ansatz=classical"], 1032),
        (["qpa.ansatz=product", "qpa.shots=20x"], 8 * 11),
    ],
)
def test_plan_counts_what_each_circuit_trains(keys, angles):
    mapping = as_record(plan(compose_config(["qpa.ansatz=none"])))["trainable_params"]
    assert as_record(plan(compose_config(keys)))["trainable_params"] == mapping + angles


def test_a_generator_saved_before_these_keys_still_loads(make_gpt2, qpa_config, batch, tmp_path):
    from peft import LoraConfig

    from qpa_exp.adapters import saved_generator as files
    from qpa_exp.adapters.qpa_model import QPAModel, get_qpa_model

    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["lm_head"])
    model = get_qpa_model(make_gpt2(), lora, qpa_config("tuned", n_mlp=16)).eval()
    with torch.no_grad():
        model.generator.circuit.theta.add_(0.1)
    model.save_pretrained(tmp_path)
    path = tmp_path / files.CONFIG
    record = json.loads(path.read_text())
    for key in ("noise", "device", "shots", "final_shots", "gradient", "spsa_step"):
        del record["qpa_config"][key]
    path.write_text(json.dumps(record))
    again = QPAModel.from_pretrained(make_gpt2(), tmp_path)
    assert torch.equal(again(**batch).logits, model(**batch).logits)


# --- plan draws -------------------------------------------------------------------------------

SMALL = ["qpa.n_mlp=8192", "qpa.n_layers=2"]


def test_draw_prints_the_circuit_after_the_table(capsys):
    command.main([*SMALL, "draw=true", "qpa.ansatz=rx_rz"])
    table, _, drawing = capsys.readouterr().out.partition("ansatz=rx_rz")
    assert "trainable parameters" in table
    assert all(f"q_{qubit}: ┤ Rx(θ[0,0,{qubit}])" in drawing for qubit in range(4))


@pytest.mark.parametrize(
    ("output", "name"), [("format=table", "circuit.svg"), ("format=json", "CIRCUIT.SVG")]
)
def test_draw_writes_a_picture_once(capsys, tmp_path, output, name):
    path = tmp_path / name
    command.main([*SMALL, output, f"draw={path}"])
    assert "<svg" in path.read_text()[:1000]
    text = capsys.readouterr().out
    if output == "format=json":
        assert json.loads(text)["n_qubits"] == 4
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        command.main([*SMALL, output, f"draw={path}"])
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["draw=yes"], "draw=yes is no picture"),
        (["draw=circuit.gif"], "draw=circuit.gif is no picture"),
        (["draw=/nowhere/c.png"], "/nowhere is not a directory"),
        (["draw=true", "format=json"], "draw=true writes text beside the JSON"),
        (["draw=true", "qpa=off"], "qpa=off has no circuit"),
        (["draw=true", "qpa.ansatz=classical"], "qpa.ansatz=classical has no circuit"),
    ],
)
def test_a_drawing_that_cannot_be_made_is_refused(arguments, sentence):
    small = [] if sentence.endswith("no circuit") else SMALL  # whose keys only a circuit reads
    with pytest.raises(InputError) as caught:
        command.main([*small, *arguments])
    assert sentence in str(caught.value)


# --- whole runs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        ["qpa.ansatz=yr"],
        ["qpa.shots=20y"],
        ["qpa.noise=ibm_fez"],
        ["qpa.backend=qiskit"],
        ["qpa.backend=qiskit", "qpa.shots=9", "qpa.gradient=spsa", "qpa.device=fake_mars"],
        ["qpa.n_mlp=1", "qpa.backend=density_matrix"],
        ["qpa.ansatz=none", "qpa.shots=100"],
    ],
)
def test_a_circuit_that_cannot_be_is_refused_before_anything_is_written(tmp_path, keys, refusal):
    from qpa_exp.__main__ import main

    (tmp_path / "only").touch()
    refusal(main, [f"hydra.run.dir={tmp_path / 'run'}", *keys], tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "only"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(["qpa.shots=20x", "qpa.final_shots=40x"], marks=pytest.mark.long),
        pytest.param(
            [
                "qpa.backend=density_matrix",
                "qpa.noise=ibm_torino",
                "qpa.shots=20x",
                "qpa.n_layers=1",
            ],
            marks=pytest.mark.long,
        ),
        ["qpa.backend=qiskit", "qpa.shots=200", "qpa.gradient=spsa", "qpa.n_layers=1"],
    ],
    ids=["shots", "noise", "qiskit"],
)
def test_a_run_trains_on_measured_circuits_and_repeats_itself(tmp_path, keys, monkeypatch):
    from qpa_exp.__main__ import main

    monkeypatch.chdir(tmp_path)
    perplexities = []
    for name in ("first", "second"):
        short = [
            "qpa.n_mlp=2048", "trainer.max_steps=2", "trainer.limit_eval_batches=1",
            f"hydra.run.dir={tmp_path / name}", "trainer.progress_bar=false",
        ]  # fmt: skip
        main([*short, *keys])
        metrics = json.loads((tmp_path / name / "metrics.json").read_text())
        perplexities.append(metrics["perplexity"])
    assert metrics["status"] == "complete"
    assert perplexities[0] == perplexities[1]
