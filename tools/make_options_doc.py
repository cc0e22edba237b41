"""Write docs/options.md from the options classes: ``python tools/make_options_doc.py``.

Everything in that file comes from the classes of the core and of the bundled plugins, so never edit it by hand;
a test fails while it is out of date.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from difftrain.config import known_keys
from difftrain.config.dataset_options import DatasetConfig
from difftrain.config.messages import shown
from difftrain.config.options import Options
from difftrain.config.schema import GROUPS, RunConfig
from difftrain.data.caption_edits import CaptionShuffle
from difftrain.data.entries.generator_entries import GeneratorEntry
from difftrain.data.tables.caption_tables import TableOptions
from difftrain.data.tables.row_filter import FilterOptions
from difftrain.data.tables.set_options import CompositeOptions, SetOptions
from difftrain.plugins.discovery import load_plugins
from difftrain.plugins.registry import EXTENSIONS, Registry

TARGET = Path(__file__).parent.parent / "docs" / "options.md"
TYPES: Mapping[Any, str] = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}
LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
Names = Mapping[str, Collection[str]]

INTRODUCTION = """\
# Options

Written by `tools/make_options_doc.py` from the options classes; do not edit it by hand.

Both files are JSON with comments. A leading `--` on keys is optional; every run option is also a flag
(`--lora_rank 16`, `--lora-rank=16`), and flags win over the file. Numbers, true or false, and lists may be written
as text (`"1e-4"`, `"true"`); numbers must be finite. null leaves a key at its default. An unknown key is an error.

Values may contain `{model_family}`, `{model_flavour}`, `{output_dir}`, `{env:NAME}` and, in a dataset entry, `{id}`;
a path may start with `~`. Any other `$NAME`, `${...}` or `{...}` in a path is an error, and so is a tab or a line
break, which a single backslash of a Windows path leaves behind in JSON."""
NOTES_OF_IDLE_KEYS = """\
These keys are accepted, and a note gives the reason why they have no effect. A file with many of them at their usual
values, as a web interface exports it, gets one note for all."""


NOTES_OF_UNBUILT_KEYS = """\
### Not supported yet

