"""The whole schema: the core's options and those of every loaded plugin, in one flat namespace."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Optional, TypeVar, get_args

from pydantic import create_model
from pydantic.fields import FieldInfo

from difftrain.config.dataset_options import DatasetConfig
from difftrain.config.options import Options
from difftrain.config.run_options import GROUPS, RunConfig
from difftrain.errors import PluginError

__all__ = ["GROUPS", "DatasetConfig", "RunConfig", "merge_options"]

SchemaT = TypeVar("SchemaT", bound=Options)


def merge_options(schema: type[SchemaT], classes: Iterable[type[Options]]) -> type[SchemaT]:
    """Return a subclass of ``schema`` that also has the fields of all ``classes``.

    A field that its class requires becomes optional here: only those who choose the class must set it, and
    :meth:`RunConfig.build` checks that. Two classes may share a key only if they define it alike.

    Raises:
        PluginError: If two classes define one key differently; names both.
    """
    owners: dict[str, tuple[type[Options], FieldInfo]] = {
        name: (schema, field) for name, field in schema.model_fields.items()
    }
    added: dict[str, Any] = {}
    for cls in classes:
        for name, field in cls.model_fields.items():
            if name in owners:
                _check_same(name, owners[name], (cls, field))
            else:
                owners[name] = (cls, field)
            if name not in schema.model_fields and (name not in added or not field.is_required()):
                added[name] = _optional(field)
    # all fields have their descriptions: looking for docstrings in the source takes longer than the rest
    described = {"use_attribute_docstrings": False}
    # pydantic's stubs cannot express that the base gives the type of the result
    merged: type[SchemaT] = create_model(
        schema.__name__, __base__=schema, __module__=schema.__module__, __cls_kwargs__=described, **added
    )
    return merged


def _optional(field: FieldInfo) -> tuple[Any, FieldInfo]:
    if not field.is_required():
        return field.annotation, field
    annotation: Any = Optional[field.annotation]  # noqa: UP045 - only known at run time
    relaxed = FieldInfo(annotation=annotation, default=None, description=field.description)
    relaxed.metadata = list(field.metadata)
    return annotation, relaxed


def _check_same(name: str, first: tuple[type[Options], FieldInfo], second: tuple[type[Options], FieldInfo]) -> None:
    fields = (first[1], second[1])
    same = _value_type(fields[0]) == _value_type(fields[1])
    if not any(field.is_required() for field in fields):
        same = same and fields[0].get_default() == fields[1].get_default()
    if not same:
        owners = " and by ".join(f"{cls.__module__}.{cls.__qualname__}" for cls, _ in (first, second))
        raise PluginError(
            f"option {name!r} has two definitions: by {owners}\n"
            "hint: turn one plugin off with --disable_plugin NAME, or ask its author to rename the option"
        )


def _value_type(field: FieldInfo) -> tuple[Any, str]:
    """Return type and limits; None does not count, as one class may require what another leaves optional."""
    members = [member for member in get_args(field.annotation) if member is not type(None)]
    optional = type(None) in get_args(field.annotation)
    return (members[0] if optional and len(members) == 1 else field.annotation), repr(field.metadata)
