"""The names of the ways in which a LoRA can begin. No torch."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator

from difftrain.config.messages import nearest

_NAMES = ("default", "gaussian", "pissa", "olora")
_FAST = re.compile(r"pissa_niter_([1-9]\d?)")


def rounds_of(name: str) -> int | None:
    """Return N of ``pissa_niter_N``; None for other names."""
    found = _FAST.fullmatch(name)
    return int(found[1]) if found else None


def _known(value: object) -> object:
    if isinstance(value, str) and value not in _NAMES and rounds_of(value) is None:
        guess = nearest(value, [*_NAMES, "pissa_niter_4"])
        meant = f"; did you mean {guess!r}?" if guess else ""
        raise ValueError(f"must be {', '.join(_NAMES)}, or pissa_niter_N with N from 1 to 99{meant}")
    return value


Init = Annotated[Literal["default", "gaussian", "pissa", "olora"] | str, BeforeValidator(_known)]
"""The value of ``lora_init_type``; texts beside the listed ones are ``pissa_niter_N``."""
