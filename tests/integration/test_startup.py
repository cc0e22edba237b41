"""Anything that would stop a run later is reported before any weight is loaded, by the run and by ``check``."""

import errno
import json
import os
import subprocess
import sys

import pytest
from long_runs import changed
from PIL import Image

from conftest import run_in
from difftrain.data.caching.tensor_cache import TensorCache

HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate")
BOTH = pytest.mark.parametrize("command_name", [(), ("check",)], ids=["run", "check"])
VALIDATING = {
    "validation_steps": 1, "num_eval_images": 2, "validation_num_inference_steps": 1, "validation_resolution": 64,
}  # fmt: skip


@pytest.fixture
def arguments(edit_pairs):
    """A run of one step over four pairs."""
    datasets = edit_pairs(count=4, edit_sizes=[(192, 128)], resolution=128)
    return (*edit_pairs.kontext, "--data_backend_config", str(datasets), "--max_train_steps", "1")


def spoil_middle(path):
    """Overwrite pixels of a PNG; its header and its end stay intact."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)
    return path


def assert_told_in_time(ended, *told):
    text = ended.err if ended.err.startswith("error") or "error: " in ended.err else ended.out
    assert ended.status == 2, ended.err
    for part in told:
        assert part in text
    for late in ("load text encoders", "start torch", "Traceback", "ready to train"):
        assert late not in ended.err + ended.out


@BOTH
@pytest.mark.parametrize("folder", ["edits", "references"])
def test_an_image_damaged_in_the_middle_is_reported_before_any_weight(
    command, edit_pairs, arguments, command_name, folder
):
    for name in ("0001.png", "0003.png"):
        spoil_middle(edit_pairs.folder / folder / name)
    ended = command(*command_name, *arguments)
    assert_told_in_time(ended, f"dataset '{folder}': 2 of 4 images cannot be decoded:", "0001.png", "0003.png")


def test_check_decodes_an_image_once(command, edit_pairs, arguments):
    assert "check images 8:" in command("check", *arguments).err
    assert "check images" in command("check", *arguments).err
    assert files_read(command, "check", *arguments) == []
    spoil_middle(edit_pairs.folder / "edits" / "0002.png")
    ended = command("check", *arguments)
    assert "1 of 4 images cannot be decoded" in ended.err
    assert "0002.png" in ended.err


def files_read(command, *arguments):
    """Return the names of the images whose bytes a command reads."""
    from difftrain.data.scanning import file_facts

    read = []
    with pytest.MonkeyPatch.context() as patch:
        original = file_facts._content
        patch.setattr(file_facts, "_content", lambda image: (read.append(image), original(image))[1])
        assert command(*arguments).status == 0
    return read


def test_fast_leaves_the_decoding_out(command, edit_pairs, arguments):
    spoil_middle(edit_pairs.folder / "edits" / "0002.png")
    ended = command("check", "--fast", *arguments)
    assert ended.status == 0, ended.err
    assert "check images" not in ended.err
    assert command("check", *arguments).status == 2


def test_a_fast_run_is_stopped_by_the_damaged_image_when_it_is_encoded(command, edit_pairs, arguments):
    spoil_middle(edit_pairs.folder / "edits" / "0002.png")
    ended = command("--fast", *arguments)
    assert ended.status == 2
    assert "0002.png" in ended.err.partition("error: ")[2]
    assert "load image encoder" in ended.err


def test_images_whose_latents_are_cached_are_not_decoded_again(command, edit_pairs, arguments):
    assert command("--fast", *arguments).status == 0
    assert "check images" not in command("check", *arguments).err


@BOTH
def test_an_image_that_only_validations_draw_is_reported_before_any_weight(
    command, edit_pairs, arguments, command_name
):
    held_out = edit_pairs.folder / "held-out"
    held_out.mkdir()
    for index in range(6):  # four of them are also measured, and so encoded
        with Image.open(edit_pairs.folder / "edits" / f"{index % 4:04}.png") as image:
            image.rotate(index + 1).save(held_out / f"{index:04}.png")
    datasets = edit_pairs.folder / "datasets.json"
    blur = {"type": "superresolution", "captions": "sharpen it", "generate": "ondemand"}
    entry = {"id": "seen", "instance_data_dir": "held-out", "resolution": 64, "conditioning": blur}
    datasets.write_text(json.dumps([*json.loads(datasets.read_text()), entry]))
    spoil_middle(held_out / "0005.png")
    drawing = changed(arguments, eval_dataset_id="seen", **VALIDATING)
    ended = command(*command_name, *changed(drawing, num_eval_images=6))
    assert_told_in_time(ended, "0005.png")


@BOTH
def test_too_small_a_disk_is_reported_before_any_weight(command, edit_pairs, arguments, small_disk, command_name):
    folder, _ = small_disk
    (folder / "filler").write_bytes(bytes(1 << 19))
    ended = command(*command_name, *changed(arguments, cache_dir=folder / "cache"))
    # five captions of 512 x 32 and 32 numbers, eight images of 2 x 16 x 24 x 16 numbers, all in float32
    assert_told_in_time(ended, f"not enough room on the disk of {folder}/cache", " KiB needed, ", "set cache_dir to")


def test_check_tells_how_much_will_be_written(command, edit_pairs, arguments):
    found = command("check", "--json", *arguments).json
    assert found["to_encode"] == {"captions": 5, "images": 8}
    assert {need["what"]: need["files"] for need in found["disk"]} == {
        "text embeddings": 5, "latents of 'edits'": 4, "latents of 'references'": 4,
    }  # fmt: skip
    told = command("check", *arguments).out
    assert "to encode: 5 captions and 8 images\n" in told
    assert "disk: latents of 'edits': 4 files, about 144 KiB, in cache/vae/edits\n" in told
    assert command(*arguments).status == 0
    again = command("check", "--json", *arguments).json
    assert (again["to_encode"], again["disk"]) == ({"captions": 0, "images": 0}, [])
    assert "caches: complete, nothing to encode\n" in command("check", *arguments).out


def test_made_images_are_part_of_the_estimate(command, edit_pairs, arguments):
    edit_pairs(
        count=4, references=None, resolution=128, edit_sizes=[(192, 128)], conditioning={"type": "jpeg_artifacts"}
    )
    first, second = (command("check", "--json", *arguments).json["disk"] for _ in range(2))
    (made,) = (need for need in first if need["folder"] == "cache/made/edits/jpeg_artifacts")
    assert (made["files"], made["bytes"]) == (4, 4 * 192 * 128 * 2)
    assert sum(need["files"] for need in second if "made" in need["what"]) == 0


def test_a_run_that_writes_much_says_so(command, arguments, monkeypatch):
    from difftrain.machine import disk

    monkeypatch.setattr(disk, "WORTH_TELLING", 1 << 19)
    assert "will be written to disk: text embeddings 340 KiB in cache/text" in command(*arguments).err


@pytest.mark.parametrize(("mixed_precision", "vae_dtype"), [("no", "default"), ("bf16", "default"), ("bf16", "fp32")])
def test_the_estimate_is_what_the_files_have(command, edit_pairs, arguments, mixed_precision, vae_dtype):
    arguments = changed(arguments, mixed_precision=mixed_precision, vae_dtype=vae_dtype)
    command(*arguments)  # the first run builds the random model, which has its own sizes
    entries = {path: path.stat().st_size for path in (edit_pairs.folder / "cache").rglob("*.safetensors")}
    (edit_pairs.folder / "cache").rename(edit_pairs.folder / "old")
    found = command("check", "--json", *arguments).json
    needs = {need["folder"]: need["bytes"] for need in found["disk"]}
    written = dict.fromkeys(needs, 0)
    for path, size in entries.items():
        folder = next(name for name in needs if f"/{name}/" in str(path))
        written[folder] += -(-size // 4096) * 4096
    assert needs == written


def test_a_complete_cache_that_cannot_be_written_is_used(command, edit_pairs, arguments, read_only):
    assert command(*changed(arguments, **VALIDATING)).status == 0
    read_only(edit_pairs.folder / "cache")
    for command_name in ((), ("check",)):
        again = command(*command_name, *changed(arguments, resume_from_checkpoint="none", **VALIDATING))
        assert again.status == 0, again.err
        assert "nothing to encode" in again.err + again.out


@BOTH
def test_a_cache_that_lacks_something_and_cannot_be_written_is_reported(
    command, edit_pairs, arguments, read_only, command_name
):
    assert command(*arguments).status == 0
    (edit_pairs.folder / "edits" / "0001.txt").write_text("another instruction")
    read_only(edit_pairs.folder / "cache")
    ended = command(*command_name, *changed(arguments, resume_from_checkpoint="none"))
    assert_told_in_time(ended, "text embeddings (1 to be written): cache/text: ", "read-only file system")
    assert "latents" not in ended.err


@pytest.fixture
def read_only():
    """Make a folder a read-only disk, read-only even to root."""
    mounted = []

    def protect(folder):
        if subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False).returncode:
            pytest.skip("needs the right to mount a folder")
        mounted.append(folder)
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)

    yield protect
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_while_encoding_is_one_error_and_leaves_whole_entries(
    command, edit_pairs, arguments, monkeypatch
):
    fsync = os.fsync
    written = []

    def full(descriptor):
        written.append(descriptor)
        if len(written) > 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        ended = command(*arguments)
    assert ended.status == 2
    _, _, message = ended.err.partition("error: ")
    assert "cache/vae/" in message
    assert "cannot be written (no space left on device)\nhint: free some space" in message
    assert "Traceback" not in ended.err
    files = [path for path in (edit_pairs.folder / "cache").rglob("*") if path.is_file()]
    entries = [path for path in files if path.suffix == ".safetensors"]
    assert len(entries) == 7 - 1  # one more file remembers what the data gave
    assert [path.suffix for path in files if path not in entries] in ([".sqlite", ".npz"], [".npz", ".sqlite"])
    for path in entries:
        assert TensorCache(path.parent.parent).read(path.stem)
    assert command(*arguments).status == 0


def test_entries_that_turn_out_corrupt_while_training_are_made_again_and_the_encoders_let_go(
    command, edit_pairs, arguments, monkeypatch
):
    from difftrain.training.frozen_encoders import Encoders

    assert command(*arguments).status == 0
    cache = edit_pairs.folder / "cache"
    entries = [*cache.glob("vae/edits/*/*.safetensors"), *cache.glob("text/*/*.safetensors")]
    before = [entry.read_bytes() for entry in entries]
    for entry, content in zip(entries, before, strict=True):
        entry.write_bytes(content[:-4] + b"\x00\x00\xc0\x7f")  # a float32 NaN, found when it is read
    calls = []
    release = Encoders.release
    monkeypatch.setattr(Encoders, "release", lambda self: (release(self), calls.append((self._text, self._image))))
    ended = command(*changed(arguments, resume_from_checkpoint="none", max_train_steps=8))
    assert ended.status == 0, ended.err
    empty = 1  # no caption is dropped, so nothing reads the empty one
    assert sum(entry.read_bytes() == content for entry, content in zip(entries, before, strict=True)) + empty == 9
    assert len(calls) > 2  # after captions and images, and after batches
    text, image = calls[-1]
    assert text is None
    assert image is not None


def test_check_says_that_it_removed_damaged_entries(command, edit_pairs, arguments):
    assert command(*arguments).status == 0
    entry = next((edit_pairs.folder / "cache").rglob("*.safetensors"))
    entry.write_bytes(entry.read_bytes()[:-7])
    (note,) = command("check", "--json", *arguments).json["notes"]
    assert note == "1 damaged cache entries were removed; the run makes them again"


@BOTH
def test_an_image_that_the_system_does_not_open_is_not_called_damaged(
    command, edit_pairs, arguments, command_name, monkeypatch
):
    from difftrain.data.scanning import file_facts

    assert command("check", "--fast", *arguments).status == 0
    original = file_facts._content

    def refusing(image):
        if image.place.endswith("references/0002.png"):
            raise PermissionError(errno.EACCES, "Permission denied", image.place)
        return original(image)

    with monkeypatch.context() as patch:
        patch.setattr(file_facts, "_content", refusing)
        ended = command(*command_name, *arguments)
    assert_told_in_time(
        ended, "0002.png (permission denied)\nhint: make these images readable, or take them out of folder references"
    )
    assert command(*command_name, *arguments).status == 0


STARTUP = f"""
import json, os, sys
from difftrain.cli.main import run
status = run(json.load(sys.stdin))
print(json.dumps([status, [module for module in {HEAVY} if module in sys.modules]]))
"""


def test_the_start_up_with_scenes_and_caches_imports_no_model_library(edit_pairs, arguments):
    assert run_in(edit_pairs.folder, *changed(arguments, **VALIDATING)).status == 0
    spoil_middle(edit_pairs.folder / "edits" / "0001.png")
    ended = subprocess.run(
        [sys.executable, "-c", STARTUP],
        input=json.dumps([str(word) for word in changed(arguments, **VALIDATING)]),
        cwd=edit_pairs.folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    status, heavy = json.loads(ended.stdout.splitlines()[-1])
    assert (status, heavy) == (2, []), ended.stderr
    assert "0001.png" in ended.stderr
