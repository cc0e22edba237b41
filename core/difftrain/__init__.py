"""difftrain: an open diffusion trainer. All that a plugin may import is here and in :mod:`difftrain.testing`.

Importing this package does not import torch.
"""

from difftrain.config.known_keys import KnownKeys, because
from difftrain.config.options import Options
from difftrain.contracts import (
    Adapter,
    CaptionSource,
    ConditioningGenerator,
    DataSource,
    FlowMatching,
    ImageEncoder,
    Listing,
    Loss,
    ModelFamily,
    ModelFlavour,
    NoiseProcess,
    OptimizerFactory,
    Pairing,
    Quantizer,
    Schedule,
    TextEncoder,
    TimestepSampler,
)
from difftrain.data.buckets import assign_bucket, cover_bucket
from difftrain.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DifftrainError,
    MachineError,
    ModelError,
    PairingError,
    PluginError,
)
from difftrain.model.shards import read_weights
from difftrain.plugins.hookspecs import hookimpl
from difftrain.types import (
    AttentionShape,
    Batch,
    Geometry,
    GeometryRules,
    ImageRecord,
    ModelLocation,
    NoisyBatch,
    Sampler,
    Size,
    StepResult,
    TextEmbeds,
    ValidationRequest,
)

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "AttentionShape",
    "Batch",
    "CaptionSource",
    "CheckpointError",
    "ConditioningGenerator",
    "ConfigError",
    "DataError",
    "DataSource",
    "DifftrainError",
    "FlowMatching",
    "Geometry",
    "GeometryRules",
    "ImageEncoder",
    "ImageRecord",
    "KnownKeys",
    "Listing",
    "Loss",
    "MachineError",
    "ModelError",
    "ModelFamily",
    "ModelFlavour",
    "ModelLocation",
    "NoiseProcess",
    "NoisyBatch",
    "OptimizerFactory",
    "Options",
    "Pairing",
    "PairingError",
    "PluginError",
    "Quantizer",
    "Sampler",
    "Schedule",
    "Size",
    "StepResult",
    "TextEmbeds",
    "TextEncoder",
    "TimestepSampler",
    "ValidationRequest",
    "__version__",
    "assign_bucket",
    "because",
    "cover_bucket",
    "hookimpl",
    "read_weights",
]
