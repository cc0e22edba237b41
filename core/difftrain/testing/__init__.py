"""For plugin authors: what every plugin's tests can use. Importing it does not import torch.

`check_generator` and `check_family` are whole tests of a contract; `load_denoiser` loads a family's model as a run
does; `TinyFamily` is a model that needs no file and trains in milliseconds; `make_dataset` writes images to train on;
`run_command` runs `difftrain`.

- `example_images`: images to train on, alone or in pairs
- `command_runs`: the command, run in the process of a test
- `generator_check`: the contract of generators, as a test
- `family_check`: the contract of model families, as a test
- `attention_check`: attention shapes of a forward, watched
- `tiny_family`: a family that needs no file
- `tiny_denoiser`: its denoiser; apart, since its class needs torch
"""

from difftrain.testing.command_runs import CommandResult, run_command
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
    "check_family",
    "check_generator",
    "load_denoiser",
    "make_dataset",
    "run_command",
]
