"""What plugins provide, by kind and name."""

from __future__ import annotations

import random
from typing import ClassVar

import pytest
from PIL import Image

from difftrain import ConditioningGenerator, CropStyle, ModelFlavour, PluginError
from difftrain.plugins.registry import Registry, check_provided


class Mirror(ConditioningGenerator):
    name: ClassVar[str] = "mirror"
    aliases: ClassVar[tuple[str, ...]] = ("flip",)

    def generate(self, image: Image.Image, rng: random.Random) -> Image.Image:
        return image


class OtherFlip(Mirror):
    name: ClassVar[str] = "turn"


class Unfinished(ConditioningGenerator):
    name: ClassVar[str] = "unfinished"


class Nameless(Mirror):
    name: ClassVar[str] = ""


def flavour_of(family_name: str, flavour_name: str) -> type[ModelFlavour]:
    class Made(ModelFlavour):
        family: ClassVar[str] = family_name
        name: ClassVar[str] = flavour_name
        hub_id: ClassVar[str] = "nobody/nothing"

    return Made


@pytest.fixture
def registry():
    filled = Registry()
    filled.add("generator", Mirror, "difftrain-mirror 1.0")
    return filled


@pytest.mark.parametrize("name", ["mirror", "flip"])
def test_a_class_is_found_by_name_and_alias(registry, name):
    assert registry.find("generator", name) is Mirror


def test_a_name_that_two_give_is_an_error_naming_both(registry):
    with pytest.raises(PluginError, match=r"'flip' is given twice: by difftrain-mirror 1\.0 and by other 2\.0"):
        registry.add("generator", OtherFlip, "other 2.0")


class Centred(CropStyle):
    name: ClassVar[str] = "center"

    def focus(self, image: Image.Image) -> None:
        return None


def test_a_name_that_the_core_understands_is_not_for_plugins(registry):
    with pytest.raises(PluginError, match=r"crop style 'center' of other 2\.0 has a name of difftrain's own"):
        registry.add("crop style", Centred, "other 2.0")


def test_an_unknown_name_gets_the_nearest_and_all_names(registry):
    with pytest.raises(PluginError, match=r"unknown generator 'miror'; did you mean 'mirror'\? known: flip, mirror"):
        registry.find("generator", "miror")


def test_an_unknown_name_tells_of_plugins_that_did_not_load(registry):
    registry.absent.append("difftrain-canny 0.3.0 failed to load (No module named 'cv2')")
    with pytest.raises(PluginError, match=r"difftrain-canny 0\.3\.0 failed to load") as caught:
        registry.find("generator", "canny")
    assert str(caught.value).endswith("see `difftrain plugins`")


def test_flavours_are_unique_per_family_only():
    registry = Registry()
    for family in ("a", "b"):
        registry.add("flavour", flavour_of(family, "dev"), "somebody 1.0")
    assert registry.find("flavour", "dev", family="b").family == "b"
    with pytest.raises(PluginError, match="given twice"):
        registry.add("flavour", flavour_of("a", "dev"), "somebody else 1.0")


@pytest.mark.parametrize(
    ("provided", "said"),
    [
        (Mirror(), "must return subclasses of difftrain.ConditioningGenerator"),
        (int, "must return subclasses of difftrain.ConditioningGenerator"),
        (Unfinished, "Unfinished lacks members of ConditioningGenerator: generate"),
        (Nameless, "Nameless needs a class attribute 'name'"),
    ],
)
def test_what_does_not_keep_the_contract_is_refused(provided, said):
    with pytest.raises(PluginError, match=said):
        check_provided("generator", provided)
