"""Cached reference latents of a real run equal the stock pipeline's for the same image at that size."""

import pytest
import torch
from diffusers import FluxKontextPipeline
from PIL import Image
from safetensors.torch import load_file

from conftest import EditPairs, run_in
from difftrain_flux.built_in import tiny_random_folder
from difftrain_flux.packing import unpack

SIZES = {"as it is": (96, 64), "reduced": (240, 160), "enlarged": (48, 32)}
TEXT = {"prompt_embeds": torch.zeros(1, 8, 32), "pooled_prompt_embeds": torch.zeros(1, 32)}


@pytest.fixture(scope="module", params=SIZES.values(), ids=SIZES.keys())
def project(request, tmp_path_factory):
    """Run over one pair of a size, encoded at 96x64; return the folder and the reference's cached latents."""
    pairs = EditPairs(tmp_path_factory.mktemp("references"))
    datasets = pairs(count=1, edit_sizes=[request.param], resolution=64, resolution_type="pixel")
    ended = run_in(
        pairs.folder, *pairs.kontext, "--data_backend_config", datasets, "--max_train_steps", 1, "--vae_batch_size", 1
    )
    assert ended.status == 0, ended.err
    (entry,) = (pairs.folder / "cache/vae/references").rglob("*.safetensors")
    return pairs.folder, load_file(entry)["mean"]


@pytest.fixture(scope="module")
def pipeline(project):
    pipeline = FluxKontextPipeline.from_pretrained(tiny_random_folder(), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_cached_reference_equals_what_the_stock_pipeline_hands_its_transformer(project, pipeline):
    folder, cached = project
    assert cached.shape == (16, 8, 12)
    seen = {}
    handle = pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    with Image.open(folder / "references/0000.png") as opened:
        # the call would keep an image's own size; preprocessing is where the pipeline resizes
        image = pipeline.image_processor.preprocess(opened, height=64, width=96)
    pipeline(
        **TEXT, image=image, width=64, height=64, max_area=64 * 64, _auto_resize=False, num_inference_steps=1,
        output_type="latent",
    )  # fmt: skip
    handle.remove()
    reference = unpack(seen["hidden_states"][:, 4 * 4 :], 8, 12)[0]
    torch.testing.assert_close(cached, reference, atol=1e-5, rtol=0)
