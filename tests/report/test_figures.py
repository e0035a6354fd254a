"""The numbers in what is drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qpa_exp.errors import InputError
from qpa_exp.report import figures
from qpa_exp.report.collect import collect
from qpa_exp.report.figures import KINDS, draw
from qpa_exp.report.page import png

Runs = Callable[..., pd.DataFrame]


@pytest.fixture
def runs_of(make_run: Callable[..., Path], tmp_path: Path) -> Runs:
    def table(*specs: tuple[list[str], dict[str, object]]) -> pd.DataFrame:
        for i, (overrides, metrics) in enumerate(specs):
            make_run(tmp_path / f"run{i}", *overrides, **metrics)
        (collected,) = collect([str(tmp_path)])
        return collected.runs

    return table


def curve(axes: Axes, label: str) -> tuple[list[float], list[float]]:
    """Horizontal and vertical values of a series, by its name in the legend."""
    for container in axes.containers:
        if str(container.get_label()).startswith(label):
            line = container[0]
            return list(line.get_xdata()), list(line.get_ydata())
    for line in axes.lines:
        if str(line.get_label()).startswith(label):
            return list(line.get_xdata()), list(line.get_ydata())
    raise AssertionError(f"{label} is not drawn: {axes.get_legend_handles_labels()[1]}")


def lora(r: int, seed: int, perplexity: float) -> tuple[list[str], dict[str, object]]:
    return ["qpa=off", f"peft.r={r}", f"seed={seed}"], {
        "perplexity": perplexity, "trainable_params": 1000 * r, "n_qubits": None, "n_chunks": None,
    }  # fmt: skip


def qpa(n_mlp: int, perplexity: float, *more: str) -> tuple[list[str], dict[str, object]]:
    return [f"qpa.n_mlp={n_mlp}", *more], {
        "perplexity": perplexity, "trainable_params": 300 + n_mlp, "n_qubits": 4,
    }  # fmt: skip


def test_perplexity_against_parameters_has_means_spreads_and_names(runs_of: Runs) -> None:
    runs = runs_of(
        lora(1, 1, 100.0), lora(1, 2, 110.0), lora(4, 1, 90.0), lora(4, 2, 92.0),
        qpa(16, 97.0), qpa(64, 95.0),
    )  # fmt: skip
    (axes,) = draw(runs, {"kind": "parameters"}).axes
    assert axes.get_xscale() == "log"
    assert axes.get_ylabel() == "perplexity (real tokens)"
    assert curve(axes, "LoRA") == ([1000, 4000], [105.0, 91.0])
    assert curve(axes, "QPA") == ([316, 364], [97.0, 95.0])
    assert {text.get_text() for text in axes.texts} >= {
        "LoRA",
        "QPA",
        "r = 1",
        "r = 4",
        "n_mlp = 16",
        "64",
    }
    (bars,) = (c for c in axes.containers if c.get_label() == "LoRA")
    ends = [segment[:, 1] for segment in bars[2][0].get_segments()]
    expected = [np.std([100, 110], ddof=1), np.std([90, 92], ddof=1)]
    assert [(end[1] - end[0]) / 2 for end in ends] == pytest.approx(expected)


def test_both_perplexities_have_panels_and_the_papers_values_are_hollow(runs_of: Runs) -> None:
    base = ["model=gpt2", "data=wikitext2"]
    metrics = {"perplexity": 34.0, "perplexity_padded": 1.59, "base_perplexity_padded": 1.9}
    runs = runs_of(
        ([*base, "qpa=off"], {**metrics, "trainable_params": 204_100}),
        ([*base, "qpa=paper"], {**metrics, "trainable_params": 106_264}),
    )
    real, padded = draw(runs, {"kind": "parameters"}).axes
    assert real.get_ylabel() == "perplexity (real tokens)"
    assert padded.get_ylabel() == "perplexity (padded lines, the paper's)"
    assert curve(padded, "paper: classical") == ([204_100], [1.595])
    assert curve(padded, "paper: QPA") == ([106_264], [1.583])
    hollow = [line for line in padded.lines if str(line.get_label()).startswith("paper")]
    assert all(line.get_markerfacecolor() == "none" for line in hollow)
    assert not [line for line in real.lines if str(line.get_label()).startswith("paper")]


def test_a_hue_makes_a_series_of_each_value(runs_of: Runs) -> None:
    runs = runs_of(*[qpa(n, 90.0 + r, f"peft.r={r}") for n in (16, 64) for r in (1, 2, 4)])
    (axes,) = draw(runs, {"kind": "parameters", "hue": "peft.r"}).axes
    assert curve(axes, "QPA, r = 2") == ([316, 364], [92.0, 92.0])
    assert {text.get_text() for text in axes.texts} >= {"QPA, r = 1", "QPA, r = 2", "QPA, r = 4"}


def test_the_optimum_has_a_star_and_loras_level_a_line(runs_of: Runs) -> None:
    depths = {2: 99.0, 8: 93.0, 32: 96.0}
    runs = runs_of(
        lora(4, 1, 94.0), lora(8, 1, 80.0),
        *[qpa(16, p, f"qpa.n_layers={n}") for n, p in depths.items()],
    )  # fmt: skip
    (axes,) = draw(runs, {"kind": "over", "key": "qpa.n_layers", "log": True}).axes
    assert curve(axes, "QPA") == ([2, 8, 32], [99.0, 93.0, 96.0])
    assert curve(axes, "optimum: 8") == ([8], [93.0])
    assert curve(axes, "LoRA r = 4")[1] == [94.0, 94.0]
    assert "LoRA r = 8" not in axes.get_legend_handles_labels()[1]


def test_qubits_and_times_are_drawn_as_measured(runs_of: Runs) -> None:
    runs = runs_of(lora(4, 1, 94.0), qpa(16, 97.0), qpa(64, 95.0))
    (axes,) = draw(runs, {"kind": "qubits"}).axes
    assert curve(axes, "QPA LoRA") == ([316, 364], [4, 4])
    train, step = draw(runs, {"kind": "time"}).axes
    assert curve(train, "QPA LoRA") == ([316, 364], [5.0, 5.0])
    assert curve(step, "LoRA") == ([4000], [0.1])


def test_times_of_longer_runs_are_a_curve_of_their_own(runs_of: Runs) -> None:
    epochs = {n: qpa(16, 97.0, f"trainer.max_epochs={n}") for n in (1, 2)}
    train, _ = draw(runs_of(*epochs.values()), {"kind": "time"}).axes
    for words in ("1 epoch", "2 epochs"):
        assert curve(train, f"QPA LoRA, {words}") == ([316], [5.0])


def test_the_front_is_drawn_through_the_points_on_it(runs_of: Runs) -> None:
    runs = runs_of(lora(1, 1, 90.0), lora(4, 1, 95.0), qpa(16, 97.0), qpa(64, 98.0))
    (axes,) = draw(runs, {"kind": "pareto"}).axes
    assert curve(axes, "Pareto front") == ([316, 1000], [97.0, 90.0])
    assert axes.get_yscale() == "linear"


def test_perplexities_far_apart_are_on_a_logarithmic_axis(runs_of: Runs) -> None:
    far = [
        (config, figures | {"base_perplexity": 1000.0})
        for config, figures in (lora(1, 1, 90.0), qpa(16, 900.0))
    ]
    (axes,) = draw(runs_of(*far), {"kind": "pareto"}).axes
    assert axes.get_yscale() == "log"


def test_the_front_tells_generators_apart(runs_of: Runs) -> None:
    runs = runs_of(
        lora(1, 1, 90.0), qpa(16, 97.0, "qpa=paper"), qpa(16, 95.0, "qpa=tuned"),
        qpa(16, 96.0, "qpa=tuned", "qpa.ansatz=frozen"),
    )  # fmt: skip
    (axes,) = draw(runs, {"kind": "pareto"}).axes
    there = {"QPA, paper's equations": 97.0, "QPA, frozen circuit": 96.0, "LoRA": 90.0, "QPA": 95.0}
    drawn = {str(bars.get_label()): list(bars[0].get_ydata()) for bars in axes.containers}
    assert drawn == {name: [perplexity] for name, perplexity in there.items()}


def test_what_went_wrong_does_not_press_the_front_together(runs_of: Runs) -> None:
    (axes,) = draw(runs_of(lora(4, 1, 90.0), qpa(16, 97.0), qpa(64, 1e9)), {"kind": "pareto"}).axes
    assert curve(axes, "QPA") == ([316], [97.0])
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim()[1] < 400.0
    assert "QPA: 1e+09" in {text.get_text() for text in axes.texts}


def test_categories_show_every_seed_and_what_went_wrong_at_the_edge(runs_of: Runs) -> None:
    runs = runs_of(lora(4, 1, 90.0), lora(4, 2, 92.0), qpa(16, 97.0), qpa(64, 1e9))
    (axes,) = draw(runs, {"kind": "categories"}).axes
    drawn = np.concatenate([line.get_xdata() for line in axes.lines])
    assert {90.0, 92.0, 91.0, 97.0} <= set(drawn)
    assert 200.0 < drawn.max() < 300.0  # beyond the unadapted model, to scale with nothing
    assert "1e+09" in {text.get_text() for text in axes.texts}


def test_of_very_many_settings_the_best_are_drawn_and_the_rest_counted(
    runs_of: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "_MOST", 3)
    monkeypatch.setattr(figures, "_FEWEST", 1)
    runs = runs_of(*[qpa(2**n, 100.0 - n) for n in range(5)])
    (axes,) = draw(runs, {"kind": "categories"}).axes
    title = axes.get_title(loc="left").replace("\n", " ")
    assert title.endswith("; the best 3 of 5 settings, the table has all")
    drawn = np.concatenate([line.get_xdata() for line in axes.lines])
    assert {96.0, 97.0, 98.0} <= set(drawn)
    assert not {99.0, 100.0} & set(drawn)


def test_a_figure_of_any_size_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow refuses to read a PNG of very many pixels."""
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)
    assert png(Figure(figsize=(8, 2))).startswith(b"\x89PNG")


