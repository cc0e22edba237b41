"""Third-party plugins: a good and a broken one, pip-installed into a separate virtual environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "difftrain-edges"
PHOTOS = Path(__file__).parents[1] / "photos"

BROKEN_PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "difftrain-canny"
version = "1.2.3"

[project.entry-points.difftrain]
canny = "difftrain_canny"

[tool.hatch.build.targets.wheel]
packages = ["difftrain_canny"]
"""


class Environment:
    """Make a virtual environment that sees this one's packages, and whatever is pip-installed into it."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder / "venv", with_pip=False)
        self.python = folder / "venv" / "bin" / "python"
        (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
        # addsitedir, not a bare path: the editable install of difftrain is a .pth file in there
        (site / "parent.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")

    def install(self, *projects: Path) -> None:
        offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-q"]
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install", *offline]
        subprocess.run([*pip, *map(str, projects)], check=True, capture_output=True, text=True)

    def run(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        command = [str(self.python), *arguments]
        environment = {**os.environ, "COLUMNS": "200"}
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)

    def difftrain(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "difftrain", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Install the documented example, and a package whose module cannot be imported."""
    folder = tmp_path_factory.mktemp("unused_references")
    broken = folder / "difftrain-canny"
    (broken / "difftrain_canny").mkdir(parents=True)
    (broken / "pyproject.toml").write_text(BROKEN_PROJECT)
    (broken / "difftrain_canny" / "__init__.py").write_text("import a_module_that_nobody_has\n")
    made = Environment(folder)
    made.install(EXAMPLE, broken)
    return made


@pytest.fixture
def write_run(tmp_path):
    """Write a run of two steps over the demo's photographs, with references from one generator."""

    def write(generator: dict[str, object]) -> None:
        datasets = [
            {
                "id": "photos",
                "type": "local",
                "instance_data_dir": str(PHOTOS),
                "resolution": 64,
                "caption_strategy": None,
                "conditioning": [{"captions": "colour this drawing", **generator}],
            }
        ]
        run = {
            "model_family": "flux",
            "model_flavour": "kontext",
            "pretrained_model_name_or_path": "tiny-random",
            "data_backend_config": "datasets.json",
            "output_dir": "output",
            "mixed_precision": "no",
            "aspect_bucket_alignment": 16,
            "max_train_steps": 2,
            "validation_steps": 0,
        }
        (tmp_path / "datasets.json").write_text(json.dumps(datasets))
        (tmp_path / "config.json").write_text(json.dumps(run))

    return write


def test_plugins_lists_what_an_installed_package_provides(environment, tmp_path):
    result = environment.difftrain("plugins", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    plugins = {plugin["name"]: plugin for plugin in json.loads(result.stdout)}
    edges = plugins["edges"]
    assert (edges["distribution"], edges["version"], edges["status"]) == ("difftrain-edges", "0.3.0", "ok")
    assert edges["provides"] == {"generator": ["edges", "lineart"]}


def test_plugins_lists_a_broken_package_with_the_cause(environment, tmp_path):
    result = environment.difftrain("plugins", "--json", cwd=tmp_path)
    canny = next(plugin for plugin in json.loads(result.stdout) if plugin["name"] == "canny")
    assert (canny["distribution"], canny["version"], canny["status"]) == ("difftrain-canny", "1.2.3", "failed")
    assert "a_module_that_nobody_has" in canny["error"]


def test_a_run_uses_a_strangers_generator_beside_a_broken_plugin(environment, tmp_path, write_run):
    write_run({"type": "edges", "style": "contour"})
    result = environment.difftrain("--config", "config.json", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "difftrain-edges 0.3.0" in result.stdout + result.stderr
    assert (tmp_path / "output" / "pytorch_lora_weights.safetensors").is_file()
    made = list((tmp_path / "cache" / "made" / "photos" / "edges").rglob("*.png"))
    assert len(made) == len(list(PHOTOS.glob("*.jpg")))


def test_a_run_that_names_a_broken_plugin_gets_one_error_with_version_and_cause(environment, tmp_path, write_run):
    write_run({"type": "canny"})
    result = environment.difftrain("--config", "config.json", cwd=tmp_path)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "unknown generator 'canny'" in result.stderr
    assert "difftrain-canny 1.2.3 failed to load (No module named 'a_module_that_nobody_has')" in result.stderr


def test_a_wrong_option_of_a_strangers_generator_is_one_error(environment, tmp_path, write_run):
    write_run({"type": "edges", "style": "dotted"})
    result = environment.difftrain("check", "--config", "config.json", cwd=tmp_path)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "style" in result.stderr


def test_a_switched_off_plugin_is_not_used(environment, tmp_path, write_run):
    write_run({"type": "edges"})
    result = environment.difftrain("check", "--config", "config.json", "--disable_plugin", "edges", cwd=tmp_path)
    assert result.returncode == 2
    assert "plugin 'edges' is turned off" in result.stderr


def test_the_examples_own_tests_pass(environment, tmp_path):
    result = environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests"), cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
