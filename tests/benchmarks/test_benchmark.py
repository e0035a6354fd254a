"""The benchmark's pieces, and all of it at sizes that take no time."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from qpa_exp.adapters.catalogue import METHODS
from qpa_exp.benchmark import parse
from qpa_exp.benchmarks import suite as suite_module
from qpa_exp.benchmarks.measuring import N_LAYERS, SIMULATORS, Seconds, fit_exponent, side_by_side
from qpa_exp.benchmarks.shapes import PARTS, SHAPES, Shape
from qpa_exp.benchmarks.suite import Suite, show
from qpa_exp.benchmarks.workloads import Growth, Workload, can_measure, peak_mib
from qpa_exp.errors import InputError
from qpa_exp.files import write_json

SMALL = {
    "gpt2": Shape("gpt2", "gpt2", vocab=90, width=16, tokens=12, n_mlp=16, layers=2),
    "gemma2": Shape("gemma2", "gemma2", vocab=80, width=16, tokens=12, n_mlp=16, soft_cap=2.0),
}


@given(
    exponent=st.floats(-2, 3),
    factor=st.floats(1e-6, 1e3),
    sizes=st.lists(st.integers(1, 10**4), min_size=2, max_size=6, unique=True),
)
def test_an_exponent_is_found_again(exponent, factor, sizes):
    seconds = [factor * size**exponent for size in sizes]
    assert fit_exponent(sizes, seconds) == pytest.approx(exponent, abs=1e-6)


@pytest.mark.parametrize(
    ("sizes", "seconds"), [([2, 2], [1.0, 2.0]), ([1, 2], [0.0, 1.0]), ([], [])]
)
def test_an_exponent_of_nothing_is_refused(sizes, seconds):
    with pytest.raises(ValueError, match="exponent"):
        fit_exponent(sizes, seconds)


def test_seconds_are_compared_round_by_round():
    """A load that triples one round is in both sides of its ratio."""
    ours, theirs = Seconds((1.0, 3.0, 1.0)), Seconds((2.0, 6.0, 2.0))
    assert ours.over(theirs) == 0.5
    assert ours.median == 1.0
    assert Seconds((4.0, 1.0, 2.0, 3.0)).spread == (1.75, 3.25)
    assert Seconds((4.0,)).spread == (4.0, 4.0)


def test_everything_is_done_in_turn_and_the_next_time_backwards():
    done = []
    work = {name: (lambda name=name: done.append(name)) for name in "abc"}
    times = side_by_side(work, 3)
    assert done == list("abc" + "abc" + "cba" + "abc")
    assert all(len(seconds.runs) == 3 and min(seconds.runs) > 0 for seconds in times.values())


@pytest.mark.parametrize("name", SIMULATORS)
def test_every_simulator_computes_the_same_circuit(name):
    stream = torch.Generator().manual_seed(0)
    theta = (6 * torch.rand(N_LAYERS, 1, 3, generator=stream)).requires_grad_()
    try:
        found = SIMULATORS[name].make(3)(theta)
    except InputError as error:
        pytest.skip(str(error))
    expected = SIMULATORS["statevector"].make(3)(theta)
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-5)
    towards = torch.arange(8.0)
    (ours,) = torch.autograd.grad(expected, theta, towards)
    (theirs,) = torch.autograd.grad(found, theta, towards.to(found.dtype))
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "qpa"])
@pytest.mark.parametrize("shape", SMALL)
def test_the_steps_that_are_compared_compute_the_same(shape, method):
    work = Workload(SMALL[shape])

    def gradients(make):
        model = work.lora() if method == "lora" else work.qpa("statevector")
        make(model)()
        return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}

    expected = gradients(work.naive)
    for make in (work.fast, lambda model: work.fast(model, cached=False)):
        for name, gradient in gradients(make).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


def test_where_memory_is_short_the_vocabulary_is_smaller_and_that_is_said():
    shape = SHAPES["gemma2"]
    assert shape.fitting(2**60) == shape
    less = shape.fitting(2**30)
    assert less.bytes_needed <= 2**30
    assert less.reduced_from == 256000
    note = Workload(replace(SMALL["gpt2"], reduced_from=100)).notes[0]
    assert note == "gpt2: a vocabulary of 90, not 100."


@pytest.mark.skipif(not can_measure(), reason="this system does not tell a process its peak")
def test_a_probe_sees_what_a_step_takes():
    shape = Shape("probe", "gpt2", vocab=20000, width=32, tokens=256, n_mlp=64)
    before = torch.get_num_threads()
    naive, fast = (peak_mib(shape, f"lora_{kind}", before) for kind in ("naive", "fast"))
    logits = 4 * shape.vocab * shape.tokens / 2**20
    assert naive > 2 * logits
    assert fast < naive


def test_the_whole_leaves_a_record_of_every_figure(monkeypatch, tmp_path):
    monkeypatch.setattr(suite_module, "_QUICK_QUBITS", [2, 3])
    monkeypatch.setattr(suite_module, "measure_growth", small_growth)
    monkeypatch.setattr(
        suite_module, "measure_memory", lambda shape, steps, threads: dict.fromkeys(steps, 1.5)
    )
    some = {name: METHODS[name] for name in ("ia3", "unilora", "ln_tuning")}
    monkeypatch.setattr(suite_module, "METHODS", some)
    suite = Suite(quick=True, rounds=2, shapes=SMALL)
    list(suite.run())
    write_json(tmp_path / "record.json", suite.record())
    record = json.loads((tmp_path / "record.json").read_text())
    assert [c["n_qubits"] for c in record["circuits"]] == [2, 3]
    assert "statevector" in record["circuits"][0]["seconds"]
    assert record["machine"]["versions"]["torch"] == torch.__version__
    assert record["growth"]["vocab"]["exponent"] == pytest.approx(1)
    for name in SMALL:
        for step in record["steps"][name].values():
            assert len(step["runs"]) == 2
            assert step["quartiles"][0] <= step["median"] <= step["quartiles"][1]
    ratios = record["ratios"]
    assert set(ratios) - {"circuit_over_torchquantum"} == {
        "qpa_over_lora", "naive_over_fast", "lora_over_floor",
        "extra_memory_mib", "method_over_lora",
    }  # fmt: skip
    assert set(ratios["method_over_lora"]) == set(record["methods"]) == {"ia3", "unilora"}
    assert "ln_tuning is left out: ln_tuning changes more than the head." in record["notes"]
    assert set(ratios["naive_over_fast"]) == {
        "gpt2_cached", "gpt2_uncached", "gpt2_cached_bf16", "gemma2_cached",
    }  # fmt: skip
    assert set(ratios["qpa_over_lora"]) == {
        "gpt2", "gpt2_tuned", "gemma2", "gemma2_tuned",
    }  # fmt: skip
    assert math.isfinite(record["bf16_perplexity_change"])
    assert list(tmp_path.iterdir()) == [tmp_path / "record.json"]

    printed = io.StringIO()
    show(suite, Console(file=printed, width=120))
    for word in ("statevector", "qpa_fast_bf16", "Peak memory", "Growth", "lora_naive"):
        assert word in printed.getvalue()


def small_growth(rounds: int, quick: bool) -> list[Growth]:
    times = [Seconds((float(n),) * rounds) for n in (1, 2)]
    return [Growth("vocab", "a step", [1, 2], [1, 2], times)]


def test_parts_that_were_not_asked_for_are_not_measured():
    suite = Suite(quick=True, rounds=1, shapes=SMALL)
    list(suite.run(()))
    assert suite.ratios() == {}
    assert suite.record()["steps"] == {}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--fast"], "unrecognized arguments: --fast"),
        (["--rounds", "0"], "--rounds 0 is too small"),
        (["--rounds", "many"], "invalid int value"),
        (["--threads", "100000"], "cores there are"),
        (["--only", "circuits,dance"], "--only dance is unknown"),
        (["--shapes", "tiny,gpt5"], "--shapes gpt5 is unknown"),
        (["--json", "nowhere/at/all.json"], "nowhere/at is not a directory"),
    ],
)
def test_bad_options_are_one_sentence(arguments, says):
    with pytest.raises(InputError) as caught:
        parse(arguments)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_are_read(tmp_path: Path):
    options = parse(["--quick", "--json", str(tmp_path / "x.json"), "--only", "growth,steps"])
    assert options.quick
    assert options.only == ("growth", "steps")
    assert options.shapes == tuple(SHAPES)
    assert options.threads is options.rounds is None


@pytest.mark.parametrize("quick", [[], ["--quick"]])
def test_quick_leaves_out_the_methods_unless_they_are_asked_for(quick: list[str]) -> None:
    assert parse([*quick, "--only", ",".join(PARTS)]).only == PARTS
    assert ("methods" in parse(quick).only) == (not quick)
