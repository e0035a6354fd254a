"""A matrix product state in the MLP's place (Liu, Lin, Chen 2024, arXiv:2409.06992).

Theirs: Quantum-Train with a tensor network for the mapping model. Of the paper the abstract was at
hand; what follows is our reading of it. The network is a chain of tensors. There is a site for each
of the chunk's bits, and then one for what it reads of each circuit; neighbours share an index of
``qpa.bond_dim`` values, chi. A bit x enters as the vector [1, x], the w features of a window as
[1, f_1, ..., f_w], which is [1, p] where a chunk reads one probability. The last tensor has an open
leg of n_mlp outputs. It is kept as two, the site's own and a matrix (chi, n_mlp), so that a wide
window and a large chunk add and do not multiply. With N bits, C circuits and a window of w,

    2 chi + (N - 1) 2 chi^2 + C (w + 1) chi^2 + chi n_mlp

numbers are trained; about (N + 1) 2 chi^2 + chi n_mlp for one circuit and w = 1.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qpa_exp.config import QPAConfig
from qpa_exp.generator.generator import linear_in_windows
from qpa_exp.generator.mappings import MappingKind


class MatrixProductState(nn.Module):
    """The chain, contracted from the first bit on.

    The bits' part is the same for chunks that begin alike: it is computed for all 2^N of them by
    doubling, which costs no more than the last bit's. At the start each bit turns the vector
    (orthogonal matrices), so that no chunk's is longer than another's.

    Attributes:
        bits: of each bit, (left, 2, chi): the constant and the slope in x, which is -1 or +1.
        windows: of each circuit, (left, w + 1, chi): the constant first.
        out: (chi, n_mlp).
    """

    def __init__(self, config: QPAConfig, n_bits: int, in_order: bool) -> None:
        super().__init__()
        assert config.n_mlp is not None
        assert config.window is not None
        assert config.scale is not None
        chi, self.window, self.in_order = config.bond_dim, config.window, in_order
        self.scale = config.scale
        self.bits, self.windows = nn.ParameterList(), nn.ParameterList()
        left = 1
        for _ in range(n_bits):
            self.bits.append(_turning(left, chi))
            left = chi
        for _ in range(config.n_circuits):
            deviation = 1 / math.sqrt(left * (config.window + 1))
            self.windows.append(deviation * torch.randn(left, config.window + 1, chi))
            left = chi
        self.out = nn.Parameter(torch.randn(chi, config.n_mlp) / math.sqrt(chi))

    def forward(
        self, bits: Float[Tensor, "chunks bits"], features: Float[Tensor, "circuits states"]
    ) -> Float[Tensor, "chunks n_out"]:
        """Give the parameters of each chunk, from its bits and the features of all basis states."""
        chunks = len(bits)
        left = bits.new_ones(1, 1)
        for site in self.bits:  # afterwards row i stands for the bits of i, the first the highest
            constant, slope = site.unbind(1)
            left = torch.stack([left @ (constant - slope), left @ (constant + slope)], 1)
            left = left.flatten(0, 1)
        if not self.in_order:
            left = left.index_select(0, _numbers(bits))
        elif self.bits:
            left = left[:chunks]
        for site, ring in zip(self.windows, features, strict=True):
            constant, weight = site[:, 0].flatten(), site[:, 1:].transpose(1, 2).flatten(0, 1)
            matrices = linear_in_windows(
                bits[:, :0], ring[None], weight, constant, self.window, in_order=True
            )
            matrices = matrices[:chunks].view(chunks, *site.shape[::2])
            left = (left.unsqueeze(-1) * matrices).sum(1)
        return left @ (self.scale * self.out)


def _turning(left: int, chi: int) -> Tensor:
    """Two matrices that keep a vector's length, as their mean and half their difference."""
    if left == 1:
        two = torch.randn(2, 1, chi)
        two *= math.sqrt(chi) / two.norm(dim=-1, keepdim=True)
    else:
        two = torch.stack([nn.init.orthogonal_(torch.empty(left, chi)) for _ in range(2)])
    down, up = two
    return torch.stack([(down + up) / 2, (up - down) / 2], dim=1)


def _numbers(bits: Float[Tensor, "chunks bits"]) -> Tensor:
    """Return the numbers that the bits write, the first the most significant."""
    places = torch.arange(bits.shape[1] - 1, -1, -1, device=bits.device)
    return ((bits > 0).long() << places).sum(1)


def _count(config: QPAConfig, n_bits: int) -> int:
    assert config.n_mlp is not None
    assert config.window is not None
    chi = config.bond_dim
    sizes = [2] * n_bits + [config.window + 1] * config.n_circuits
    first, *others = sizes
    return first * chi + sum(others) * chi**2 + chi * config.n_mlp


def _scale(config: QPAConfig) -> float:
    """Scale as the linear mapping does, for chi times as many numbers. It was not searched."""
    assert config.window is not None
    return 0.1 * math.sqrt(128 / (config.window * config.n_circuits * config.bond_dim))


def _widest(config: QPAConfig) -> int:
    assert config.n_mlp is not None
    return max(config.bond_dim**2, config.n_mlp)


ENTRY = MappingKind("MPS", _count, MatrixProductState, _scale, _widest, reads=("qpa.bond_dim",))
