"""Packages of docs/examples as if pip had installed them, but instantly: their metadata in a folder on PYTHONPATH."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def environment_with(example: str, folder: Path) -> dict[str, str]:
    """Return the environment for processes that have an example installed; nothing is built or copied.

    Args:
        example: Name of its folder, which is its distribution's.
        folder: Gets a ``.dist-info`` like an editable install's.
    """
    project = tomllib.loads((EXAMPLES / example / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, version = project["name"], project["version"]
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    groups = (
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in points.items())
        for group, points in project["entry-points"].items()
    )
    (metadata / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")
    path = [str(folder), str(EXAMPLES / example / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
