"""The base of everything that is configured: a frozen, typed, validated set of named values.

One class is schema, ``--help`` text (the docstring below each field), flags and cache key at once.
"""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Values that a user may set. Subclass it, and give each field a type, a default and a docstring."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    def identity(self) -> str:
        """Return the values as canonical JSON: equal options give equal text on every machine and Python version."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
