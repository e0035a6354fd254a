"""The back end's own backward: exact slopes of a simulation."""

from qpa_exp.circuits.backends import BACKENDS
from qpa_exp.circuits.gradients import GRADIENTS, GradientMethod
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError


def _check(config: QPAConfig) -> None:
    if BACKENDS[config.backend].samples:
        others = [name for name in GRADIENTS if GRADIENTS[name].estimate is not None]
        raise InputError(
            "qpa.gradient=autograd needs a simulation to differentiate, which "
            f"qpa.backend={config.backend} is not: give qpa.gradient={' or '.join(others)}."
        )


ENTRY = GradientMethod("autograd", check=_check)
