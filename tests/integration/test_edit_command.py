"""``difftrain edit`` through the real command: it draws what validation drew, and every flag changes the pictures."""

import json
import shlex
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from long_runs import changed
from PIL import Image
from safetensors import safe_open
from seeing_family import SOURCE

from conftest import EditPairs, run_in
from difftrain.editing import draw_edits, edit_results
from difftrain.model.single_files.safetensors_header import read_header
from difftrain.validation.drawn_files import save_png
from difftrain.validation.sheet import CELL, GAP
from difftrain_flux_kontext.flavour import Kontext

ADAPTER = "pytorch_lora_weights.safetensors"


@dataclass
class Trained:
    """A finished run, and edits with it."""

    folder: Path
    output: Path

    def edit(self, *flags, status=0, **options):
        """Run the command on the first reference; flags may replace any part. Return its result."""
        usual = {
            "adapter": self.output, "image": "references/0000.png", "prompt": "make it edit number 0",
            "output": "drawn",
        }  # fmt: skip
        shutil.rmtree(self.folder / "drawn", ignore_errors=True)
        ended = run_in(self.folder, "edit", *flags, **{k: v for k, v in (usual | options).items() if v is not None})
        assert ended.status == status, ended.err
        return ended

    def picture(self, name, *flags, **options):
        self.edit(*flags, **options)
        return pixels(self.folder / "drawn" / f"{name}.png")

    def validated(self, step, name="edits-0000"):
        return pixels(self.output / "validation" / f"step-{step:06}" / f"{name}.png")


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    made = EditPairs(tmp_path_factory.mktemp("edit"))
    # not square, and not on multiples: sizes and crops matter
    made(count=3, edit_sizes=[(100, 66)])
    return made


def train(pairs, name, **options):
    """Train four steps, with pictures before, half way and after; return the run."""
    words = changed(
        (*pairs.kontext, "--data_backend_config", str(pairs.folder / "datasets.json")),
        **{
            "output_dir": name, "max_train_steps": 4, "checkpoint_step_interval": 2, "validation_steps": 2,
            "validation_on_startup": "true", "num_eval_images": 1, "validation_resolution": 64,
            "validation_num_inference_steps": 2, "validation_num_seeds": 2, "learning_rate": 2e-2, "lora_alpha": 8,
        }
        | options,
    )  # fmt: skip
    ended = run_in(pairs.folder, *words)
    assert ended.status == 0, ended.err
    return Trained(pairs.folder, pairs.folder / name)


@pytest.fixture(scope="module")
def run(pairs):
    return train(pairs, "run")


def test_an_edit_is_the_picture_that_validation_drew(run):
    assert np.array_equal(run.picture("0000-strength-1"), run.validated(4))


def test_it_trained_enough_to_tell_the_pictures_apart(run):
    assert np.abs(run.validated(4) - run.validated(0)).max() > 8


def test_strength_0_and_the_base_are_the_picture_before_training(run):
    assert np.array_equal(run.picture("0000-base", strength="0"), run.validated(0))
    assert np.array_equal(run.picture("0000-base", compare="base"), run.validated(0))


def test_strength_changes_the_picture_gradually(run):
    run.edit(strength="0,0.5,1,2")
    none, half, full, double = (
        pixels(run.folder / "drawn" / f"0000-{name}.png")
        for name in ("base", "strength-0.5", "strength-1", "strength-2")
    )
    distances = [np.abs(one - none).mean() for one in (half, full, double)]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_each_seed_draws_its_picture_as_validation_does(run):
    second = run.picture("0000-strength-1-seed-2", seeds="2")
    assert np.array_equal(second, run.validated(4, "edits-0000-seed-2"))
    assert not np.array_equal(second, run.validated(4))


def test_checkpoints_are_columns_of_one_sheet(run):
    run.edit(checkpoints="all", compare="base")
    folder = run.folder / "drawn"
    assert np.array_equal(pixels(folder / "0000-step-2-strength-1.png"), run.validated(2))
    assert np.array_equal(pixels(folder / "0000-step-4-strength-1.png"), run.validated(4))
    assert len(list(folder.glob("0000-*.png"))) == 3
    assert [one["step"] for one in read(folder)["images"][0]["drawn"]] == [None, 2, 4]


