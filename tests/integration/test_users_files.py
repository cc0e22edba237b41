"""The files that users already have train the small random model: unchanged but for paths, model path and step count.

Everything else stays as written: int8-quanto, optimi-lion, bfloat16, gradient checkpointing, and in the first run the
1024 px, which make small files large. The other runs have half of that.
"""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file

from conftest import new_image, read_metrics, run_in

USERS_FILES = Path(__file__).parents[1] / "unit" / "users_files"
QUICK_IMAGES = ("--num_eval_images", 1, "--validation_num_inference_steps", 1)
"""Options that the files do not set, chosen so that drawing takes a second."""
ADAPTED_MODULES = 22
"""Attention layers of the small random model's two double and two single blocks: 2 * 8 + 2 * 3."""
ADAPTER = "pytorch_lora_weights.safetensors"


def with_values(name: str, changes: dict[str, str]) -> str:
    """Return the text of a user's file with some values replaced, each of which occurs once."""
    text = (USERS_FILES / name).read_text()
    for old, new in changes.items():
        assert text.count(old) == 1, f"{name} has {old!r} {text.count(old)} times"
        text = text.replace(old, new)
    return text


def run_file(*, steps: int) -> str:
    return with_values("config.jsonc", {'"max_train_steps": 10000': f'"max_train_steps": {steps}'})


