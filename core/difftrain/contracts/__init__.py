"""The contracts that plugins implement.

Third-party authors read these modules first; start with :class:`ConditioningGenerator`. Nothing here imports a
plugin, a model library or the training loop, and importing it does not import torch: an entry-point module stays
light and does its heavy imports inside the methods.

Every contract is an :class:`Options` class: its fields are the options that users may set, with help and validation,
and its ``name`` is the name in a config.

- `for_data`: data sources, captions, crop styles, pairings, generators
- `encoders`: text and image encoders
- `for_models`: flavours and families; start here for a model
- `model_input`: what a family's forward takes, as a type
- `recomputing`: gradient checkpointing, a family's default
- `original_layers`: names of layers in a model's original checkpoint
- `noise_process`: how noise is added to latents, and what a model has to predict
- `for_training`: adapters, optimizers, schedules, samplers, losses
- `quantizer`: number formats of frozen weights
- `for_observers`: observers of a run
"""

from difftrain.contracts.encoders import ImageEncoder, TextEncoder
from difftrain.contracts.for_data import (
    CaptionSource,
    ConditioningGenerator,
    CropStyle,
    DataSource,
    Listing,
    Pairing,
)
from difftrain.contracts.for_models import ModelFamily, ModelFlavour
from difftrain.contracts.for_observers import Observer, RunStart, ValidationResult
from difftrain.contracts.for_training import (
    Adapter,
    Loss,
    OptimizerFactory,
    Schedule,
    TimestepSampler,
)
from difftrain.contracts.noise_process import FlowMatching, NoiseProcess
from difftrain.contracts.original_layers import OriginalLayers
from difftrain.contracts.quantizer import Quantizer

__all__ = [
    "Adapter",
    "CaptionSource",
    "ConditioningGenerator",
    "CropStyle",
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
    "OriginalLayers",
    "Pairing",
    "Quantizer",
    "RunStart",
    "Schedule",
    "TextEncoder",
    "TimestepSampler",
    "ValidationResult",
]