def test_one_checkpoint_can_be_named_by_its_step_its_folder_or_its_file(run):
    checkpoint = run.output / "checkpoint-2"
    for options in ({"checkpoints": "2"}, {"adapter": checkpoint}, {"adapter": checkpoint / ADAPTER}):
        assert np.array_equal(run.picture("0000-strength-1", **options), run.validated(2))


def test_a_file_without_its_run_needs_only_the_model(run):
    alone = run.folder / "elsewhere.safetensors"
    shutil.copy(run.output / ADAPTER, alone)
    options = {
        "model": "flux", "flavour": "kontext", "pretrained_model_name_or_path": "tiny-random",
        "mixed_precision": "no", "aspect_bucket_alignment": 16, "validation_resolution": 64,
        "validation_num_inference_steps": 2,
    }  # fmt: skip
    assert np.array_equal(run.picture("0000-strength-1", adapter=alone, **options), run.validated(4))
    ended = run.edit(adapter=alone, status=2)
    assert "no run beside this file" in ended.err
    assert "--model FAMILY --flavour NAME" in ended.err


def test_a_file_alone_is_used_as_its_header_says(run):
    from safetensors.torch import load_file, save_file

    alone = run.folder / "stated.safetensors"
    with safe_open(run.output / ADAPTER, framework="pt") as file:
        header = file.metadata()
    header |= {"base_model": Kontext.hub_id, "base_model_precision": "int8-quanto", "training.mixed_precision": "no"}
    save_file(load_file(run.output / ADAPTER), alone, header)
    run.edit(adapter=alone, pretrained_model_name_or_path="tiny-random", validation_resolution=64)
    found = read(run.folder / "drawn")
    assert (found["base_model_precision"], found["mixed_precision"]) == ("int8-quanto", "no")


def test_a_lycoris_file_alone_needs_the_description_beside_it(pairs):
    run = train(pairs, "lokr-alone", lora_type="lycoris")
    alone = run.folder / "alone"
    alone.mkdir()
    shutil.copy(run.output / ADAPTER, alone)
    options = {
        "adapter": alone, "model": "flux", "flavour": "kontext", "pretrained_model_name_or_path": "tiny-random",
        "mixed_precision": "no", "aspect_bucket_alignment": 16, "validation_resolution": 64,
        "validation_num_inference_steps": 2,
    }  # fmt: skip
    assert "lycoris_config.json" in run.edit(status=2, **options).err
    shutil.copy(run.output / "lycoris_config.json", alone)
    assert np.abs(run.picture("0000-strength-1", **options) - run.validated(4)).max() <= 1


def test_a_text_encoder_that_sees_references_sees_those_of_the_edit(tmp_path):
    pairs = EditPairs(tmp_path)
    pairs(count=2)
    (tmp_path / "seeing.py").write_text(SOURCE)
    pairs.kontext = tuple(
        {"flux": "seeing", "kontext": "edit", "tiny-random": "nowhere"}.get(str(word), word) for word in pairs.kontext
    )
    run = train(pairs, "seen", plugins="./seeing.py", validation_num_seeds=1)
    (tmp_path / "encoded.jsonl").unlink()
    assert np.array_equal(run.picture("0000-strength-1"), run.validated(4))
    lines = [json.loads(line) for line in (tmp_path / "encoded.jsonl").read_text().splitlines()]
    assert [len(line["seen"]) for line in lines if "seen" in line] == [1]


def test_ctrl_c_leaves_a_sheet_of_what_was_drawn(run, monkeypatch):
    drawn = []

    def stopped(image, path, *marks):
        if len(drawn) == 2 and path.name != "sheet.png":
            raise KeyboardInterrupt
        drawn.append(path.name)
        save_png(image, path, *marks)

    for module in (draw_edits, edit_results):
        monkeypatch.setattr(module, "save_png", stopped)
    run.edit(seeds=3, status=130)
    assert drawn == ["0000-strength-1.png", "0000-strength-1-seed-2.png", "sheet.png"]
    assert len(read(run.folder / "drawn")["images"][0]["drawn"]) == 2


