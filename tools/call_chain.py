"""Print the calls of our own functions from the command line to the model's forward: ``python tools/call_chain.py``.

The built-in tiny model trains one step in a temporary folder. The chain is the stack at the first forward of the
transformer in training, without library functions. Calls that only return a generator or a context manager are not
on the stack, so they are not counted.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import chdir
from pathlib import Path
from types import FrameType
from typing import Any

REPOSITORY = Path(__file__).parents[1]
OURS = tuple(f"{REPOSITORY / folder}{os.sep}" for folder in ("core", "plugins"))
MODEL = "FluxTransformer2DModel"
STOP = {"take_step"}
"""Only the forward of a step counts: validations and trial saves call the model too."""


def chain_of(frame: FrameType | None) -> list[str]:
    """Return ``file function`` of our own frames, the outermost first."""
    calls: list[str] = []
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(OURS):
            calls.append(f"{Path(code.co_filename).relative_to(REPOSITORY)}  {code.co_qualname}")
        frame = frame.f_back
    return calls[::-1]


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    found: list[str] = []

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or frame.f_code.co_name != "forward" or found:
            return
        if type(frame.f_locals.get("self")).__name__ == MODEL:
            calls = chain_of(frame)
            if any(call.rsplit(".", 1)[-1].split()[-1] in STOP for call in calls):
                found.extend(calls)

    from difftrain.cli import main as command

    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        sys.argv = [
            "difftrain",
            "--demo",
            "--model",
            "flux",
            "--flavour",
            "kontext",
            "--max_train_steps",
            "1",
            "--validation_steps",
            "0",
        ]
        sys.argv += ["--validation_on_startup", "false", "--output_dir", "output"]
        sys.setprofile(watch)
        try:
            command.main()
        except SystemExit as ended:
            if ended.code:
                raise
        finally:
            sys.setprofile(None)
    for number, call in enumerate(found, 1):
        print(f"{number:3}  {call}")
    print(f"{len(found)} calls in {len({call.split()[0] for call in found})} files")


if __name__ == "__main__":
    main()
