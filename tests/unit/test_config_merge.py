"""Options of plugins in one flat namespace with the core's."""

from __future__ import annotations

from typing import ClassVar, Literal

import pytest
from pydantic import Field

from difftrain import Loss, Options, PluginError
from difftrain.config.schema import RunConfig, merge_options


class First(Options):
    strength: int = Field(3, ge=1)
    """Strength."""


class Same(Options):
    strength: int = Field(3, ge=1)


class Other(Options):
    strength: float = 3.0


class Needs(Options):
    strength: int = Field(ge=1)
    folder: str


class TakesCoreKey(Options):
    seed: int = Field(42, ge=0, lt=2**63)


class RedefinesCoreKey(Options):
    seed: str = "x"


def merged(*classes):
    return merge_options(RunConfig, classes)


def test_a_plugins_option_is_a_key_with_type_default_and_help():
    field = merged(First).model_fields["strength"]
    assert (field.annotation, field.default, field.description) == (int, 3, "Strength.")


def test_a_plugins_limits_hold():
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        merged(First)(model_family="m", max_train_steps=1, strength=0)


def test_two_classes_may_define_one_option_alike():
    assert "strength" in merged(First, Same).model_fields


def test_two_different_definitions_of_one_option_name_both():
    with pytest.raises(PluginError, match="option 'strength' has two definitions") as caught:
        merged(First, Other)
    assert "test_config_merge.First" in str(caught.value)
    assert "test_config_merge.Other" in str(caught.value)


def test_a_plugin_may_read_a_core_option_but_not_redefine_it():
    assert merged(TakesCoreKey).model_fields["seed"].default == 42
    with pytest.raises(PluginError, match="option 'seed'"):
        merged(RedefinesCoreKey)


def test_a_required_option_is_required_only_of_those_who_choose_its_class():
    config = merged(Needs)(model_family="m", max_train_steps=1)
    with pytest.raises(ValueError, match="folder"):
        config.build(Needs)


@pytest.mark.parametrize("order", [(First, Needs), (Needs, First)])
def test_an_option_that_one_class_requires_keeps_the_others_default(order):
    assert merged(*order).model_fields["strength"].default == 3


def test_build_gives_the_class_the_keys_that_were_set():
    config = merged(First)(model_family="m", max_train_steps=1, strength=5)
    assert config.build(First) == First(strength=5)


def test_equal_options_have_equal_identity():
    class Compared(Loss):
        name: ClassVar[str] = "compared"
        weight: float = 1.0
        kind: Literal["a", "b"] = "a"

        def compute(self, prediction, noisy, batch): ...

    assert Compared(weight=2).identity() == Compared(kind="a", weight=2.0).identity()
