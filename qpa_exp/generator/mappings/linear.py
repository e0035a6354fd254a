"""One linear layer with a bias: an MLP without hidden layers, under a name of its own."""

from dataclasses import replace

from qpa_exp.generator.mappings import mlp

ENTRY = replace(mlp.ENTRY, label="linear", reads=("qpa.mapping_init",))
