"""Fixtures shared by all tests: the command in this process, small datasets, a separate cache folder."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings

from difftrain.testing import run_command as run_in

# a shared or busy machine makes single examples slow; that says nothing about the code
settings.register_profile("difftrain", deadline=None)
settings.load_profile("difftrain")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# the suite itself may run under nohup, and the runs that it starts must not inherit that they ignore this signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Collect the tests of ``gpu`` only if there is a CUDA device.

    Said here, since a second file named conftest would hide this one from ``from conftest import ...``.
    """
    if Path(__file__).parent / "gpu" not in collection_path.parents:
        return None
    import torch

    return None if torch.cuda.is_available() else True


class ModulesLeftAlone:
    """Keeps imported modules out of the collections of garbage.

    Each run collects once, to free its text encoders. torch, diffusers and the tests themselves are a million objects,
    and looking at all of them takes longer than a tiny model's steps.
    """

    def __init__(self) -> None:
        self._modules = 0

    def pytest_runtest_setup(self) -> None:
        if len(sys.modules) > self._modules + 50:
            self._modules = len(sys.modules)
            gc.collect()
            gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(ModulesLeftAlone())


@pytest.fixture(scope="session", autouse=True)
def _own_cache_folder(tmp_path_factory):
    """Write the built-in checkpoint once per test session, not into the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("DIFFTRAIN_PLUGINS", raising=False)
        yield


def read_metrics(output: Path) -> list[dict]:
    """Return all lines of a run's metrics file."""
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def command(tmp_path):
    """Run ``difftrain`` in this process, in ``tmp_path``."""
    return lambda *arguments: run_in(tmp_path, *arguments)


@pytest.fixture
def real_command(tmp_path):
    """Start ``difftrain`` as a separate process in ``tmp_path``; return the Popen."""

    def start(*arguments: object, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "difftrain", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@dataclass
class EditPairs:
    """Writes folders of small edits with captions and of references, and their dataset list."""

    folder: Path
    fast: tuple[str, ...] = field(default=())
    """Return the flags of a run that takes a second."""

    def __post_init__(self) -> None:
        options = {
            "pretrained_model_name_or_path": "tiny-random", "mixed_precision": "no", "gradient_checkpointing": "false",
            "aspect_bucket_alignment": 16, "lora_rank": 4, "validation_steps": 0, "learning_rate": 1e-3,
        }  # fmt: skip
        self.fast = tuple(str(part) for key, value in options.items() for part in (f"--{key}", value))
        self.kontext = ("--model", "flux", "--flavour", "kontext", *self.fast)
        self.output = self.folder / "output"

    def __call__(
        self,
        count: int = 4,
        *,
        references: str | None = "references",
        reference_sets: int = 1,
        conditioning_type: str = "reference_strict",
        sizes: list[tuple[int, int]] | None = None,
        edit_sizes: list[tuple[int, int]] | None = None,
        **edit_fields: object,
    ) -> Path:
        """Write the files, without ``references`` only a target set. Return the path of the dataset list."""
        edit_sizes = edit_sizes or [(64, 64)]
        names = [references, *(f"{references}-{n}" for n in range(2, reference_sets + 1))] if references else []
        for index in range(count):
            edit_size = edit_sizes[index % len(edit_sizes)]
            path = new_image(self.folder / "edits" / f"{index:04}.png", edit_size, seed=index)
            path.with_suffix(".txt").write_text(f"make it edit number {index}")
            for number, name in enumerate(names):
                size = sizes[index % len(sizes)] if sizes else edit_size
                new_image(self.folder / name / f"{index:04}.png", size, seed=1000 * (number + 1) + index)
        common = {"type": "local", "resolution": 64}
        edits = {"id": "edits", "instance_data_dir": "edits", "caption_strategy": "textfile", **common, **edit_fields}
        if names:
            edits["conditioning_data"] = names
        common |= {"caption_strategy": None, "conditioning_type": conditioning_type}
        entries = [edits, *({"id": name, "instance_data_dir": name, **common} for name in names)]
        path = self.folder / "datasets.json"
        path.write_text(json.dumps(entries))
        return path


def new_image(path: Path, size: tuple[int, int], *, seed: int) -> Path:
    """Return an image of smooth random colours."""
    import numpy as np
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def edit_pairs(tmp_path):
    return EditPairs(tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of one MiB; return its folder and a function that makes it read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount a disk")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(autouse=True, scope="module")
def _attention_of_torch():
    """Let torch choose its attention again: a run in this process may have chosen for it."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "backends"):
        for kernel in ("flash", "mem_efficient", "math", "cudnn"):
            getattr(torch.backends.cuda, f"enable_{kernel}_sdp")(True)
    own_kernels = sys.modules.get("difftrain.model.attention.own_kernels")
    if own_kernels is not None:
        own_kernels.route_models_to(None)
