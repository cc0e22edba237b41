"""Where torch.compile and Triton keep what they compile: by default below the folder of temporary files.

Rented machines lose that folder with each session, and compiling takes minutes. Variables of the environment name
another one; torch looks at them each time that it needs the folder.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from difftrain.errors import MachineError
from difftrain.machine.folders import check_writable

FOLDER = "compiled"
TORCH, TRITON = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"


@contextmanager
def compiled_kept_in(cache_dir: Path) -> Iterator[None]:
    """Within it, torch and Triton keep what they compile below a run's ``cache_dir``, unless the user chose a folder.

    Nothing is created before something is compiled. torch itself decides what of it another version can use. If the
    folder cannot be written, torch keeps its own: it creates the folder named here even where nothing is compiled.
    """
    folder = cache_dir.absolute() / FOLDER
    # Triton's part of it is below the user's folder then
    if not _is_torchs_own(os.environ.get(TORCH)) or not _can_hold_files(folder):
        yield
        return
    before = {name: os.environ.get(name) for name in (TORCH, TRITON)}
    ours = {TORCH: str(folder / "torch")} | ({} if os.environ.get(TRITON) else {TRITON: str(folder / "triton")})
    os.environ.update(ours)
    try:
        yield
    finally:
        _restore(before)


def _can_hold_files(folder: Path) -> bool:
    try:
        check_writable(folder, "cache_dir")
    except MachineError:
        return False
    return True


def _is_torchs_own(named: str | None) -> bool:
    """Whether the user has named no folder: torch writes its own into the environment when a library asks for it."""
    if not named:
        return True
    folder = Path(named)
    return folder.parent == Path(tempfile.gettempdir()) and folder.name.startswith("torchinductor_")


def _restore(before: Mapping[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def folder_of_compiled() -> Path | None:
    """Return the folder that the environment names; None, and no longer named there, if it cannot be written."""
    if not (named := os.environ.get(TORCH)):
        return None
    folder = Path(named)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        writable = False
    else:
        writable = os.access(folder, os.W_OK)
    if writable:
        return folder
    for name in (TORCH, TRITON):
        os.environ.pop(name, None)
    return None
