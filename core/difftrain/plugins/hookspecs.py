"""The hooks: what a plugin may register.

All are called once at start-up, before any config is checked, and the results of all plugins are merged. The config
chooses by name, never by load order; two objects of one kind with one name raise :class:`PluginError` naming both
distributions. A hook returns classes, not instances: the core builds them from the user's config.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from difftrain import contracts
from difftrain.config.run_options import RunConfig

hookspec = pluggy.HookspecMarker("difftrain")
hookimpl = pluggy.HookimplMarker("difftrain")


@hookspec
def difftrain_model_families() -> Iterable[type[contracts.ModelFamily]]:  # type: ignore[empty-body]
    """Register architectures, named by ``model_family``.

    .. versionadded:: 0.1
    """


@hookspec
def difftrain_model_flavours() -> Iterable[type[contracts.ModelFlavour]]:  # type: ignore[empty-body]
    """Register checkpoints of an architecture, named by ``model_flavour``; unique per family.

    The family may come from another plugin; a flavour whose family is missing is listed but cannot be used.

    .. versionadded:: 0.1
    """


@hookspec
def difftrain_pairings() -> Iterable[type[contracts.Pairing]]:  # type: ignore[empty-body]
    """Register ways in which a reference follows its target image, named by ``conditioning_type``.

    .. versionadded:: 0.1
    """


@hookspec
def difftrain_conditioning_generators() -> Iterable[type[contracts.ConditioningGenerator]]:  # type: ignore[empty-body]
    """Register generators that make reference images from target images, named by ``conditioning.type``.

    Aliases count as names.

    .. versionadded:: 0.1
    """


@hookspec
def difftrain_data_sources() -> Iterable[type[contracts.DataSource]]:  # type: ignore[empty-body]
    """Register sources of images, named by a dataset's ``type``.

    .. versionadded:: 0.1
    """


@hookspec
def difftrain_caption_sources() -> Iterable[type[contracts.CaptionSource]]:  # type: ignore[empty-body]
    """Register sources of captions, named by ``caption_strategy``.

    .. versionadded:: 0.1
    """


@hookspec
def difftrain_crop_styles() -> Iterable[type[contracts.CropStyle]]:  # type: ignore[empty-body]
    """Register choices of what crops are centred on, named by ``crop_style``.

    .. versionadded:: 0.1
    """


@hookspec
def difftrain_adapters() -> Iterable[type[contracts.Adapter]]:  # type: ignore[empty-body]
    """Register trainable adapters, named by ``lora_type``.

    .. versionadded:: 0.1
    """


@hookspec
def difftrain_optimizers() -> Iterable[type[contracts.OptimizerFactory]]:  # type: ignore[empty-body]
    """Register optimizers, named by ``optimizer``.

    .. versionadded:: 0.1
    """


@hookspec
def difftrain_schedules() -> Iterable[type[contracts.Schedule]]:  # type: ignore[empty-body]
    """Register learning-rate schedules, named by ``lr_scheduler``.

    .. versionadded:: 0.1
    """


@hookspec
def difftrain_quantizers() -> Iterable[type[contracts.Quantizer]]:  # type: ignore[empty-body]
    """Register ways to store frozen weights in fewer bits, named by ``base_model_precision``.

    .. versionadded:: 0.1
    """


@hookspec
def difftrain_losses() -> Iterable[type[contracts.Loss]]:  # type: ignore[empty-body]
    """Register losses, named by ``loss_type``.

    .. versionadded:: 0.1
    """


@hookspec
def difftrain_timestep_samplers() -> Iterable[type[contracts.TimestepSampler]]:  # type: ignore[empty-body]
    """Register distributions of noise levels, named by ``timestep_sampler``.

    .. versionadded:: 0.1
    """


@hookspec
def difftrain_observers() -> Iterable[type[contracts.Observer]]:  # type: ignore[empty-body]
    """Register observers; every run has all of them.

    .. versionadded:: 0.1
    """


@hookspec
def difftrain_check_config(config: RunConfig) -> Iterable[str]:  # type: ignore[empty-body]
    """Report problems of a validated run config, before any file is read.

    All plugins' problems are collected and raised together with the core's.

    Args:
        config: All options, including those of plugins: ``getattr(config, "my_option")``.

    .. versionadded:: 0.1
    """
