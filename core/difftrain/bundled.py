"""The core's own objects, registered through the same hooks as a stranger's; found by the entry point ``core``.

Modules named here are light: what they need of torch they import when used.
"""

from __future__ import annotations

from collections.abc import Iterable

from difftrain import contracts
from difftrain.data.captions import FilenameCaptions, InstancePrompt, TextfileCaptions
from difftrain.data.sources import LocalSource
from difftrain.model.adapter import Lora
from difftrain.model.precision import QuantoInt8
from difftrain.plugins.hookspecs import hookimpl
from difftrain.train.loss import MeanSquaredError
from difftrain.train.metrics import MetricsFile
from difftrain.train.noise import BetaSampler, SigmoidSampler, UniformSampler
from difftrain.train.optim import AdamWBf16, OptimiLion
from difftrain.train.schedule import Constant, ConstantWithWarmup, Cosine, Linear, Sine


@hookimpl
def difftrain_adapters() -> Iterable[type[contracts.Adapter]]:
    return (Lora,)


@hookimpl
def difftrain_optimizers() -> Iterable[type[contracts.OptimizerFactory]]:
    return (AdamWBf16, OptimiLion)


@hookimpl
def difftrain_schedules() -> Iterable[type[contracts.Schedule]]:
    return (Constant, ConstantWithWarmup, Linear, Cosine, Sine)


@hookimpl
def difftrain_quantizers() -> Iterable[type[contracts.Quantizer]]:
    return (QuantoInt8,)


@hookimpl
def difftrain_losses() -> Iterable[type[contracts.Loss]]:
    return (MeanSquaredError,)


@hookimpl
def difftrain_timestep_samplers() -> Iterable[type[contracts.TimestepSampler]]:
    return (SigmoidSampler, UniformSampler, BetaSampler)


@hookimpl
def difftrain_data_sources() -> Iterable[type[contracts.DataSource]]:
    return (LocalSource,)


@hookimpl
def difftrain_caption_sources() -> Iterable[type[contracts.CaptionSource]]:
    return (TextfileCaptions, FilenameCaptions, InstancePrompt)


@hookimpl
def difftrain_observers() -> Iterable[type[contracts.Observer]]:
    return (MetricsFile,)
