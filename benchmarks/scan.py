"""How long a large dataset takes to scan, to check and to plan, and how much memory it holds. Needs no GPU.

usage: python benchmarks/scan.py WORK [--pairs 200000] [--parts first unchanged check plan] [--json FILE]

Makes PAIRS pairs in the folder WORK once: hard links to a few pictures, and a caption of its own for each pair. Every
part runs in a process of its own, so that its memory is its own. Prints seconds, seconds of the processor (of all
threads), and memory beside the targets; the files are hot, since a small scan of all bytes comes first.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from difftrain.config.dataset_options import DatasetConfig
from difftrain.data.caching.sample_caches import SampleCaches, TextItem, every_image, missing_images, missing_texts
from difftrain.data.entries.data_plan import DataPlan, DatasetPlan
from difftrain.data.files.captions import TextfileCaptions
from difftrain.data.files.sources import LocalSource
from difftrain.data.samples.prepare_samples import prepare_samples
from difftrain.data.streaming.epoch import plan_epoch
from difftrain.data.streaming.set_rules import EpochRules
from difftrain.types import GeometryRules, PlacedImage, Sample

PARTS = ("first", "unchanged", "check", "plan")
TARGETS = {"first": 20.0, "unchanged": 3.0, "check": 5.0, "plan": 1.0}
"""Seconds at 200,000 pairs on 2 cores."""
NAMES = {"first": "first scan", "unchanged": "unchanged scan", "check": "cache check", "plan": "epoch plan"}
PAIRS_OF_TARGETS = 200_000
PICTURES = ((768, 768), (1024, 640), (640, 1024), (896, 672))
LINKS = 60_000
"""Hard links to one file; ext4 allows 65,000."""
A_FOLDER = 10_000


class QuietReporter:
    """Shows nothing."""

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[QuietReporter]:
        """Count nothing."""
        yield self

    def advance(self, count: int = 1, item: str = "") -> None:
        """Count nothing."""

    def begin(self, item: str) -> None:
        """Show nothing."""

    def say(self, text: str) -> None:
        """Show nothing."""


def data_plan(work: Path) -> DataPlan:
    """Return the plan of the pairs in ``work``, without a config file."""
    from difftrain_flux_kontext.pairing import ReferenceStrict

    rules = GeometryRules(resolution=1024, resolution_type="pixel_area", alignment=16)

    def dataset(name: str, **changes: Any) -> DatasetPlan:
        values: dict[str, Any] = {"captions": None, "pairing": None, "references": (), "generators": (), **changes}
        source = LocalSource(instance_data_dir=work / name)
        return DatasetPlan(
            config=DatasetConfig(id=name), source=source, rules=rules, latents_folder=work / "cache" / name, **values
        )

    return DataPlan(
        datasets=(
            dataset("edits", captions=TextfileCaptions(), references=("references",)),
            dataset("references", pairing=ReferenceStrict()),
        ),
        combined=False,
        references_fit_target=False,
        index_path=work / "cache" / "index.sqlite",
        text_folder=work / "cache" / "text",
        written_folders={"cache_dir": work / "cache"},
        seed=1,
    )


def caches_of(plan: DataPlan) -> SampleCaches:
    """Return the caches of a family whose text encoders see no references."""
    return SampleCaches(plan, image_identity="a vae", text_identity="text encoders", text_view=None)


class Linker:
    """Makes links to one small file after another, because a file may have only so many."""

    def __init__(self, work: Path, data: dict[str, bytes]) -> None:
        self._work, self._data = work, data
        self._made: dict[str, tuple[Path, int]] = {}

    def link(self, name: str, path: Path) -> None:
        """Make ``path`` a link to a file with the data of that name."""
        file, count = self._made.get(name, (self._work / f"{name}.0", LINKS))
        if count >= LINKS:
            file = self._work / f"{len(self._made)}.{time.monotonic_ns()}.{name}"
            file.write_bytes(self._data[name])
            count = 0
        os.link(file, path)
        self._made[name] = file, count + 1


def make_pairs(work: Path, pairs: int) -> None:
    """Write the pairs, unless an earlier call did."""
    done = work / "done.json"
    if done.exists() and json.loads(done.read_text()) == pairs:
        return
    shutil.rmtree(work, ignore_errors=True)
    (work / "pictures").mkdir(parents=True)
    draw = random.Random(0)
    data: dict[str, bytes] = {}
    for number in range(8):
        small = Image.frombytes("RGB", (48, 48), draw.randbytes(48 * 48 * 3))
        file = work / f"{number}.jpg"
        small.resize(PICTURES[number // 2], Image.Resampling.BICUBIC).save(file, quality=90)
        data[f"{number}.jpg"] = file.read_bytes()
        file.unlink()
    linker = Linker(work / "pictures", data)
    for number in range(pairs):
        below = f"{number // A_FOLDER:03}/{number:07}"
        if number % A_FOLDER == 0:
            for name in ("edits", "references"):
                (work / name / below).parent.mkdir(parents=True)
        which = number % 4
        linker.link(f"{2 * which}.jpg", work / "edits" / f"{below}.jpg")
        linker.link(f"{2 * which + 1}.jpg", work / "references" / f"{below}.jpg")
        (work / "edits" / f"{below}.txt").write_text(f"make picture {number} brighter\n")
    done.write_text(json.dumps(pairs))


def distinct(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples as if each picture had its own bytes, since links would share their cache entries."""

    def of_its_own(image: PlacedImage) -> PlacedImage:
        content = hashlib.sha256(image.record.image.place.encode()).hexdigest()
        return replace(image, record=replace(image.record, content_hash=content))

    return [
        replace(
            sample,
            target=of_its_own(sample.target),
            choices=tuple(
                replace(choice, references=tuple(map(of_its_own, choice.references))) for choice in sample.choices
            ),
        )
        for sample in samples
    ]


