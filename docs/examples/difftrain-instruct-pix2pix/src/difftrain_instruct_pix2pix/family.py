"""InstructPix2Pix for difftrain, in the order of a run. Light: torch is imported when used.

Source: Brooks et al., InstructPix2Pix, arXiv:2211.09800, and diffusers' `StableDiffusionInstructPix2PixPipeline`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field

import difftrain as dt

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

CELL, CHANNELS = 8, 4
"""Edge in pixels and channels of a latent cell."""
ATTENTION, FEED_FORWARD = (".to_q", ".to_k", ".to_v", ".to_out.0"), (".net.0.proj", ".net.2")
"""Suffixes of the linear modules' names."""
WEIGHTED, OTHERS = ("unet", "vae", "text_encoder"), ("tokenizer", "scheduler")
NEEDED = {
    "unet": ("in_channels", "block_out_channels", "cross_attention_dim"),
    "vae": ("block_out_channels", "scaling_factor"),
    "text_encoder": ("hidden_size", "max_position_embeddings"),
    "scheduler": ("_class_name", "num_train_timesteps", "beta_schedule"),
}
FILES = dt.DiffusersFiles(weighted=WEIGHTED, others=OTHERS, needed=NEEDED)


@dataclass(frozen=True, kw_only=True)
class UNetInput:
    """The U-Net's input: [B, 4, h, w] twice, timesteps [B], text [B, T, D]."""

    noisy: Tensor
    image: Tensor
    """Latents of the reference as the VAE gives them, not normalised; zeros without a reference."""
    timestep: Tensor
    prompt_embeds: Tensor
    scaling_factor: float
    """Normalised latents are the VAE's times this factor."""


