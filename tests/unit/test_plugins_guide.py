"""docs/plugins.md is true: its examples run, and its table lists every hook."""

from __future__ import annotations

import base64
import importlib
import inspect
import json
import random
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from data_plans import SilentReporter, data_plan, new_image, target_set
from PIL import Image

from conftest import read_metrics
from difftrain import FlowMatching, PluginError, RunStart, ValidationResult, contracts, types
from difftrain.data.samples.prepare_samples import prepare_samples
from difftrain.data.streaming.sample_extras import stack_extras
from difftrain.plugins import hookspecs
from difftrain.plugins.discovery import load_plugins
from difftrain.testing import check_crop_style, check_family, check_generator, make_dataset, run_command
from difftrain.testing.tiny_denoiser import make_denoiser
from difftrain_flux_kontext.pairing import ReferenceStrict

GUIDE_FILE = Path(__file__).parents[2] / "docs" / "plugins.md"
GUIDE = GUIDE_FILE.read_text(encoding="utf-8")


SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", GUIDE, re.DOTALL | re.MULTILINE))
OF_THE_FAMILY = "A model family"


def python_blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


BLOCKS = [block for title, text in SECTIONS.items() if title != OF_THE_FAMILY for block in python_blocks(text)]
"""Whole plugins; the blocks of the section on families are parts of one, and its test."""


@pytest.fixture
def load(tmp_path):
    """Load the code block that contains this text from a file, as a user would save it."""

    def loaded(part):
        (block,) = (text for text in BLOCKS if part in text)
        path = tmp_path / "of_the_guide.py"
        path.write_text(block, encoding="utf-8")
        return load_plugins(files=[path])

    return loaded


@pytest.mark.parametrize("block", BLOCKS)
def test_every_python_block_is_a_plugin_that_gives_something(load, block):
    (status,) = load(block).third_party()
    assert status.provides
    assert "difftrain_" in block


@pytest.fixture
def posterize(load):
    return load("class Posterize").registry.find("generator", "posterize")


def test_the_example_holds_what_every_generator_must(posterize):
    check_generator(posterize(bits=3))


def test_the_example_draws_what_it_says(posterize):
    drawn = posterize(bits=1).generate(Image.new("RGB", (4, 4), (200, 100, 0)), random.Random(0))
    assert drawn.getpixel((0, 0)) == (128, 0, 0)


@pytest.fixture
def detail(load):
    return load("class Detail").registry.find("crop style", "detail")


def test_the_guides_crop_style_holds_what_every_one_must(detail):
    check_crop_style(detail(detail_level=8))


def test_the_guides_crop_style_finds_the_middle_of_the_edges(detail):
    image = Image.new("RGB", (200, 100))
    assert detail().focus(image) is None
    image.paste((255, 255, 255), (120, 20, 160, 40))
    x, y = detail().focus(image)
    assert (round(x, 1), round(y, 1)) == (0.7, 0.3)


def test_the_guide_gives_the_signature_of_focus():
    (stated,) = re.findall(r"^    def focus\(self, image: PIL.Image.Image\) -> (.*)$", GUIDE, re.MULTILINE)
    assert inspect.signature(contracts.CropStyle.focus).return_annotation == "Point | None"
    assert stated == f"{types.Point} | None".replace("builtins.", "")


@pytest.fixture
def weighted_loss(load):
    return load("class WeightedLoss").registry.find("loss", "weighted")


def test_the_guides_loss_weights_samples_as_it_says(weighted_loss):
    loss, prediction = weighted_loss(), torch.ones(2, 1, 2, 2)
    given = [loss.extras(None, weighted_loss.dataset_options(loss_weight=weight)) for weight in (2.0, 0.5)]
    extras = stack_extras(given, ["a", "b"])
    noisy = SimpleNamespace(target=torch.zeros(2, 1, 2, 2))
    assert loss.compute(prediction, noisy, SimpleNamespace(extras=extras)).tolist() == [2.0, 0.5]


@pytest.fixture
def averaged(load):
    return load("class AveragedLoraPlus").registry.find("optimizer", "averaged-lora-plus")(ratio=4, decay=0.5)


def test_the_guides_optimizer_gives_b_a_rate_of_its_own(averaged):
    named = [(f"block.lora_{half}.weight", torch.nn.Parameter(torch.ones(2))) for half in "AB"]
    a, b = averaged.build(named, 1e-3).param_groups
    assert (a["lr"], b["lr"]) == (1e-3, 4e-3)
    assert (a["params"][0] is named[0][1], b["params"][0] is named[1][1]) == (True, True)


