"""The text of a model card: Markdown, with front matter for the hub. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from difftrain.output.output_dir import CARD_MARK
from difftrain.publishing.run_facts import RunFacts
from difftrain.types import Size

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_MOST_SIZES = 6


@dataclass(frozen=True, kw_only=True)
class CardImage:
    """An image of the last validation."""

    path: str
    """Relative to the card."""
    prompt: str | None
    """A validation prompt of the config; None for a sample's own instruction, which is not published."""


@dataclass(frozen=True, kw_only=True)
class CardMaterial:
    """What a card shows beside the facts of the run."""

    place: str
    """What to load the adapter from: a hub id, or ``.`` for the folder of the card."""
    pipeline: str | None
    """Class of diffusers that draws with this model; None if the file does not load in diffusers."""
    denoiser: tuple[str, str] | None = None
    """For a model that was trained as a whole, its class of diffusers and its folder."""
    edits: bool
    """Whether the pipeline takes an input image."""
    guidance: float
    inference_steps: int
    target_sizes: Mapping[Size, int]
    """How many target images are trained at each size."""
    reference_sizes: Mapping[Size, int]
    held_out: int
    """Number of samples that were never trained on."""
    measured: Sequence[str]
    """Sentences on what the validations measured."""
    images: Sequence[CardImage]
    images_of_step: int | None


def card_text(facts: RunFacts, material: CardMaterial) -> str:
    """Return the whole card."""
    sections = {
        "": _about(facts, material),
        "Use it": _use(facts, material),
        "Images": _images(material),
        "Training": _training(facts),
        "Data": _data(facts, material),
        "Measured": "\n".join(f"- {sentence}" for sentence in material.measured),
        "Licence": _licence(facts),
    }
    body = [f"## {title}\n\n{text}" if title else text for title, text in sections.items() if text]
    mark = f"{CARD_MARK}: later runs write it again; remove this line to keep your changes -->"
    return "\n\n".join([_front_matter(facts, material), mark, f"# {facts.title}", *body]) + "\n"


def _front_matter(facts: RunFacts, material: CardMaterial) -> str:
    """Return the block that the hub reads; it is YAML, and every value is written as JSON, which is YAML too."""
    task = "image-to-image" if material.edits else "text-to-image"
    values: dict[str, object] = {
        "library_name": "diffusers",
        "pipeline_tag": task,
        "tags": list(dict.fromkeys([facts.kind, task, "diffusers", "difftrain"])),
    }
    if facts.base_is_on_hub:
        values |= {
            "base_model": facts.base_model,
            "base_model_relation": "finetune" if facts.whole_model else "adapter",
        }
    if facts.licence_url:
        values |= {"license": "other", "license_name": "as-of-the-base-model", "license_link": facts.licence_url}
    if facts.trigger_words:
        values["instance_prompt"] = facts.trigger_words[0]
    prompts = [image for image in material.images if image.prompt is not None]
    if prompts:
        values["widget"] = [{"text": image.prompt, "output": {"url": image.path}} for image in prompts]
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join(["---", *lines, "---"])


def _about(facts: RunFacts, material: CardMaterial) -> str:
    kind = "full fine-tune of the denoiser" if facts.whole_model else f"{facts.kind} adapter"
    kind = "LoRA" if facts.kind == "lora" else kind
    does = "edits images" if material.edits else "draws images"
    copy = ", from a local copy of its weights" if facts.base_is_copy else ""
    text = f"A {kind} that {does} with {_base_link(facts)}{copy}. "
    text += f"It was trained for {facts.steps} steps with difftrain."
    if facts.trigger_words:
        text += f" Trigger words: {', '.join(f'`{words}`' for words in facts.trigger_words)}."
    text += f" The file holds {facts.file_note}." if facts.file_note else ""
    return f"{text}\n\n**Precision:** {facts.precision_note}."


def _base_link(facts: RunFacts) -> str:
    name = facts.base_model
    return f"[{name}](https://huggingface.co/{name})" if facts.base_is_on_hub else f"`{name}`"


def _use(facts: RunFacts, material: CardMaterial) -> str:
    if material.pipeline is None:
        return (
            "The file has LyCORIS names, which ComfyUI loads. For diffusers, convert it into a LoRA with "
            "`difftrain export --as-lora RANK`."
            if facts.kind == "lycoris"
            else ""
        )
    words = facts.trigger_words[0] if facts.trigger_words else "what to change" if material.edits else "what to draw"
    arguments = [f"prompt={json.dumps(words, ensure_ascii=False)}"]
    arguments += ['image=load_image("input.png")'] if material.edits else []
    arguments += [f"num_inference_steps={material.inference_steps}", f"guidance_scale={material.guidance:g}"]
    dtype = f"torch_dtype=torch.{_DTYPES[facts.computed_in]}"
    base = f'pipeline = {material.pipeline}.from_pretrained("{facts.base_model}"'
    lines = [
        "import torch",
        f"from diffusers import {', '.join([*(material.denoiser or ())[:1], material.pipeline])}",
        *(["from diffusers.utils import load_image"] if material.edits else []),
        "",
        *_loading(material, base, dtype),
        'pipeline.to("cuda")',
        f"image = pipeline({', '.join(arguments)}).images[0]",
        'image.save("output.png")',
    ]
    code = "\n".join(["```python", *lines, "```"])
    built_in = "" if facts.base_is_on_hub else f"\n\n`{facts.base_model}` is a model that difftrain brings for trials."
    return code + built_in


def _loading(material: CardMaterial, base: str, dtype: str) -> list[str]:
    """Return the lines that load the pipeline with what was trained."""
    if material.denoiser is None:
        return [f"{base}, {dtype})", f'pipeline.load_lora_weights("{material.place}")']
    cls, folder = material.denoiser
    return [
        f'{folder} = {cls}.from_pretrained("{material.place}", subfolder="{folder}", {dtype})',
        f"{base}, {folder}={folder}, {dtype})",
    ]


def _images(material: CardMaterial) -> str:
    if not material.images:
        return ""
    shown = "\n".join(f"![{image.prompt or 'result'}]({image.path})" for image in material.images)
    return f"Drawn by the validation at step {material.images_of_step}, with fixed seeds.\n\n{shown}"


def _training(facts: RunFacts) -> str:
    rows = {"steps": facts.steps, "samples in a step": facts.batch_size, **facts.settings}
    return "\n".join(
        ["| option | value |", "|---|---|", *(f"| {key} | {_shown(value)} |" for key, value in rows.items())]
    )


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _data(facts: RunFacts, material: CardMaterial) -> str:
    count = sum(facts.samples)
    sets = "" if len(facts.samples) < 2 else f" from {len(facts.samples)} sets ({', '.join(map(str, facts.samples))})"
    lines = [f"- {count} training sample{'' if count == 1 else 's'}{sets}"] if facts.samples else []
    lines += [f"- {material.held_out} samples held out from training"] if material.held_out else []
    for name, sizes in (("target", material.target_sizes), ("reference", material.reference_sizes)):
        if sizes:
            lines.append(f"- {name} images, by size in pixels: {', '.join(_by_size(sizes))}")
    return "\n".join(lines)


def _by_size(sizes: Mapping[Size, int]) -> Iterator[str]:
    most = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    for (width, height), count in most[:_MOST_SIZES]:
        yield f"{width}x{height} ({count})"
    if rest := most[_MOST_SIZES:]:
        yield f"{len(rest)} other sizes ({sum(count for _, count in rest)})"


def _licence(facts: RunFacts) -> str:
    if facts.licence_url is None:
        return ""
    return f"The licence of the base model applies to what is made with it: {facts.licence_url}"
