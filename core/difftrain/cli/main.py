"""``difftrain``: which command, which flags, and what an error looks like. Imports no model library."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from difftrain import __version__
from difftrain.cli.check_command import check
from difftrain.cli.flags import load_plugins_for, read_command_line, run_file_path
from difftrain.cli.invocation import Invocation
from difftrain.cli.plugins_command import list_plugins
from difftrain.cli.train_command import train
from difftrain.errors import ConfigError, DifftrainError, NotFinite, PluginError, StoppedElsewhere
from difftrain.plugins.discovery import LoadedPlugins

COMMANDS: Mapping[str, Callable[[Invocation], int]] = {"train": train, "check": check, "plugins": list_plugins}
"""The first is what ``difftrain`` alone does."""
USER_ERROR = 2
TRAINING_FAILED = 1
INTERRUPTED = 130
READER_LEFT = 141
"""What shells give for SIGPIPE."""


def main() -> None:
    """Run the command line and exit with its status; quietly with 141 when what reads the standard output has left."""
    _open_missing_streams()
    _replace_library_warnings()
    try:
        status = run(sys.argv[1:])
    except BrokenPipeError:
        # it may be another pipe that broke, and what did not go through is forgotten: only new text tells
        if not _reader_left("\n"):
            raise
        sys.exit(READER_LEFT)
    except OSError as error:
        if not _is_standard_output(error):
            raise
        sys.exit(USER_ERROR)
    try:
        sys.exit(READER_LEFT if _reader_left() else status)
    except OSError as error:
        if not _is_standard_output(error):
            raise
        sys.exit(status or USER_ERROR)


def _open_missing_streams() -> None:
    """A program may be started with some of its streams closed: their numbers must not go to files that it opens."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            nowhere = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
            if nowhere != number:
                os.dup2(nowhere, number)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _is_standard_output(error: OSError) -> bool:
    """Whether it was the standard output that could not be written, as on a full disk; said if so."""
    if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EBADF):
        return False
    # the interpreter flushes once more at its end
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    _say(f"error: the standard output cannot be written ({(error.strerror or str(error)).lower()})")
    return True


def _replace_library_warnings() -> None:
    """Python warnings are for those who write programs: their users are told in our words, or not at all.

    ``python -W`` and PYTHONWARNINGS still show them. A name that the terminal cannot print is spelt out.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it has a log of its own, read when it is imported
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _reader_left(text: str = "") -> bool:
    """Whether nobody reads the standard output and this text any more; the rest of it then goes nowhere."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # the interpreter flushes once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def run(arguments: Sequence[str]) -> int:
    """Do what the command line says.

    Returns:
        Exit status: 0; 2 for what the user can mend, said on the standard error, by ``check --json`` as one object on
        the standard output; 1 for a training whose numbers are not finite; 128 and its number after a signal.
    """
    try:
        if "--version" in arguments:
            print(f"difftrain {__version__}")
            return 0
        asks_help = "--help" in arguments or "-h" in arguments
        plugins = load_plugins_for(arguments, file_may_be_wrong=asks_help or arguments[:1] == ["plugins"])
        if asks_help:
            from difftrain.cli.help_text import help_text

            print(help_text(plugins.registry))
            return 0
        command, given = read_command_line(arguments, plugins.run_schema, COMMANDS, tables=plugins.run_tables)
        return command(_invocation(given, arguments, plugins))
    except DifftrainError as error:
        if _asks_json_of_check(arguments):
            print(json.dumps({"status": "error", "problems": error.problems}, indent=2, ensure_ascii=False))
        elif not _is_said_elsewhere(error):
            _say(f"error: {error}")
        return TRAINING_FAILED if isinstance(error, NotFinite) else USER_ERROR
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED


def _is_said_elsewhere(error: DifftrainError) -> bool:
    """Of several processes of a machine the first says what all of them find."""
    shared = isinstance(error, ConfigError | PluginError | NotFinite) and os.environ.get("LOCAL_RANK", "0") != "0"
    return shared or isinstance(error, StoppedElsewhere)


def _say(text: str) -> None:
    """On the standard error, if somebody reads it; the exit status says it too."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _asks_json_of_check(arguments: Sequence[str]) -> bool:
    """Looked up in the raw words, as the command line itself may be what is wrong."""
    return arguments[:1] == ["check"] and not {"--json", "--json=true"}.isdisjoint(arguments)


def _invocation(given: dict[str, Any], arguments: Sequence[str], plugins: LoadedPlugins) -> Invocation:
    config = given.pop("config", None)
    return Invocation(
        config=run_file_path(config) if config is not None else None,
        demo=bool(given.pop("demo", False)),
        fast=bool(given.pop("fast", False)),
        json=bool(given.pop("json", False)),
        flags=given,
        arguments=tuple(arguments),
        plugins=plugins,
    )