def test_the_guides_optimizer_arrives_at_the_mean_of_its_weights(averaged):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = averaged.build([("block.lora_A.weight", weight)], 0.1)
    seen = []
    for _ in range(2):
        weight.grad = torch.ones(2)
        optimizer.step()
        seen.append(weight.detach().clone())
    with averaged.evaluating(optimizer):
        assert torch.allclose(weight, (seen[0] + seen[1]) / 2, atol=1e-6)


def test_the_guides_observer_keeps_the_best_sheet(load, tmp_path):
    observer = load("class BestSheet").registry.find("observer", "best-sheet")(best_sheet=True)
    observer.run_start(RunStart(config=None, output_dir=tmp_path, total_steps=3, first_step=0))
    for step, psnr in ((1, 20.0), (2, 24.0), (3, 22.0)):
        sheet = tmp_path / f"sheet-{step}.png"
        sheet.write_text(str(step))
        observer.validation_end(ValidationResult(step=step, metrics={"psnr": psnr}, files={"sheet": sheet}))
    assert (tmp_path / "best.png").read_text() == "2"


def test_the_guides_data_source_gives_pairs(tmp_path):
    (block,) = (text for text in BLOCKS if "class JsonImages" in text)
    (tmp_path / "rows.py").write_text(block, encoding="utf-8")
    source = load_plugins(files=[tmp_path / "rows.py"]).registry.find("data source", "json")
    image, reference = (base64.b64encode(png(tmp_path, seed)).decode() for seed in (1, 2))
    rows = [{"id": name, "image": image, "caption": f"edit {name}", "reference": reference} for name in "ba"]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    plan = replace(
        target_set(tmp_path),
        source=source(json_file=tmp_path / "pairs.json"),
        takes_source_captions=True,
        row_pairing=ReferenceStrict(),
    )
    data = prepare_samples(data_plan(tmp_path, plan), reporter=SilentReporter())
    shown = [(one.target.record.key, one.captions, len(one.choices[0].references)) for one in data.samples]
    assert shown == [("a", ("edit a",), 1), ("b", ("edit b",), 1)]


def png(folder, seed):
    return new_image(folder / "x.png", seed=seed).read_bytes()


@pytest.fixture
def smallest(tmp_path):
    """Return the smallest family of the guide and its flavour, by name."""
    return runpy.run_path(str(saved(tmp_path, "class Mine(")))


def saved(folder, part):
    (block,) = (text for text in BLOCKS if part in text)
    path = folder / "mine.py"
    path.write_text(block, encoding="utf-8")
    return path


def test_the_smallest_family_keeps_the_contract_and_its_test_would_notice_if_not(smallest, monkeypatch):
    smallest["test_mine"]()
    drop_channels(monkeypatch, smallest["Mine"])
    with pytest.raises(AssertionError, match="predict"):
        smallest["test_mine"]()


def drop_channels(monkeypatch, family):
    """Let a family's prediction have another shape than the latents."""
    predict = family.predict
    monkeypatch.setattr(family, "predict", lambda self, denoiser, given: predict(self, denoiser, given)[:, :1])


def test_the_smallest_family_trains(tmp_path):
    pairs = make_dataset(tmp_path / "images")
    (tmp_path / "datasets.json").write_text(json.dumps(pairs.entries(resolution=64)))
    ended = run_command(
        tmp_path, plugins=saved(tmp_path, "class Mine("), model_family="mine", model_flavour="edit",
        data_backend_config="datasets.json", max_train_steps=1, validation_steps=0,
    )  # fmt: skip
    assert ended.status == 0, ended.err
    assert "output/pytorch_lora_weights.safetensors" in ended.files


def test_the_smallest_family_is_found_without_torch(tmp_path):
    path = saved(tmp_path, "class Mine(")
    code = f"import runpy, sys; runpy.run_path({str(path)!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def drawn_with_any_seed(*_):
    return lambda request: Image.effect_noise((request.width, request.height), 90).convert("RGB")


WRONG = {
    "ModelFamily.text_identity": lambda *_: "",
    "ModelFamily.load_text_encoder": lambda *_: SimpleNamespace(encode=lambda texts: [{"words": torch.zeros(8)}] * 2),
    "ModelFamily.load_image_encoder": lambda *_, **__: SimpleNamespace(encode=lambda pixels: (torch.rand(2, 3),) * 2),
    "ModelFamily.empty_denoiser": lambda *_: make_denoiser(8),
    "ModelFamily.adapter_targets": lambda *_: ["enter", "leaves"],
    "ModelFamily.noise_process": lambda *_: SimpleNamespace(add_noise=in_bfloat16),
    "ModelFlavour.extend_input": lambda _, family, model_input, batch: model_input,
    "ModelFamily.predict": lambda _, denoiser, model_input: model_input.noisy[:, :, ::2],
    "ModelFamily.make_sampler": drawn_with_any_seed,
}
"""By member, one that breaks the contract."""


