"""``difftrain``: chooses the command, reads the flags, prints errors. Imports no model library."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from difftrain import __version__
from difftrain.cli.adapter_commands.edit_command import edit
from difftrain.cli.adapter_commands.edit_flags import EDIT_FLAGS
from difftrain.cli.cache_command import cache
from difftrain.cli.check_command import USER_ERROR, check
from difftrain.cli.commands import check_flags
from difftrain.cli.file_commands.export_command import export
from difftrain.cli.file_commands.identify_command import identify
from difftrain.cli.flags import FILE_WORD, folder_of, load_plugins_for, read_command_line, run_file_path
from difftrain.cli.invocation import FileFlags, Invocation
from difftrain.cli.plan_command import plan
from difftrain.cli.plugins_command import list_plugins
from difftrain.cli.sharing.push_command import push
from difftrain.cli.train_command import train
from difftrain.errors import ConfigError, DifftrainError, NotFinite, PluginError, StoppedElsewhere
from difftrain.plugins.discovery import LoadedPlugins

COMMANDS: Mapping[str, Callable[[Invocation], int]] = {
    "train": train,
    "check": check,
    "plan": plan,
    "cache": cache,
    "export": export,
    "identify": identify,
    "edit": edit,
    "push": push,
    "plugins": list_plugins,
}
"""The commands; the first is the default."""
TRAINING_FAILED = 1
INTERRUPTED = 130
_REMARKS_AT_IMPORT = ("torchao", "bitsandbytes", "diffusers.quantizers", "torch.utils._pytree")
"""Loggers that warn of kernels nobody asked for as soon as a package is installed: peft and diffusers import it."""
READER_LEFT = 141
"""The status that shells report for SIGPIPE."""


def main() -> None:
    """Run the command line and exit with its status; with 141, silently, if the reader of standard output has left."""
    _open_missing_streams()
    _replace_library_warnings()
    try:
        status = run(sys.argv[1:])
    except BrokenPipeError:
        # another pipe may have broken, and failed output is discarded from the buffer: only a new write tells which
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
    """Open streams that were closed when the program started, so that files it opens do not get their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            nowhere = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
            if nowhere != number:
                os.dup2(nowhere, number)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _is_standard_output(error: OSError) -> bool:
    """Return whether standard output could not be written, for example on a full disk; if so, print that."""
    if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EBADF):
        return False
    # the interpreter flushes once more when it exits
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    _say(f"error: cannot write to standard output ({(error.strerror or str(error)).lower()})")
    return True


def _replace_library_warnings() -> None:
    """Silence Python warnings, which are for programmers: users get our own messages instead.

    ``python -W`` and PYTHONWARNINGS still show them. Names that the terminal cannot print are escaped.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it has its own log level, read at import
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        for name in _REMARKS_AT_IMPORT:
            logging.getLogger(name).setLevel(logging.ERROR)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _reader_left(text: str = "") -> bool:
    """Return whether the reader of standard output has left; if so, discard all later output."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # the interpreter flushes once more when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def run(arguments: Sequence[str]) -> int:
    """Run the command that the command line names.

    Returns:
        Exit status: 0; 2 for what the user can fix, printed to standard error, or by ``check --json`` and
        ``plan --json`` as one object to standard output; 1 if training fails with numbers that are not finite; 128 plus
        its number after a signal.
    """
    try:
        if "--version" in arguments:
            print(f"difftrain {__version__}")
            return 0
        asks_help = "--help" in arguments or "-h" in arguments
        plugins = load_plugins_for(arguments, file_may_be_wrong=asks_help or arguments[:1] == ["plugins"])
        if asks_help:
            from difftrain.cli.help_text import help_of, help_text

            named = next((word for word in arguments[:1] if word in COMMANDS), None)
            print(help_of(named) if named else help_text(plugins.registry))
            return 0
        command, given = read_command_line(arguments, plugins.run_schema, COMMANDS, tables=plugins.run_tables)
        check_flags(next(name for name, one in COMMANDS.items() if one is command), given)
        return command(_invocation(given, arguments, plugins))
    except DifftrainError as error:
        if _asks_for_json(arguments):
            print(json.dumps({"status": "error", "problems": error.problems}, indent=2, ensure_ascii=False))
        elif not _is_said_elsewhere(error):
            _say(f"error: {error}")
        return TRAINING_FAILED if isinstance(error, NotFinite) else USER_ERROR
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED


def _is_said_elsewhere(error: DifftrainError) -> bool:
    """Return whether another process prints this error: the first of a machine reports what all of them find."""
    shared = isinstance(error, ConfigError | PluginError | NotFinite) and os.environ.get("LOCAL_RANK", "0") != "0"
    return shared or isinstance(error, StoppedElsewhere)


def _say(text: str) -> None:
    """Print to standard error if anyone reads it; the exit status tells the same."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _asks_for_json(arguments: Sequence[str]) -> bool:
    """Look in the raw words, because the command line itself may be wrong."""
    return arguments[:1] in (["check"], ["plan"], ["identify"]) and not {"--json", "--json=true"}.isdisjoint(arguments)


def _invocation(given: dict[str, Any], arguments: Sequence[str], plugins: LoadedPlugins) -> Invocation:
    config, output = given.pop("config", None), given.pop("output", None)
    own = {key: given.pop(key) for key in EDIT_FLAGS if key in given}
    if output is not None:
        own["output"] = output
    return Invocation(
        config=run_file_path(config) if config is not None else None,
        demo=bool(given.pop("demo", False)),
        fast=bool(given.pop("fast", False)),
        json=bool(given.pop("json", False)),
        html=folder_of(given.pop("html", None)),
        pixels=bool(given.pop("pixels", False)),
        card=given.pop("card", None),
        verify=bool(given.pop("verify", False)),
        prune=bool(given.pop("prune", False)),
        files=FileFlags(
            path=given.pop(FILE_WORD, None),
            format=given.pop("format", None),
            output=output,
            dtype=given.pop("dtype", None),
            as_lora=given.pop("as_lora", None),
            merge=bool(given.pop("merge", False)),
            no_verify=bool(given.pop("no_verify", False)),
        ),
        own=own,
        flags=given,
        arguments=tuple(arguments),
        plugins=plugins,
    )
