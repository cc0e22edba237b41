"""Collects problems, so that a user can fix all of them in one go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version

from difftrain.errors import ConfigError, DifftrainError


@dataclass
class Problems:
    """Problems, unsupported features and notes, in the order in which they were found."""

    texts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Printed once at start-up; they are not errors."""
    wrong_keys: set[str] = field(default_factory=set)
    """Keys of the run file whose values had a problem; the config has their defaults instead."""
    _not_built: dict[str, list[str]] = field(default_factory=dict)

    def add(self, text: str) -> None:
        self.texts.append(text)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def not_built(self, what: str, dataset: str | None = None) -> None:
        """Record a feature that exists elsewhere but that this version does not support.

        Args:
            what: The setting as the user wrote it, such as ``type 'huggingface'``.
            dataset: Id of the dataset that asks for it; None for the run file.
        """
        asking = self._not_built.setdefault(what, [])
        if dataset is not None and dataset not in asking:
            asking.append(dataset)

    @contextmanager
    def catching(self, prefix: str = "") -> Iterator[None]:
        """Turn a :class:`DifftrainError` raised in the block into a problem."""
        try:
            yield
        except DifftrainError as error:
            for problem in error.problems:
                self.add(prefix + problem)

    def __len__(self) -> int:
        """Return the number of problems so far; an unsupported feature counts once per dataset that asks for it."""
        return len(self.texts) + sum(max(1, len(asking)) for asking in self._not_built.values())

    def all(self) -> list[str]:
        """Return every problem; all unsupported features are one of them. A hint shared by several is given once."""
        return [*_hints_once(self.texts), *self._not_built_line()]

    def raise_all(self) -> None:
        """Raise one error with all problems, if there are any.

        Raises:
            ConfigError: With all of them.
        """
        if self:
            raise ConfigError(*self.all())

    def _not_built_line(self) -> list[str]:
        if not self._not_built:
            return []
        release = ".".join(version("difftrain").split(".")[:2])
        parts = []
        for what, datasets in self._not_built.items():
            word = "dataset" if len(datasets) == 1 else "datasets"
            parts.append(f"{what} ({word} {', '.join(datasets)})" if datasets else what)
        return [f"not supported yet in difftrain {release}: {', '.join(parts)}"]


def _hints_once(texts: Iterable[str]) -> Iterator[str]:
    said: set[str] = set()
    # callers drop equal texts, so a repeated problem must get the same hint both times
    for text in dict.fromkeys(texts):
        problem, _, hint = text.partition("\nhint: ")
        yield problem if hint in said else text
        if hint:
            said.add(hint)
