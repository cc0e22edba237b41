"""Bad configs and datasets: each gives one clear message and exit status 2, within a second and without torch.

All of them run in one process of their own, which tells at the end of each whether a model library was imported.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import new_image, run_in
from difftrain.data.files.image_formats import readable_formats

HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate")

RUN_ALL = f"""
import contextlib, io, json, os, sys, traceback
from difftrain.cli.main import run
ended = {{}}
for name, folder, arguments in json.load(sys.stdin):
    os.chdir(folder)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = run(arguments)
        except Exception:
            status = traceback.format_exc()
    heavy = [module for module in {HEAVY} if module in sys.modules]
    ended[name] = dict(status=status, out=out.getvalue(), err=err.getvalue(), heavy=heavy)
json.dump(ended, sys.stdout)
"""


@dataclass
class Project:
    """Write a valid folder with a run file, a dataset list and four pairs; each case breaks it."""

    folder: Path

    def __post_init__(self) -> None:
        for index in range(4):
            edit = new_image(self.folder / "edits" / f"{index:04}.png", (96, 64), seed=index)
            edit.with_suffix(".txt").write_text(f"make it number {index}")
            new_image(self.folder / "references" / f"{index:04}.png", (96, 64), seed=100 + index)
        self.run = {
            "model_family": "flux",
            "model_flavour": "kontext",
            "pretrained_model_name_or_path": "tiny-random",
            "data_backend_config": "datasets.json",
            "max_train_steps": 1,
            "learning_rate": 1e-4,
        }
        common = {"type": "local", "resolution": 64}
        self.edits = {"id": "edits", "instance_data_dir": "edits", "conditioning_data": "refs", **common}
        self.references = {
            "id": "refs", "instance_data_dir": "references", "conditioning_type": "reference_strict", **common
        }  # fmt: skip
        self.datasets = [self.edits, self.references]

    def edit(self, index: int) -> Path:
        return self.folder / "edits" / f"{index:04}.png"

    def reference(self, index: int) -> Path:
        return self.folder / "references" / f"{index:04}.png"

    def write(self) -> None:
        (self.folder / "config.json").write_text(json.dumps(self.run, indent=1))
        (self.folder / "datasets.json").write_text(json.dumps(self.datasets, indent=1))


def unknown_key(project):
    project.run["lora_rnk"] = 8


def wrong_type(project):
    project.run["gradient_checkpointing"] = "perhaps"


def missing_folder(project):
    project.edits["instance_data_dir"] = "edit-images"


def missing_pair(project):
    for index in (1, 3):
        project.reference(index).unlink()


def ambiguous_pair(project):
    project.reference(2).rename(project.reference(2).with_suffix(".webp"))
    shutil.copy(project.reference(1), project.reference(2).with_suffix(".bmp"))


def unreadable_image(project):
    project.edit(3).write_bytes(b"no image")
    project.edit(0).write_bytes(project.edit(0).read_bytes()[:200])


def no_images(project):
    for path in (project.folder / "edits").glob("*.png"):
        path.unlink()


def duplicate_id(project):
    project.datasets.append(dict(project.edits))


def shared_cache_folder(project):
    project.edits["cache_dir_vae"] = "cache/latents"
    project.references["cache_dir_vae"] = "./cache/latents/"


def combined_with_captions(project):
    project.run["conditioning_multidataset_sampling"] = "combined"
    project.references["caption_strategy"] = "filename"


def cache_folder_is_a_file(project):
    project.edits["cache_dir_vae"] = "edits/0000.txt"


MESSAGES: dict[Callable[[Project], None], str] = {
    unknown_key: "config.json:8: unknown key 'lora_rnk'; did you mean 'lora_rank'?",
    wrong_type: "config.json:8: gradient_checkpointing must be true or false or 'auto', got \"perhaps\"",
    missing_folder: (
        "dataset 'edits': instance_data_dir edit-images does not exist\nhint: relative paths start at {folder}"
    ),
    missing_pair: (
        "dataset 'edits': 2 of 4 images have no reference in 'refs': 0001.png, 0003.png\n"
        "hint: name each reference after its target image (same folder, same stem, any extension), or set "
        '"on_missing": "skip"'
    ),
    ambiguous_pair: (
        "dataset 'edits': 1 of 4 images have ambiguous references in 'refs': 0002.png (could be 0002.bmp or "
        "0002.webp)\n"
        "hint: keep one file a stem and folder, or give a pair's two files the same extension"
    ),
    unreadable_image: (
        "dataset 'edits': 2 of 4 images cannot be read: 0000.png (image file is truncated), 0003.png (not an image "
        "file, or an unknown format)\n"
        "hint: replace these images, or take them out of folder edits"
    ),
    no_images: (
        "dataset 'edits': instance_data_dir edits has no images; 4 caption files have no image: 0000.txt, 0001.txt, "
        "0002.txt, ...\n"
        "hint: supported image formats: {formats}; give each caption the name of its image, in the same folder"
    ),
    duplicate_id: "datasets.json: dataset id 'edits' is used by 2 datasets; every id must be unique",
    shared_cache_folder: (
        "dataset 'edits' and dataset 'refs' share one cache folder {folder}/cache/latents\n"
        "hint: give each its own cache_dir_vae, or cache_dir on a text_embeds dataset, or leave it out"
    ),
    combined_with_captions: (
        "dataset 'refs': caption_strategy 'filename' would never be used: conditioning_multidataset_sampling = "
        "combined shows all references of a sample at once and uses the target set's captions\n"
        'hint: set "caption_strategy": null, or set "conditioning_multidataset_sampling": "random"'
    ),
    cache_folder_is_a_file: (
        "dataset 'edits': cache_dir_vae edits/0000.txt: {folder}/edits/0000.txt is a file, not a folder"
    ),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Return how each case ended, by its name; all run in one process."""
    root = tmp_path_factory.mktemp("bad")
    jobs = []
    for spoil in MESSAGES:
        project = Project(root / spoil.__name__)
        spoil(project)
        project.write()
        jobs.append((spoil.__name__, str(project.folder), ["--config", "config.json"]))
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL], input=json.dumps(jobs), capture_output=True, text=True, check=True
    )
    return {name: {**how, "folder": root / name} for name, how in json.loads(done.stdout).items()}