def fill_caches(work: Path, samples: Sequence[Sample]) -> None:
    """Put a small entry in the place of everything that the samples need."""
    if (work / "filled").exists():
        return
    import torch
    from safetensors.torch import save

    linker = Linker(work / "pictures", {"entry": save({"mean": torch.zeros(16, 4, 4), "std": torch.ones(16, 4, 4)})})
    caches = caches_of(data_plan(work))
    entries = [caches.text(item) for item in texts_of(caches, samples)]
    entries += [caches.latents(image) for image in every_image(samples)]
    for path in {cache.path(key) for cache, key in entries}:
        path.parent.mkdir(parents=True, exist_ok=True)
        linker.link("entry", path)
    (work / "filled").touch()


def texts_of(caches: SampleCaches, samples: Sequence[Sample]) -> Iterator[TextItem]:
    """Return every caption of the samples."""
    return caches.text_items(samples, caption_dropout=False, reference_dropout=False)


def measure(work: Path, part: str) -> dict[str, float]:
    """Run one part; return its seconds, its seconds of the processor, and its memory in bytes."""
    gc.collect()
    plan, before = data_plan(work), resident()
    if part == "first":
        plan.index_path.unlink(missing_ok=True)
    started, used = time.perf_counter(), time.process_time()
    prepared = prepare_samples(plan, reporter=QuietReporter())
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    gc.collect()
    held = resident() - before
    if part == "check":
        samples = distinct(prepared.samples)
        fill_caches(work, samples)
        caches, reporter = caches_of(plan), QuietReporter()
        started, used = time.perf_counter(), time.process_time()
        texts = missing_texts(texts_of(caches, samples), caches, reporter)
        images = missing_images(every_image(samples), caches, reporter)
        seconds, cpu = time.perf_counter() - started, time.process_time() - used
        assert (texts, images) == ([], []), "every entry is there"
    elif part == "plan":
        rules = EpochRules(seed=1, batch_size=4, caption_dropout=0.1)
        started, used = time.perf_counter(), time.process_time()
        plan_epoch(prepared.samples, 0, rules)
        seconds, cpu = time.perf_counter() - started, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "cpu_seconds": cpu, "peak": peak, "held": held, "samples": len(prepared.samples)}


def resident() -> int:
    """Return the resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--pairs", type=int, default=PAIRS_OF_TARGETS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=PARTS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        print(json.dumps(measure(asked.work.absolute(), asked.only)))
        return
    make_pairs(asked.work.absolute(), asked.pairs)
    results: dict[str, dict[str, float]] = {}
    for part in asked.parts:
        command = [sys.executable, __file__, str(asked.work), "--only", part]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results[part] = json.loads(output.splitlines()[-1])
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=1))
    print(table(results, asked.pairs))


def table(results: dict[str, dict[str, float]], pairs: int) -> str:
    """Return the results beside the targets, as Markdown."""
    load = os.getloadavg()[0]
    lines = [
        f"{pairs} pairs, {processor()}, {os.cpu_count()} cores (load {load:.1f}), Python {platform.python_version()}",
        "",
        "| part | s | CPU s | target s | peak MiB | bytes a pair |",
        "|---|---|---|---|---|---|",
    ]
    for part, result in results.items():
        target = TARGETS[part] * pairs / PAIRS_OF_TARGETS
        lines.append(
            f"| {NAMES[part]} | {result['seconds']:.2f} | {result['cpu_seconds']:.2f} | {target:.2f} | "
            f"{result['peak'] / 2**20:.0f} | {result['held'] / result['samples']:.0f} |"
        )
    return "\n".join(lines)


def processor() -> str:
    """Return the processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
