"""A run as a newcomer sees it, in a separate process: its lines, and nothing from the libraries below."""

import re
import shutil

import pytest
from diffusers import FluxTransformer2DModel
from forked_runs import ForkedRun
from transformers import T5EncoderModel

from difftrain_flux.built_in import tiny_random_folder
from difftrain_flux.model_files.tiny_random import ensure_tiny_random

NAME = "look|scan|pair|make|check|open|load|set up|move|encode|start|quantise|validation|loss on fixed samples"
PHASE = rf"({NAME}) .*(: \d+:\d\d|\d+/\d+, \d+:\d\d left)"
STEP = r"step \d+/\d+  loss .*"
MEASURED = r"loss on the same .*|PSNR to the target, .*"
END = rf"finished \d+ steps|{MEASURED}|(adapter|model card|checkpoints|metrics|images): .*|adapter standard: .*"
FULL = r"\d+ batch(es)? an epoch, \d+ % full"
OURS = re.compile(f"{PHASE}|{STEP}|{END}|{FULL}")
HELD_OUT = "held out from training:"
RANDOM = ("--pretrained_model_name_or_path", "tiny-random")
FEW_STEPS = ("--max_train_steps=2", "--lr_warmup_steps=0", "--validation_num_inference_steps=2", "--num_eval_images=1")


@pytest.fixture
def sharded(tmp_path):
    """Write the small random model with transformer and T5 in several files each, like real checkpoints."""
    folder = tmp_path / "model"
    shutil.copytree(ensure_tiny_random(tiny_random_folder()), folder)
    for name, kind in {"transformer": FluxTransformer2DModel, "text_encoder_2": T5EncoderModel}.items():
        module = kind.from_pretrained(folder / name)
        shutil.rmtree(folder / name)
        module.save_pretrained(folder / name, max_shard_size="40KB")
        assert len(list((folder / name).glob("*.safetensors"))) > 1
    return folder


def said(process) -> list[str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out == ""
    return err.splitlines()


def test_a_run_over_a_sharded_model_says_only_what_is_ours(real_command, edit_pairs, sharded):
    flags = {
        "model": "flux",
        "flavour": "kontext",
        "data_backend_config": edit_pairs(count=1),
        "pretrained_model_name_or_path": sharded,
        "base_model_precision": "int8-quanto",
        "optimizer": "optimi-lion",
        "learning_rate": 1e-5,
        "validation_resolution": 64,
    }
    lines = said(real_command(*(f"--{key}={value}" for key, value in flags.items()), *FEW_STEPS))
    assert [line for line in lines if not OURS.fullmatch(line)] == []


def test_the_demo_says_only_what_is_ours(tmp_path):
    lines = said(ForkedRun(tmp_path, ("--model", "flux", "--flavour", "kontext", "--demo", *RANDOM, *FEW_STEPS)))
    closing = next(index for index, line in enumerate(lines) if line.startswith("to edit photographs with what"))
    opening, _, *run = lines[:closing]
    assert opening.startswith("demo: the model tiny-random (flux kontext) learns to sharpen photographs")
    others = [line for line in run if not OURS.fullmatch(line)]
    assert [line.split(" ")[:4] for line in others] == [["note:", "learning_rate", "0.004", "is"], HELD_OUT.split(" ")]


WARNING_PLUGIN = """
import warnings
warnings.warn("raw words of a library")
warnings.warn("more of them", DeprecationWarning)
"""


@pytest.mark.parametrize(("options", "shown"), [({}, False), ({"PYTHONWARNINGS": "default"}, True)])
def test_raw_warnings_reach_only_those_who_ask_for_them(real_command, tmp_path, options, shown):
    (tmp_path / "loud.py").write_text(WARNING_PLUGIN)
    _, err = real_command("plugins", "--plugins", "loud.py", **options).communicate(timeout=60)
    assert ("raw words of a library" in err) is shown


def test_a_name_that_the_terminal_cannot_print_is_spelt_out(real_command, edit_pairs, tmp_path):
    edit_pairs(count=1, id="\u96c6")
    flags = (*edit_pairs.kontext, "--data_backend_config", "datasets.json", "--max_train_steps", 1)
    out, err = real_command("check", *flags, PYTHONIOENCODING="ascii").communicate(timeout=60)
    assert "dataset \\u96c6" in out, err
