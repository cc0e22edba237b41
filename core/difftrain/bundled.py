"""The core's own objects, registered through the same hooks as a third party's; loaded by the entry point ``core``.

The modules imported here are light: they import torch only when it is used.
"""

from __future__ import annotations

from collections.abc import Iterable

from difftrain import contracts
from difftrain.data.files.captions import FilenameCaptions, InstancePrompt, TextfileCaptions
from difftrain.data.files.sources import LocalSource
from difftrain.data.tables.caption_tables import CsvCaptions, JsonLinesCaptions, ParquetCaptions
from difftrain.data.tables.csv_set import CsvSource
from difftrain.data.tables.huggingface import HuggingFaceCaptions, HuggingFaceSource
from difftrain.model.low_rank.lora import Lora
from difftrain.model.lycoris.adapter import Lycoris
from difftrain.model.precision.bitsandbytes import BitsAndBytesFp4, BitsAndBytesNf4
from difftrain.model.precision.eight_bit_matmul import Fp8Matmul, Int8Matmul
from difftrain.model.precision.quanto import QuantoFp8, QuantoFp8Uz, QuantoInt2, QuantoInt4, QuantoInt8
from difftrain.model.precision.torchao import TorchAoFp8, TorchAoInt8
from difftrain.model.whole_model.full import Full
from difftrain.output.metrics_file import MetricsFile
from difftrain.plugins.hookspecs import hookimpl
from difftrain.steps.losses import MeanSquaredError
from difftrain.steps.noise_levels import BetaSampler, SigmoidSampler, UniformSampler
from difftrain.steps.optimizers import AdamWBf16, OptimiLion
from difftrain.steps.schedules import Constant, ConstantWithWarmup, Cosine, Linear, Sine


@hookimpl
def difftrain_adapters() -> Iterable[type[contracts.Adapter]]:
    return Lora, Lycoris, Full


@hookimpl
def difftrain_optimizers() -> Iterable[type[contracts.OptimizerFactory]]:
    return (AdamWBf16, OptimiLion)


@hookimpl
def difftrain_schedules() -> Iterable[type[contracts.Schedule]]:
    return (Constant, ConstantWithWarmup, Linear, Cosine, Sine)


@hookimpl
def difftrain_quantizers() -> Iterable[type[contracts.Quantizer]]:
    return (
        QuantoInt8, QuantoFp8, QuantoFp8Uz, QuantoInt4, QuantoInt2, TorchAoInt8, TorchAoFp8, BitsAndBytesNf4,
        BitsAndBytesFp4, Fp8Matmul, Int8Matmul,
    )  # fmt: skip


@hookimpl
def difftrain_losses() -> Iterable[type[contracts.Loss]]:
    return (MeanSquaredError,)


@hookimpl
def difftrain_timestep_samplers() -> Iterable[type[contracts.TimestepSampler]]:
    return (SigmoidSampler, UniformSampler, BetaSampler)


@hookimpl
def difftrain_data_sources() -> Iterable[type[contracts.DataSource]]:
    return (LocalSource, HuggingFaceSource, CsvSource)


@hookimpl
def difftrain_caption_sources() -> Iterable[type[contracts.CaptionSource]]:
    return (
        TextfileCaptions, FilenameCaptions, InstancePrompt, HuggingFaceCaptions, ParquetCaptions, JsonLinesCaptions,
        CsvCaptions,
    )  # fmt: skip


@hookimpl
def difftrain_observers() -> Iterable[type[contracts.Observer]]:
    return (MetricsFile,)
