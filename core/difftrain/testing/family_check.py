"""Tests the contract of model families."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from difftrain.contracts import ImageEncoder, ModelFamily, ModelFlavour, NoiseProcess, Quantizer, TextEncoder
from difftrain.testing.attention_check import watched_attention
from difftrain.testing.example_images import draw_image
from difftrain.testing.sharing_check import check_sharing
from difftrain.types import Batch, ModelLocation, NoisyBatch, TextEmbeds, ValidationRequest

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

CAPTIONS = ("make it blue", "")


def check_family(family: ModelFamily, flavour: ModelFlavour, location: ModelLocation | None = None) -> None:
    """Assert everything the core relies on in a family and one flavour; use a model small enough for a CPU.

    Takes one batch of two through text and image encoders, loading, noise, the forward with and without references, one
    validation image and a backward pass with recomputed activations; in float32 on the CPU.

    Args:
        location: Default: where the family finds the flavour's own weights.

    Raises:
        AssertionError: Says what is broken.
    """
    import torch

    cpu = torch.device("cpu")
    assert flavour.family == family.name, f"flavour {flavour.name!r} belongs to {flavour.family!r}, not {family.name!r}"
    place = location or family.locate(None, flavour)
    assert place.identity, "the location has no identity"
    assert family.image_identity(place), "latents have no identity"
    assert family.text_identity(place, flavour), "text embeddings have no identity"

    text_encoder = family.load_text_encoder(place, flavour, cpu, torch.float32)
    texts = _check_text(text_encoder.encode(CAPTIONS))
    models = len(text_encoder.models())
    assert models == family.text_encoders, f"text_encoders is {family.text_encoders}, but models() gives {models}"
    if family.text_sees_references:
        _check_seen_references(family, flavour, text_encoder)
    image_encoder = family.load_image_encoder(place, cpu, torch.float32, tiling=False, slicing=False)
    edge = 4 * family.pixel_multiple
    latents = _check_latents(image_encoder, edge)
    said = family.latents_bytes(place, (2 * edge, edge), 4)
    assert said in (0, 2 * latents[0].nbytes), f"latents_bytes() says {said}, an entry has {2 * latents[0].nbytes}"
    said, found = family.text_bytes(place, flavour, 4), max(map(_bytes, texts))
    assert said == 0 or said >= found, f"text_bytes() says {said}, but an entry has {found}"
    _check_empty(family.empty_denoiser(place))
    denoiser = load_denoiser(family, place)
    _check_modules(family, denoiser)
    _check_outline(family, flavour, place, latents, texts)
    noisy = _check_noise(family.noise_process(place), latents)
    _check_forward(family, flavour, denoiser, latents, noisy, texts)
    plain = Batch(latents=latents, references=[], text=family.collate_text(texts))
    check_sharing(family, load_denoiser(family, place), lambda model: _predict(family, flavour, model, noisy, plain))

    sampler = family.make_sampler(place, flavour, denoiser, image_encoder, cpu, torch.float32)
    size = (4 * family.pixel_multiple, 6 * family.pixel_multiple)
    request = ValidationRequest(
        text=texts[0],
        negative_text=texts[1] if flavour.default_guidance_real > 1 else None,
        references=(draw_image(size, seed=1),) if flavour.max_references else (),
        width=size[0],
        height=size[1],
        steps=2,
        guidance=flavour.default_guidance,
        guidance_real=flavour.default_guidance_real,
        seed=1,
    )
    image = sampler(request)
    assert (image.size, image.mode) == (size, "RGB"), f"asked for RGB of {size}, got {image.mode} {image.size}"
    assert sampler(request).tobytes() == image.tobytes(), "one seed gives two different validation images"
    _check_checkpointing(family, place, plain, noisy)


def _check_text(texts: list[TextEmbeds]) -> list[TextEmbeds]:
    assert len(texts) == len(CAPTIONS), f"{len(CAPTIONS)} captions give {len(texts)} embeddings"
    for text in texts:
        assert text.keys() == texts[0].keys(), "captions have embeddings with different names"
        assert all(tensor.device.type == "cpu" for tensor in text.values()), "text embeddings are not on the CPU"
        assert all(tensor.isfinite().all() for tensor in text.values()), "text embeddings are not finite"
    assert _differ(*texts), "two captions have equal embeddings"
    return texts


def _differ(first: TextEmbeds, second: TextEmbeds) -> bool:
    import torch

    return any(first[name].shape != second[name].shape or not torch.equal(first[name], second[name]) for name in first)


def _check_seen_references(family: ModelFamily, flavour: ModelFlavour, encoder: TextEncoder) -> None:
    """Check that text embeddings depend on the references, passed in the family's own view."""
    edge = 4 * family.pixel_multiple
    view = family.text_view((2 * edge, edge), flavour)
    assert all(isinstance(side, int) and side > 0 for side in view), f"text_view() gives {view}, which is not a size"
    first, second = encoder.encode([CAPTIONS[0]] * 2, [[draw_image(view, seed=seed)] for seed in (1, 2)])
    assert _differ(first, second), "text_sees_references is true, but references do not change the text embeddings"


