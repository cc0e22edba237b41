"""``difftrain export``: a trained adapter as a file for another program."""

from __future__ import annotations

from pathlib import Path

from difftrain.cli.invocation import Invocation
from difftrain.cli.rerun_commands import until_stopped
from difftrain.config.messages import nearest
from difftrain.config.paths import expand_path
from difftrain.errors import ConfigError
from difftrain.types import Reporter

FORMATS = ("diffusers", "comfyui", "bfl", "kohya")
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""By their short names, as torch names them; both may be written."""


def export(invocation: Invocation) -> int:
    """Write the file that the command line asks for.

    Raises:
        DifftrainError: For anything that the user can fix; nothing is then left under the asked name, as after a
            signal.
    """
    path, output, layout = _asked(invocation)

    def kept() -> str:
        return f"{output} is complete" if output.exists() else f"there is no {output}, and no part of it"

    return until_stopped(
        lambda reporter: _export(invocation, path, output, layout, reporter), kept, invocation.arguments
    )


def _export(invocation: Invocation, path: Path, output: Path, layout: str, reporter: Reporter) -> int:
    asked = invocation.files
    from difftrain.exporting.adapter_source import find_source

    names_model = invocation.config is not None or "model_family" in invocation.flags or "model" in invocation.flags
    source = find_source(path, invocation.plugins, invocation.model_plan() if names_model else None)
    with reporter.phase("start torch"):
        import torch

        from difftrain.exporting.merge import merge
        from difftrain.exporting.write_export import Export, export_adapter
    wanted = Export(
        layout=layout,
        output=output,
        dtype=None if asked.dtype is None else getattr(torch, DTYPES.get(asked.dtype, asked.dtype)),
        verify=not asked.no_verify,
        as_lora=None if asked.as_lora is None else int(asked.as_lora),
    )
    if asked.merge:
        merge(source, wanted, reporter)
        return 0
    errors = export_adapter(source, wanted, reporter)
    for module, error in errors.items():
        print(f"{error:.4f}  {module}")
    if errors:
        print(f"{sum(errors.values()) / len(errors):.4f}  mean of {len(errors)} modules, relative error at this rank")
    return 0


def _asked(invocation: Invocation) -> tuple[Path, Path, str]:
    """Return what the flags ask for.

    Raises:
        ConfigError: With every problem.
    """
    asked, problems = invocation.files, []
    if asked.path is None:
        problems.append(
            "export needs a run's output folder, a checkpoint or a file: difftrain export RUN --output FILE"
        )
    elif not Path(expand_path(asked.path, {})).exists():
        problems.append(f"{asked.path} does not exist")
    if asked.output is None:
        problems.append("--output is missing: the file to write, such as --output my-edit.safetensors")
    layout = asked.format or "diffusers"
    if layout not in FORMATS:
        problems.append(_unknown("--format", layout, FORMATS))
    if asked.dtype is not None and asked.dtype not in (*DTYPES, *DTYPES.values()):
        problems.append(_unknown("--dtype", asked.dtype, tuple(DTYPES)))
    if asked.as_lora is not None and not (asked.as_lora.isdecimal() and int(asked.as_lora) > 0):
        problems.append(f"--as_lora {asked.as_lora!r} must be a rank, a whole number from 1 on")
    if asked.merge and (asked.as_lora or asked.format):
        problems.append("--merge writes a whole model, so --as_lora and --format have no place beside it")
    whole = asked.path is not None and _is_whole_model(Path(expand_path(asked.path, {})))
    if whole and not (asked.merge or asked.as_lora):
        problems.append(
            f"{asked.path} has a whole model, and no adapter: add --merge to write it with the other parts of its base "
            "model into a folder, or --as_lora RANK to write a LoRA that comes close"
        )
    elif asked.output is not None:
        output = Path(expand_path(asked.output, {}))
        problems += [text for text in (_wrong_output(output, asked.merge),) if text]
    if problems:
        raise ConfigError(*problems)
    assert asked.path is not None
    return Path(expand_path(asked.path, {})), output, layout


def _is_whole_model(path: Path) -> bool:
    from difftrain.exporting.adapter_source import whole_model_in

    return whole_model_in(path) is not None


def _wrong_output(output: Path, merge: bool) -> str | None:
    """Return why nothing can be written there; None if it can."""
    if output.exists():
        return f"--output {output} exists already\nhint: name another one, or remove it"
    if not merge and output.suffix != ".safetensors":
        return f"--output {output}: programs load only names that end in .safetensors"
    if not output.parent.is_dir():
        return f"--output {output}: the folder {output.parent} does not exist\nhint: create it"
    return None


def _unknown(flag: str, value: str, known: tuple[str, ...]) -> str:
    guess = nearest(value, known)
    return f"{flag} {value!r}: " + (f"did you mean {guess!r}? " if guess else "") + f"known: {', '.join(known)}"