def named(spoil: Callable[[Project], None]) -> str:
    return spoil.__name__


@pytest.mark.parametrize("spoil", MESSAGES, ids=named)
def test_bad_input_ends_with_status_2_and_one_message(ended, spoil):
    how = ended[spoil.__name__]
    _, error, message = how["err"].partition("error: ")
    assert (how["status"], how["out"], error) == (2, "", "error: ")
    formats = ", ".join(readable_formats())
    assert message == MESSAGES[spoil].format(folder=how["folder"], formats=formats) + "\n"


@pytest.mark.parametrize("spoil", MESSAGES, ids=named)
def test_bad_input_imports_no_model_library(ended, spoil):
    assert ended[spoil.__name__]["heavy"] == []


@pytest.mark.parametrize("spoil", MESSAGES, ids=named)
def test_bad_input_leaves_nothing_in_the_output_folder(ended, spoil):
    assert not (ended[spoil.__name__]["folder"] / "output").exists()


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_what_is_wrong_in_both_files_is_reported_together(project):
    project.run |= {"lora_rnk": 4, "learning_rate": "fast"}
    project.edits["repeats"] = -1
    project.write()
    ended = run_in(project.folder, "--config", "config.json")
    assert ended.status == 2
    assert ended.err.splitlines() == [
        "error: 3 problems",
        "- config.json:8: unknown key 'lora_rnk'; did you mean 'lora_rank'?",
        '- config.json:7: learning_rate must be a number, got "fast"',
        "- datasets.json:8: dataset 'edits': repeats must be at least 0, got -1",
    ]


def test_what_is_wrong_in_the_data_is_reported_together(project):
    project.reference(1).unlink()
    new_image(project.reference(3), (64, 96), seed=9)
    project.edit(2).with_suffix(".txt").unlink()
    project.write()
    ended = run_in(project.folder, "--config", "config.json")
    assert ended.status == 2
    _, _, message = ended.err.partition("error: ")
    assert message.splitlines()[0] == "3 problems"
    for told in (
        "- dataset 'edits': 1 of 4 images have no reference in 'refs': 0001.png",
        "- dataset 'edits': 1 of 3 references in 'refs' do not fit: 0003.png is 64x96, but its target image is 96x64",
        "- dataset 'edits': 1 of 3 images have no caption: 0002.png",
    ):
        assert told in message.splitlines()


def test_a_kernel_that_the_device_lacks_is_told_before_anything_is_encoded(tmp_path):
    run = run_in(tmp_path, "--demo", "--model=flux", "--flavour=kontext", "--attention_mechanism=cudnn")
    assert run.status == 2
    assert "error: attention_mechanism cudnn: this kernel exists only for GPUs, and the run is on the CPU" in run.err
    assert "encode" not in run.err


def test_check_lists_data_problems_one_by_one_as_json(project):
    project.reference(1).unlink()
    project.edit(2).with_suffix(".txt").unlink()
    project.write()
    ended = run_in(project.folder, "check", "--json", "--config", "config.json")
    assert ended.status == 2
    assert ended.json["status"] == "error"
    assert [problem.partition("\n")[0] for problem in ended.json["problems"]] == [
        "dataset 'edits': 1 of 4 images have no reference in 'refs': 0001.png",
        "dataset 'edits': 1 of 3 images have no caption: 0002.png",
    ]


def test_check_lists_config_problems_one_by_one_as_json(project):
    project.run |= {"lora_rnk": 4, "optimizer": "adam"}
    project.write()
    problems = run_in(project.folder, "check", "--json", "--config", "config.json").json["problems"]
    assert problems == [
        "config.json:8: unknown key 'lora_rnk'; did you mean 'lora_rank'?",
        "optimizer: unknown optimizer 'adam'; did you mean 'adamw_bf16'? known: adamw_bf16, optimi-lion",
    ]


def test_an_unreachable_gated_model_says_which_licence_how_to_log_in_and_how_to_go_local(project):
    del project.run["pretrained_model_name_or_path"]
    project.write()
    ended = run_in(project.folder, "--config", "config.json")
    assert ended.status == 2
    _, _, message = ended.err.partition("error: ")
    assert message.startswith("model 'black-forest-labs/FLUX.1-Kontext-dev': the hub cannot be reached")
    for told in (
        "accept the licence at https://huggingface.co/black-forest-labs/FLUX.1-Kontext-dev",
        "`hf auth login`",
        "set pretrained_model_name_or_path to a local diffusers folder",
    ):
        assert told in message
    assert "Traceback" not in ended.err
