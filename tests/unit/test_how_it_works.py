"""docs/how-it-works.md is true: its names, numbers, order of calls, exit statuses and output files are the code's."""

from __future__ import annotations

import ast
import re
import signal
import sys
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType

import pytest

from conftest import EditPairs, run_in
from difftrain.errors import CheckpointError, ConfigError, DataError, MachineError, ModelError, NotFinite, PluginError
from difftrain.machine.interrupts import Interrupted

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
EDIT = (1920, 1080)
CALL = re.compile(r"^ ?(\d+)  ( *)([\w.]+)\(\)$", re.MULTILINE)
CALLS = [(int(number), len(indent), name) for number, indent, name in CALL.findall(PAGE)]
"""Section, depth and name of each line in the page's tree of calls."""


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


def test_every_folder_exists():
    assert [name for name in re.findall(r"`((?:core|plugins)/[\w/]+)`", PAGE) if not (ROOT / name).exists()] == []


def test_every_file_of_the_introduction_exists():
    assert [str(path) for path in modules(PAGE.partition("\n## ")[0]) if not path.is_file()] == []


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


@dataclass(frozen=True)
class Traced:
    """A real run of two steps: the calls of the page's functions, and its files."""

    calls: list[tuple[str, str, tuple[tuple[str, str], ...]]]
    """File, qualified name, and every caller on the stack from the innermost, in order of time."""
    output: Path

    def first(self, section: int, name: str) -> int:
        """Return the index of the first call of a function in a file that the section names."""
        files = files_of(section)
        return next(index for index, (file, called, _) in enumerate(self.calls) if called == name and file in files)


@cache
def files_of(section: int) -> frozenset[str]:
    title = next(title for title in SECTIONS if title.startswith(f"{section}."))
    return frozenset(str(path) for path in modules(SECTIONS[title]))


@pytest.fixture(scope="module")
def traced(tmp_path_factory) -> Traced:
    folder = tmp_path_factory.mktemp("traced")
    pairs = EditPairs(folder)
    changed = dict(zip(pairs.kontext[::2], pairs.kontext[1::2], strict=True)) | {
        "--data_backend_config": str(pairs(2)), "--max_train_steps": "2", "--checkpoint_step_interval": "1",
        "--output_dir": "output", "--validation_steps": "2", "--validation_resolution": "64",
        "--validation_num_inference_steps": "1",
    }  # fmt: skip
    names = {name for _, _, name in CALLS}
    calls: list[tuple[str, str, tuple[tuple[str, str], ...]]] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or code.co_qualname not in names:
            return
        callers = []
        above = frame.f_back
        while above is not None:
            callers.append((above.f_code.co_filename, above.f_code.co_qualname))
            above = above.f_back
        calls.append((code.co_filename, code.co_qualname, tuple(callers)))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        ended = run_in(folder, *(part for flag in changed.items() for part in flag))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert ended.status == 0, ended.err
    return Traced(calls=calls, output=folder / "output")


def test_a_real_run_makes_the_calls_in_the_order_of_the_page(traced):
    firsts = [(traced.first(section, name), name) for section, _, name in CALLS]
    assert len(firsts) > 40
    assert [name for _, name in firsts] == [name for _, name in sorted(firsts)]


def test_a_real_run_makes_each_call_below_the_callers_that_the_page_shows(traced):
    listed = {(file, name): name for section, _, name in CALLS for file in files_of(section)}
    above: list[tuple[int, str]] = []
    wrong = []
    for section, depth, name in CALLS:
        above = [line for line in above if line[0] < depth]
        callers = traced.calls[traced.first(section, name)][2]
        really = {listed[caller] for caller in callers if caller in listed}
        if really != {caller for _, caller in above}:
            wrong.append((name, sorted(really)))
        above.append((depth, name))
    assert wrong == []


def test_the_reading_order_is_the_way_of_a_real_run_to_the_loss(traced):
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    order = re.findall(r"^\d+\. \[(core/[\w/]+\.py)\]", contributing, re.MULTILINE)
    file, _, callers = traced.calls[traced.first(14, "MeanSquaredError.compute")]
    files = [*(caller for caller, _ in reversed(callers)), file]
    ours = (Path(file).relative_to(ROOT).as_posix() for file in files if file.startswith(f"{ROOT / 'core'}/"))
    way = list(dict.fromkeys(ours))
    assert order == way[way.index(order[0]) :], "before it are only the functions that tests call the command with"


def test_a_real_run_leaves_the_files_of_the_page(traced):
    listed = re.search(r"^A run leaves these files.*?```\n(.*?)\n```", PAGE, re.DOTALL | re.MULTILINE)
    assert listed is not None
    left = set()
    for path in traced.output.rglob("*"):
        if path.is_file():
            name = re.sub(r"-\d+/", "-N/", path.relative_to(traced.output).as_posix())
            left.add(re.sub(r"[^/]+(?<!/sheet)\.png$", "NAME.png", name))
    assert listed[1].splitlines() == sorted(left)


