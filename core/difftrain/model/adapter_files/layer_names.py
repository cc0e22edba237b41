"""From the names of layers in adapter files to modules of a model, and back. No torch."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from difftrain.contracts import ModelFamily

NUMBER = "{n}"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer as a file names it, and the modules whose rows it has."""

    name: str
    """With dots."""
    modules: tuple[str, ...]
    rows: tuple[int, ...] = (1,)
    """Relative numbers of rows of the modules."""
    halves_swapped: bool = False
    original: bool = False
    """Whether the name is that of the original checkpoint, not the module's own."""


class LayerNames:
    """The layers of one family by all the names that files have for them."""

    def __init__(self, family: ModelFamily | type[ModelFamily], modules: Collection[str] = ()) -> None:
        """Collect the names.

        Args:
            modules: Full names of the linear modules of a certain model, for families that know no others.
        """
        self.prefix = family.lora_prefix
        known = family.original_layers
        self.has_originals = known is not None
        self._exact = {name: name for name in modules} | {name.replace(".", "_"): name for name in modules}
        self._templates: list[tuple[re.Pattern[str], Layer]] = []
        self._originals: list[tuple[re.Pattern[str], Layer]] = []
        if known is None:
            return
        for original, parts in known.parts.items():
            layer = Layer(
                name=original,
                modules=parts,
                rows=tuple(known.rows.get(part, 1) for part in parts),
                halves_swapped=any(part in known.halves_swapped for part in parts),
                original=True,
            )
            self._templates.append((_pattern(original), layer))
            for part in parts:
                self._templates.append((_pattern(part), Layer(name=part, modules=(part,))))
                self._originals.append((_pattern(part), layer))

    def find(self, written: str) -> Layer | None:
        """Return the layer that a file names, with dots or underscores; None if the family has none of this name."""
        if written in self._exact:
            return Layer(name=self._exact[written], modules=(self._exact[written],))
        return _numbered(self._templates, written)

    def original_of(self, module: str) -> Layer | None:
        """Return the layer of the original checkpoint that has a module's rows; None if there is none."""
        return _numbered(self._originals, module)


def _pattern(template: str) -> re.Pattern[str]:
    # a name with dots has them at all places, so a mixed one is not told apart; no file has such
    return re.compile(re.escape(template).replace(re.escape(NUMBER), r"(\d+)").replace(r"\.", "[._]"))


def _numbered(templates: list[tuple[re.Pattern[str], Layer]], name: str) -> Layer | None:
    """Return the layer whose template fits, with the number of its block."""
    for pattern, layer in templates:
        if match := pattern.fullmatch(name):
            number = match[1] if match.groups() else ""
            return Layer(
                name=layer.name.replace(NUMBER, number),
                modules=tuple(module.replace(NUMBER, number) for module in layer.modules),
                rows=layer.rows,
                halves_swapped=layer.halves_swapped,
                original=layer.original,
            )
    return None
