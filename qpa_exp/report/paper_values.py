"""What the paper reports, to be shown beside our own numbers.

Tables 2, 3, 8 and 9 print values; the figures print none. Perplexities are the paper's, over padded
lines (``perplexity_padded``). Its tables give percentages of lm_head, not the settings behind them;
those are the ones whose exact counts give the printed percentage. "Gemma-2" has the shape, and so
the counts, of the first Gemma.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from qpa_exp.report.names import Row

METRIC = "perplexity_padded"
"""What the paper's perplexities are, by our name."""


@dataclass(frozen=True)
class Reported:
    """One value of the paper.

    Attributes:
        table: where it stands.
        model: as ``conf/model`` names it.
        generated: whether QPA makes the method's tensors.
        r: the rank, for the methods that have one.
        percent: trainable parameters in percent of lm_head, as printed.
        seconds: total execution time.
    """

    table: str
    model: str
    method: str
    generated: bool
    trainable_params: int
    r: int | None = None
    n_mlp: int | None = None
    percent: str | None = None
    perplexity_padded: float | None = None
    seconds: int | None = None


def _table2() -> list[Reported]:
    rows = [
        # model, method, QPA, r, n_mlp, trainable, percent, perplexity
        ("gpt2", "lora", False, 4, None, 204_100, "0.52", 1.595),
        ("gpt2", "lora", True, 4, 2048, 106_264, "0.27", 1.583),
        ("gpt2", "dora", False, 32, None, 1_683_057, "4.36", 5.003),
        ("gpt2", "dora", True, 4, 2048, 106_264, "0.27", 4.955),
        ("gpt2", "prefix", False, None, None, 393_216, "1.01", 2.225),
        ("gpt2", "prefix", True, None, 1024, 72_552, "0.18", 2.327),
        ("gpt2", "ffa", False, None, None, 295_872, "0.76", 1.763),
        ("gpt2", "ffa", True, None, 1024, 72_552, "0.18", 1.689),
        ("gemma", "lora", False, 4, None, 1_032_192, "0.19", 1.418),
        ("gemma", "lora", True, 4, 4096, 173_888, "0.03", 1.417),
        ("gemma", "dora", False, 1, None, 514_048, "0.09", 5.504),
        ("gemma", "dora", True, 4, 8192, 309_056, "0.05", 5.487),
        ("gemma", "prefix", False, None, None, 1_048_576, "0.20", 1.530),
        ("gemma", "prefix", True, None, 1024, 72_592, "0.01", 1.540),
        ("gemma", "ffa", False, None, None, 2_099_712, "0.40", 1.439),
        ("gemma", "ffa", True, None, 1024, 72_672, "0.01", 1.507),
    ]
    return [
        Reported("table2", model, method, qpa, count, r, n_mlp, percent, perplexity)
        for model, method, qpa, r, n_mlp, count, percent, perplexity in rows
    ]


def _table3() -> list[Reported]:
    rows = [
        (False, None, 103_714, "0.12", 1.474),
        (True, 512, 55_616, "0.07", 1.485),
        (True, 1024, 72_472, "0.09", 1.475),
        (True, 2048, 106_224, "0.13", 1.469),
    ]
    return [
        Reported("table3", "gpt2_xl", "lora", qpa, count, 2, n_mlp, percent, perplexity)
        for qpa, n_mlp, count, percent, perplexity in rows
    ]


_RANKS = (1, 2, 4, 8, 16, 32)
_TIMES: dict[str, tuple[str, tuple[int, ...], dict[int, tuple[int, int]]]] = {
    # model -> table, seconds of LoRA by rank, n_mlp -> (parameters, seconds) of QPA
    "gpt2": (
        "table8",
        (1696, 1677, 1695, 1712, 1700, 1729),
        {
            256: (47_248, 5965), 512: (55_656, 5520), 1024: (72_512, 5223),
            2048: (106_264, 4910), 4096: (173_808, 4570), 8192: (308_936, 4245),
        },
    ),
    "gemma": (
        "table9",
        (3796, 3794, 3798, 3690, 4002, 3816),
        {
            1024: (72_592, 13861), 4096: (173_888, 11602), 8192: (309_016, 8316),
            16258: (575_154, 9252), 32768: (1_119_944, 11768), 65536: (2_201_248, 8702),
        },
    ),
}  # fmt: skip
_SIDES = {"gpt2": 50_257 + 768, "gemma": 256_000 + 2_048}


def _tables8_and_9() -> list[Reported]:
    rows: list[Reported] = []
    for model, (table, lora, qpa) in _TIMES.items():
        rows += [
            Reported(table, model, "lora", False, r * _SIDES[model], r=r, seconds=seconds)
            for r, seconds in zip(_RANKS, lora, strict=True)
        ]
        rows += [
            Reported(table, model, "lora", True, count, r=4, n_mlp=n_mlp, seconds=seconds)
            for n_mlp, (count, seconds) in qpa.items()
        ]
    return rows


REPORTED: tuple[Reported, ...] = (*_table2(), *_table3(), *_tables8_and_9())


def reported(table: str) -> list[Reported]:
    """The values of one of the paper's tables."""
    return [row for row in REPORTED if row.table == table]


def reported_perplexities(model: str, method: str) -> list[Reported]:
    """Every perplexity on WikiText-2 that the paper prints for this model and method."""
    return [
        row
        for row in REPORTED
        if row.model == model and row.method == method and row.perplexity_padded is not None
    ]


PROTOCOL = {
    "data.name": ("wikitext2", "ptb"),
    "data.layout": ("lines",),
    "data.max_length": (512,),
    "data.batch_size": (1,),
    "trainer.max_steps": (-1,),
    "model.name": ("gpt2", "gpt2_xl", "gemma"),
    "qpa.variant": ("off", "paper", "released"),
}
"""The paper's protocol: for each key the values under which our perplexity is of the same kind."""


def protocol_differences(row: Row) -> list[str]:
    """What keeps a run's perplexity from being compared with the paper's."""
    return [f"{key}={row[key]}" for key, values in PROTOCOL.items() if row[key] not in values]


def differences(runs: pd.DataFrame) -> list[str]:
    """How these runs' settings differ from the paper's protocol, in sentences."""
    sentences = []
    for key, values in PROTOCOL.items():
        other = [str(value) for value in dict.fromkeys(runs[key]) if value not in values]
        if other:
            paper = " or ".join(map(str, values))
            sentences.append(f"{key} is {', '.join(other)}; the paper's is {paper}.")
    return sentences
