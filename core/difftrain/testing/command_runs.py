"""The command ``difftrain``, run in the process of a test."""

from __future__ import annotations

import contextlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandResult:
    """How a command ended."""

    status: int
    """Exit status; 0 is success, 2 an error that the user can mend."""
    out: str
    """Standard output."""
    err: str
    """Standard error: messages, notes and progress."""
    files: frozenset[str]
    """Files below the folder that the command wrote or changed, as posix paths relative to it."""

    @property
    def json(self) -> Any:
        """The standard output of a command with ``--json``."""
        return json.loads(self.out)


def run_command(folder: Path, *arguments: object, **options: object) -> CommandResult:
    """Run ``difftrain`` with ``folder`` as the current directory.

    This is the real command with all installed plugins, but in this process, so that torch is imported only once.

    Args:
        folder: Relative paths in arguments and configs start here.
        arguments: Words of the command line, such as "check", "--json"; turned into text.
        options: Flags by name: ``max_train_steps=4`` becomes ``--max_train_steps 4``, and ``True`` becomes ``true``.
    """
    from difftrain.cli.main import run

    words = [str(argument) for argument in arguments]
    for name, value in options.items():
        words += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    before = _stamps(folder)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run(words)
    written = frozenset(name for name, stamp in _stamps(folder).items() if before.get(name) != stamp)
    return CommandResult(status=status, out=out.getvalue(), err=err.getvalue(), files=written)


def _stamps(folder: Path) -> dict[str, tuple[int, ...]]:
    """Inode, size and time of every file below a folder."""
    stamps: dict[str, tuple[int, ...]] = {}
    for root, _, names in os.walk(folder):
        for path in (Path(root, name) for name in names):
            facts = path.lstat()
            stamps[path.relative_to(folder).as_posix()] = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
    return stamps
