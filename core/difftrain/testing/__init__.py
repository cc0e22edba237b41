"""Test tools for plugin authors. Importing it does not import torch.

`check_generator`, `check_crop_style` and `check_family` test a whole contract; `load_denoiser` loads a family's model
as a run does; `TinyFamily` is a model that needs no file and trains in milliseconds; `make_dataset` writes images to
train on; `run_command` runs `difftrain`.

- `example_images`: images to train on, alone or in pairs
- `command_runs`: runs the command in the process of a test
- `generator_check`: tests the contract of generators
- `crop_style_check`: tests the contract of crop styles
- `family_check`: tests the contract of model families
- `attention_check`: watches the attention shapes of a forward
- `sharing_check`: tests which layers share their input
- `tiny_family`: a family that needs no file
- `tiny_denoiser`: its denoiser; in its own module because it needs torch
"""

from difftrain.testing.command_runs import CommandResult, run_command
from difftrain.testing.crop_style_check import check_crop_style
from difftrain.testing.example_images import PairFolders, make_dataset
from difftrain.testing.family_check import check_family, load_denoiser
from difftrain.testing.generator_check import check_generator
from difftrain.testing.tiny_family import TinyEditFlavour, TinyFamily, TinyFlavour

__all__ = [
    "CommandResult",
    "PairFolders",
    "TinyEditFlavour",
    "TinyFamily",
    "TinyFlavour",
    "check_crop_style",
    "check_family",
    "check_generator",
    "load_denoiser",
    "make_dataset",
    "run_command",
]
