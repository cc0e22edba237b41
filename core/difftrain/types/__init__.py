"""Hand-over types: what one stage of a run gives to the next. Import them from here.

Nothing here does work or imports a model library. Sizes are (width, height) in pixels, as in Pillow; tensors are
[batch, channel, height, width], as in torch.

- `sizes`: how large images are, and how they are cut
- `source_images`: images as a data source lists them and the scan finds them
- `training_samples`: a target image with its references and captions
- `model_location`: where a model's files are
- `batches`: tensors of one step
- `work`: what a model does in one step, counted
- `validation_images`: an image to draw
- `finding`: what the checks of the data find
- `reporting`: what users and observers are told
"""

from difftrain.types.batches import AttentionShape, Batch, NoisyBatch, TextEmbeds
from difftrain.types.finding import Finding, Level
from difftrain.types.model_location import ModelLocation
from difftrain.types.reporting import Phase, Reporter, StepResult
from difftrain.types.sizes import Box, Geometry, GeometryRules, Panel, Point, Size
from difftrain.types.source_images import ImageMaker, ImageRecord, Recipe, Shelf, SourceImage
from difftrain.types.training_samples import PlacedImage, ReferenceChoice, Sample
from difftrain.types.validation_images import Sampler, ValidationRequest
from difftrain.types.work import ModelOutline, ModelWork, Work

__all__ = [
    "AttentionShape",
    "Batch",
    "Box",
    "Finding",
    "Geometry",
    "GeometryRules",
    "ImageMaker",
    "ImageRecord",
    "Level",
    "ModelLocation",
    "ModelOutline",
    "ModelWork",
    "NoisyBatch",
    "Panel",
    "Phase",
    "PlacedImage",
    "Point",
    "Recipe",
    "ReferenceChoice",
    "Reporter",
    "Sample",
    "Sampler",
    "Shelf",
    "Size",
    "SourceImage",
    "StepResult",
    "TextEmbeds",
    "ValidationRequest",
    "Work",
]
