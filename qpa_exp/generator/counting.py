"""The sizes of a generator by formula: what ``plan`` says, without building one."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from itertools import pairwise

from qpa_exp.circuits.ansatze import ANSATZE
from qpa_exp.circuits.simulator import check_size
from qpa_exp.config import QPAConfig
from qpa_exp.generator.chunking import Chunking

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeneratorCounts:
    """The sizes of one generator.

    Attributes:
        trainable_params: angles, weights and biases that are trained.
        n_chunks: chunks that the vector is generated in.
        n_qubits: qubits of the circuit.
    """

    trainable_params: int
    n_chunks: int
    n_qubits: int


def count_generator(m: int, config: QPAConfig) -> GeneratorCounts:
    """The sizes of the generator of ``m`` parameters, as if it had been built.

    Raises:
        InputError: more qubits than its back end takes, or than there is memory for.

    Example:
        >>> from qpa_exp.config import QPAConfig
        >>> from qpa_exp.generator.counting import count_generator
        >>> count_generator(4 * (50257 + 768), QPAConfig(n_mlp=2048))
        GeneratorCounts(trainable_params=106264, n_chunks=100, n_qubits=7)
    """
    chunking = Chunking(m, config.n_mlp)
    n_chunks, n_qubits = chunking.n_chunks, chunking.n_qubits
    config = fit_to_states(config, n_qubits)
    check_size(config, n_qubits)
    circuit = ANSATZE[config.ansatz].count(config, n_qubits, n_chunks)
    mapping = sum((wide + 1) * narrow for wide, narrow in pairwise(layer_widths(config, n_qubits)))
    return GeneratorCounts(circuit + mapping, n_chunks, n_qubits)


def layer_widths(config: QPAConfig, n_qubits: int) -> tuple[int, ...]:
    """Of the mapping model, from a chunk's bits and features to its ``n_mlp`` parameters."""
    return (n_qubits + config.n_circuits * config.window, *config.mapping_hidden, config.n_mlp)


def fit_to_states(config: QPAConfig, n_qubits: int) -> QPAConfig:
    """No more circuits of the same angles than basis states to start from; nor a wider window."""
    most = 2**n_qubits
    if config.share_angles and config.n_circuits > most:
        log.warning(
            "qpa.n_circuits=%d share their angles, so each needs a basis state to start from: the "
            "%d qubits have %d, and that is how many circuits there are.",
            config.n_circuits, n_qubits, most,
        )  # fmt: skip
        config = dataclasses.replace(config, n_circuits=most)
    if config.window > most:
        log.warning(
            "qpa.window=%d is wider than the %d basis states of %d qubits: a chunk reads the "
            "probability of each of them once.",
            config.window, most, n_qubits,
        )  # fmt: skip
        config = dataclasses.replace(config, window=most)
    return config
