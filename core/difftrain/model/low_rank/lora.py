"""LoRA for a frozen model, through peft."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from difftrain.contracts import Adapter, ModelFamily
from difftrain.errors import CheckpointError, ConfigError, first_few
from difftrain.model.low_rank.chosen_modules import linears_named
from difftrain.model.low_rank.init_names import Init
from difftrain.model.low_rank.lora_file import ADAPTER_FILE, read_lora, write_lora
from difftrain.model.same_weights import check_same_weights
from difftrain.model.single_files.safetensors_header import read_header

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_DOWN = ".lora_A.weight"
_PLAIN: Mapping[str, object] = {
    "lora_alpha": None, "use_rslora": False, "lora_dropout": 0.0, "init_lora": None, "lora_init_type": "default",
}  # fmt: skip
"""Options of a file that is used: alpha is folded into the weights that read() gives."""


class Lora(Adapter):
    """Low-rank adapter: each target weight W becomes ``W + alpha / rank * B @ A``; with DoRA its rows then get trained
    lengths.

    Source: Hu et al., LoRA, arXiv:2106.09685, section 4.1; Liu et al., DoRA, arXiv:2402.09353, section 4.
    """

    name: ClassVar[str] = "standard"
    replayable: ClassVar[bool] = True
    takes_products: ClassVar[bool] = True  # peft passes keywords on

    lora_rank: int = Field(16, ge=1)
    """Inner size of the adapter; a larger one learns more and takes more memory."""
    lora_alpha: float | None = Field(None, gt=0)
    """Strength is alpha / rank; default: equal to the rank."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs that are zeroed in training."""

    use_rslora: bool = False
    """Strength is alpha / sqrt(rank), so that it does not fall with the rank (rank-stabilised LoRA)."""
    use_dora: bool = False
    """Also train the length of each row of the weights (DoRA). Slower; works over quantised weights too. Loads in
    diffusers; ComfyUI leaves the lengths out."""
    lora_init_type: Init = "default"
    """How A is drawn: evenly over a range, or from a normal distribution of deviation 1 / rank; B is 0. pissa and olora
    begin with a part of each weight, that of its largest singular values or of its first columns, and subtract it: the
    weights stay as they are, and the file has twice the rank. pissa_niter_4 finds it faster, in 4 rounds."""
    init_lora: Path | None = None
    """Begin with the LoRA in this file or folder, of the same rank and modules; it may have the names of diffusers,
    kohya, ai-toolkit, ComfyUI, BFL, peft or LyCORIS."""
    peft_lora_target_modules: tuple[str, ...] = ()
    """Adapt these linear modules instead of the family's: full names, or their ends, such as to_q or attn.to_out.0."""

    @property
    def scale(self) -> float:
        """Factor on ``B @ A``.

        Source of ``use_rslora``: Kalajdzievski, rsLoRA, arXiv:2312.03732, section 3.
        """
        alpha = self.lora_rank if self.lora_alpha is None else self.lora_alpha
        return alpha / (math.sqrt(self.lora_rank) if self.use_rslora else self.lora_rank)

    def fixed(self) -> dict[str, object]:
        alpha = self.lora_rank if self.lora_alpha is None else self.lora_alpha
        return {
            "lora_rank": self.lora_rank,
            "lora_alpha": float(alpha),
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
            "peft_lora_target_modules": list(self.peft_lora_target_modules),
            "lora_init_type": self.lora_init_type.partition("_")[0] if self.started else None,
        }

    @property
    def started(self) -> bool:
        """Whether the adapter begins as a part of the weights, see ``started.py``."""
        return self.lora_init_type not in ("default", "gaussian")

    @property
    def beginning(self) -> str:
        return f"{self.lora_init_type}: find the part of each weight to begin with" if self.started else ""

    @property
    def file_note(self) -> str:
        if not self.started:
            return ""
        return (
            f"{self.lora_init_type} of rank {self.lora_rank}, less where it began: a LoRA of rank {2 * self.lora_rank} "
            "for the unchanged base model"
        )

    @property
    def reads_weights(self) -> str | None:
        return "use_dora" if self.use_dora else None

    def first_effect(self) -> str:
        return "" if self.init_lora is None else f"init_lora {self.init_lora} {self.scale}"

    def check(self) -> Sequence[str]:
        return [*self._clashes_of_start(), *self._lacking_file()] or ()

    def _clashes_of_start(self) -> Iterator[str]:
        if not self.started:
            return
        begins, other = (
            f"lora_init_type {self.lora_init_type} begins with a part of each weight",
            "lora_init_type default",
        )
        if self.init_lora is not None:
            yield f"{begins}, and init_lora with a file; remove init_lora, or set {other}"
        if self.use_dora:
            yield f"{begins}, which use_dora cannot subtract; set use_dora to false, or {other}"
        if self.lora_dropout:
            yield f"{begins}, and lora_dropout would drop some of it; set lora_dropout to 0, or {other}"

    def _lacking_file(self) -> Sequence[str]:
        if self.init_lora is None or self.init_lora.is_file() or (self.init_lora / ADAPTER_FILE).is_file():
            return ()
        if self.init_lora.is_dir():
            return [f"init_lora: the folder {self.init_lora} has no {ADAPTER_FILE}"]
        return [f"init_lora: {self.init_lora} does not exist"]

    def check_model(self, empty: Callable[[], nn.Module], family: ModelFamily) -> None:
        if self.init_lora is None and not self.peft_lora_target_modules and not self.started:
            return
        denoiser = empty()
        targets = self._targets(denoiser, family)
        if self.started:
            from difftrain.model.low_rank.started import check_rank

            check_rank(denoiser, targets, self.lora_init_type, self.lora_rank)
        if self.init_lora is not None:
            self._first_weights(self.init_lora, targets, denoiser, family)

    def adapt(self, denoiser: nn.Module, family: ModelFamily, dtype: torch.dtype) -> Mapping[str, str]:
        targets = self._targets(denoiser, family)
        first = None if self.init_lora is None else self._first_weights(self.init_lora, targets, denoiser, family)
        self.attach(denoiser, targets, dtype)
        if first is not None:
            from difftrain.model.adapter_files.first_lora import filled_up

            self.load_state(denoiser, filled_up(first, self.state(denoiser)))
        return dict.fromkeys(targets, "")

    def _targets(self, denoiser: nn.Module, family: ModelFamily) -> Sequence[str]:
        if not self.peft_lora_target_modules:
            return family.adapter_targets(denoiser)
        return linears_named(denoiser, self.peft_lora_target_modules)

    def _first_weights(
        self, path: Path, targets: Sequence[str], denoiser: nn.Module, family: ModelFamily
    ) -> dict[str, Tensor]:
        """Return the weights of ``init_lora``, for this adapter's strength.

        Raises:
            ConfigError: If they are of another rank, for other modules, or for a model of another size.
        """
        from difftrain.model.adapter_files.first_lora import check_sizes, first_lora

        file = path / ADAPTER_FILE if path.is_dir() else path
        modules = dict(denoiser.named_modules())
        weights = first_lora(file, family, [name for name in modules if name])
        parts = ("A", "B", *(["magnitude_vector"] if self.use_dora else []))
        own = {f"{target}.lora_{part}.weight" for target in targets for part in parts}
        lacking, more = sorted(own - set(weights)), sorted(set(weights) - own)
        if lacking or more:
            raise ConfigError(
                f"init_lora {path}: its weights are not those that this run trains: {len(more)} are only in the "
                f"file, {len(lacking)} only in the run: {first_few([*more, *lacking])}\n"
                f"hint: {_advice_of_parts(more, lacking)}"
            )
        rank = max(tensor.shape[0] for name, tensor in weights.items() if ".lora_A." in name)
        if rank != self.lora_rank:
            raise ConfigError(
                f"init_lora {path} has rank {rank}, and lora_rank is {self.lora_rank}\nhint: set lora_rank to {rank}"
            )
        check_sizes(path, weights, modules)
        return {name: part.float() / self.scale if ".lora_B." in name else part for name, part in weights.items()}

    def attach(self, denoiser: nn.Module, targets: Sequence[str], dtype: torch.dtype) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        present = {name for name, _ in denoiser.named_modules()}
        missing = [name for name in targets if name not in present]
        if missing or not targets:
            raise ConfigError(
                f"{len(missing)} of {len(targets)} adapter targets are not modules of the model: {first_few(missing)}"
            )
        config = LoraConfig(
            r=self.lora_rank,
            lora_alpha=self.scale * self.lora_rank,
            lora_dropout=self.lora_dropout,
            use_dora=self.use_dora,
            target_modules=list(targets),
            init_lora_weights="gaussian" if self.lora_init_type == "gaussian" else True,
        )
        inject_adapter_in_model(config, denoiser)
        for name, parameter in denoiser.named_parameters():
            trained = ".lora_" in name
            parameter.requires_grad_(trained)
            if trained:
                parameter.data = parameter.data.to(dtype)
        if self.started:
            from difftrain.model.low_rank.started import add_started

            add_started(denoiser, targets, self.lora_init_type, self.lora_rank, dtype)

    def begin(self, denoiser: nn.Module, targets: Sequence[str]) -> Iterator[str]:
        if self.started:
            from difftrain.model.low_rank.started import begin_started

            yield from begin_started(denoiser, targets, self.lora_init_type, self.lora_rank)

    @contextmanager
    def at_strength(self, denoiser: nn.Module, strength: float) -> Iterator[None]:
        from peft.tuners.lora import LoraLayer

        layers = [module for module in denoiser.modules() if isinstance(module, LoraLayer)]
        before = [dict(layer.scaling) for layer in layers]
        try:
            for layer, scaling in zip(layers, before, strict=True):
                if strength == 0:
                    layer.enable_adapters(False)  # without rounding, and without the work
                else:
                    layer.scaling.update({name: scale * strength for name, scale in scaling.items()})
            yield
        finally:
            for layer, scaling in zip(layers, before, strict=True):
                layer.scaling.update(scaling)
                if strength == 0:
                    layer.enable_adapters(True)

    def state(self, denoiser: nn.Module) -> dict[str, Tensor]:
        return {
            name.replace(".default.", "."): parameter.detach()
            for name, parameter in denoiser.named_parameters()
            if ".lora_" in name
        }

    def load_state(self, denoiser: nn.Module, state: Mapping[str, Tensor]) -> None:
        import torch

        own = self.state(denoiser)
        check_same_weights(
            own,
            state,
            "adapter weights of the checkpoint do not fit this run's adapter",
            hint="resume with the rank and targets that the checkpoint was trained with",
        )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def write(self, weights: Mapping[str, Tensor], folder: Path, prefix: str) -> None:
        from difftrain.model.low_rank.started import plain

        held = plain(weights) if self.started else weights
        rank = 2 * self.lora_rank if self.started else self.lora_rank
        write_lora(held, folder / ADAPTER_FILE, prefix, rank=rank, strength=self.scale, with_lengths=self.use_dora)

    @classmethod
    def options_to_use(cls, path: Path, prefix: str, *, alone: bool) -> Mapping[str, object] | None:
        file = path / ADAPTER_FILE if path.is_dir() else path
        tensors = read_header(file).tensors
        downs = {name: tensor for name, tensor in tensors.items() if name.endswith(_DOWN)}
        if not downs or not all(name.startswith(f"{prefix}.") for name in downs):
            return None
        ranks = sorted({tensor.shape[0] for tensor in downs.values()})
        if len(ranks) > 1:
            raise CheckpointError(
                f"{file} has matrices of ranks {', '.join(map(str, ranks))}; only adapters of one rank can be used"
            )
        with_lengths = any("lora_magnitude_vector" in name for name in tensors)
        options = {**_PLAIN, "lora_rank": ranks[0], "use_dora": with_lengths}
        modules = [name.removeprefix(f"{prefix}.").removesuffix(_DOWN) for name in sorted(downs)]
        return options | ({"peft_lora_target_modules": modules} if alone else {})

    def read(self, path: Path, prefix: str) -> dict[str, Tensor]:
        """Return the weights of a file, or of the one in a folder; alpha stays folded into B, for a strength of 1."""
        return read_lora(path / ADAPTER_FILE if path.is_dir() else path, prefix)


def _advice_of_parts(more: Sequence[str], lacking: Sequence[str]) -> str:
    lengths = "lora_magnitude_vector"
    if any(lengths in name for name in more) and not lacking:
        return "the file is a DoRA; set use_dora to true"
    if all(lengths in name for name in lacking) and not more:
        return "the file is a LoRA without lengths of rows; set use_dora to false"
    return "choose its modules with the family's target option or peft_lora_target_modules"