def test_gradient_variances_are_drawn_against_qubits_and_depth(runs_of: Runs) -> None:
    runs = runs_of(
        *[
            (
                [f"qpa.n_layers={depth}", f"qpa.n_mlp={2**n}"],
                {
                    "n_qubits": n, "gradient_variance": 10.0**-n * depth,
                    "expectation_variance": 0.1**n / depth,
                },
            )
            for n in (2, 4)
            for depth in (1, 8)
        ]
    )  # fmt: skip
    axes = draw(runs, {"kind": "gradient_variance"}).axes
    assert len(axes) == 4
    assert curve(axes[0], "L = 8") == ([2, 4], pytest.approx([8e-2, 8e-4]))
    assert curve(axes[3], "N = 4") == ([1, 8], pytest.approx([1e-4, 1.25e-5]))
    assert all(axis.get_yscale() == "log" for axis in axes)


@pytest.mark.long  # the studies at the scale smoke write them, too
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_can_be_written(runs_of: Runs, tmp_path: Path, kind: str) -> None:
    extra = {"gradient_variance": 1e-3, "expectation_variance": 1e-4, "validation": 99.0}
    runs = runs_of(*[(o, m | extra) for o, m in (lora(4, 1, 94.0), qpa(16, 97.0), qpa(64, 95.0))])
    figure = draw(runs, {"kind": kind, **({"key": "peft.r"} if kind == "over" else {})})
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "figure.png", dpi=40)