Any other value of these keys is an error that says so; null, false, none and an empty text ask for nothing."""


def options_document(registry: Registry) -> str:
    """Return the whole text of docs/options.md."""
    names = registry.names_by_key()
    parts = [INTRODUCTION, "## Run file (`config/config.json`)", *_run_parts(registry, names)]
    parts += ["## A dataset entry (`config/multidatabackend.json`)", *_dataset_parts(registry, names)]
    parts += ["## A generator, in an entry's `conditioning`", *_generator_parts(registry, names)]
    parts += ["## Keys from other trainers' files", *_known_key_parts(registry)]
    return "\n\n".join(parts) + "\n"


def _run_parts(registry: Registry, names: Names) -> Iterator[str]:
    for group in GROUPS:
        yield _section(str(getattr(group, "group", group.__name__)), group.model_fields, names)
    yield from _plugin_parts(registry, names, RunConfig, wanted="run_options")
    for optimizer in registry.classes("optimizer"):
        yield _section(f"`optimizer_config`, with `optimizer`: `{optimizer.name}`", optimizer.model_fields, names)


def _dataset_parts(registry: Registry, names: Names) -> Iterator[str]:
    yield _section("Any dataset", DatasetConfig.model_fields, names)
    yield from _plugin_parts(registry, names, DatasetConfig, wanted="dataset_options")
    yield _section("`caption_shuffle` of an entry", CaptionShuffle.model_fields, names)
    yield _section("`parquet`, `jsonl` or `csv` of an entry", TableOptions.model_fields, names)
    yield _section("`huggingface` of an entry", SetOptions.model_fields, names)
    yield _section("`composite_image_config` in `huggingface`", CompositeOptions.model_fields, names)
    yield _section("`filter_func` in `huggingface`", FilterOptions.model_fields, names)
    for kind, provided, asked in registry.asking_samples():
        yield _section(
            f"A target set, with `{EXTENSIONS[kind].key}` of the run: `{provided.name}`", asked.model_fields, names
        )


def _generator_parts(registry: Registry, names: Names) -> Iterator[str]:
    known = {"type": names["conditioning.type"], "conditioning_type": names["conditioning_type"]}
    yield _section("Any generator", GeneratorEntry.model_fields, known)
    for generator in registry.classes("generator"):
        also = f" (or {', '.join(f'`{alias}`' for alias in generator.aliases)})" if generator.aliases else ""
        yield _section(f"`type`: `{generator.name}`{also}", generator.model_fields, names)


def _plugin_parts(registry: Registry, names: Names, base: type[Options], *, wanted: str) -> Iterator[str]:
    """Return options of registered classes; an option that several classes share is listed with each of them."""
    for kind, facts in EXTENSIONS.items():
        for provided in registry.classes(kind) if getattr(facts, wanted) else ():
            fields = {key: field for key, field in provided.model_fields.items() if key not in base.model_fields}
            if fields:
                of_family = f" of `{provided.family}`" if kind == "flavour" else ""
                title = (
                    f"`{facts.key}`: `{provided.name}`{of_family}" if facts.is_chosen else f"{kind} `{provided.name}`"
                )
                yield _section(title, fields, names)


def _known_key_parts(registry: Registry) -> Iterator[str]:
    """Return the tables of the core, without keys that an options class defines: the class wins."""
    families = [family.known_keys for family in registry.classes("family")]
    tables = {"run": known_keys.RUN_TABLES.with_more(families), "dataset": known_keys.DATASET_TABLES}
    renamed = [(f"`{other}`", f"`{key}`") for table in tables.values() for other, key in table.renamed.items()]
    for table in tables.values():
        renamed += [(f"`{key}: true`", f"`{other}: {value}`") for key, (other, value) in table.switches.items()]
        renamed += [(f"`{key}: true`", f"`{other}: 0`") for key, other in table.turns_off.items()]
    for key, names in known_keys.OTHER_NAMES.items():
        if key in known_keys.PRECISION_KEYS[1:]:
            continue  # the same as those of the first
        renamed += [(f"`{key}: {other}`", f"`{key}: {name}`") for other, name in names.items()]
    yield "### Other names\n\n" + _table(("key", "is the same as"), renamed)
    yield NOTES_OF_IDLE_KEYS
    for title, table in tables.items():
        rows = [(f"`{key}`", _listed(idle.usual), idle.reason) for key, idle in sorted(table.no_effect.items())]
        yield f"### Accepted without effect: {title} keys\n\n" + _table(("key", "usual values", "why"), rows)
    yield NOTES_OF_UNBUILT_KEYS
    built = {key for cls in registry.dataset_option_classes() for key in cls.model_fields}
    for title, table in tables.items():
        unbuilt = sorted(
            (key, neutral) for key, neutral in table.not_built.items() if title == "run" or key not in built
        )
        rows = [(f"`{key}`", _listed((None, *neutral))) for key, neutral in unbuilt]
        yield _table((f"{title} key", "accepted values"), rows)
    values = [(f"`{key}`", _listed(values)) for key, values in sorted(known_keys.NOT_BUILT_VALUES.items())]
    yield _table(("key", "values not supported yet"), values)


def _section(title: str, fields: Mapping[str, FieldInfo], names: Names) -> str:
    rows = [
        (f"`{key}`", _value_type(key, field, names), _default(field), _meaning(field)) for key, field in fields.items()
    ]
    return f"### {title}\n\n" + _table(("option", "value", "default", "meaning"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _value_type(key: str, field: FieldInfo, names: Names) -> str:
    """Return the type in words, or the names that the value may have."""
    choices = _choices(field.annotation)
    if not choices and key in names:
        choices = [*known_keys.PRECISION_WORDS.get(key, ()), *sorted(names[key])]
    return _listed(choices) if choices else _type_name(field.annotation) + _limits(field)


def _limits(field: FieldInfo) -> str:
    limits = {name: getattr(item, name) for item in field.metadata for name in LIMITS if hasattr(item, name)}
    return "".join(
        f", {LIMITS[name]} {limit if isinstance(limit, int) else f'{limit:g}'}" for name, limit in limits.items()
    )


def _choices(annotation: Any) -> list[object]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        parts = get_args(annotation)
        listed = [choice for part in parts for choice in _choices(part)]
        return [True, False, *listed] if bool in parts and listed else listed
    return []


def _type_name(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(parts[0]) + "".join(_limits(item) for item in parts[1:] if isinstance(item, FieldInfo))
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type_name(part) for part in parts if part is not type(None)))
    if origin is tuple and parts[-1] is not Ellipsis:
        return f"list of {len(parts)}: {_type_name(parts[0])}"
    if origin is tuple:
        return f"list: {_type_name(parts[0])}"
    return "object" if origin is dict else TYPES[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ("", (), {}):
        return ""
    return f"`{value}`" if isinstance(value, str | Path) else f"`{shown(value)}`"


def _meaning(field: FieldInfo) -> str:
    """Return the docstring on one line, in Markdown instead of reStructuredText."""
    text = " ".join((field.description or "").split())
    return text.replace(":attr:", "").replace("``", "`")


def _listed(values: Iterable[object]) -> str:
    return ", ".join(f"`{value}`" if isinstance(value, str) else f"`{shown(value)}`" for value in values)


def main() -> None:
    registry = load_plugins(only=["difftrain"]).registry
    TARGET.write_text(options_document(registry), encoding="utf-8")


if __name__ == "__main__":
    main()
