"""A search without gradients for the circuit's angles, in turn with AdamW for the rest.

The paper names COBYLA, Nelder-Mead and SPSA as alternatives for training the circuit. Here they
take turns with AdamW: every step AdamW moves what has a gradient to follow (the mapping model),
and every ``search_every_n_steps`` steps a search moves the angles, on that step's batch. With
``optim.over=all`` the search moves everything, and AdamW nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from qpa_exp.config import OptimConfig
from qpa_exp.runs.optimizers import OPTIMIZERS, check_searched

Loss = Callable[[], float]
"""The loss of the step's batch with the parameters as they are now, without a gradient."""


class AlternatingSearch(torch.optim.Optimizer):
    """AdamW on some parameters, a search without gradients on the others, in turn.

    A search starts from the parameters as they are and keeps the best that it finds, so between
    two steps there is nothing of it to save.

    Args:
        searched: moved by the search; their group comes first.
        stepped: moved by AdamW; may be empty.
        config: which search, how often, how far and for how many evaluations of the loss.
        loss: evaluates the step's batch.

    Raises:
        InputError: a search over angles that the model does not have, or over too much.
    """

    def __init__(
        self,
        searched: list[nn.Parameter],
        stepped: list[nn.Parameter],
        config: OptimConfig,
        loss: Loss,
    ) -> None:
        check_searched(sum(p.numel() for p in searched), config)
        lr = config.lr if config.theta_lr is None else config.theta_lr
        super().__init__(searched, {"lr": lr})
        self.config, self.loss = config, loss
        self.searched = searched
        self.steps = 0
        self.adamw = torch.optim.AdamW(stepped, **config.adamw) if stepped else None
        self._share_groups()

    def _share_groups(self) -> None:
        """Share the groups: a scheduler sets all rates here, and AdamW's are the same objects."""
        self.param_groups = self.param_groups[:1] + (self.adamw.param_groups if self.adamw else [])

    def step(self, closure: Any = None) -> Any:
        """One step of AdamW, and a search where its turn has come."""
        loss = closure() if closure is not None else None
        if self.adamw is not None:
            self.adamw.step()
        if self.steps % self.config.search_every_n_steps == 0:
            self._search()
        self.steps += 1
        return loss

    @torch.no_grad()
    def _search(self) -> None:
        start = parameters_to_vector(self.searched).double()
        search = OPTIMIZERS[self.config.name].search
        assert search is not None  # else there is no such optimizer
        found = search(self._loss_at, start, self.config, self.param_groups[0]["lr"])
        self._set(found)

    def _set(self, vector: Tensor) -> None:
        # In place: torch's own vector_to_parameters replaces ``data``, which nothing notices.
        pieces = vector.split([p.numel() for p in self.searched])
        for parameter, piece in zip(self.searched, pieces, strict=True):
            parameter.copy_(piece.view(parameter.shape))

    def _loss_at(self, vector: Tensor) -> float:
        self._set(vector)
        return self.loss()

    def state_dict(self) -> dict[str, Any]:
        """AdamW's state, the searched group's rate, and the steps taken."""
        inner = None if self.adamw is None else self.adamw.state_dict()
        return {"adamw": inner, "lr": self.param_groups[0]["lr"], "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        if self.adamw is not None:
            self.adamw.load_state_dict(state_dict["adamw"])
        self.steps = state_dict["steps"]
        self.param_groups[0]["lr"] = state_dict["lr"]
        self._share_groups()
