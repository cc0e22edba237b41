"""Chooses what every validation of a run draws, once, from held-out samples if there are any."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from difftrain.data.caching.sample_caches import TextItem
from difftrain.data.packed.sample_table import SampleTable
from difftrain.types import PlacedImage, ReferenceChoice, Sample, Size
from difftrain.validation.drawn_files import disk_key, file_name, safe_file_name

if TYPE_CHECKING:
    from difftrain.config.schema import RunConfig


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One validation image to draw: prompt, references, size."""

    name: str
    """Name of its file, without seed and extension; unique in a run."""
    prompt: str
    references: tuple[PlacedImage, ...]
    target: PlacedImage | None
    """Shown beside the result; None if the prompt is not the sample's own."""
    size: Size

    def drawn_with(self, most: int | None) -> tuple[PlacedImage, ...]:
        """Return the references for the stock pipeline: the first ``most``, or all for None. Training sees all."""
        return self.references[:most]

    def text(self, prompt: str, most: int | None) -> TextItem:
        """Return a prompt or a negative prompt with the references that the pipeline gets, to be encoded together."""
        return TextItem(caption=prompt, references=self.drawn_with(most))

    def identity(self, config: RunConfig, model: str) -> str:
        """Return a hash that is equal only for images of this scene that are drawn the same way; hexadecimal digits.

        Args:
            config: Its options of sampling, and of the adapter before the first step, are part of the hash.
            model: Content, flavour and number formats of the frozen model and of its encoders.
        """
        images = [image_identity(image) for image in self.references]
        options = (
            config.validation_negative_prompt,
            config.validation_guidance,
            config.validation_guidance_real,
            config.validation_num_inference_steps,
            config.validation_seed,
            config.seed,
            config.lora_type,
        )
        return hashlib.sha256(repr((self.prompt, self.size, images, options, model)).encode()).hexdigest()


def image_identity(image: PlacedImage) -> str:
    """Return the identity of a cropped image; the file's name and place are not part of it."""
    return f"{image.record.content_hash}{image.geometry.identity}"


def choose_scenes(
    samples: Sequence[Sample], config: RunConfig, prompts: Mapping[str, str], multiple: int
) -> list[Scene]:
    """Choose the images that every validation of a run draws.

    First ``num_eval_images`` samples with their own instructions, from each dataset in turn, and within a dataset
    from each reference set and generator in turn; then each validation prompt, with the references of one of these
    samples in turn.

    Args:
        samples: The held-out samples, or if nothing is held out, the training samples that show what is learnt.
        prompts: Validation prompts by short name.
        multiple: Edges of the images are multiples of this, in pixels.
    """
    chosen = spread(samples, config.num_eval_images)
    drawn: Counter[str] = Counter()
    scenes = []
    for sample in chosen:
        choice = sample.choices[drawn[sample.dataset_id] % len(sample.choices)]
        drawn[sample.dataset_id] += 1
        scenes.append(_own_scene(sample, choice, config, multiple))
    for index, (name, prompt) in enumerate(prompts.items()):
        references = scenes[index % len(chosen)].references if chosen else ()
        size = scenes[index % len(chosen)].size if chosen else size_to_draw(config.validation_size, 1.0, multiple)
        scenes.append(Scene(name=name, prompt=prompt, references=references, target=None, size=size))
    return with_files_of_their_own(scenes, config.validation_num_seeds)


def _own_scene(sample: Sample, choice: ReferenceChoice, config: RunConfig, multiple: int) -> Scene:
    captions = sample.captions if choice.captions is None else choice.captions
    width, height = sample.target.geometry.bucket
    return Scene(
        name=f"{sample.dataset_id}-{sample.target.record.key}",
        prompt=captions[0],
        references=choice.references,
        target=sample.target,
        size=size_to_draw(config.validation_size, width / height, multiple),
    )


def with_files_of_their_own(scenes: Sequence[Scene], seeds: int) -> list[Scene]:
    """Give scenes names that every disk accepts, so that no file is written twice; the sheet is a file too."""
    taken = {disk_key("sheet")}
    renamed = []
    for scene in scenes:
        safe = name = safe_file_name(scene.name)
        number = 1
        while taken & (files := {disk_key(file_name(name, seed)) for seed in range(1, seeds + 1)}):
            number += 1
            name = f"{safe}-{number}"
        taken |= files
        renamed.append(replace(scene, name=name))
    return renamed


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Take a sample of each dataset in turn, each dataset starting one further on: sets may share their photographs."""
    sets = SampleTable.of(samples).sets
    groups = [np.flatnonzero(sets == number) for number in dict.fromkeys(sets.tolist())]
    turns = max(map(len, groups), default=0)
    in_turn = (
        group[(turn + number) % len(group)]
        for turn in range(turns)
        for number, group in enumerate(groups)
        if turn < len(group)
    )
    return [samples[int(place)] for place in islice(in_turn, count)]


def size_to_draw(size: Size, aspect: float, multiple: int) -> Size:
    """Return a size of about the same area with the given width / height, on multiples."""
    area = size[0] * size[1]
    width, height = math.sqrt(area * aspect), math.sqrt(area / aspect)
    return max(1, round(width / multiple)) * multiple, max(1, round(height / multiple)) * multiple
