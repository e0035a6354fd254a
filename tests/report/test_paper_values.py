"""The paper's values are attached to settings whose counts are the printed ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from qpa_exp.cli import compose_config
from qpa_exp.plan import plan
from qpa_exp.report import __main__ as report
from qpa_exp.report.tables import REPORTED, Reported, reported

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("row", REPORTED, ids=str)
def test_a_setting_has_exactly_the_count_and_the_printed_percentage(row: Reported) -> None:
    overrides = [f"model={row.model}", f"peft={row.method}", "data=wikitext2"]
    overrides.append("qpa=paper" if row.generated else "qpa=off")
    overrides += [f"peft.r={row.r}"] if row.r else []
    overrides += [f"qpa.n_mlp={row.n_mlp}"] if row.n_mlp else []
    counts = plan(compose_config(overrides))
    assert counts.trainable_params == row.trainable_params
    if row.percent is not None:  # cut or rounded to two places, the paper does both
        assert 0 <= abs(counts.target_percent - float(row.percent)) < 0.01


@pytest.mark.long
def test_the_page_in_docs_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    report.main(["counts=true"])
    assert capsys.readouterr().out == (ROOT / "docs" / "counts.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("method", "n_mlp", "m", "chunks"),
    [("dora", 512, 1_288_192, 2_516), ("ffa", 1024, 2_099_712, 2_051)],
)
def test_two_settings_need_more_qubits_than_the_paper_says(
    method: str, n_mlp: int, m: int, chunks: int
) -> None:
    overrides = ["model=gemma", f"peft={method}", "data=wikitext2", "qpa=paper"]
    counts = plan(compose_config([*overrides, f"qpa.n_mlp={n_mlp}"]))
    assert (counts.generated_params, counts.n_chunks, counts.n_qubits) == (m, chunks, 12)
    page = (ROOT / "docs" / "counts.md").read_text(encoding="utf-8")
    assert f"{m:,}" in page
    assert f"{chunks:,}" in page


def test_every_row_of_the_papers_tables_is_there() -> None:
    sizes = {table: len(reported(table)) for table in ("table2", "table3", "table8", "table9")}
    assert sizes == {"table2": 16, "table3": 4, "table8": 12, "table9": 12}


def test_the_papers_headline_follows_from_its_rows() -> None:
    lora, qpa = (row for row in reported("table2") if (row.model, row.method) == ("gpt2", "lora"))
    assert 100 * qpa.trainable_params / lora.trainable_params == pytest.approx(52.06, abs=0.01)
    assert 100 * (1 - qpa.perplexity_padded / lora.perplexity_padded) == pytest.approx(
        0.75, abs=0.01
    )
