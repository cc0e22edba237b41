"""A user's ``lycoris_config`` file: what it asks for, and everything that is wrong with it. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from difftrain.config.config_files import read_config_file
from difftrain.config.messages import explain, nearest, unknown_key
from difftrain.config.user_values import coerce
from difftrain.errors import ConfigError

Algo = Literal["lokr", "loha", "lora", "locon", "full"]
ALGOS: tuple[str, ...] = ("lokr", "loha", "lora", "locon", "full")
WHOLE = 10_000
"""A rank that no layer reaches: LoKr then trains whole factors."""
NO_EFFECT = (
    "bypass_mode",
    "enable_conv",
    "conv_dim",
    "conv_alpha",
    "conv_factor",
    "use_tucker",
    "use_cp",
    "block_size",
)
"""Keys of users' files that change nothing here: the change is never merged into the weights for a forward, and only
linear layers are adapted."""
_NOT_BUILT = ("dora_wd", "wd_on_output", "rank_dropout", "module_dropout", "use_scalar", "train_norm", "constraint",
              "rescaled")  # fmt: skip
_PRESET_KEYS = ("target_module", "target_name", "module_algo_map", "name_algo_map", "use_fnmatch", "exclude_name")


class Change(BaseModel):
    """How one layer's weight is changed, as the library's modules take it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    algo: Algo = "lokr"
    dim: int = Field(4, ge=1)
    alpha: float = Field(1.0, ge=0)
    factor: int = Field(-1, ge=-1)
    dropout: float = Field(0.0, ge=0, lt=1)
    decompose_both: bool = False
    full_matrix: bool = False
    unbalanced_factorization: bool = False
    rs_lora: bool = False

    @field_validator("algo", mode="before")
    @classmethod
    def _in_small_letters(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True)
class LycorisFile:
    """What the file asks for."""

    default: Change
    multiplier: float = 1.0
    classes: tuple[str, ...] = ()
    """Modules of these classes are adapted, with all linear layers in them."""
    names: tuple[str, ...] = ()
    """Patterns of full names of layers."""
    by_class: Mapping[str, Change] = field(default_factory=dict)
    by_name: Mapping[str, Change] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()
    glob: bool = False
    """Patterns are those of file names, ``*.attn.*``; otherwise regular expressions that match from the start."""
    content: Mapping[str, Any] = field(default_factory=dict)
    """The file, to be kept with the trained weights."""

    def facts(self) -> dict[str, Any]:
        """Return all that the trained weights depend on, as JSON has it."""
        preset = {
            "target_module": list(self.classes),
            "target_name": list(self.names),
            "module_algo_map": {name: change.model_dump() for name, change in self.by_class.items()},
            "name_algo_map": {name: change.model_dump() for name, change in self.by_name.items()},
            "exclude_name": list(self.excluded),
            "use_fnmatch": self.glob,
        }
        return {**self.default.model_dump(), "multiplier": self.multiplier, "apply_preset": preset}

    def with_classes(self, classes: tuple[str, ...]) -> LycorisFile:
        """Return the same for a family whose usual classes are these; a file that chooses modules stays as it is."""
        return self if self.classes or self.names else replace(self, classes=classes)


USUAL = LycorisFile(
    default=Change(dim=WHOLE, factor=16),
    content={"algo": "lokr", "multiplier": 1.0, "linear_dim": WHOLE, "linear_alpha": 1, "factor": 16},
)
"""LoKr with whole factors, for runs without a file."""


def read_lycoris_file(path: Path) -> LycorisFile:
    """Read and check a file.

    Raises:
        ConfigError: With every problem, each naming the key ``lycoris_config`` and the path.
    """
    try:
        content = read_config_file(path).content
    except ConfigError as error:
        raise ConfigError(f"lycoris_config: {error}") from None
    problems: list[str] = []
    found = _parsed(content, problems) if isinstance(content, dict) else None
    if found is None and not problems:
        problems.append("must be an object {...}")
    if problems:
        raise ConfigError(*(f"lycoris_config {path}: {text}" for text in problems))
    assert found is not None, "no problem"
    return found


