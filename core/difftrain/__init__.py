"""difftrain: an open diffusion trainer. Plugins import only from here and from :mod:`difftrain.testing`.

Importing this package does not import torch.
"""

from difftrain.config.known_keys import KnownKeys, because
from difftrain.config.options import Options
from difftrain.config.run_options import RunConfig
from difftrain.contracts import (
    Adapter,
    CaptionSource,
    ConditioningGenerator,
    CropStyle,
    DataSource,
    FlowMatching,
    ImageEncoder,
    Listing,
    Loss,
    ModelFamily,
    ModelFlavour,
    NoiseProcess,
    Observer,
    OptimizerFactory,
    OriginalLayers,
    Pairing,
    Quantizer,
    RunStart,
    Schedule,
    TextEncoder,
    TimestepSampler,
    ValidationResult,
)
from difftrain.data.buckets import assign_bucket, cover_bucket
from difftrain.data.files.local_image import LocalImage
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
from difftrain.model.diffusers_files import DiffusersFiles
from difftrain.model.diffusers_folder import check_complete, file_fingerprint, fingerprint, read_json
from difftrain.model.hub import cached_file, fetch_components, fetch_files, find_snapshot
from difftrain.model.pipeline_sampler import PipelineSampler
from difftrain.model.quiet_loading import loading, without_bars
from difftrain.model.shards import read_weights
from difftrain.model.shared_input import outputs_of
from difftrain.model.single_files.only_file import fetch_only_file, only_file
from difftrain.model.single_files.weight_file import WeightFile, open_weight_file
from difftrain.plugins.hookspecs import hookimpl
from difftrain.types import (
    AttentionShape,
    Batch,
    Geometry,
    GeometryRules,
    ImageRecord,
    ModelLocation,
    ModelOutline,
    NoisyBatch,
    Panel,
    PlacedImage,
    Point,
    ReferenceChoice,
    Sample,
    Sampler,
    Size,
    SourceImage,
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
    "CropStyle",
    "DataError",
    "DataSource",
    "DifftrainError",
    "DiffusersFiles",
    "FlowMatching",
    "Geometry",
    "GeometryRules",
    "ImageEncoder",
    "ImageRecord",
    "KnownKeys",
    "Listing",
    "LocalImage",
    "Loss",
    "MachineError",
    "ModelError",
    "ModelFamily",
    "ModelFlavour",
    "ModelLocation",
    "ModelOutline",
    "NoiseProcess",
    "NoisyBatch",
    "Observer",
    "OptimizerFactory",
    "Options",
    "OriginalLayers",
    "Pairing",
    "PairingError",
    "Panel",
    "PipelineSampler",
    "PlacedImage",
    "PluginError",
    "Point",
    "Quantizer",
    "ReferenceChoice",
    "RunConfig",
    "RunStart",
    "Sample",
    "Sampler",
    "Schedule",
    "Size",
    "SourceImage",
    "StepResult",
    "TextEmbeds",
    "TextEncoder",
    "TimestepSampler",
    "ValidationRequest",
    "ValidationResult",
    "WeightFile",
    "__version__",
    "assign_bucket",
    "because",
    "cached_file",
    "check_complete",
    "cover_bucket",
    "fetch_components",
    "fetch_files",
    "fetch_only_file",
    "file_fingerprint",
    "find_snapshot",
    "fingerprint",
    "hookimpl",
    "loading",
    "only_file",
    "open_weight_file",
    "outputs_of",
    "read_json",
    "read_weights",
    "without_bars",
]
