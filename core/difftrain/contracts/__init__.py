"""What plugins implement.

A third-party author reads these modules first; start with :class:`ConditioningGenerator`. Nothing here imports a
plugin, a model library or the training loop, and importing it does not import torch: an entry-point module stays
light and does its heavy imports inside the methods.

Every contract is an :class:`Options` class: its fields are what users may set, with help and validation, and its
``name`` is how a config names it.
"""

from difftrain.contracts.data import (
    CaptionSource,
    ConditioningGenerator,
    DataSource,
    Listing,
    Pairing,
)
from difftrain.contracts.model import (
    ImageEncoder,
    ModelFamily,
    ModelFlavour,
    TextEncoder,
)
from difftrain.contracts.noise import FlowMatching, NoiseProcess
from difftrain.contracts.observer import Observer, RunStart, ValidationResult
from difftrain.contracts.training import (
    Adapter,
    Loss,
    OptimizerFactory,
    Quantizer,
    Schedule,
    TimestepSampler,
)

__all__ = [
    "Adapter",
    "CaptionSource",
    "ConditioningGenerator",
    "DataSource",
    "FlowMatching",
    "ImageEncoder",
    "Listing",
    "Loss",
    "ModelFamily",
    "ModelFlavour",
    "NoiseProcess",
    "Observer",
    "OptimizerFactory",
    "Pairing",
    "Quantizer",
    "RunStart",
    "Schedule",
    "TextEncoder",
    "TimestepSampler",
    "ValidationResult",
]
