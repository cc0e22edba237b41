"""``difftrain identify``: says what a file or folder is, from names, shapes and header; reads no weights."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from difftrain.cli.invocation import Invocation
from difftrain.config.paths import expand_path
from difftrain.errors import ConfigError

if TYPE_CHECKING:
    from difftrain.exporting.identified import Identified


def identify(invocation: Invocation) -> int:
    """Print what the named file or folder is; the status is 0 also if that is not known.

    Raises:
        DifftrainError: If it does not exist, cannot be read, or is damaged.
    """
    if invocation.files.path is None:
        raise ConfigError("identify needs a file or folder: difftrain identify FILE")
    path = Path(expand_path(invocation.files.path, {}))
    if not path.exists():
        raise ConfigError(f"{path} does not exist")
    from difftrain.exporting.identified import identified

    found = identified(path, invocation.plugins)
    print(json.dumps(asdict(found), indent=2, ensure_ascii=False) if invocation.json else _text(found))
    return 0


def _text(found: Identified) -> str:
    adapter = found.adapter
    rows: dict[str, str | None] = {"what": found.what, "family": found.family, "flavour": " or ".join(found.flavours)}
    if found.step_distilled is not None:
        rows["distilled"] = "yes, in steps" if found.step_distilled else "not in steps"
    if adapter is not None:
        rows["rank"] = ", ".join(map(str, adapter.ranks))
        rows["alpha"] = ", ".join(f"{alpha:g}" for alpha in adapter.alphas) or "none: strength 1 is as it is"
        rows["layout"] = adapter.layout
        rows["trained by"] = adapter.trained_by or "not said"
        rows["base model"] = adapter.base or _unnamed_base(found)
        rows["made for"] = f"architecture {adapter.architecture}" if adapter.architecture else None
        rows["precision"] = adapter.base_precision
    rows["dtype"] = ", ".join(f"{dtype} ({count})" for dtype, count in found.dtypes.items())
    lines = [found.path, *(f"  {key:<11}{value}" for key, value in rows.items() if value)]
    return "\n".join([*lines, *(f"  {'seen':<11}{text}" for text in found.seen)])


def _unnamed_base(found: Identified) -> str:
    """Say for which models an adapter is whose header names none; not to be taken for a file's name."""
    if found.family is None:
        return "not named"
    one = f", flavour {found.flavours[0]}" if len(found.flavours) == 1 else ""
    return f"not named; one of family {found.family}{one}"