def _check_latents(image_encoder: ImageEncoder, edge: int) -> Tensor:
    """Return latents [2, C, ...] of two random images, wider than high."""
    import torch

    pixels = torch.rand(2, 3, edge, 2 * edge, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, std = image_encoder.encode(pixels)
    assert mean.shape == std.shape, f"mean has shape {tuple(mean.shape)}, standard deviation {tuple(std.shape)}"
    assert mean.shape[0] == 2, "latents have lost the batch"
    assert mean.device.type == std.device.type == "cpu", "latents are not on the CPU"
    assert bool(mean.isfinite().all() and std.isfinite().all()), "latents are not finite"
    assert bool((std >= 0).all()), "a standard deviation is negative"
    assert torch.equal(image_encoder.encode(pixels)[0], mean), "the same pixels give other latents"
    return mean


def _bytes(text: TextEmbeds) -> int:
    return sum(tensor.nbytes for tensor in text.values())


def load_denoiser(
    family: ModelFamily,
    location: ModelLocation,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    quantizer: Quantizer | None = None,
) -> nn.Module:
    """Load a family's denoiser as a run does: with its weights, frozen, in evaluation mode.

    Args:
        dtype: Default: float32.
        device: Default: the CPU.
        quantizer: Default: none.

    Raises:
        ModelError: If weights are missing, unexpected or of another shape, or the files cannot be read.
    """
    import torch

    from difftrain.model import load_denoiser

    return load_denoiser.load_denoiser(
        family, location, dtype=dtype or torch.float32, device=device or torch.device("cpu"), quantizer=quantizer
    )


def _check_empty(denoiser: nn.Module) -> None:
    real = [name for name, parameter in denoiser.named_parameters() if not parameter.is_meta]
    assert not real, f"the empty denoiser has values; {real[0]} and {len(real) - 1} more are not on the meta device"


def _check_outline(
    family: ModelFamily, flavour: ModelFlavour, place: ModelLocation, latents: Tensor, texts: Sequence[TextEmbeds]
) -> None:
    """Check that the shapes for `difftrain plan` are those of a run."""
    outline = family.outline(place.name, flavour)
    if outline is None:
        return
    _check_empty(outline.denoiser)
    said, true = (
        {name: part.shape for name, part in one.state_dict().items()}
        for one in (outline.denoiser, family.empty_denoiser(place))
    )
    assert said == true, "outline() gives another denoiser than empty_denoiser()"
    size = (8 * family.pixel_multiple, 4 * family.pixel_multiple)
    batch = outline.example_batch(size, [size] * min(1, flavour.max_references), len(latents))
    for name, made in (("latents", batch.latents), *(("a reference", one) for one in batch.references)):
        assert made.is_meta, f"outline() makes {name} off the meta device"
        assert made.shape == latents.shape, f"outline() says {name} are {tuple(made.shape)}, not {tuple(latents.shape)}"
    text = family.collate_text(texts)
    shapes = ({name: tuple(part.shape) for name, part in one.items()} for one in (batch.text, text))
    said_text, true_text = shapes
    assert said_text == true_text, f"outline() says text is {said_text}, not {true_text}"


def _check_modules(family: ModelFamily, denoiser: nn.Module) -> None:
    from torch import nn

    own = set(denoiser.modules())
    for number, block in enumerate(family.blocks(denoiser)):
        assert block in own, f"blocks(): number {number} ({type(block).__name__}) is not a module of the denoiser"

    targets = family.adapter_targets(denoiser)
    modules = dict(denoiser.named_modules())
    assert targets, "there are no adapter targets"
    for name in targets:
        assert isinstance(modules.get(name), nn.Linear), f"adapter target {name!r} is not the name of a linear module"


def _check_noise(process: NoiseProcess, latents: Tensor) -> NoisyBatch:
    """Return noisy latents at two noise levels, checked."""
    import torch

    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    noisy = process.add_noise(latents, torch.tensor([0.5, 0.75]), noise)
    for name, tensor, shape in (
        ("noisy latents", noisy.noisy, latents.shape),
        ("the target", noisy.target, latents.shape),
        ("noise levels", noisy.sigma, latents.shape[:1]),
        ("timesteps", noisy.timestep, latents.shape[:1]),
    ):
        assert tensor.shape == shape, f"noise process: {name} have shape {tuple(tensor.shape)}, not {tuple(shape)}"
        assert bool(tensor.isfinite().all()), f"noise process: {name} are not finite"
    assert noisy.noisy.dtype == noisy.target.dtype == torch.float32, "noise process: latents must stay in float32"
    less = process.add_noise(latents, torch.tensor([0.25, 0.75]), noise)
    assert not torch.equal(less.noisy[0], noisy.noisy[0]), "noise process: two noise levels give equal latents"
    return noisy


def _check_forward(
    family: ModelFamily,
    flavour: ModelFlavour,
    denoiser: nn.Module,
    latents: Tensor,
    noisy: NoisyBatch,
    texts: Sequence[TextEmbeds],
) -> None:
    import torch

    assert family.sigma_shift(latents) > 0, "the shift of noise levels must be above 0"
    text = family.collate_text(texts)
    plain = _predict(family, flavour, denoiser, noisy, Batch(latents=latents, references=[], text=text))
    if not flavour.max_references:
        return
    cells = latents.shape[-1] // 2
    references = [latents.flip(0), latents[..., :cells].flip(0)][: flavour.max_references]
    seeing = _predict(family, flavour, denoiser, noisy, Batch(latents=latents, references=references, text=text))
    assert not torch.equal(seeing, plain), "references do not change the prediction"


def _predict(
    family: ModelFamily, flavour: ModelFlavour, denoiser: nn.Module, noisy: NoisyBatch, batch: Batch
) -> Tensor:
    """Return the prediction of the target, checked."""
    import torch

    model_input = family.build_input(noisy, batch, denoiser)
    if batch.references:
        model_input = flavour.extend_input(family, model_input, batch)
    with torch.no_grad(), watched_attention() as seen:
        prediction = family.predict(denoiser, model_input)
    said = family.attention_shapes(batch, denoiser)
    assert not said or set(said) == seen, f"attention_shapes() says {list(said)}, a forward has {list(seen)}"
    expected = tuple(batch.latents.shape)
    assert tuple(prediction.shape) == expected, f"prediction is {tuple(prediction.shape)}, the target is {expected}"
    assert bool(prediction.isfinite().all()), "the prediction is not finite"
    counts = family.tokens(batch)
    assert all(count >= 0 for count in counts.values()), f"token counts must not be negative, got {dict(counts)}"
    return prediction


def _check_checkpointing(family: ModelFamily, place: ModelLocation, batch: Batch, noisy: NoisyBatch) -> None:
    """Check that recomputing activations changes nothing, and that gradients reach the adapter targets."""
    import torch

    denoiser = load_denoiser(family, place).train()
    targets = [denoiser.get_submodule(name) for name in family.adapter_targets(denoiser)]
    for target in targets:
        target.requires_grad_(True)
    torch.manual_seed(0)
    plain = family.predict(denoiser, family.build_input(noisy, batch, denoiser))
    family.enable_checkpointing(denoiser)
    torch.manual_seed(0)
    recomputed = family.predict(denoiser, family.build_input(noisy, batch, denoiser))
    assert torch.allclose(recomputed, plain, atol=1e-5), "enable_checkpointing() changes the prediction"
    torch.autograd.backward(recomputed.square().mean())
    reached = any(parameter.grad is not None for target in targets for parameter in target.parameters())
    assert reached, "no gradient reaches the adapter targets with activations recomputed"
