"""docs/how-it-works.md is true: its files, functions, classes and numbers are the code's."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
EDIT = (1920, 1080)


@cache
def definitions(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """Return functions (``name`` and ``Class.name``) and classes of one module."""
    functions: set[str] = set()
    classes: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            functions.add(node.name)
        elif isinstance(node, ast.ClassDef):
            classes.add(node.name)
            functions |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return frozenset(functions), frozenset(classes)


def modules(text: str) -> list[Path]:
    return [ROOT / name for name in re.findall(r"`([\w/]+\.py)`", text)]


@pytest.mark.parametrize("title", SECTIONS)
def test_every_file_exists(title):
    assert [str(path) for path in modules(SECTIONS[title]) if not path.is_file()] == []


@pytest.mark.parametrize("title", SECTIONS)
def test_every_function_is_in_a_file_that_its_section_names(title):
    there = {name for path in modules(SECTIONS[title]) for name in definitions(path)[0]}
    assert [name for name in re.findall(r"`([\w.]+)\(\)`", SECTIONS[title]) if name not in there] == []


def test_every_class_exists():
    sources = [path for folder in ("core", "plugins") for path in (ROOT / folder).rglob("*.py")]
    there = {name for path in sources for name in definitions(path)[1]}
    assert [name for name in re.findall(r"`([A-Z][a-z]\w+)(?:`|\.\w+\(\)`)", PAGE) if name not in there] == []


def test_steps_are_numbered_in_order_and_the_words_come_last():
    *steps, last = SECTIONS
    assert [title.split(".")[0] for title in steps] == [str(number) for number in range(1, len(steps) + 1)]
    assert last == "Words"


def test_the_geometry_is_what_the_code_gives():
    from difftrain import GeometryRules, assign_bucket
    from difftrain_flux_kontext.pairing import nearest_preferred_size

    rules = GeometryRules(resolution=1024, resolution_type="pixel_area", alignment=64)
    geometry = assign_bucket(EDIT, rules)
    said = "resize to {}x{}, crop at {}, bucket {}x{}".format(*geometry.resize, geometry.crop, *geometry.bucket)
    assert said in SECTIONS["4. Bucket: to which size the target is brought"]
    assert "{}x{} for this one".format(*nearest_preferred_size(EDIT)) in PAGE


def test_the_shapes_are_what_the_code_gives():
    import torch

    from difftrain import Batch, FlowMatching
    from difftrain.steps.noise_levels import shift_sigma
    from difftrain_flux.family import FluxFamily
    from difftrain_flux.forward import build_input
    from difftrain_flux_kontext.flavour import Kontext

    family = FluxFamily()
    latents = torch.zeros(1, 16, 96, 168)
    text = {"prompt_embeds": torch.zeros(1, 512, 8), "pooled_prompt_embeds": torch.zeros(1, 8)}
    batch = Batch(latents=latents, references=[latents], text=text)
    plain = build_input(FlowMatching().add_noise(latents, torch.tensor([0.5]), latents), batch, None)
    extended = Kontext().extend_input(family, plain, batch)
    step = SECTIONS["13. Input, references, prediction"]
    for model_input in (plain, extended):
        assert f"tokens {list(model_input.tokens.shape)}" in step
        assert str(tuple(int(number) for number in model_input.ids[-1])) in step
    assert f"ids {list(plain.ids.shape)}" in step
    shifted = shift_sigma(torch.tensor(0.5), family.sigma_shift(latents)).item()
    assert f"0.5 becomes {shifted:g}" in PAGE


def test_the_adapter_of_the_full_model_has_the_size_that_is_stated():
    import torch
    from diffusers import FluxTransformer2DModel

    from difftrain_flux.family import FluxFamily

    with torch.device("meta"):
        full = FluxTransformer2DModel(guidance_embeds=True)
    layers = [full.get_submodule(name) for name in FluxFamily().adapter_targets(full)]
    weights = sum(16 * (layer.in_features + layer.out_features) for layer in layers)
    assert f"rank 16 wraps {len(layers)} linear layers with {weights:,} trained weights" in " ".join(PAGE.split())