def _parsed(content: Mapping[str, Any], problems: list[str]) -> LycorisFile | None:
    values = dict(content)
    preset = values.pop("apply_preset", None)
    preset = {} if preset is None else preset
    if not isinstance(preset, dict):
        problems.append(f"apply_preset must be an object, got {json.dumps(preset)}")
        return None
    for key in _PRESET_KEYS:  # the library takes them only inside apply_preset
        if key in values:
            problems.append(f"{key} belongs into apply_preset: {{...}}")
            del values[key]
    multiplier = values.pop("multiplier", 1.0)
    if isinstance(multiplier, bool) or not isinstance(multiplier, int | float) or multiplier == 0:
        problems.append(f"multiplier must be a number other than 0, got {json.dumps(multiplier)}")
        multiplier = 1.0
    default = _change(values, Change(), "", problems) or Change()
    # an empty list chooses nothing, like a key that is not there
    texts = {key: _texts(preset, key, problems) for key in ("target_module", "target_name", "exclude_name")}
    for key in preset:
        if key not in (*_PRESET_KEYS, *NO_EFFECT):
            problems.append(f"apply_preset: {unknown_key(key, _PRESET_KEYS)}")
    by_class = dict(_map_of(preset, "module_algo_map", default, problems))
    by_name = dict(_map_of(preset, "name_algo_map", default, problems))
    found = LycorisFile(
        default=default,
        multiplier=float(multiplier),
        classes=tuple(dict.fromkeys([*texts["target_module"], *by_class])),
        names=tuple(dict.fromkeys([*texts["target_name"], *by_name])),
        by_class=by_class,
        by_name=by_name,
        excluded=texts["exclude_name"],
        glob=bool(preset.get("use_fnmatch", False)),
        content=content,
    )
    problems += [] if found.glob else _wrong_patterns((*found.names, *found.excluded))
    return found


def _map_of(preset: Mapping[str, Any], key: str, default: Change, problems: list[str]) -> Iterator[tuple[str, Change]]:
    entries = preset.get(key) or {}
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        problems.append(f'apply_preset.{key} must be an object of objects, such as {{"NAME": {{"factor": 8}}}}')
        return
    for name, values in entries.items():
        change = _change(values, default, f"apply_preset.{key}.{name}: ", problems)
        if change is not None:
            yield name, change


def _change(values: Mapping[str, Any], base: Change, where: str, problems: list[str]) -> Change | None:
    """Return ``base`` with the values of one object of the file; None after a problem."""
    before = len(problems)
    asked: dict[str, Any] = {}
    written: dict[str, str] = {}
    """The user's name of each key."""
    for key, value in values.items():
        own = {"linear_dim": "dim", "linear_alpha": "alpha"}.get(key, key)
        if key in NO_EFFECT or value is None:
            continue
        if key in _NOT_BUILT:
            if value:
                problems.append(f"{where}{key} {json.dumps(value)} is not supported; leave it out")
        elif own not in Change.model_fields:
            problems.append(where + unknown_key(key, ["linear_dim", "linear_alpha", *Change.model_fields]))
        else:
            asked[own] = coerce(Change.model_fields[own].annotation, value)
            written[own] = key
    algo = asked.get("algo")
    if isinstance(algo, str) and algo.lower() not in ALGOS:
        guess = nearest(algo.lower(), ALGOS)
        meant = f"did you mean {guess!r}? " if guess else ""
        problems.append(f"{where}algo {algo!r} is not supported; {meant}known: {', '.join(ALGOS)}")
        return None
    try:
        change = Change.model_validate({**base.model_dump(), **asked})
    except ValidationError as error:
        for key, sentence in explain(error, asked).items():
            problems.append(f"{where}{written.get(key, key)}{sentence.removeprefix(key)}")
        return None
    return change if len(problems) == before else None


def _texts(preset: Mapping[str, Any], key: str, problems: list[str]) -> tuple[str, ...]:
    found = preset.get(key) or []
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        problems.append(f"apply_preset.{key} must be a list of texts, got {json.dumps(found)}")
        return ()
    return tuple(found)


def _wrong_patterns(patterns: tuple[str, ...]) -> list[str]:
    wrong = []
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            wrong.append(
                f"apply_preset: {pattern!r} is no regular expression ({error}); with use_fnmatch true, * stands for "
                "any text"
            )
    return wrong
