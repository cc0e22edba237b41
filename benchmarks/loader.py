"""How many batches a second a run can read from full caches, beside a fast step. Needs no GPU.

usage: python benchmarks/loader.py WORK [--samples 256] [--batch 4] [--step 0.15] [--json FILE]

Makes SAMPLES pairs in the folder WORK once, with cache entries as large as those of FLUX.1 Kontext at 1024 + 1024 px:
latents of 1 MiB (mean and deviation), of the reference 0.5 MiB, prompt embeds of 4 MiB. Reads two epochs as a run does,
as fast as it can, and once more with a pause of a step's length for each batch: what the run then waits for data.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from scan import QuietReporter, caches_of, data_plan, distinct, make_pairs, texts_of

from difftrain.data.caching.sample_caches import SampleCaches, every_image
from difftrain.data.samples.prepare_samples import prepare_samples
from difftrain.data.streaming.batch_reader import BatchReader, Reencoder
from difftrain.data.streaming.rounds import Rounds
from difftrain.data.streaming.set_rules import EpochRules
from difftrain.data.streaming.stream import CachedStream
from difftrain.types import Sample
from difftrain_flux.family import FluxFamily

EPOCHS = 2
LATENTS, TEXT, POOLED = (16, 128, 128), (512, 4096), (768,)


def fill(caches: SampleCaches, samples: Sequence[Sample]) -> None:
    """Write an entry of full size for everything that the samples need."""
    import torch

    draws = torch.Generator().manual_seed(0)
    latents = torch.randn(LATENTS, generator=draws).bfloat16()
    embeds = {
        "prompt_embeds": torch.randn(TEXT, generator=draws).bfloat16(),
        "pooled_prompt_embeds": torch.randn(POOLED, generator=draws).bfloat16(),
    }
    for image in every_image(samples):
        cache, key = caches.latents(image)
        if not cache.path(key).exists():
            cache.write(key, {name: latents.clone() for name in caches.latents_needed(image)})
    for item in texts_of(caches, samples):
        cache, key = caches.text(item)
        if not cache.path(key).exists():
            cache.write(key, embeds)


def opened(caches: SampleCaches, samples: Sequence[Sample], batch: int) -> CachedStream:
    """Return the stream of a run over the samples, that makes nothing again."""

    def refuse() -> None:
        raise AssertionError("the caches are full")

    reencoder = Reencoder(image_encoder=refuse, text_encoder=refuse, release=refuse, in_use=nullcontext())
    reader = BatchReader(caches, FluxFamily(), reencoder, seed=0, sample_latents=True)
    rounds = Rounds(samples=samples, rules=EpochRules(seed=0, batch_size=batch), epochs=EPOCHS)
    return CachedStream(rounds, reader)


def waits(stream: CachedStream, pause: float) -> Iterator[float]:
    """Yield the seconds that a run waits for each batch, if it computes for ``pause`` seconds in between."""
    batches = iter(stream)
    while True:
        started = time.perf_counter()
        try:
            next(batches)
        except StopIteration:
            stream.close()
            return
        yield time.perf_counter() - started
        time.sleep(pause)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--step", type=float, default=0.15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    make_pairs(arguments.work, arguments.samples)
    samples = distinct(prepare_samples(data_plan(arguments.work), reporter=QuietReporter()).samples)
    caches = caches_of(data_plan(arguments.work))
    fill(caches, samples)
    list(waits(opened(caches, samples, arguments.batch), 0))  # the files are hot afterwards
    started = time.perf_counter()
    count = len(list(waits(opened(caches, samples, arguments.batch), 0)))
    alone = (time.perf_counter() - started) / count
    beside = list(waits(opened(caches, samples, arguments.batch), arguments.step))[1:]  # the first was not read ahead
    result = {
        "batches": count,
        "seconds_per_batch": round(alone, 4),
        "batches_per_second": round(1 / alone, 1),
        "step": arguments.step,
        "median_wait": round(statistics.median(beside), 4),
        "longest_wait": round(max(beside), 4),
        "waits": round(sum(beside) / (len(beside) * arguments.step), 4),
    }
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    beside_steps = f"beside steps of {arguments.step} s: waits"
    print(f"| batch of {arguments.batch} | alone, s | batches/s | {beside_steps} | longest, s |")
    print("|---|---|---|---|---|")
    print(
        f"| {count} batches | {result['seconds_per_batch']} | {result['batches_per_second']} "
        f"| {100 * result['waits']:.1f} % | {result['longest_wait']} |"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
