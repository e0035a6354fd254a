"""``prefix``: one learned vector for each position, added to the input of a linear layer.

m = length * k for a layer of k inputs. What it is, and how it knows the positions, is told in
``_prefix_layer``, which needs torch and PEFT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qpa_exp.adapters.catalogue import Method
from qpa_exp.config import Config, PeftMethodConfig
from qpa_exp.errors import InputError

if TYPE_CHECKING:
    from peft import PeftConfig


def _config_class() -> type[PeftConfig]:
    from qpa_exp.adapters.methods._prefix_layer import PrefixConfig

    return PrefixConfig


def _head_count(peft: PeftMethodConfig, vocabulary: int, width: int) -> int | None:
    """Return a vector of the head's k inputs for each position."""
    length = peft.options.get("length")
    if set(peft.options) != {"length"} or type(length) is not int or length < 1:
        return None
    return length * width


def _check(config: Config) -> None:
    """Refuse examples that are longer than the prefix that is added to them."""
    if config.data.layout == "packed":
        raise InputError(
            "data.layout=packed: the vectors of peft=prefix belong to the places of a row, not to "
            "those of each example in it: give data.layout=lines."
        )
    length, longest = config.peft.options.get("length"), config.data.max_length
    if isinstance(length, int) and 1 <= length < longest:
        raise InputError(
            f"peft.options.length={length} is shorter than data.max_length={longest}: "
            f"give at least {longest}."
        )


ENTRY = Method("PT", _config_class, head_count=_head_count, check=_check)
