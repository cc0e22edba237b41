"""Loading plugins: each independently, and the switches that turn one off."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from difftrain import PluginError, hookimpl
from difftrain.plugins import discovery
from difftrain.plugins.discovery import load_plugins

GENERATOR = """
import random
from typing import ClassVar
from PIL import Image
from difftrain import ConditioningGenerator, hookimpl

class Mirror(ConditioningGenerator):
    '''Left and right swapped.'''
    name: ClassVar[str] = "mirror"
    strength: int = 1
    '''How much.'''

    def generate(self, image: Image.Image, rng: random.Random) -> Image.Image:
        return image

@hookimpl
def difftrain_conditioning_generators():
    return (Mirror,)
"""


@dataclass
class Point:
    """An installed entry point."""

    name: str
    plugin: object
    distribution: str = "difftrain-stranger"
    version: str = "0.3.0"
    dist: Any = field(init=False)

    def __post_init__(self):
        self.dist = SimpleNamespace(metadata={"Name": self.distribution}, version=self.version)

    def load(self):
        if isinstance(self.plugin, BaseException):
            raise self.plugin
        return self.plugin


@pytest.fixture
def installed(monkeypatch):
    """Set the installed entry points, in addition to the core's own."""

    def install(*points: Point) -> None:
        core = next(point for point in discovery.entry_points(group="difftrain") if point.name == "core")
        monkeypatch.setattr(discovery, "entry_points", lambda group: [core, *points])

    return install


@pytest.fixture
def mirror_file(tmp_path):
    file = tmp_path / "my_generator.py"
    file.write_text(GENERATOR)
    return file


def statuses(plugins):
    return {status.name: status.status for status in plugins.statuses}


def test_a_broken_stranger_does_not_touch_the_others(installed):
    installed(Point("canny", ModuleNotFoundError("No module named 'cv2'")))
    plugins = load_plugins()
    assert statuses(plugins) == {"core": "ok", "canny": "failed"}
    assert plugins.registry.find("loss", "mse").name == "mse"


def test_a_stranger_that_exits_is_broken_like_any_other(installed):
    installed(Point("quits", SystemExit(3)))
    plugins = load_plugins()
    assert statuses(plugins) == {"core": "ok", "quits": "failed"}
    assert plugins.statuses[1].error == "it ends the program (3)"


def test_a_broken_stranger_is_named_when_something_is_missing(installed):
    installed(Point("canny", ModuleNotFoundError("No module named 'cv2'")))
    with pytest.raises(PluginError, match=r"difftrain-stranger 0\.3\.0 failed to load \(No module named 'cv2'\)"):
        load_plugins().registry.find("generator", "canny")


def test_a_broken_bundled_plugin_is_an_error(installed):
    installed(Point("blur", ValueError("oh"), distribution="difftrain"))
    with pytest.raises(PluginError, match="bundled plugin 'blur' is broken: ValueError: oh"):
        load_plugins()


def test_a_hook_that_does_not_exist_fails_its_plugin_only(installed):
    class Typo:
        @hookimpl
        def difftrain_conditioning_generatorz(self): ...

    installed(Point("typo", Typo()))
    plugins = load_plugins()
    assert statuses(plugins) == {"core": "ok", "typo": "failed"}
    assert "difftrain_conditioning_generatorz" in plugins.statuses[1].error


def test_a_failed_plugin_is_not_asked_about_the_config(installed):
    asked = []

    class Fails:
        @hookimpl
        def difftrain_losses(self):
            raise RuntimeError("no")

        @hookimpl
        def difftrain_check_config(self, config):
            asked.append(config)

    installed(Point("fails", Fails()))
    assert list(load_plugins().check_config(None)) == []
    assert asked == []


def test_what_is_not_of_the_contract_fails_its_plugin_only(installed):
    class Wrong:
        @hookimpl
        def difftrain_losses(self):
            return [int]

    installed(Point("wrong", Wrong()))
    assert "must return subclasses of difftrain.Loss" in load_plugins().statuses[1].error


def test_a_file_is_a_plugin_with_options_and_help(mirror_file):
    plugins = load_plugins(files=[mirror_file])
    mirror = plugins.registry.find("generator", "mirror")
    assert mirror.model_fields["strength"].description == "How much."
    assert plugins.versions()[str(mirror_file)] == f"file {mirror_file}"


def test_a_broken_file_is_an_error(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("import a_module_that_nobody_has")
    with pytest.raises(PluginError, match=r"plugin file .*broken\.py' is broken: ModuleNotFoundError"):
        load_plugins(files=[file])


def test_a_missing_file_is_an_error():
    with pytest.raises(PluginError, match=r"plugin file nowhere\.py does not exist"):
        load_plugins(files=["nowhere.py"])


def test_the_variable_loads_only_what_it_names_and_the_core(monkeypatch):
    monkeypatch.setenv("DIFFTRAIN_PLUGINS", "flux, jpeg_artifacts")
    loaded = {name for name, status in statuses(load_plugins()).items() if status == "ok"}
    assert loaded == {"core", "flux", "jpeg_artifacts"}


def test_files_are_loaded_beside_what_the_variable_names(monkeypatch, mirror_file):
    monkeypatch.setenv("DIFFTRAIN_PLUGINS", "flux")
    assert "mirror" in load_plugins(files=[mirror_file]).registry.all("generator")


def test_a_disabled_plugin_is_named_when_something_is_missing():
    plugins = load_plugins(disabled=["flux_kontext"])
    with pytest.raises(PluginError, match=r"plugin 'flux_kontext' is turned off \(disable_plugin\)"):
        plugins.registry.find("flavour", "kontext", family="flux")


def test_disabling_what_is_not_installed_gets_the_nearest_name():
    with pytest.raises(PluginError, match="no plugin 'flux_contxt' is installed; did you mean 'flux_kontext'"):
        load_plugins(disabled=["flux_contxt"])


def test_the_core_cannot_be_turned_off():
    with pytest.raises(PluginError, match="'core' cannot be turned off"):
        load_plugins(disabled=["core"])