@pytest.mark.parametrize("spec", [{"kind": "pie"}, {"kind": "qubits", "hue": "seed"}, {}])
def test_an_unknown_figure_is_one_sentence(runs_of: Runs, spec: dict[str, str]) -> None:
    with pytest.raises(InputError) as caught:
        draw(runs_of(qpa(16, 97.0)), spec)
    assert "\n" not in str(caught.value)


def test_learning_rates_are_chosen_by_validation(runs_of: Runs) -> None:
    rates = [0.001, 0.01, 0.1]
    runs = runs_of(
        *((["qpa=off", f"optim.lr={rate}"], {"trainable_params": 1000}) for rate in rates),
        *((["qpa=paper", f"optim.lr={rate}"], {"trainable_params": 500}) for rate in rates),
    ).assign(validation_perplexity=[90.0, 80.0, 85.0, 70.0, 75.0, 99.0])
    (axes,) = draw(runs, {"kind": "learning_rates"}).axes
    assert axes.get_ylabel() == "validation perplexity (real tokens)"
    assert curve(axes, "LoRA") == (rates, [90.0, 80.0, 85.0])
    assert curve(axes, "QPA") == (rates, [70.0, 75.0, 99.0])
    stars = {
        tuple(map(float, line.get_xydata()[0])) for line in axes.lines if line.get_marker() == "*"
    }
    assert stars == {(0.01, 80.0), (0.001, 70.0)}

    wrong = runs.assign(validation_perplexity=[90.0, 80.0, 9e4, 70.0, 75.0, 99.0])
    (axes,) = draw(wrong, {"kind": "learning_rates"}).axes
    assert axes.get_ylim()[1] == 120.0  # 1.5 times the worst of the best


