"""Errors, grouped by who has to act.

Every :class:`DifftrainError` is for the *user* to fix: the command line prints its text and exits with
status 2, without a traceback. A bug of ours is an ``assert`` or any other exception, and keeps its traceback.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from itertools import islice

_SHOWN_CHARACTERS = 300
"""Limit for one name; a path may have thousands."""
_JOINERS = "\u200c\u200d"
"""Not printable by themselves, but part of ordinary names: emoji, Persian, Hindi."""


class DifftrainError(Exception):
    """Base of all errors that a user can fix; the message says where, what, how many and what to do.

    Several problems found together are several arguments; the message then lists them.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(join_problems(problems))
        self.problems = tuple(dict.fromkeys(problems))
        """Every problem by itself."""


class ConfigError(DifftrainError):
    """The run file, the dataset list or a flag is wrong; raised before any data file is read."""


class PluginError(DifftrainError):
    """A plugin is missing, broken, or uses a name that another plugin uses too."""


class DataError(DifftrainError):
    """A dataset's files cannot be used; raised before any weight is loaded."""


class PairingError(DataError):
    """A reference does not fit its target image."""


class ModelError(DifftrainError):
    """The model cannot be found, reached or loaded."""


class CheckpointError(DifftrainError):
    """A checkpoint cannot be resumed."""


class MachineError(DifftrainError):
    """The machine lacks what the run asks for: disk, memory, a device, a process."""


class StoppedElsewhere(MachineError):
    """Another process of the run has reported the problem; this one has nothing to add."""

    def __init__(self) -> None:
        super().__init__("the first process stopped; its message says why")


class NotFinite(DifftrainError):
    """The loss, the gradient or the weights are NaN or infinite: training cannot continue with these settings."""


def join_problems(problems: Iterable[str]) -> str:
    """Return one message with all problems, so that a user can fix them in one go.

    Args:
        problems: Messages, each possibly of several lines; repeated ones appear once.
    """
    unique = list(dict.fromkeys(problems))
    if len(unique) == 1:
        return unique[0]
    listed = "\n".join("- " + problem.replace("\n", "\n  ") for problem in unique)
    return f"{len(unique)} problems\n{listed}"


def first_few(names: Iterable[str], shown: int = 3) -> str:
    """Return the first names of a list, printable, with dots if there are more: ``a.png, b.png, c.png, ...``."""
    first = list(islice(names, shown + 1))
    return ", ".join(map(printable, first[:shown])) + (", ..." if len(first) > shown else "")


def printable(name: object) -> str:
    r"""Return a name as it can appear in a message: ``two\nlines``, ``caf\xe9``.

    File names may contain line ends, terminal escape sequences and bytes that are not UTF-8; these are escaped. The
    middle of a very long name is left out.
    """
    text = str(name)
    if not text.isprintable():
        text = "".join(_escaped(character) for character in text)
    half = _SHOWN_CHARACTERS // 2
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:half]}...{text[-half:]}"


def _escaped(character: str) -> str:
    if character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs":
        return character
    # a byte that is not UTF-8 is a lone surrogate in Python
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
