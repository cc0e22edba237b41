"""For plugin authors: what every plugin's tests can use. Importing it does not import torch.

`check_generator` and `check_family` are whole tests of a contract; `load_denoiser` loads a family's model as a run
does; `TinyFamily` is a model that needs no file and trains in milliseconds; `make_dataset` writes pictures to train on.
"""

from difftrain.testing.dataset import PairFolders, make_dataset
from difftrain.testing.families import check_family, load_denoiser
from difftrain.testing.generators import check_generator
from difftrain.testing.tiny import TinyEditFlavour, TinyFamily, TinyFlavour

__all__ = [
    "PairFolders",
    "TinyEditFlavour",
    "TinyFamily",
    "TinyFlavour",
    "check_family",
    "check_generator",
    "load_denoiser",
    "make_dataset",
]
