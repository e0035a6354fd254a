"""The generator: circuit and mapping model together make the m parameters of a PEFT method."""

from qpa_exp.generator.chunking import Chunking
from qpa_exp.generator.generator import Generator, basis_bits, squash
from qpa_exp.generator.mapping import MappingModel

__all__ = ["Chunking", "Generator", "MappingModel", "basis_bits", "squash"]
