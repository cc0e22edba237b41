"""The text of ``difftrain --help``: every option, grouped, with default and choices. Plain text, to be fast."""

from __future__ import annotations

import shutil
import textwrap
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from difftrain.cli.commands import DESCRIBED, typed
from difftrain.cli.flags import FILE_COMMANDS, OWN_FLAGS, OWN_VALUES, SWITCHES
from difftrain.config.known_keys import PRECISION_WORDS
from difftrain.config.messages import shown
from difftrain.config.options import Options
from difftrain.config.schema import GROUPS, RunConfig
from difftrain.plugins.registry import EXTENSIONS, Registry

INTRODUCTION = """\
difftrain [FLAGS]            train
difftrain check [FLAGS]      check config, data and pairs before any weight is loaded
difftrain plan [FLAGS]       predict memory, seconds and hours for a table of cards, without a GPU
difftrain cache [FLAGS]      encode everything the run will read, without training
difftrain export RUN|FILE    write an adapter for another program: diffusers, ComfyUI, kohya, BFL
difftrain identify FILE|DIR  say what a file or folder is: family, flavour, rank, whose names
difftrain edit [FLAGS]       edit images with a trained adapter
difftrain push [FLAGS]       upload a run's adapter and its model card to the hub
difftrain plugins            list plugins and what they provide
difftrain --version
difftrain COMMAND --help     only what belongs to a command

To try it without data of your own: difftrain --model FAMILY --flavour NAME --demo

Set an option in the run file (config/config.json) or as a flag: --lora_rank 16, --lora-rank=16.
Write lists as a,b. For the keys of the dataset list see docs/options.md."""
SHORT: dict[str, str] = {"model_family": "--model", "model_flavour": "--flavour"}
NAME_WIDTH = 34
PATHS = {"export": " RUN|FILE", "identify": " FILE|FOLDER"}
"""What commands take as a plain word."""
_OTHERWISE = {
    ("edit", "config"): "Run file to use instead of what the adapter's run recorded; JSON with comments.",
    ("edit", "output"): "Where to write; default: a new folder edits/edit-N in the run's folder.",
    ("export", "output"): "The file to write; it must not exist. With --merge, a new folder.",
}
"""Help of flags that mean something else to one command."""


def help_of(command: str) -> str:
    """Return what a command is for and its own flags, fitted to the terminal."""
    width = min(120, shutil.get_terminal_size((100, 24)).columns)
    described = DESCRIBED[command]
    without_demo = ("edit", "plugins", *FILE_COMMANDS)
    flags = {*described.flags, "config", "help", *(() if command in without_demo else ("demo",))}
    longest = max(map(len, described.examples))
    examples = [f"  {example.ljust(longest)}  {does}" for example, does in described.examples.items()]
    parts = [
        f"{typed(command)}{PATHS.get(command, '')} [FLAGS]",
        textwrap.fill(described.about, width, break_on_hyphens=False),
        "\n".join(["Examples:", *examples]),
        _group(
            "Flags", [(label, _alone(key, text, command)) for key, label, text in _own_lines() if key in flags], width
        ),
        textwrap.fill("Every option of the run is a flag too; `difftrain --help` lists them.", width),
    ]
    return "\n\n".join(parts)


def _alone(key: str, text: str, command: str) -> str:
    """Return a flag's help without the words that name its only command."""
    short = _OTHERWISE.get((command, key), text).removeprefix(f"With {command}: ")
    return short[:1].upper() + short[1:]


def help_text(registry: Registry) -> str:
    """Return the whole help, fitted to the terminal."""
    width = min(120, shutil.get_terminal_size((100, 24)).columns)
    parts = [INTRODUCTION, _group("Command line", [(label, text) for _, label, text in _own_lines()], width)]
    names = {key: sorted(found) for key, found in registry.names_by_key().items()}
    for group in GROUPS:
        lines = [(_label(key, field), _about(key, field, names)) for key, field in _fields(group)]
        parts.append(_group(str(getattr(group, "group", group.__name__)), lines, width))
    shown_keys = set(RunConfig.model_fields)
    for title, options in _plugin_groups(registry):
        fields = [(key, field) for key, field in options.model_fields.items() if key not in shown_keys]
        shown_keys |= {key for key, _ in fields}
        if fields:
            parts.append(
                _group(title, [(_label(key, field), _about(key, field, names)) for key, field in fields], width)
            )
    return "\n\n".join(parts)


def _own_lines() -> Iterator[tuple[str, str, str]]:
    """Yield key, label and help of each flag that is no run option."""
    for key, text in OWN_FLAGS.items():
        yield key, f"--{key}" + ("" if key in SWITCHES else f" {OWN_VALUES[key]}"), text


def _fields(group: type[Options]) -> list[tuple[str, FieldInfo]]:
    return [(key, field) for key, field in group.model_fields.items()]


def _plugin_groups(registry: Registry) -> Iterator[tuple[str, type[Options]]]:
    for kind, facts in EXTENSIONS.items():
        if facts.run_options:
            for options in registry.classes(kind):
                of_family = f" of {options.family}" if kind == "flavour" else ""
                title = f"{facts.key} = {options.name}{of_family}" if facts.is_chosen else f"{kind} {options.name}"
                yield title, options


def _group(title: str, lines: Sequence[tuple[str, str]], width: int) -> str:
    indent = " " * (NAME_WIDTH + 2)
    text = [f"{title}:"]
    for label, about in lines:
        wrapped = textwrap.wrap(about, width - len(indent), break_on_hyphens=False) or [""]
        first = f"  {label}".ljust(len(indent))
        if len(label) > NAME_WIDTH - 1:
            text.append(f"  {label}")
            first = indent
        text.append(first + wrapped[0])
        text += [indent + line for line in wrapped[1:]]
    return "\n".join(text)


def _label(key: str, field: FieldInfo) -> str:
    short = f", {SHORT[key]}" if key in SHORT else ""
    value_type = _value_type(field.annotation)
    return f"--{key}{short}" + (f" {value_type}" if value_type else "")


def _value_type(annotation: Any) -> str:
    """Return a value's type as the help shows it: INT, FLOAT, ..."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        if bool in get_args(annotation):
            return f"[{'|'.join(['true', 'false', *_choices(annotation)])}]"
        return "|".join(dict.fromkeys(_value_type(part) for part in get_args(annotation) if part is not type(None)))
    if origin is Literal:
        return "[true|false]" if isinstance(get_args(annotation)[0], bool) else "NAME"
    if origin is tuple:
        return "LIST"
    if origin is dict:
        return "OBJECT"
    if annotation is bool:
        return "[true|false]"
    return {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}.get(annotation, "VALUE")


def _about(key: str, field: FieldInfo, names: dict[str, list[str]]) -> str:
    text = " ".join((field.description or "").split())
    is_switch = bool in get_args(field.annotation)  # all of its values stand in the label
    choices = [] if is_switch else _choices(field.annotation) or names.get(key, [])
    choices = [*PRECISION_WORDS.get(key, ()), *choices]
    if len(choices) == 1:
        text += f" Currently only {choices[0]}."
    elif choices:
        text += f" One of: {', '.join(choices)}."
    return text + (" [required]" if field.is_required() else _default(field))


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation) if not isinstance(choice, bool)]
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value in (None, "", (), {}):
        return ""
    plain = shown(list(value) if isinstance(value, tuple) else value) if not isinstance(value, str | Path) else value
    return f" [default: {plain}]"
