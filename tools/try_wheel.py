"""Builds the wheel and tries it as a user would: in its own environment, outside the source tree.

Checks that the command starts, that all bundled plugins load, and that the demo finds its data and trains. An editable
install hides files missing from the wheel; this does not. Run by ``make wheel`` and by a test.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = {"core", "flux", "flux_kontext", "superresolution", "jpeg_artifacts"}
DEMO = ("--model", "flux", "--flavour", "kontext", "--demo", "--max_train_steps", "2", "--validation_steps", "0")


def build(folder: Path) -> Path:
    """Build the wheel of this tree into ``folder``; return its path."""
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-q"]
    _run([sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", str(folder), str(ROOT)], cwd=ROOT)
    (wheel,) = folder.glob("difftrain-*.whl")
    return wheel


def install(wheel: Path, folder: Path, *, with_dependencies: bool) -> Path:
    """Return the Python of a new environment with the wheel.

    Args:
        with_dependencies: Download what the wheel needs, as pip does for a user; else use the packages of this
            environment, except difftrain itself.
    """
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install", "-q"]
    if with_dependencies:
        _run([*pip, "-c", str(ROOT / "constraints.txt"), str(wheel)], cwd=folder)
        return python
    _run([*pip, "--no-deps", "--no-index", str(wheel)], cwd=folder)
    (site,) = (folder / "lib").glob("python*/site-packages")
    # bare paths, so that the .pth file of the editable install in them is not followed
    (site / "lent.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("site-packages")))
    return python


def try_out(python: Path, folder: Path) -> None:
    """Run the installed command in an empty folder.

    Raises:
        SystemExit: If something is missing; says what.
    """
    where = _run([str(python), "-c", "import difftrain; print(difftrain.__file__)"], cwd=folder).strip()
    if not Path(where).is_relative_to(python.parent.parent):
        raise SystemExit(f"Python imports difftrain from elsewhere, not from the wheel: {where}")
    command = str(python.parent / "difftrain")
    _run([command, "--version"], cwd=folder)
    _run([command, "--help"], cwd=folder)
    listed = json.loads(_run([command, "plugins", "--json"], cwd=folder))
    loaded = {plugin["name"] for plugin in listed if plugin["status"] == "ok"}
    if missing := PLUGINS - loaded:
        raise SystemExit(f"plugins missing from the wheel: {', '.join(sorted(missing))}")
    _run([command, *DEMO], cwd=folder)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--with-dependencies", action="store_true", help="also download them (1.4 GB)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where to leave the wheel")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="try-wheel-") as name:
        folder = Path(name)
        place = options.keep or folder / "dist"
        place.mkdir(parents=True, exist_ok=True)
        for old in place.glob("difftrain-*.whl"):
            old.unlink()
        wheel = build(place)
        python = install(wheel, folder / "venv", with_dependencies=options.with_dependencies)
        empty = folder / "empty"
        empty.mkdir()
        try_out(python, empty)
    print(f"{wheel.name}: the command, its plugins and the demo work outside the source tree")


def _run(command: Sequence[str], *, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
