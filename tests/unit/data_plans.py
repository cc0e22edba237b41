"""Small datasets and their plans, for the tests of the data stages."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from difftrain.config.dataset_options import DatasetConfig
from difftrain.data.entries.data_plan import DataPlan, DatasetPlan, GeneratorPlan
from difftrain.data.entries.written_folders import written_folders
from difftrain.data.files.captions import TextfileCaptions
from difftrain.data.files.local_image import LocalImage
from difftrain.data.files.sources import LocalSource
from difftrain.data.scanning.scan import begin_scan, finish_scan
from difftrain.types import GeometryRules
from difftrain_flux_kontext.pairing import ReferenceStrict


class SilentReporter:
    """Remembers the phases and their counts."""

    def __init__(self):
        self.phases = {}

    @contextmanager
    def phase(self, name, total=None):
        reporter = self

        class Counter:
            def advance(self, count=1, item=""):
                reporter.phases[name] += count

        self.phases[name] = 0
        yield Counter()

    def say(self, text):
        raise AssertionError(f"unexpected: {text}")


def rules(**changes):
    values = {"resolution": 128, "resolution_type": "pixel_area", "alignment": 32, **changes}
    return GeometryRules(**values)


def new_image(path: Path, size=(96, 64), seed=0, **saving) -> Path:
    """Return an image of smooth random colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    small.resize(size, Image.Resampling.BICUBIC).save(path, **saving)
    return path


def local(paths) -> list[LocalImage]:
    """Return images of files, as an index takes them."""
    return list(map(LocalImage.at, paths))


def caption(image: Path, text: str) -> None:
    image.with_suffix(".txt").write_text(text)


def target_set(root: Path, folder="edits", *, references=(), generators=(), captions=True, own_rules=None, **config):
    return DatasetPlan(
        config=DatasetConfig(id=folder, **config),
        source=LocalSource(instance_data_dir=root / folder),
        captions=TextfileCaptions() if captions else None,
        rules=own_rules or rules(),
        pairing=None,
        references=tuple(references),
        generators=tuple(generators),
        latents_folder=root / "cache" / folder,
    )


def reference_set(root: Path, folder="references", *, pairing=None, captions=False, own_rules=None, **config):
    return DatasetPlan(
        config=DatasetConfig(id=folder, conditioning_type="reference_strict", **config),
        source=LocalSource(instance_data_dir=root / folder),
        captions=TextfileCaptions() if captions else None,
        rules=own_rules or rules(),
        pairing=pairing or ReferenceStrict(),
        references=(),
        generators=(),
        latents_folder=root / "cache" / folder,
    )


def generator_plan(root: Path, generator, *, on_demand=False, captions=None, seed=0, number=1):
    return GeneratorPlan(
        id=f"edits/{generator.name}-{number}",
        generator=generator,
        pairing=ReferenceStrict(),
        captions=captions,
        folder=root / "cache" / "made",
        on_demand=on_demand,
        seed=seed,
    )


def data_plan(root: Path, *datasets, combined=False, references_fit_target=False):
    return DataPlan(
        datasets=datasets,
        combined=combined,
        references_fit_target=references_fit_target,
        index_path=root / "cache" / "index.sqlite",
        text_folder=root / "cache" / "text",
        written_folders=written_folders(datasets, {"cache_dir": root / "cache"}),
        seed=1,
    )


def two_folders(root: Path, names=("a", "b", "c")):
    """Write edits with captions and references of the same names; return the plan."""
    for number, name in enumerate(names):
        caption(new_image(root / "edits" / f"{name}.png", seed=number), f"edit {name}")
        new_image(root / "references" / f"{name}.png", seed=100 + number)
    return data_plan(root, target_set(root, references=["references"]), reference_set(root))


def scanned(plan, index, *, written=()):
    """Return the scan of one dataset."""
    with index.shared_readers():
        return finish_scan(begin_scan(plan, index, written=dict(written)), SilentReporter())
