"""What a model computes for a fixed row of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def logits(model: Any) -> Tensor:
    """Without dropout; (1, 12, vocabulary)."""
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(4, 16)[None]).logits
