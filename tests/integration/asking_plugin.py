"""A plugin file with losses that ask for tensors of each sample: a weight of its dataset, a mask of its own."""

SOURCE = '''
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from difftrain import Loss, Options, hookimpl
from difftrain.testing.tiny_family import TinyFamily, TinyFlavour


class Weight(Options):
    """What a dataset says of its samples."""

    loss_weight: float = Field(default=1.0, ge=0)
    """Factor on the loss of each sample."""


class Weighted(Loss):
    """Mean squared error, weighted by dataset."""

    name: ClassVar[str] = "weighted"
    dataset_options: ClassVar[type[Options]] = Weight

    def extras(self, sample, options):
        return {"weight": torch.tensor(options.loss_weight, dtype=torch.float64)}

    def compute(self, prediction, noisy, batch):
        error = (prediction.float() - noisy.target).square().flatten(1).mean(1)
        return error * batch.extras["weight"]


class Masks(Options):
    """Where a dataset's masks are."""

    mask_folder: Path
    """Black images of the edits' names and sizes, white where the loss counts."""


class Masked(Loss):
    """Mean squared error of the latents under a mask."""

    name: ClassVar[str] = "masked"
    dataset_options: ClassVar[type[Options]] = Masks

    def extras(self, sample, options):
        geometry = sample.target.geometry
        with Image.open(options.mask_folder / f"{sample.target.record.key}.png") as image:
            mask = image.convert("L").resize(geometry.resize).crop(geometry.box)
        return {"mask": torch.from_numpy(np.array(mask) > 127), "number": torch.tensor(len(sample.captions))}

    def compute(self, prediction, noisy, batch):
        mask, number = batch.extras["mask"], batch.extras["number"]
        assert (mask.dtype, number.dtype) == (torch.bool, torch.int64)
        shape = noisy.target.shape[-2:]
        cells = torch.nn.functional.interpolate(mask[:, None].float(), size=shape, mode="area")
        error = (prediction.float() - noisy.target).square() * cells
        return error.flatten(1).sum(1) / cells.expand_as(error).flatten(1).sum(1)


class Level(Options):
    """What the family wants of a dataset."""

    level: int
    """Added to the words."""


class Asking(TinyFamily):
    """Adds the level of a sample's dataset to its words."""

    name: ClassVar[str] = "asking"
    dataset_options: ClassVar[type[Options]] = Level

    def extras(self, sample, options):
        return {"level": torch.tensor(options.level)}

    def build_input(self, noisy, batch, denoiser):
        levels.append(batch.extras["level"].tolist())
        return super().build_input(noisy, batch, denoiser)


class AskingFlavour(TinyFlavour):
    family: ClassVar[str] = "asking"


class Clashing(Weighted):
    """Gives what the family gives."""

    name: ClassVar[str] = "clashing"

    def extras(self, sample, options):
        return {"level": torch.tensor(1)}


levels = []


@hookimpl
def difftrain_losses():
    return (Weighted, Masked, Clashing)


@hookimpl
def difftrain_model_families():
    return (Asking,)


@hookimpl
def difftrain_model_flavours():
    return (AskingFlavour,)
'''