def in_bfloat16(latents, sigma, noise):
    noisy = FlowMatching().add_noise(latents, sigma, noise)
    return replace(noisy, noisy=noisy.noisy.bfloat16())


STATED = dict(re.findall(r"^\| `(Model\w+\.\w+)` \| (.*) \|$", GUIDE, re.MULTILINE))


def test_the_guide_says_how_check_family_names_each_fault():
    assert STATED.keys() == WRONG.keys()


@pytest.mark.parametrize("member", WRONG)
def test_check_family_names_a_wrong_member_as_the_guide_says(smallest, member):
    owner, _, name = member.partition(".")
    family, flavour = smallest["Mine"], smallest["MineEdit"]
    wrong = type("Wrong", (family if owner == "ModelFamily" else flavour,), {name: WRONG[member]})
    given = (wrong(), flavour()) if owner == "ModelFamily" else (family(), wrong())
    with pytest.raises(AssertionError, match=re.escape(STATED[member])):
        check_family(*given)


def test_the_message_about_a_broken_plugin_is_the_real_one():
    (stated,) = re.findall(r"```\n(unknown generator 'canny'.*?)\n```", GUIDE, re.DOTALL)
    registry = load_plugins().registry
    registry.absent.append("difftrain-canny 0.3.0 failed to load (No module named 'cv2')")
    with pytest.raises(PluginError) as raised:
        registry.find("generator", "canny")
    assert str(raised.value) == stated


@pytest.fixture
def family_guide(tmp_path, monkeypatch):
    """Save the files of the section on families as its reader would; return both, imported."""
    *parts, test = python_blocks(SECTIONS[OF_THE_FAMILY])
    files = {"patchwork": "\n".join(parts), "test_patchwork": test}
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name in files:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tuple(importlib.import_module(name) for name in files)
    for name in files:
        sys.modules.pop(name, None)


def test_the_guides_family_keeps_the_contract_and_its_test_would_notice_if_not(family_guide, tmp_path, monkeypatch):
    family_guide[1].test_the_family_keeps_the_contract(tmp_path)
    (tmp_path / "again").mkdir()
    drop_channels(monkeypatch, family_guide[0].Patchwork)
    with pytest.raises(AssertionError, match="predict"):
        family_guide[1].test_the_family_keeps_the_contract(tmp_path / "again")


def test_the_guides_family_trains_in_a_run(family_guide, tmp_path):
    family_guide[1].test_a_short_run_trains_an_adapter(tmp_path)
    assert [line["step"] for line in read_metrics(tmp_path / "output") if "loss" in line] == [1, 2, 3, 4]


def test_the_guide_runs_every_test_that_it_shows(family_guide):
    shown = {name for name in vars(family_guide[1]) if name.startswith("test_")}
    assert shown == {"test_the_family_keeps_the_contract", "test_a_short_run_trains_an_adapter"}


def test_the_guides_family_has_its_methods_in_the_order_of_the_contract(family_guide):
    written = [name for name, value in vars(family_guide[0].Patchwork).items() if inspect.isfunction(value)]
    assert written == [name for name in vars(contracts.ModelFamily) if name in written]


def test_the_table_lists_exactly_the_hooks_that_exist():
    table = "\n".join(line for line in GUIDE.splitlines() if line.startswith("| `difftrain_"))
    hooks = {name for name, _ in inspect.getmembers(hookspecs, inspect.isfunction) if name.startswith("difftrain_")}
    assert set(re.findall(r"`(difftrain_\w+)`", table)) == hooks


def test_the_table_names_contracts_that_exist():
    assert [name for name in re.findall(r"\| `([A-Z]\w+)` classes", GUIDE) if not hasattr(contracts, name)] == []


def test_the_lines_of_the_example_families_are_counted_right():
    counts = re.findall(r"\(examples/([\w-]+)\), a model family in (\d+) lines", GUIDE)
    assert len(counts) == 2
    for name, lines in counts:
        sources = (GUIDE_FILE.parent / "examples" / name / "src").rglob("*.py")
        assert (name, sum(len(path.read_text(encoding="utf-8").splitlines()) for path in sources)) == (name, int(lines))
