"""Looks at the folders of some datasets in a second, small Python, while this one looks at the others.

A process of the kind that reads images would import all of difftrain first, which takes as long as the look itself.
"""

from __future__ import annotations

import marshal
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from difftrain.data.entries.data_plan import DatasetPlan
from difftrain.data.files import folder_digest
from difftrain.data.files.folder_digest import DataFolder, digest_of_folder

FEWEST_FILES = 40_000
"""Below this, starting a second Python takes longer than it saves."""
_START = 20_000
"""Files that are looked at while it starts."""

Look = Callable[[], tuple[str, int]]
"""Returns what :func:`digest_of_folder` does."""


def to_look_at_aside(datasets: Sequence[DatasetPlan], images: Mapping[str, int]) -> list[DatasetPlan]:
    """Return the datasets that a second Python should look at, so that both are done at about the same time.

    Args:
        datasets: All of a run.
        images: Number of images that each had, by id; one that is not known counts as empty.
    """
    files = {one.id: images.get(one.id, 0) * (1 if one.captions is None else 2) for one in datasets}
    if sum(files.values()) < FEWEST_FILES or (os.cpu_count() or 1) < 2 or not sys.executable:
        return []
    here, aside, chosen = 0, _START, list[DatasetPlan]()
    for one in sorted(datasets, key=lambda one: files[one.id], reverse=True):
        if here <= aside:
            here += files[one.id]
        else:
            aside += files[one.id]
            chosen.append(one)
    return chosen


@contextmanager
def looked_at_aside(folders: Mapping[str, DataFolder]) -> Iterator[dict[str, Look]]:
    """Begin to look at folders; what is given waits for the results, and looks here for those that fail.

    Args:
        folders: By name.
    """
    process = _started(list(folders.values())) if folders else None
    if process is None:
        yield {name: partial(digest_of_folder, folder) for name, folder in folders.items()}
        return
    found: list[list[tuple[str, int] | None]] = []

    def look(place: int, folder: DataFolder) -> tuple[str, int]:
        if not found:
            found.append(_answer(process, len(folders)))
        return found[0][place] or digest_of_folder(folder)

    try:
        yield {name: partial(look, place, folder) for place, (name, folder) in enumerate(folders.items())}
    finally:
        with process:  # waits for its end
            process.kill()


def _started(folders: Sequence[DataFolder]) -> subprocess.Popen[bytes] | None:
    # -P: the folder of the file holds modules that only difftrain should find
    command = [sys.executable, "-P", folder_digest.__file__]
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere)
    except OSError:
        return None
    assert process.stdin is not None, "asked for"
    with suppress(OSError), process.stdin:  # it has ended: there will be no answer
        process.stdin.write(marshal.dumps([(one.root, list(one.around), list(one.apart)) for one in folders]))
    process.stdin = None
    return process


def _answer(process: subprocess.Popen[bytes], count: int) -> list[tuple[str, int] | None]:
    """Return what the process found; None for whatever it could not tell."""
    data, _ = process.communicate()
    with suppress(ValueError, EOFError, TypeError):
        found = marshal.loads(data)
        if process.returncode == 0 and len(found) == count:
            return list(found)
    return [None] * count
