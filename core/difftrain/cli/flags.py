"""Every run option as a flag, in both spellings, and the parsing of the command line.

cyclopts parses; values stay texts here and are then checked like those of a file.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from difftrain.cli.adapter_commands.edit_flags import EDIT_FLAGS, EDIT_VALUES, REPEATED
from difftrain.config.config_files import EMPTY_FILE, FlagValue, find_run_file, plugin_switches
from difftrain.config.known_keys import RUN_TABLES, KnownKeys
from difftrain.config.messages import nearest
from difftrain.config.paths import expand_path
from difftrain.config.schema import RunConfig
from difftrain.config.user_values import plain_key
from difftrain.errors import ConfigError
from difftrain.plugins.discovery import LoadedPlugins, load_plugins

if TYPE_CHECKING:
    import cyclopts

OWN_FLAGS: Mapping[str, str] = {
    "config": "Run file, JSON with comments; default: config/config.json if it exists.",
    "demo": "Train the built-in tiny model on the built-in photographs; needs no network and no GPU.",
    "fast": "Do not test whether new images can be decoded; a damaged one then stops the run when it is encoded.",
    "json": "Print one JSON object, for other programs.",
    "html": "With check: write the page of the pair doctor, with every pair, into this folder.",
    "pixels": "With check: compare the pixels of all pairs; without it only if few are new.",
    "card": "With plan: the card to explain, such as 4090; default: this machine's, else the H100.",
    "verify": "With cache: read every entry that the run needs, and make damaged ones again.",
    "prune": "With cache: remove entries that this run does not need; other runs may share the folders.",
    "format": "With export: the layout to write: diffusers (default), comfyui, bfl or kohya.",
    "output": "With export: the file to write; it must not exist. With edit: the folder; default: a new folder "
    "edits/edit-N in the run's folder.",
    "dtype": "With export: fp32, bf16 or fp16; default: as in the source, fp32 where a strength was folded in.",
    "as_lora": "With export: turn LoKr, LoHa, a full change or a larger LoRA into the nearest LoRA of this rank, and "
    "print the relative error of each module.",
    "merge": "With export: write the whole model, with the change in its weights, into the new folder --output.",
    "no_verify": "With export: do not read the written file back and compare it.",
    **EDIT_FLAGS,
    "help": "Print this text.",
}
"""Flags that are not run options, with their help."""
SWITCHES = ("demo", "fast", "json", "pixels", "verify", "prune", "merge", "no_verify", "help")
"""Those of :data:`OWN_FLAGS` that take no value."""
OWN_VALUES: Mapping[str, str] = {
    "config": "PATH",
    "html": "DIR",
    "card": "NAME",
    "format": "NAME",
    "output": "PATH",
    "dtype": "NAME",
    "as_lora": "RANK",
    **EDIT_VALUES,
}
"""What the others take."""
FILE_WORD = "file"
"""Key of the plain word after a command of :data:`FILE_COMMANDS`."""
FILE_COMMANDS = ("export", "identify")
"""Commands that take a file or folder as a plain word."""


def join_values(
    arguments: Sequence[str], schema: type[RunConfig], tables: KnownKeys, commands: Collection[str] = ()
) -> list[str]:
    """Return the command line with every true-or-false flag spelled ``--key=value``.

    ``--gradient_checkpointing``, ``--gradient_checkpointing false`` and ``--gradient_checkpointing=false`` are all in
    use; so is a bare ``--key`` for keys that this version knows only by name. A word after such a flag is its value,
    right or wrong, unless it is a command: words stand nowhere else.
    """
    joined: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        key = plain_key(argument)
        follower = rest[0] if rest else "--"
        alone = follower.startswith("--")
        if argument.startswith("--") and "=" not in argument and key not in OWN_FLAGS:
            field = schema.model_fields.get(key)
            if field is not None and _is_switch(field.annotation):
                has_value = not follower.startswith("-") and follower not in commands
                argument += "=" + (rest.pop(0) if has_value else "true")
            elif field is None and key in tables.flags() and alone:
                argument += "=true"
        joined.append(argument)
    return joined


def _is_switch(annotation: Any) -> bool:
    """Whether a value may be true or false, so that its flag alone means true."""
    return annotation is bool or bool in get_args(annotation)


def signature(schema: type[RunConfig], tables: KnownKeys, arguments: Sequence[str]) -> inspect.Signature:
    """Return a signature with the command line's own flags and the run options that it mentions, for cyclopts.

    cyclopts takes a quarter of a second to look at all options; a command line names a few of them.
    """
    mentioned = {plain_key(argument.partition("=")[0]).lower() for argument in arguments}
    other_names: dict[str, list[str]] = {}
    for other, key in tables.renamed.items():
        other_names.setdefault(key, []).append(other)
    own = [key for key in OWN_FLAGS if key not in SWITCHES and (key not in EDIT_FLAGS or key in mentioned)]
    parameters = [_parameter(key, list[str] if key in REPEATED else str) for key in own]
    parameters += [_parameter(key, bool, names=["-h"] if key == "help" else []) for key in SWITCHES]
    for key, field in schema.model_fields.items():
        if mentioned.isdisjoint((key, *other_names.get(key, ()))):
            continue
        many = get_origin(field.annotation) is tuple
        names = [f"--{other}" for other in other_names.get(key, [])]
        parameters.append(_parameter(key, list[str] if many else str, names=names))
    known = {*schema.model_fields, *OWN_FLAGS}
    parameters += [_parameter(key, str) for key in tables.flags() if key in mentioned and key not in known]
    return inspect.Signature(parameters)


def _parameter(key: str, value_type: Any, *, names: Sequence[str] = ()) -> inspect.Parameter:
    from cyclopts import Parameter

    annotation = Annotated[value_type | None, Parameter(name=[f"--{key}", *names], negative=())]
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def read_command_line(
    arguments: Sequence[str],
    schema: type[RunConfig],
    commands: Mapping[str, Callable[..., int]],
    *,
    tables: KnownKeys = RUN_TABLES,
) -> tuple[Callable[..., int], dict[str, Any]]:
    """Return the command and the given flags; the first of ``commands`` is the default.

    Args:
        tables: Keys that no options class has; they are flags too.

    Raises:
        ConfigError: If a flag or word is unknown or repeated, or a flag has no value.
    """
    # imported here: --help does not need it, and importing it takes a fifth of the time that --help may take
    import cyclopts

    app = cyclopts.App(name="difftrain", help_flags=[], version_flags=[], result_action="return_value")
    flags = signature(schema, tables, arguments)
    default = next(iter(commands))
    for name, command in commands.items():
        reader = _reader(command, _with_file(flags) if name in FILE_COMMANDS else flags)
        if name == default:
            app.default(reader)
        app.command(reader, name=name)
    try:
        command, given = app(join_values(arguments, schema, tables, commands), exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        raise ConfigError(_said(error, schema, tables, commands)) from error
    return command, {
        key: _items(value) if isinstance(value, list) and key not in REPEATED else value
        for key, value in given.items()
        if value is not None
    }


def _items(values: Sequence[str]) -> list[str]:
    """Split so that ``--key a --key b`` and ``--key a,b`` give one list."""
    return [item.strip() for value in values for item in value.split(",") if item.strip()]


def _with_file(flags: inspect.Signature) -> inspect.Signature:
    from cyclopts import Parameter

    word = inspect.Parameter(
        FILE_WORD,
        inspect.Parameter.POSITIONAL_ONLY,
        default=None,
        annotation=Annotated[str | None, Parameter(allow_leading_hyphen=False)],
    )
    return flags.replace(parameters=[word, *flags.parameters.values()])


def _reader(command: Callable[..., int], flags: inspect.Signature) -> Callable[..., Any]:
    def reader(*words: Any, **given: Any) -> tuple[Callable[..., int], dict[str, Any]]:
        return command, given | dict(zip((FILE_WORD,), words, strict=False))

    reader.__signature__ = flags  # type: ignore[attr-defined]
    return reader


def _said(
    error: cyclopts.CycloptsError, schema: type[RunConfig], tables: KnownKeys, commands: Mapping[str, object]
) -> str:
    """Return the problem in our words, with a suggestion."""
    import cyclopts

    if isinstance(error, cyclopts.UnknownOptionError) and error.token.keyword:
        flag = error.token.keyword
        guess = nearest(plain_key(flag), [*OWN_FLAGS, *schema.model_fields, *tables.flags(), *tables.renamed])
        return f"unknown flag {flag}" + (f"; did you mean --{guess}?" if guess else "; see `difftrain --help`")
    if isinstance(error, cyclopts.UnusedCliTokensError):
        word = (error.unused_tokens or ["?"])[0]
        guess = nearest(word, commands)
        advice = f"did you mean `difftrain {guess}`?" if guess else f"commands: {', '.join(commands)}"
        return f"unexpected word {word!r}; {advice}"
    text = str(error)
    spelled = re.search(r"--[\w-]+", text)
    if isinstance(error, cyclopts.MissingArgumentError) and spelled:
        return f"{spelled[0]} needs a value: {spelled[0]} {OWN_VALUES.get(plain_key(spelled[0]), 'VALUE')}"
    if isinstance(error, cyclopts.RepeatArgumentError) and spelled:
        return f"{spelled[0]} is given twice; give it once"
    return text[:1].lower() + text[1:].rstrip(".")


def early_flags(arguments: Sequence[str]) -> tuple[Path | None, dict[str, FlagValue]]:
    """Return the run file and the plugin switches, which must be known before all other flags."""
    found: dict[str, list[str]] = {"config": [], "plugins": [], "disable_plugin": []}
    for index, argument in enumerate(arguments):
        name, has_value, value = argument.partition("=")
        key = plain_key(name)
        if name.startswith("--") and key in found:
            found[key] += [value] if has_value else list(arguments[index + 1 : index + 2])
    switches: dict[str, FlagValue] = {key: _items(found[key]) for key in ("plugins", "disable_plugin") if found[key]}
    return (run_file_path(found["config"][-1]) if found["config"] else None), switches


def run_file_path(text: str) -> Path:
    """Return the path that ``--config`` names; ``~`` and ``{env:NAME}`` mean the same as in every other path.

    Raises:
        ConfigError: If it cannot be a path the user meant.
    """
    try:
        return Path(expand_path(text, {}))
    except ConfigError as error:
        raise ConfigError(f"flag --config: {error}") from error


def folder_of(text: str | None) -> Path | None:
    """Return the folder that ``--html`` names.

    Raises:
        ConfigError: If it cannot be a path the user meant.
    """
    if text is None:
        return None
    try:
        return Path(expand_path(text, {}))
    except ConfigError as error:
        raise ConfigError(f"flag --html: {error}") from error


def load_plugins_for(arguments: Sequence[str], *, file_may_be_wrong: bool = False) -> LoadedPlugins:
    """Load the plugins that the run file and the flags leave on.

    Args:
        file_may_be_wrong: Ignore a run file that cannot be read, because ``--help`` must work then too.

    Raises:
        ConfigError: If the run file cannot be read.
        PluginError: If a plugin file or a bundled plugin is broken.
    """
    try:
        path, switches = early_flags(arguments)
        file = find_run_file(path) if "--demo" not in arguments else EMPTY_FILE
        files, disabled = plugin_switches(file, switches)
    except ConfigError:
        if not file_may_be_wrong:
            raise
        return load_plugins()
    return load_plugins(files=files, disabled=disabled)