def test_several_processes_are_refused(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "runs as one process" in run.edit(status=2).err


def test_options_of_validation_win_over_the_runs(run):
    assert not np.array_equal(run.picture("0000-strength-1", validation_num_inference_steps=3), run.validated(4))
    assert run.picture("0000-strength-1", validation_resolution=128).shape[:2] == (96, 160)
    assert not np.array_equal(run.picture("0000-strength-1", prompt="another"), run.validated(4))


def test_a_negative_prompt_steers_when_true_guidance_is_on(run):
    plain = run.picture("0000-strength-1", validation_guidance_real=3)
    steered = run.picture("0000-strength-1", validation_guidance_real=3, validation_negative_prompt="blurry")
    assert not np.array_equal(plain, steered)


def test_references_change_the_picture_and_so_does_their_order(run):
    first, second = "references/0001.png", "references/0002.png"
    pictures = [
        run.picture("0000-strength-1", *(word for path in paths for word in ("--reference", path)))
        for paths in ((), (first,), (first, second), (second, first))
    ]
    for number, one in enumerate(pictures):
        assert not any(np.array_equal(one, other) for other in pictures[:number])


@pytest.fixture(scope="module")
def measured(run):
    """Edit a folder of two images, one with a target; return the folder of the results and what was said."""
    shutil.copytree(run.folder / "references", run.folder / "before")
    (run.folder / "before/0000.png").unlink()
    for name in ("0001", "0002"):
        (run.folder / f"before/{name}.txt").write_text(f"make it edit number {int(name)}\n")
    (run.folder / "after").mkdir()
    shutil.copy(run.folder / "edits/0001.png", run.folder / "after/0001.png")
    ended = run.edit(image="before", targets="after", prompt=None, strength="0,1", seeds=2)
    shutil.copytree(run.folder / "drawn", run.folder / "measured")
    return run.folder / "measured", ended


def test_a_folder_is_edited_with_the_instructions_beside_its_images(measured):
    folder, _ = measured
    assert [one["prompt"] for one in read(folder)["images"]] == ["make it edit number 1", "make it edit number 2"]
    assert len(list(folder.glob("000[12]-*.png"))) == 8


def test_pictures_are_measured_against_the_targets_of_the_same_names(run, measured):
    folder, ended = measured
    first, second = read(folder)["images"]
    assert first["target"].endswith("after/0001.png")
    assert second["target"] is None
    assert "input" not in second
    assert "1 of 2 images have no target: 0002.png" in ended.err
    for one in first["drawn"]:
        assert one["psnr"] == pytest.approx(
            psnr(pixels(folder / one["file"]), cut(run.folder / "after/0001.png")), abs=1e-3
        )
    copied = psnr(cut(run.folder / "before/0001.png"), cut(run.folder / "after/0001.png"))
    assert first["input"]["psnr"] == pytest.approx(copied, abs=1e-3)
    assert f"input: {copied:.1f} dB" in ended.out


def test_ssim_is_that_of_scikit_image_or_is_said_to_be_missing(measured):
    folder, ended = measured
    image = read(folder)["images"][0]
    assert all(("ssim" in one) == bool(find_spec("skimage")) for one in (image["input"], *image["drawn"]))
    assert ("SSIM is not measured" in ended.err) != bool(find_spec("skimage"))


def test_the_sheet_shows_every_seed_with_input_columns_and_target(measured):
    folder, _ = measured
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.width == GAP + 4 * (CELL + GAP)  # input, base, strength 1, target
        assert sheet.height > 4 * CELL * 66 / 100


def test_without_output_each_edit_has_a_folder_of_its_own_in_the_run(run):
    for number in (1, 2):
        ended = run.edit(output=None)
        assert f"sheet:    {run.output / 'edits' / f'edit-{number}' / 'sheet.png'}" in ended.out


def test_what_is_left_to_draw_is_counted(run):
    assert "1 image x 3 columns x 2 seeds = 6 results" in run.edit(strength="0,0.5,1", seeds=2).err


def test_the_precision_of_training_is_used_and_another_one_is_said(pairs):
    run = train(pairs, "int8", base_model_precision="int8-quanto")
    assert np.array_equal(run.picture("0000-strength-1"), run.validated(4))
    ended = run.edit(base_model_precision="no_change")
    assert "trained on base_model_precision int8-quanto and is used on no_change" in ended.err
    found = read(run.folder / "drawn")
    assert (found["base_model_precision"], found["trained_on_precision"]) == ("no_change", "int8-quanto")
    assert not np.array_equal(pixels(run.folder / "drawn/0000-strength-1.png"), run.validated(4))
    alone = shutil.copy(run.output / ADAPTER, run.folder / "int8.safetensors")  # whose header says it too
    model = {"model": "flux", "flavour": "kontext", "pretrained_model_name_or_path": "tiny-random"}
    run.edit(adapter=alone, validation_resolution=64, validation_num_inference_steps=1, **model)
    assert read(run.folder / "drawn")["base_model_precision"] == "int8-quanto"


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("dora", {"use_dora": "true", "lora_rank": 2}),
        ("rslora", {"use_rslora": "true"}),
        ("pissa", {"lora_init_type": "pissa", "base_model_precision": "int8-quanto"}),
        ("fused", {"fuse_qkv_projections": "true"}),
        ("swapped", {"blocks_to_swap": 2}),
        ("bf16", {"mixed_precision": "bf16"}),
        ("lokr", {"lora_type": "lycoris", "init_lokr_norm": 1e-2}),
        ("low-rank", {"lora_type": "lycoris", "lycoris_config": "lokr.json"}),
    ],
)
def test_an_edit_is_the_picture_of_validation_for_every_kind(pairs, kind, options):
    values = {"algo": "lokr", "linear_dim": 2, "linear_alpha": 4, "factor": 4, "multiplier": 0.5}
    (pairs.folder / "lokr.json").write_text(json.dumps(values))
    run = train(pairs, kind, **options)
    (pairs.folder / "lokr.json").unlink()  # what the run wrote must be enough
    rounding = 1 if "lora_type" in options else 0  # LyCORIS files have the strength folded in
    assert np.abs(run.picture("0000-strength-1") - run.validated(4)).max() <= rounding
    assert np.abs(run.validated(2) - run.validated(4)).max() > 4 * rounding
    note = read_header(run.output / ADAPTER).texts.get("training.file_note", "")
    assert ("a LoRA of rank 8 for the unchanged base" in note) == (kind == "pissa")
    if kind != "lokr":  # which begins with an effect
        assert np.array_equal(run.picture("0000-base", compare="base"), run.validated(0))