class InstructPix2Pix(dt.ModelFamily[UNetInput]):
    """Stable Diffusion's U-Net with four more input channels for the latents of the reference."""

    name: ClassVar[str] = "instruct-pix2pix"
    pixel_multiple: ClassVar[int] = CELL
    text_encoders: ClassVar[int] = 1
    lora_prefix: ClassVar[str] = "unet"
    usual_timestep_sampler: ClassVar[str] = "uniform"

    pix2pix_lora_target: Literal["attention", "attention+ffs"] = "attention"
    """Modules that an adapter wraps: the attention of all blocks, or their feed-forward layers too."""

    # before any weight
    def locate(self, model: str | None, flavour: dt.ModelFlavour) -> dt.ModelLocation:
        return FILES.locate(model, flavour, examine)

    def text_identity(self, location: dt.ModelLocation, flavour: dt.ModelFlavour) -> str:
        return f"pix2pix-text-1|{FILES.identity(location, 'text_encoder', 'tokenizer')}"

    def image_identity(self, location: dt.ModelLocation) -> str:
        return f"pix2pix-vae-1|{FILES.identity(location, 'vae')}"

    def latents_bytes(self, location: dt.ModelLocation, size: dt.Size, value_bytes: int) -> int:
        return 2 * CHANNELS * (size[0] // CELL) * (size[1] // CELL) * value_bytes

    def text_bytes(
        self, location: dt.ModelLocation, flavour: dt.ModelFlavour, value_bytes: int, views: Sequence[dt.Size] = ()
    ) -> int:
        config = FILES.config(location, "text_encoder")
        return int(config["max_position_embeddings"] * config["hidden_size"]) * value_bytes

    # loading
    def load_text_encoder(
        self, location: dt.ModelLocation, flavour: dt.ModelFlavour, device: torch.device, dtype: torch.dtype
    ) -> dt.TextEncoder:
        from difftrain_instruct_pix2pix.parts import ClipTextEncoder

        return ClipTextEncoder(FILES.folder(location, "text_encoder", "tokenizer"), device, dtype)

    def load_image_encoder(
        self, location: dt.ModelLocation, device: torch.device, dtype: torch.dtype, *, tiling: bool, slicing: bool
    ) -> dt.ImageEncoder:
        from difftrain_instruct_pix2pix.parts import VaeImageEncoder

        return VaeImageEncoder(FILES.folder(location, "vae"), device, dtype, tiling=tiling, slicing=slicing)

    def empty_denoiser(self, location: dt.ModelLocation) -> nn.Module:
        from accelerate import init_empty_weights
        from diffusers import UNet2DConditionModel

        with dt.loading(FILES.folder(location, "unet") / "unet"), init_empty_weights():
            unet: Any = UNet2DConditionModel.from_config(FILES.config(location, "unet"))
        # the model's input depends on this factor, and only the module's config travels with it
        unet.register_to_config(image_scaling_factor=FILES.config(location, "vae")["scaling_factor"])
        return cast("nn.Module", unet)

    def denoiser_weights(self, location: dt.ModelLocation) -> Iterator[tuple[str, Tensor]]:
        return dt.read_weights(FILES.folder(location, "unet") / "unet")

    def noise_process(self, location: dt.ModelLocation) -> dt.NoiseProcess:
        from difftrain_instruct_pix2pix.parts import DiscreteNoise

        return DiscreteNoise(FILES.config(location, "scheduler"))

    def adapter_targets(self, denoiser: nn.Module) -> list[str]:
        ends = ATTENTION + (FEED_FORWARD if self.pix2pix_lora_target == "attention+ffs" else ())
        return [name for name, _ in denoiser.named_modules() if ".transformer_blocks." in name and name.endswith(ends)]

    def fixed(self) -> dict[str, object]:
        return {"pix2pix_lora_target": self.pix2pix_lora_target}

    def keep_unquantized(self) -> tuple[str, ...]:
        return ("time_embedding.*",)

    def blocks(self, denoiser: Any) -> list[nn.Module]:
        """Return the levels of the U-Net, with the residual layers that diffusers' own list of blocks leaves out."""
        return [*denoiser.down_blocks, denoiser.mid_block, *denoiser.up_blocks]

    def attention_shapes(self, batch: dt.Batch, denoiser: Any) -> Sequence[dt.AttentionShape]:
        """Return the shapes of each level's attention to itself and to the text."""
        shapes, deepest, (count, _, *edges) = [], len(denoiser.down_blocks) - 1, batch.latents.shape
        for level, part in enumerate((*denoiser.down_blocks, denoiser.mid_block)):
            height, width = (math.ceil(edge / 2 ** min(level, deepest)) for edge in edges)
            for name, module in part.named_modules():
                if name.endswith((".attn1", ".attn2")):
                    keys = height * width if name.endswith(".attn1") else batch.text["prompt_embeds"].shape[1]
                    each = {"heads": module.heads, "head_dim": module.to_q.out_features // module.heads}
                    shapes.append(dt.AttentionShape(batch=count, queries=height * width, keys=keys, **each))
        return list(dict.fromkeys(shapes))

    # one step
    def tokens(self, batch: dt.Batch) -> Mapping[str, int]:
        return {"target": batch.latents[0, 0].numel(), "text": batch.text["prompt_embeds"].shape[1]}

    def collate_text(self, texts: Sequence[dt.TextEmbeds]) -> dt.TextEmbeds:
        import torch

        return {name: torch.stack([text[name] for text in texts]) for name in texts[0]}

    def build_input(self, noisy: dt.NoisyBatch, batch: dt.Batch, denoiser: Any) -> UNetInput:
        text = batch.text["prompt_embeds"]
        target, factor = noisy.noisy.to(text.dtype), denoiser.config.image_scaling_factor
        empty = target.new_zeros(target.shape)
        return UNetInput(noisy=target, image=empty, timestep=noisy.timestep, prompt_embeds=text, scaling_factor=factor)

    def predict(self, denoiser: nn.Module, model_input: UNetInput) -> Tensor:
        import torch

        sample = torch.cat([model_input.noisy, model_input.image], dim=1)
        (prediction,) = denoiser(sample, model_input.timestep, model_input.prompt_embeds, return_dict=False)
        return cast("Tensor", prediction)

    # validation
    def make_sampler(
        self,
        location: dt.ModelLocation,
        flavour: dt.ModelFlavour,
        denoiser: nn.Module,
        image_encoder: dt.ImageEncoder,
        device: torch.device,
        dtype: torch.dtype,
    ) -> dt.Sampler:
        from difftrain_instruct_pix2pix.parts import VaeImageEncoder, pipeline_sampler

        assert isinstance(image_encoder, VaeImageEncoder)
        scheduler = FILES.folder(location, "scheduler") / "scheduler"
        return pipeline_sampler(flavour, denoiser, image_encoder.vae, scheduler, device, dtype)


class Original(dt.ModelFlavour[UNetInput]):
    """The authors' checkpoint, based on Stable Diffusion 1.5; edits one image, and the result has its size."""

    family: ClassVar[str] = InstructPix2Pix.name
    name: ClassVar[str] = "original"
    hub_id: ClassVar[str] = "timbrooks/instruct-pix2pix"
    weights: ClassVar[Mapping[str, tuple[str, ...]]] = {"pipeline": ("StableDiffusionInstructPix2PixPipeline",)}
    max_references: ClassVar[int] = 1
    needs_reference: ClassVar[bool] = True
    references_fit_target: ClassVar[bool] = True
    default_guidance_real: ClassVar[float] = 7.5

    pix2pix_image_guidance: float = Field(1.5, ge=1)
    """How closely a validation image follows its reference; used if validation_guidance_real is above 1."""

    def extend_input(self, family: dt.ModelFamily, model_input: UNetInput, batch: dt.Batch) -> UNetInput:
        """Put the reference in place of the zeros, unnormalised: the pipeline does not scale it either."""
        (reference,) = batch.references
        return replace(model_input, image=(reference / model_input.scaling_factor).to(model_input.image))

    def pipeline_arguments(self, request: dt.ValidationRequest) -> dict[str, object]:
        """Return the image, which decides the size of the result; without one, empty latents, as in training."""
        import torch

        size = request.width, request.height
        empty = torch.zeros(1, CHANNELS, size[1] // CELL, size[0] // CELL)
        image = request.references[0].resize(size) if request.references else empty
        return {"image": image, "image_guidance_scale": self.pix2pix_image_guidance}


def examine(where: str, configs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, str]:
    """Refuse U-Nets and schedules that this family cannot train."""
    takes, wanted = configs["unet"].get("in_channels"), 2 * CHANNELS
    if takes != wanted:
        what = "a plain text-to-image U-Net" if takes == CHANNELS else "a U-Net for another task"
        raise dt.ModelError(
            f"{where} has {what}: it takes {takes} channels, not {wanted}, so no reference image beside the target\n"
            "hint: name InstructPix2Pix weights, such as timbrooks/instruct-pix2pix"
        )
    kind = configs["scheduler"].get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise dt.ModelError(f"{where}: its scheduler's prediction_type {kind!r} is neither epsilon nor v_prediction")
    return {}


@dt.hookimpl
def difftrain_model_families() -> Iterable[type[dt.ModelFamily]]:
    return (InstructPix2Pix,)


@dt.hookimpl
def difftrain_model_flavours() -> Iterable[type[dt.ModelFlavour]]:
    return (Original,)


@dt.hookimpl
def difftrain_check_config(config: dt.RunConfig) -> Iterable[str]:
    if config.model_family == InstructPix2Pix.name and config.validation_guidance is not None:
        hint = "set validation_guidance_real for the text's guidance, pix2pix_image_guidance for the image's"
        yield f"validation_guidance: {InstructPix2Pix.name} has no guidance embedding\nhint: {hint}"
