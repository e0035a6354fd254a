"""The Python of the how-to page, run from top to bottom as a reader would."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from model_logits import logits

from qpa_exp.lm.loading import BUNDLED

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "hugging_face.md"
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    rows = [list(range(i + 4, i + 12)) for i in range(8)]
    space: dict[str, Any] = {
        "data": Dataset.from_dict({"input_ids": rows, "labels": rows}),
        "pairs": Dataset.from_list([{"prompt": "a", "completion": " b c"}] * 8),
    }
    for block in blocks:
        code = block.replace("openai-community/gpt2", str(BUNDLED["qpa_exp/tiny"]))
        exec(compile(code, PAGE.name, "exec"), space)
        if "again" in block:
            assert (logits(space["again"]) == logits(space["model"])).all()
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 100_000