def test_the_command_that_the_demo_ends_with_sharpens_its_photographs(tmp_path):
    quick = {"max_train_steps": 1, "validation_steps": 0, "validation_on_startup": "false"}
    demo = run_in(tmp_path, "--model", "flux", "--flavour", "kontext", "--demo", **quick)
    (line,) = (line for line in demo.err.splitlines() if " edit " in line and "--adapter" in line)
    words = shlex.split(line)
    ended = run_in(tmp_path, *words[words.index("edit") :], validation_num_inference_steps=1)
    assert ended.status == 0, ended.err
    assert "8 images x 3 columns x 1 seed = 24 results" in ended.err
    assert "input: 21.6 dB" in ended.out
    assert "output/demo/edits/edit-1/sheet.png" in ended.files


def test_all_problems_are_said_at_once_before_a_model_is_loaded(run):
    (run.folder / "broken.png").write_bytes(b"no image")
    ended = run.edit(
        "--reference", "absent.png", adapter="output/absent", image="broken.png", targets="nowhere", status=2,
    )  # fmt: skip
    for text in (
        "--adapter output/absent does not exist",
        "broken.png: cannot be read as an image",
        "--reference absent.png does not exist",
        "--targets nowhere does not exist",
    ):
        assert text in ended.err
    assert "load model" not in ended.err
    assert not ended.files


