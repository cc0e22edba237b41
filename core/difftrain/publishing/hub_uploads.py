"""Uploads to the hub: checkpoints in the background of the training, the adapter after it.

A failed upload is said and never ends a run: everything is on this disk, and `difftrain push` uploads it later.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import PrivateAttr

from difftrain.contracts import Observer
from difftrain.errors import DifftrainError
from difftrain.publishing.hub_account import HubRepository, refusals
from difftrain.publishing.uploaded_files import Files, checkpoint_files, stage, unstage
from difftrain.types import Reporter

_LOOK_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Upload:
    """Files that become one commit."""

    what: str
    """For messages and for the commit."""
    files: Files


def send(repository: HubRepository, upload: Upload) -> None:
    """Upload files as one commit; returns when the hub has them.

    Raises:
        MachineError: If the hub refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()  # they would be drawn into the training's own
    with refusals(f"{upload.what} is not uploaded to {repository.id}", "and upload later; the files are kept here"):
        HfApi().create_commit(
            repository.id,
            [CommitOperationAdd(name, path) for name, path in upload.files.items()],
            commit_message=f"{upload.what}, by difftrain",
        )


class HubUploads(Observer):
    """Uploads one after the other in a thread of its own."""

    name: ClassVar[str] = "hub"
    _repository: HubRepository = PrivateAttr()
    _output_dir: Path = PrivateAttr()
    _reporter: Reporter = PrivateAttr()
    _checkpoints: bool = PrivateAttr()
    _later: str = PrivateAttr()
    _thread: threading.Thread = PrivateAttr()
    _queue: queue.Queue[Upload | None] = PrivateAttr(default_factory=queue.Queue)
    _waiting: list[str] = PrivateAttr(default_factory=list)
    """What is not uploaded yet, or failed."""
    _failed: int = PrivateAttr(0)

    def __init__(
        self, repository: HubRepository, output_dir: Path, reporter: Reporter, *, checkpoints: bool, later: str
    ) -> None:
        """Start the thread.

        Args:
            checkpoints: Whether checkpoints are uploaded too.
            later: The command that uploads what could not be.
        """
        super().__init__()
        self._repository = repository
        self._output_dir = output_dir
        self._reporter = reporter
        self._checkpoints = checkpoints
        self._later = later
        # a daemon: an upload that hangs must not keep the process
        self._thread = threading.Thread(target=self._work, name="hub uploads", daemon=True)
        self._thread.start()

    def checkpoint_saved(self, step: int, path: Path) -> None:
        """Queue a checkpoint's adapter. Its files get other names first: the checkpoint may be deleted meanwhile."""
        if self._checkpoints:
            self._waiting.append(path.name)
            self._queue.put(Upload(what=path.name, files=stage(checkpoint_files(path), self._output_dir, path.name)))

    def finish(self, files: Files, what: str = "the adapter") -> None:
        """Upload the finished run, and wait for all uploads; say what failed."""
        if files:
            self._waiting.append(what)
            self._queue.put(Upload(what=what, files=files))
        self._queue.put(None)
        left = len(self._waiting) - self._failed
        with self._reporter.phase(f"upload to {self._repository.page}", left) as phase:
            while self._thread.is_alive():
                time.sleep(_LOOK_SECONDS)
                now = len(self._waiting) - self._failed
                if now < left:
                    phase.advance(left - now)
                    left = now

    def close(self) -> None:
        """Say what is not uploaded, without waiting for it. The process is about to end."""
        self._queue.put(None)
        if self._waiting:
            self._reporter.say(f"not uploaded: {', '.join(self._waiting)}; upload later with:\n  {self._later}")
        for what in self._waiting:
            unstage(self._output_dir, what)

    def _work(self) -> None:
        while (upload := self._queue.get()) is not None:
            try:
                send(self._repository, upload)
                self._waiting.remove(upload.what)
            except DifftrainError as error:
                self._failed += 1
                self._reporter.say(f"warning: {error}")
            finally:
                unstage(self._output_dir, upload.what)
