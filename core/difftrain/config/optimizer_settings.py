"""The optimizer's settings: ``optimizer_config``, and single keys of the run file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from difftrain.config.dataset_list import placeholders
from difftrain.config.problems import Problems
from difftrain.config.schema import RunConfig
from difftrain.config.section import OptionsT, parse_options

_BETAS = (("optimizer_beta1", "adam_beta1"), ("optimizer_beta2", "adam_beta2"))
"""By position, keys that set one of the betas; the first one given wins."""
_SINGLE = {"adam_weight_decay": "weight_decay", "adam_epsilon": "eps"}


def optimizer_options(config: RunConfig, cls: type[OptionsT], problems: Problems) -> OptionsT | None:
    """Return the optimizer's options object; None after a problem."""
    prefix = f"optimizer_config of {config.optimizer!r}: "
    values = _values(config, cls, problems)
    return parse_options(cls, values, prefix=prefix, problems=problems, known=placeholders(config, None))


def _values(config: RunConfig, cls: type[OptionsT], problems: Problems) -> dict[str, Any]:
    """Return values for the optimizer's class; ``optimizer_config`` wins over single keys, and unused keys are noted.

    Args:
        cls: The optimizer's options class. Settings named after Adam apply to classes with betas, eps and weight_decay;
            Lion's weight decay, for example, means something else and has another usual size.
    """
    values = dict(config.optimizer_config)
    given = {key: getattr(config, key) for key in _keys() if getattr(config, key) is not None}
    is_adam = {"betas", "eps", "weight_decay"} <= set(cls.model_fields)
    usable = {key: value for key, value in given.items() if is_adam or not key.startswith("adam_")}
    used: set[str] = set()
    if "betas" in cls.model_fields and "betas" not in values:
        betas = list(cls.model_fields["betas"].default)
        for position, keys in enumerate(_BETAS):
            chosen = next((key for key in keys if key in usable), None)
            if chosen is not None:
                betas[position] = usable[chosen]
                used.add(chosen)
        if used:
            values["betas"] = betas
    for key, setting in _SINGLE.items():
        if key in usable and setting not in values:
            values[setting] = usable[key]
            used.add(key)
    unused = [key for key in given if key not in used]
    if unused:
        problems.note(f"{', '.join(unused)}: no effect with optimizer {config.optimizer!r} and its optimizer_config")
    return values


def _keys() -> Iterator[str]:
    for pair in _BETAS:
        yield from pair
    yield from _SINGLE
