"""The linear modules that ``peft_lora_target_modules`` names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from difftrain.config.messages import nearest
from difftrain.errors import ConfigError, first_few

if TYPE_CHECKING:
    from torch import nn


def linears_named(denoiser: nn.Module, wanted: Sequence[str]) -> list[str]:
    """Return the linear modules whose full names are wanted, or end in a wanted name after a dot, in model order.

    Raises:
        ConfigError: With every name that fits none, and the nearest that does.
    """
    from torch import nn

    linears = [name for name, part in denoiser.named_modules() if isinstance(part, nn.Linear)]
    found = [name for name in linears if any(_fits(name, one) for one in wanted)]
    wrong = [one for one in wanted if not any(_fits(name, one) for name in linears)]
    ends = {name.split(".", count)[-1] for name in linears for count in range(name.count(".") + 1)}
    problems = []
    for one in wrong:
        guess = nearest(one, linears if one.count(".") > 2 else ends)
        meant = f"; did you mean {guess!r}?" if guess else f"; linear modules are, for example, {first_few(linears)}"
        problems.append(f"peft_lora_target_modules: {one!r} is no linear module of this model{meant}")
    if problems:
        raise ConfigError(*problems)
    return found


def _fits(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")