ENDINGS = {
    "0": [None],
    "1": [NotFinite("x")],
    "2": [error("x") for error in (ConfigError, DataError, MachineError, ModelError, CheckpointError, PluginError)],
    "130": [KeyboardInterrupt()],
    "128 + N": [Interrupted(number) for number in (signal.SIGTERM, signal.SIGINT)],
}


def stated_statuses() -> dict[str, str]:
    section = SECTIONS["1. From the command line to a plan"]
    return dict(re.findall(r"^\| (\d[\d +N]*) \| (.*) \|$", section, re.MULTILINE))


def test_the_page_states_every_exit_status():
    from difftrain.cli import main

    stated = stated_statuses()
    assert list(stated) == [*ENDINGS, str(main.READER_LEFT)]
    assert f"{128 + signal.SIGTERM} for SIGTERM" in stated["128 + N"]


@pytest.mark.parametrize("status", ENDINGS)
def test_a_command_ends_with_the_status_that_the_page_states(status, edit_pairs, monkeypatch):
    from difftrain.cli import main
    from difftrain.training import run_training

    for ending in ENDINGS[status]:

        def end(*_: object, ending: BaseException | None = ending, **__: object) -> int:
            if ending is not None:
                raise ending
            return 0

        if isinstance(ending, Interrupted):
            monkeypatch.setattr(run_training, "prepare_run", end)
            flags = (*edit_pairs.kontext, "--data_backend_config", edit_pairs(), "--max_train_steps", 1)
            expected = 128 + ending.number
        else:
            monkeypatch.setitem(main.COMMANDS, "check", end)
            flags, expected = ("check",), int(status)
        assert run_in(edit_pairs.folder, *flags).status == expected, ending


def arguments_of(path: Path, function: str, call: str) -> list[str]:
    """Return the source of what a function passes to a call."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (owner,) = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function)
    (found,) = (node for node in ast.walk(owner) if isinstance(node, ast.Call) and ast.unparse(node.func) == call)
    return [ast.unparse(argument) for argument in found.args]


def test_cache_keys_have_the_parts_that_the_page_states():
    section = SECTIONS["7. Where the encoded form lies"]
    caches = ROOT / "core/difftrain/data/caching/sample_caches.py"
    for function in ("latents", "text"):
        parts = ", ".join(arguments_of(caches, function, "cache_key"))
        assert f"| {function} | `cache_key({parts})` |" in section
    form = ast.parse((ROOT / "core/difftrain/startup/encoded_form.py").read_text(encoding="utf-8"))
    for name in ("image_identity", "text_identity"):
        (function_node,) = (node for node in form.body if isinstance(node, ast.FunctionDef) and node.name == name)
        returned = function_node.body[-1]
        assert isinstance(returned, ast.Return)
        assert returned.value is not None
        values = [ast.unparse(node.value) for node in ast.walk(returned.value) if isinstance(node, ast.FormattedValue)]
        assert f"| `{name}()` | {', '.join(f'`{value}`' for value in values)} |" in section


def test_the_run_of_the_page_is_fitted_to_its_device_as_stated():
    from difftrain.plugins.discovery import load_plugins
    from difftrain.training.fitting.fit_to_device import STEPS_WORTH_COMPILING

    section = " ".join(SECTIONS["9. The model and its adapter"].split())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (precision,) = re.findall(r'"base_model_precision": "([\w-]+)"', readme)
    quantizer = load_plugins().registry.find("quantizer", precision)
    assert f"the quantizer replaces it, here `{quantizer.__name__}`" in section
    assert quantizer.can_compile
    assert '"gradient_checkpointing": true,' in readme
    recomputed = "compiled blocks recompute all activations but the output of attention"
    assert f"Under `gradient_checkpointing: true`, as in this run, {recomputed}" in section
    assert f"if the quantizer allows it and at least {STEPS_WORTH_COMPILING} steps are left" in section


def test_the_fixed_loss_has_the_noise_levels_that_are_stated():
    from difftrain.validation.validator import FIXED_SIGMAS

    *most, last = map(str, FIXED_SIGMAS)
    assert f"at noise levels {', '.join(most)} and {last}," in " ".join(PAGE.split())


def test_decision_001_names_the_purpose_of_every_draw():
    page = (ROOT / "docs/adr/001-stateless-randomness.md").read_text(encoding="utf-8")
    purposes = set()
    for folder in ("core", "plugins"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "derive_seed":
                    purposes |= {part.value for part in node.args if isinstance(part, ast.Constant)}
    assert set(re.findall(r'`\("([a-z_ ]+)", [^`]*\)`', " ".join(page.split()))) == purposes


def test_decision_004_names_every_file_that_catches_all_errors():
    page = (ROOT / "docs/adr/004-own-help-text.md").read_text(encoding="utf-8").partition("Code catches `Exception`")[2]
    catching = set()
    for folder in ("core", "plugins"):
        for path in (ROOT / folder).rglob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            caught = {ast.unparse(node.type) for node in nodes if isinstance(node, ast.ExceptHandler) and node.type}
            if any(re.search(r"\bException\b", text) for text in caught):
                catching.add(path)
    assert set(modules(page)) == catching
