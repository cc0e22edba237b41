"""The type of a model's input, which a family and its flavours share."""

from __future__ import annotations

from typing import Any, Generic, Self

from typing_extensions import TypeVar

from difftrain.config.options import Options

Input = TypeVar("Input", default=Any)
"""A family's ``build_input()`` makes it, its flavours extend it, its ``predict()`` takes it; opaque to the core."""


class TypedByInput(Options, Generic[Input]):
    """Options that are generic over the family's input.

    ``ModelFamily["MyInput"]`` matters to type checkers alone. It is the class itself, so a module that defines a family
    need not import the input's class, nor torch with it.
    """

    def __class_getitem__(cls, _input: object) -> type[Self]:
        return cls
