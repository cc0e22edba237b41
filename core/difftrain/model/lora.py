"""LoRA for a frozen model, through peft."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from difftrain.config.messages import nearest
from difftrain.contracts import Adapter, ModelFamily
from difftrain.errors import CheckpointError, ConfigError, first_few
from difftrain.model.single_files.safetensors_header import read_header
from difftrain.model.tensor_file import read_tensors, write_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
"""The file name that diffusers looks for in a folder."""
_DOWN = ".lora_A.weight"
_HEADER = "lora_adapter_metadata"
"""Entry of a file's header where diffusers looks for an adapter's settings."""


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
    """Also train the length of each row of the weights (DoRA). Not over quantised weights; slower. Loads in diffusers;
    ComfyUI leaves the lengths out."""
    lora_init_type: Literal["default", "gaussian"] = "default"
    """How A is drawn: evenly over a range, or from a normal distribution of deviation 1 / rank. B is 0. Others (pissa,
    olora, loftq) change the frozen weights, so that the file would not fit the published ones."""
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
        }

    @property
    def reads_weights(self) -> str | None:
        return "use_dora" if self.use_dora else None

    def first_effect(self) -> str:
        return "" if self.init_lora is None else f"init_lora {self.init_lora} {self.scale}"

    def check(self) -> Sequence[str]:
        if self.init_lora is None or self.init_lora.is_file() or (self.init_lora / ADAPTER_FILE).is_file():
            return ()
        if self.init_lora.is_dir():
            return [f"init_lora: the folder {self.init_lora} has no {ADAPTER_FILE}"]
        return [f"init_lora: {self.init_lora} does not exist"]

    def check_model(self, empty: Callable[[], nn.Module], family: ModelFamily) -> None:
        if self.init_lora is None and not self.peft_lora_target_modules:
            return
        denoiser = empty()
        targets = self._targets(denoiser, family)
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
            init_lora_weights=True if self.lora_init_type == "default" else self.lora_init_type,
        )
        inject_adapter_in_model(config, denoiser)
        for name, parameter in denoiser.named_parameters():
            trained = ".lora_" in name
            parameter.requires_grad_(trained)
            if trained:
                parameter.data = parameter.data.to(dtype)

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
        different = sorted(set(own) ^ set(state)) + [n for n in own if n in state and own[n].shape != state[n].shape]
        if different:
            raise CheckpointError(
                f"{len(different)} adapter weights of the checkpoint do not fit this run's adapter: "
                f"{first_few(different)}\nhint: resume with the rank and targets that the checkpoint was trained with"
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def write(self, weights: Mapping[str, Tensor], folder: Path, prefix: str) -> None:
        """Write one file, with alpha folded into B, so that programs that ignore alpha apply the right change.

        diffusers reads the adapter's settings from the header; without them it assumes alpha = rank, which
        is true for the folded tensors. The header holds nothing else: safetensors writes several entries in
        random order, and equal adapters should be equal files.
        """
        tensors = {}
        for name, tensor in weights.items():
            # float32, because alpha / rank may not be exact in the trained dtype: a bfloat16 B is off by up to 2e-3
            folded = tensor.float() * self.scale if ".lora_B." in name and self.scale != 1 else tensor
            tensors[f"{prefix}.{name}"] = folded
        targets = sorted({name.split(".lora_")[0] for name in weights})
        settings = {"r": self.lora_rank, "lora_alpha": self.lora_rank, "target_modules": targets, "bias": "none"}
        settings |= {"use_dora": True} if self.use_dora else {}
        header = json.dumps({f"{prefix}.{key}": value for key, value in settings.items()}, sort_keys=True)
        write_tensors(folder / ADAPTER_FILE, tensors, {_HEADER: header})

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
        # alpha is folded into the weights that read() gives
        options = {"lora_rank": ranks[0], "lora_alpha": None, "use_rslora": False, "lora_dropout": 0.0}
        options |= {"init_lora": None, "use_dora": any("lora_magnitude_vector" in name for name in tensors)}
        modules = [name.removeprefix(f"{prefix}.").removesuffix(_DOWN) for name in sorted(downs)]
        return options | ({"peft_lora_target_modules": modules} if alone else {})

    def read(self, path: Path, prefix: str) -> dict[str, Tensor]:
        """Return the weights of a file, or of the one in a folder; alpha stays folded into B, for a strength of 1."""
        file = path / ADAPTER_FILE if path.is_dir() else path
        tensors, header = read_tensors(file)
        strange = [name for name in tensors if not name.startswith(f"{prefix}.") or ".lora_" not in name]
        if strange or not tensors:
            raise CheckpointError(
                f"{file} is not a LoRA file of this model: {len(strange)} of its {len(tensors)} tensors are not named "
                f"{prefix}.MODULE.lora_A.weight or .lora_B.weight: {first_few(strange)}"
            )
        scale = _strength(header, prefix)
        named = {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items()}
        return {
            name: tensor.float() * scale if ".lora_B." in name and scale != 1 else tensor
            for name, tensor in named.items()
        }


def _advice_of_parts(more: Sequence[str], lacking: Sequence[str]) -> str:
    lengths = "lora_magnitude_vector"
    if any(lengths in name for name in more) and not lacking:
        return "the file is a DoRA; set use_dora to true"
    if all(lengths in name for name in lacking) and not more:
        return "the file is a LoRA without lengths of rows; set use_dora to false"
    return "choose its modules with the family's target option or peft_lora_target_modules"


def linears_named(denoiser: nn.Module, wanted: Sequence[str]) -> list[str]:
    """Return the linear modules whose full names are wanted, or end in a wanted name after a dot, in model order.

    Raises:
        ConfigError: With every name that fits none, and the nearest that does.
    """
    from torch import nn

    linears = [name for name, part in denoiser.named_modules() if isinstance(part, nn.Linear)]
    found = [name for name in linears if any(_fits(name, one) for one in wanted)]
    wrong = [one for one in wanted if not any(_fits(name, one) for name in linears)]
    ends = {name.split(".", count)[-1] for name in linears for count in range(name.count(".") + 1)}
    problems = []
    for one in wrong:
        guess = nearest(one, linears if one.count(".") > 2 else ends)
        meant = f"; did you mean {guess!r}?" if guess else f"; linear modules are, for example, {first_few(linears)}"
        problems.append(f"peft_lora_target_modules: {one!r} is no linear module of this model{meant}")
    if problems:
        raise ConfigError(*problems)
    return found


def _fits(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _strength(header: Mapping[str, str], prefix: str) -> float:
    """Return alpha / rank from the settings in a file's header; 1 if there are none, like diffusers."""
    try:
        settings = json.loads(header[_HEADER])
        return float(settings[f"{prefix}.lora_alpha"] / settings[f"{prefix}.r"])
    except (LookupError, TypeError, ValueError, ArithmeticError):
        return 1.0
