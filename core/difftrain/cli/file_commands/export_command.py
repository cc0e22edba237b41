"""``difftrain export``: a trained adapter as a file for another program."""

from __future__ import annotations

from pathlib import Path

from difftrain.cli.invocation import Invocation
from difftrain.config.messages import nearest
from difftrain.config.paths import expand_path
from difftrain.errors import ConfigError

FORMATS = ("diffusers", "comfyui", "bfl", "kohya")
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""By their short names, as torch names them; both may be written."""


def export(invocation: Invocation) -> int:
    """Write the file that the command line asks for.

    Raises:
        DifftrainError: For anything that the user can fix; nothing is then left under the asked name.
    """
    path, output, layout, dtype = _asked(invocation)
    from difftrain.exporting.adapter_source import find_source

    names_model = invocation.config is not None or "model_family" in invocation.flags or "model" in invocation.flags
    source = find_source(path, invocation.plugins, invocation.model_plan() if names_model else None)
    from difftrain.output.console import make_reporter

    reporter = make_reporter()
    with reporter.phase("start torch"):
        import torch

        from difftrain.exporting.write_export import Export, check_output, export_adapter
    check_output(output)
    kept = None if dtype is None else getattr(torch, DTYPES.get(dtype, dtype))
    export_adapter(
        source, Export(layout=layout, output=output, dtype=kept, verify=not invocation.files.no_verify), reporter
    )
    return 0


def _asked(invocation: Invocation) -> tuple[Path, Path, str, str | None]:
    """Return what the flags ask for.

    Raises:
        ConfigError: With every problem.
    """
    asked, problems = invocation.files, []
    if asked.path is None:
        problems.append(
            "export needs a run's output folder, a checkpoint or a file: difftrain export RUN --output FILE"
        )
    if asked.output is None:
        problems.append("--output is missing: the file to write, such as --output my-edit.safetensors")
    layout = asked.format or "diffusers"
    if layout not in FORMATS:
        problems.append(_unknown("--format", layout, FORMATS))
    if asked.dtype is not None and asked.dtype not in (*DTYPES, *DTYPES.values()):
        problems.append(_unknown("--dtype", asked.dtype, tuple(DTYPES)))
    if problems:
        raise ConfigError(*problems)
    assert asked.path is not None
    assert asked.output is not None
    return Path(expand_path(asked.path, {})), Path(expand_path(asked.output, {})), layout, asked.dtype


def _unknown(flag: str, value: str, known: tuple[str, ...]) -> str:
    guess = nearest(value, known)
    return f"{flag} {value!r}: " + (f"did you mean {guess!r}? " if guess else "") + f"known: {', '.join(known)}"