def half(text: str) -> str:
    """Return a file's text with 512 px in place of 1024, and the limits of sizes halved too."""
    return re.sub(r"(?<!\d)(1024|1536)(?!\d)", lambda found: str(int(found[0]) // 2), text)


PAIR_PATHS = {
    "/cache/vae/flux/kontext/edited-images": "cache/vae/edits",
    "/cache/vae/flux/kontext/ref-images": "cache/vae/references",
    "/datasets/edited-images": "edits",
    "/datasets/reference-images": "references",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write the users' files and the images that they name."""
    folder = tmp_path_factory.mktemp("users")
    (folder / "config.jsonc").write_text(run_file(steps=2))
    (folder / "short.jsonc").write_text(half(run_file(steps=1)))
    (folder / "pairs.jsonc").write_text(with_values("pairs.jsonc", PAIR_PATHS))
    (folder / "half-pairs.jsonc").write_text(half((folder / "pairs.jsonc").read_text()))
    loose = {'"conditioning_type": "reference_strict"': '"conditioning_type": "reference_loose"'}
    loose |= PAIR_PATHS | {
        "/datasets/reference-images": "loose",
        "/cache/vae/flux/kontext/ref-images": "cache/vae/loose",
    }
    (folder / "loose.jsonc").write_text(half(with_values("pairs.jsonc", loose)))
    made = {"/path/to/sharp-images": "sharp", "/path/to/pristine-images": "edits"}
    (folder / "generated.jsonc").write_text(half(with_values("generated_pairs.jsonc", made)))
    for name, size in {"edits": (120, 80), "references": (120, 80), "loose": (80, 96), "sharp": (80, 120)}.items():
        path = new_image(folder / name / "house.png", size, seed=len(name))
        if name in ("edits", "sharp"):
            path.with_suffix(".txt").write_text("paint the door red")
    return folder


def train(folder: Path, datasets: str, *more: object, config: str = "config.jsonc", output: str | None = None) -> Path:
    """Train with a user's run file; return the output folder."""
    output = output or datasets
    ended = run_in(
        folder, "--config", config, "--data_backend_config", f"{datasets}.jsonc",
        "--pretrained_model_name_or_path", "tiny-random", "--output_dir", output, *(more or QUICK_IMAGES),
    )  # fmt: skip
    assert ended.status == 0, ended.err
    return folder / output


@pytest.fixture(scope="module")
def strict(folder):
    return train(folder, "pairs", *QUICK_IMAGES, "--max_train_steps", 1)


def encoded_sizes(cache: Path) -> set[str]:
    """Return the sizes in pixels of the images whose latents are in a folder."""
    means = [load_file(path)["mean"] for path in cache.rglob("*.safetensors")]
    return {f"{8 * mean.shape[-1]}x{8 * mean.shape[-2]}" for mean in means}


def assert_trained(output: Path, *, steps: int, pixels: int = 512) -> None:
    """Check for an adapter whose zeros have moved, a metrics line per step, and an image of the area of this square."""
    tensors = load_file(output / ADAPTER)
    assert len(tensors) == 2 * ADAPTED_MODULES
    assert all(tensor.any() for tensor in tensors.values())
    assert [line["step"] for line in read_metrics(output) if "loss" in line] == list(range(1, steps + 1))
    drawn = {path.name: path for path in (output / "validation" / f"step-{steps:06}").glob("*.png")}
    assert "sheet.png" in drawn
    assert len(drawn) == 2
    with Image.open(next(path for name, path in drawn.items() if name != "sheet.png")) as result:
        assert result.width * result.height == pytest.approx(pixels * pixels, rel=0.1)


def test_two_folders_strict(folder, strict):
    assert_trained(strict, steps=1, pixels=1024)
    # 120x80 in the area of 1024x1024 is 1254x836; the nearest multiples of 64 are
    assert encoded_sizes(folder / "cache/vae/edits") == encoded_sizes(folder / "cache/vae/references") == {"1280x832"}


def test_two_folders_loose(folder):
    assert_trained(train(folder, "loose", config="short.jsonc"), steps=1)
    # 80x96 in the area of 512x512 is 467x561
    assert encoded_sizes(folder / "cache/vae/loose") == {"448x576"}


def test_pairs_made_from_two_folders(folder):
    assert_trained(train(folder, "generated", config="short.jsonc"), steps=1)
    made = [path.parts[-4:-2] for path in (folder / "cache/made").rglob("*.png")]
    assert sorted(made) == [("high-quality-images", "superresolution"), ("pristine-images", "jpeg_artifacts")]
    assert encoded_sizes(folder / "cache/vae/high-quality-images") == {"448x640"}


def test_every_value_written_as_a_string_gives_the_same_adapter(folder):
    typed = (folder / "config.jsonc").read_text()
    texts, count = re.subn(r'": (true|false|[0-9][0-9.e-]*)', r'": "\1"', typed)
    assert count == 6
    (folder / "texts.jsonc").write_text(texts)
    adapters = [
        train(folder, "half-pairs", "--validation_steps", 0, config=f"{name}.jsonc", output=name) / ADAPTER
        for name in ("config", "texts")
    ]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_a_file_that_a_web_interface_exported(folder):
    (folder / "export.json").write_text(half(with_values("web_export.json", {})))
    output = train(folder, "half-pairs", *QUICK_IMAGES, "--max_train_steps", 1, config="export.json", output="exported")
    assert_trained(output, steps=1)


@pytest.fixture(scope="module")
def split_files(folder):
    """Write the file of the held-out set and the panels; its set of the hub becomes a folder of parquet files."""
    paths = {
        "/datasets/edit/edited-images": "large/edits",
        "/datasets/edit/reference-images": "large/references",
        "cache/vae/flux-edit": "cache/vae/split-edits",
        "cache/vae/flux-ref": "cache/vae/split-references",
    }
    text = with_values("validation_split.jsonc", paths)
    assert text.count("Yuanshi/Subjects200K") == 2
    (folder / "split.jsonc").write_text(half(text.replace("Yuanshi/Subjects200K", "panels")))
    run = run_file(steps=2).rstrip().removesuffix("}") + '"eval_dataset_id": "edited-images"\n}'
    (folder / "evaluated.jsonc").write_text(half(run))
    for name in ("edits", "references"):
        path = new_image(folder / "large" / name / "house.png", (544, 512), seed=len(name))
        path.with_suffix(".txt").write_text("paint the door red")
    rows = []
    for number in range(3):
        image = new_image(folder / "panel.png", (64, 32), seed=number).read_bytes()
        descriptions = {f"description_{side}": f"row {number} side {side}" for side in (0, 1)}
        rows.append({"image": {"bytes": image, "path": None}, "description": descriptions})
    (folder / "panels/data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "panels/data/train-00000-of-00001.parquet", row_group_size=2)
    return rows


def test_the_panels_of_a_hugging_face_set_are_pairs_by_row(folder, split_files):
    command = ("check", "--json", "--config", "evaluated.jsonc", "--data_backend_config", "split.jsonc")
    ended = run_in(folder, *command, "--pretrained_model_name_or_path", "tiny-random")
    assert ended.status == 0, ended.err
    assert ended.json["samples"] == 3
    assert ended.json["buckets"] == ended.json["reference_buckets"] == {"512x512": 3}
    train(folder, "split", *QUICK_IMAGES, config="evaluated.jsonc", output="panels-run")
    losses = [line["step"] for line in read_metrics(folder / "panels-run") if "loss" in line]
    assert losses == [1, 2]
    caches = [folder / f"cache/vae/subjects200k-{side}" for side in ("left", "right")]
    assert [encoded_sizes(cache) for cache in caches] == [{"512x512"}] * 2
    # no pictures are written beside the set
    assert not list(folder.rglob("*.arrow"))


def test_a_row_without_a_caption_is_pointed_to_the_set(folder, split_files):
    (folder / "bare").mkdir()
    texts = [{"description_0": "x"}, {"description_0": None}]
    bare = [{"image": split_files[0]["image"], "description": text} for text in texts]
    pq.write_table(pa.Table.from_pylist(bare), folder / "bare/train.parquet")
    block = {"caption_column": "description.description_0"}
    entry = {"id": "bare", "type": "huggingface", "dataset_name": "bare", "caption_strategy": "huggingface"}
    (folder / "bare.json").write_text(
        json.dumps([entry | {"resolution": 64, "resolution_type": "pixel_area", "huggingface": block}])
    )
    ended = run_in(
        folder, "check", "--config", "config.jsonc", "--data_backend_config", "bare.json",
        "--pretrained_model_name_or_path", "tiny-random",
    )  # fmt: skip
    assert ended.status == 2
    assert "1 of 2 images have no caption: 000000001\nhint: give each one in the data source" in ended.err


def test_a_row_of_a_hugging_face_set_that_cannot_be_read_is_named_before_training(folder, split_files):
    broken = [
        row | {"image": {"bytes": b"broken", "path": None}} if n == 1 else row for n, row in enumerate(split_files)
    ]
    (folder / "broken").mkdir()
    pq.write_table(pa.Table.from_pylist(broken), folder / "broken/train.parquet")
    (folder / "broken.jsonc").write_text((folder / "split.jsonc").read_text().replace("panels", "broken"))
    ended = run_in(
        folder, "--config", "evaluated.jsonc", "--data_backend_config", "broken.jsonc",
        "--pretrained_model_name_or_path", "tiny-random",
    )  # fmt: skip
    assert ended.status == 2
    assert "dataset 'subjects200k-left': 1 of 3 images cannot be read: " in ended.err
    assert "broken/train.parquet: row 1, column image, panel 0 of 2 (" in ended.err
    assert "take them out of set broken" in ended.err