def test_the_amount_of_text_is_an_axis(runs_of: Runs) -> None:
    figures = {"perplexity": 90.0, "trainable_params": 1000}
    runs = runs_of(
        *((["qpa=off", f"data.train_split='train[:{n}%]'"], figures | {"train_tokens": 100 * n})
          for n in (90, 10)),
        (["qpa=paper"], figures | {"trainable_params": 500, "train_tokens": 100}),
    )  # fmt: skip
    (axes,) = draw(runs, {"kind": "amounts"}).axes
    assert axes.get_ylabel() == "perplexity (real tokens)"
    assert curve(axes, "LoRA") == ([1000, 9000], [90.0, 90.0])
    assert curve(axes, "unchanged model 200")[1] == [200.0, 200.0]
    with pytest.raises(InputError, match="train_tokens"):
        draw(runs.drop(columns="train_tokens"), {"kind": "amounts"})


def test_a_task_s_own_metric_is_drawn(runs_of: Runs, tmp_path: Path) -> None:
    """Larger is better there."""
    task = ["task=seq_cls", "data=labelled", "data.path=x.csv", "peft.target_modules=[c_attn]"]
    figures = {"perplexity": None, "validation": 0.9, "metric": "accuracy"}
    runs = runs_of(
        ([*task, "qpa=off"], {**figures, "accuracy": 0.02, "trainable_params": 1000}),
        ([*task, "qpa.n_mlp=16"], {**figures, "accuracy": 0.8, "trainable_params": 300}),
        ([*task, "qpa.n_mlp=64"], {**figures, "accuracy": 0.7, "trainable_params": 400}),
    )
    (axes,) = draw(runs, {"kind": "pareto"}).axes
    assert axes.get_ylabel() == "accuracy"
    assert axes.get_yscale() == "linear"
    assert axes.get_title(loc="left") == "tiny on labelled; one seed"
    assert curve(axes, "unchanged model")[1] == [0.5, 0.5]
    assert curve(axes, "Pareto front") == ([300], [0.8])
    assert curve(axes, "LoRA") == ([1000], [0.02])
    (axes,) = draw(runs, {"kind": "over", "key": "qpa.n_mlp"}).axes
    assert curve(axes, "optimum: 16") == ([16], [0.8])
    (axes,) = draw(runs, {"kind": "categories"}).axes
    counts = axes.child_axes[0].get_yticklabels()
    assert [text.get_text() for text in counts] == ["300", "400", "1,000"]
    (axes,) = draw(runs, {"kind": "learning_rates"}).axes
    assert axes.get_ylabel() == "validation accuracy"