def test_wrong_values_of_all_flags_are_said_at_once(run):
    ended = run.edit(strength="0,x", seeds="0", compare="sharp", checkpoints="newest", status=2)
    for text in ("--strength 0,x: 'x' is not a number", "--seeds 0", "--compare sharp", "--checkpoints newest"):
        assert text in ended.err


def test_a_checkpoint_that_is_not_there_names_those_that_are(run):
    assert "has no checkpoint of step 3; it has 2, 4" in run.edit(checkpoints="3", status=2).err


def test_an_adapter_of_another_model_is_refused_before_the_model_is_loaded(run):
    ended = run.edit(pretrained_model_name_or_path="tiny", status=2)
    assert "is not an adapter of tiny" in ended.err
    assert "load model" not in ended.err


def test_a_file_that_is_no_adapter_is_refused(run):
    shutil.copy(run.output / "checkpoint-2/resume/visits.safetensors", run.folder / "visits.safetensors")
    ended = run.edit(adapter="visits.safetensors", model="flux", flavour="kontext", status=2)
    assert "holds no adapter" in ended.err
    (run.folder / "cut.safetensors").write_bytes((run.output / ADAPTER).read_bytes()[:-9])
    assert "cut short or damaged" in run.edit(adapter="cut.safetensors", model="flux", status=2).err


def test_a_file_of_another_program_is_named_and_export_makes_it_usable(run):
    exported = {"output": "kohya.safetensors", "format": "kohya"}
    options = {
        "model": "flux", "flavour": "kontext", "pretrained_model_name_or_path": "tiny-random",
        "mixed_precision": "no", "aspect_bucket_alignment": 16, "validation_resolution": 64,
        "validation_num_inference_steps": 2,
    }  # fmt: skip
    model = {key: options[key] for key in ("model", "flavour", "pretrained_model_name_or_path")}
    assert run_in(run.folder, "export", run.output, **exported).status == 0
    refused = run.edit(adapter="kohya.safetensors", status=2, **options)
    assert "kohya.safetensors holds no adapter that edit can use: it is a LoRA of rank 4" in refused.err
    assert "`difftrain export FILE --output NEW.safetensors`" in refused.err
    assert run_in(run.folder, "export", "kohya.safetensors", output="usable.safetensors", **model).status == 0
    ours = run.picture("0000-strength-1", adapter="usable.safetensors", **options)
    assert np.abs(ours - run.validated(4)).max() <= 1


def test_a_flavour_without_references_cannot_edit(run):
    ended = run.edit(flavour="dev", allow_other_weights="true", status=2)
    assert "model_flavour 'dev' takes no reference images" in ended.err


def test_too_many_references_are_refused(run):
    extra = ["--reference", "references/0001.png"] * 8
    assert "these are 9 references" in run.edit(*extra, status=2).err


def test_other_commands_refuse_the_flags_of_edit(run):
    ended = run_in(run.folder, "check", "--adapter", "run")
    assert ended.status == 2
    assert "--adapter works only with `difftrain edit`" in ended.err


def psnr(ours, theirs):
    return 10 * np.log10(255**2 / ((ours - theirs) ** 2).mean())


def cut(path):
    """Return an image as validation sizes it: 100x66 to 80x53, and its middle 80x48."""
    with Image.open(path) as image:
        return np.asarray(image.resize((80, 53), Image.Resampling.LANCZOS).crop((0, 2, 80, 50))).astype(int)


def read(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_wrong_flags_and_missing_files_are_told_together(command):
    ended = command("edit", "--adapter", "nowhere", "--image", "none.png", "--prompt", "x", "--strength", "much")
    assert ended.status == 2
    for problem in ("--strength much", "nowhere", "none.png"):
        assert problem in ended.err
