"""The back end's own backward: exact slopes of a simulation."""

from qpa_exp.circuits.gradients import GradientMethod

ENTRY = GradientMethod("autograd")
