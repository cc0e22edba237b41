"""Qwen-Image-Edit for difftrain, in the order of a run. Light: torch is imported when used.

Source: Qwen-Image technical report, arXiv:2508.02324, and diffusers' `QwenImageEditPipeline`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field

import difftrain as dt

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

QwenInput = dict[str, Any]
"""The arguments of the transformer's call."""
Facts = Mapping[str, tuple[str, ...]]
CHANNELS, CELL, TOKEN, PATCH = 16, 8, 4, 28
"""Latent channels; a latent cell's edge in pixels; cells per token; edge in pixels of a Qwen2.5-VL token."""
WEIGHTED, OTHERS = ("transformer", "vae", "text_encoder"), ("tokenizer", "processor", "scheduler")
NEEDED = {"transformer": ("num_layers", "joint_attention_dim"), "vae": ("latents_mean",), "scheduler": ("_class_name",)}
FILES = dt.DiffusersFiles(weighted=WEIGHTED, others=OTHERS, needed=NEEDED)
ATTENTION = r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
TARGETS = {"attention": ATTENTION, "attention+ffs": rf"{ATTENTION}|(img|txt)_mlp\.net\.(0\.proj|2)"}


class QwenImageEdit(dt.ModelFamily[QwenInput]):
    """A transformer over image and text tokens, with Qwen2.5-VL as text encoder and a 16-channel video VAE."""

    name: ClassVar[str] = "qwen-image-edit"
    pixel_multiple: ClassVar[int] = 16
    text_encoders: ClassVar[int] = 1
    default_flavour: ClassVar[str | None] = "edit"
    text_sees_references: ClassVar[bool] = True

    qwen_lora_target: Literal["attention", "attention+ffs"] = "attention"
    """Modules that an adapter wraps: the attention of all blocks, or their feed-forward layers too."""
    qwen_schedule_shift: float | None = Field(None, gt=0)
    """Moves noise levels towards noise: s*sigma / (1 + (s-1)*sigma). null takes the pipeline's own shift for the
    target's size: 2.0 at 1024x1024, 1.7 at 512x512; 1 is no shift."""

    # before any weight
    def locate(self, model: str | None, flavour: dt.ModelFlavour) -> dt.ModelLocation:
        return FILES.locate(model, flavour, examine)

    def text_identity(self, location: dt.ModelLocation, flavour: dt.ModelFlavour) -> str:
        files = FILES.identity(location, "text_encoder", "tokenizer", "processor")
        return f"qwen-text-1|{flavour.settings['image']}|{files}"

    def image_identity(self, location: dt.ModelLocation) -> str:
        return f"qwen-vae-1|{FILES.identity(location, 'vae')}"

    def latents_bytes(self, location: dt.ModelLocation, size: dt.Size, value_bytes: int) -> int:
        return 2 * CHANNELS * (size[0] // CELL) * (size[1] // CELL) * value_bytes

    def text_bytes(
        self, location: dt.ModelLocation, flavour: dt.ModelFlavour, value_bytes: int, views: Sequence[dt.Size] = ()
    ) -> int:
        """Return the bytes for a caption of 512 tokens, the longest that the pipelines assume; they cut none."""
        tokens = 512 + sum(round(width / PATCH) * round(height / PATCH) for width, height in views)
        return tokens * int(FILES.config(location, "transformer")["joint_attention_dim"]) * value_bytes

    def text_view(self, size: dt.Size, flavour: dt.ModelFlavour) -> dt.Size:
        """Size references as the flavour's pipeline does: an area of this aspect on multiples of 32, or as encoded."""
        area, aspect = cast(int, flavour.settings.get("view", 0)), size[0] / size[1]
        return (round((area * aspect) ** 0.5 / 32) * 32, round((area / aspect) ** 0.5 / 32) * 32) if area else size

    # loading
    def load_text_encoder(
        self, location: dt.ModelLocation, flavour: dt.ModelFlavour, device: torch.device, dtype: torch.dtype
    ) -> dt.TextEncoder:
        from difftrain_qwen_image_edit.parts import QwenTextEncoder

        folder = FILES.folder(location, "text_encoder", "tokenizer", "processor")
        return QwenTextEncoder(folder, str(flavour.settings["image"]), device, dtype)

    def load_image_encoder(
        self, location: dt.ModelLocation, device: torch.device, dtype: torch.dtype, *, tiling: bool, slicing: bool
    ) -> dt.ImageEncoder:
        from difftrain_qwen_image_edit.parts import QwenImageEncoder

        return QwenImageEncoder(FILES.folder(location, "vae"), device, dtype, tiling=tiling, slicing=slicing)

    def empty_denoiser(self, location: dt.ModelLocation) -> nn.Module:
        from accelerate import init_empty_weights
        from diffusers import QwenImageTransformer2DModel

        with init_empty_weights():
            denoiser: nn.Module = QwenImageTransformer2DModel.from_config(FILES.config(location, "transformer"))
        return denoiser

    def denoiser_weights(self, location: dt.ModelLocation) -> Iterator[tuple[str, Tensor]]:
        return dt.read_weights(FILES.folder(location, "transformer") / "transformer")

    def adapter_targets(self, denoiser: nn.Module) -> list[str]:
        wanted = re.compile(rf"transformer_blocks\.\d+\.({TARGETS[self.qwen_lora_target]})")
        return [name for name, _ in denoiser.named_modules() if wanted.fullmatch(name)]

    def fixed(self) -> dict[str, Any]:
        return {"qwen_lora_target": self.qwen_lora_target}

    def keep_unquantized(self) -> tuple[str, ...]:
        return "img_in", "txt_in", "time_text_embed.*", "norm_out.*", "proj_out"

    def attention_shapes(self, batch: dt.Batch, denoiser: nn.Module) -> Sequence[dt.AttentionShape]:
        length, config = sum(self.tokens(batch).values()), cast(Any, denoiser.config)
        heads = {"heads": config.num_attention_heads, "head_dim": config.attention_head_dim}
        same = {"batch": len(batch.latents), "queries": length, "keys": length}
        return (dt.AttentionShape(**heads, **same, masked="encoder_hidden_states_mask" in batch.text),)

    # one step
    def sigma_shift(self, latents: Tensor) -> float:
        tokens = latents[0, 0].numel() // TOKEN
        # both checkpoints' schedulers: 0.5 at 256 tokens, 0.9 at 8192
        return self.qwen_schedule_shift or math.exp(0.5 + 0.4 * (tokens - 256) / (8192 - 256))

    def tokens(self, batch: dt.Batch) -> Mapping[str, int]:
        target, *references = (latents[0, 0].numel() // TOKEN for latents in (batch.latents, *batch.references))
        return {"target": target, "references": sum(references), "text": batch.text["encoder_hidden_states"].shape[1]}

    def collate_text(self, texts: Sequence[dt.TextEmbeds]) -> dt.TextEmbeds:
        """Pad to the longest, with a mask if one is shorter."""
        import torch

        embeds = [text["prompt_embeds"] for text in texts]
        lengths = torch.tensor([len(each) for each in embeds])
        batched = {"encoder_hidden_states": torch.nn.utils.rnn.pad_sequence(embeds, batch_first=True)}
        if lengths.min() < lengths.max():
            batched["encoder_hidden_states_mask"] = torch.arange(int(lengths.max())) < lengths[:, None]
        return batched

    def build_input(self, noisy: dt.NoisyBatch, batch: dt.Batch, denoiser: nn.Module) -> QwenInput:
        tokens, shape = pack(noisy.noisy.to(batch.text["encoder_hidden_states"].dtype))
        images = {"hidden_states": tokens, "img_shapes": [[shape]] * len(tokens)}
        return {**images, "timestep": noisy.timestep, **batch.text}

    def predict(self, denoiser: nn.Module, model_input: QwenInput) -> Tensor:
        """Return the target's part of the sequence [B, N, 64], as latents [B, 16, 1, h, w]."""
        _, rows, columns = model_input["img_shapes"][0][0]
        sequence: Tensor = denoiser(**model_input, return_dict=False)[0]
        cells = sequence[:, : rows * columns].reshape(-1, rows, columns, CHANNELS, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return cells.reshape(-1, CHANNELS, 1, 2 * rows, 2 * columns)

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
        from difftrain_qwen_image_edit.parts import pipeline_sampler

        return pipeline_sampler(flavour, denoiser, image_encoder, FILES.folder(location, "scheduler"), device, dtype)


class Edit(dt.ModelFlavour[QwenInput]):
    """One reference, which the text encoder sees in the same size as the VAE."""

    family: ClassVar[str] = QwenImageEdit.name
    name: ClassVar[str] = "edit"
    hub_id: ClassVar[str] = "Qwen/Qwen-Image-Edit"
    # later checkpoints are conditioned differently: zero_cond_t
    weights: ClassVar[Facts] = {"pipeline": ("QwenImageEditPipeline",), "zero_cond_t": ("false",)}
    max_references: ClassVar[int] = 1
    needs_reference: ClassVar[bool] = True
    max_pixels: ClassVar[int | None] = 1536 * 1536
    default_guidance_real: ClassVar[float] = 4.0
    settings: ClassVar[Mapping[str, Any]] = {"image": "<|vision_start|><|image_pad|><|vision_end|>"}

    def extend_input(self, family: dt.ModelFamily, model_input: QwenInput, batch: dt.Batch) -> QwenInput:
        """Build the sequence [target | reference 1 | reference 2 | ...]."""
        import torch

        target = model_input["hidden_states"]
        packed = [pack(reference.to(target)) for reference in batch.references]
        tokens = torch.cat([target, *(tokens for tokens, _ in packed)], dim=1)
        shapes = [*model_input["img_shapes"][0], *(shape for _, shape in packed)]
        return {**model_input, "hidden_states": tokens, "img_shapes": [shapes] * len(tokens)}


class Edit2509(Edit):
    """Up to three references, which the text encoder sees in the area of 384x384."""

    name: ClassVar[str] = "edit-2509"
    hub_id: ClassVar[str] = "Qwen/Qwen-Image-Edit-2509"
    weights: ClassVar[Facts] = {**Edit.weights, "pipeline": ("QwenImageEditPlusPipeline",)}
    max_references: ClassVar[int] = 3
    settings: ClassVar[Mapping[str, Any]] = {"image": "Picture {}: " + Edit.settings["image"], "view": 384 * 384}


def pack(latents: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return tokens [B, N, 4C] of latents [B, C, 1, h, w], 2x2 cells each, and (1, rows, columns) of them."""
    count, channels, _, height, width = latents.shape
    cells = latents.reshape(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(count, -1, 4 * channels), (1, height // 2, width // 2)


def examine(where: str, configs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, str]:
    """Refuse transformers that this family cannot train; return what tells checkpoints of one pipeline apart."""
    config, wanted = configs.get("transformer", {}), "QwenImageTransformer2DModel"
    if (kind := config.get("_class_name", wanted)) != wanted:
        raise dt.ModelError(f"{where}: the transformer is a {kind}, not a {wanted}")
    return {"zero_cond_t": str(config.get("zero_cond_t", False)).lower()}


@dt.hookimpl
def difftrain_model_families() -> Iterable[type[dt.ModelFamily]]:
    return (QwenImageEdit,)


@dt.hookimpl
def difftrain_model_flavours() -> Iterable[type[dt.ModelFlavour]]:
    return Edit, Edit2509
