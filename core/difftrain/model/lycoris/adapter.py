"""``lora_type: lycoris``: adapters of the library lycoris-lora, as a user's ``lycoris_config`` file describes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from difftrain.contracts import Adapter, ModelFamily
from difftrain.errors import CheckpointError, ConfigError, first_few
from difftrain.model.low_rank.lora_file import ADAPTER_FILE
from difftrain.model.lycoris.choose_modules import Chosen, choose_modules
from difftrain.model.lycoris.fold_strength import folded, times
from difftrain.model.lycoris.lycoris_file import USUAL, LycorisFile, read_lycoris_file
from difftrain.model.precision.optional_package import lacking
from difftrain.model.same_weights import check_same_weights
from difftrain.model.single_files.safetensors_header import read_header
from difftrain.model.tensor_file import read_tensors, write_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

CONFIG_FILE = "lycoris_config.json"
"""Beside the weights: what was trained, as the user's file said it."""


class Lycoris(Adapter):
    """LoKr and its relatives: the change of each weight is a Kronecker product (lokr), a product of two low-rank
    matrices element by element (loha), low-rank (lora), or free (full).

    Source: Yeh et al., LyCORIS, arXiv:2309.14859, section 3.
    """

    name: ClassVar[str] = "lycoris"
    replayable: ClassVar[bool] = True
    takes_products: ClassVar[bool] = True

    lycoris_config: Path | None = None
    """For lora_type lycoris: a JSON file with algo (lokr, loha, lora, full), linear_dim, linear_alpha, factor, and
    apply_preset, which chooses modules by class and name. Without it: LoKr with whole factors and factor 16."""
    init_lokr_norm: float | None = Field(None, gt=0)
    """Begin LoKr as normal noise with this share of the spread of each layer's weights, instead of as nothing; 1e-4 to
    1e-2 is usual."""

    validation_lycoris_strength: float = 1.0
    """Draw validation images with the LyCORIS adapter at this strength."""

    @property
    def validation_strength(self) -> float:
        return self.validation_lycoris_strength

    @cached_property
    def file(self) -> LycorisFile:
        """What is asked for; read once, so that the run does not depend on later changes of the file."""
        return USUAL if self.lycoris_config is None else read_lycoris_file(self.lycoris_config)

    def check(self) -> Sequence[str]:
        try:
            asked = self.file
        except ConfigError as error:
            return error.problems
        changes = [asked.default, *asked.by_class.values(), *asked.by_name.values()]
        missing = lacking("lycoris-lora", (4, 1)) if any(change.algo != "full" for change in changes) else None
        return [f"lora_type {self.name!r} {missing}"] if missing else []

    def fixed(self) -> dict[str, object]:
        return {f"lycoris_config {key}": value for key, value in self.file.facts().items()}

    def first_effect(self) -> str:
        return "" if self.init_lokr_norm is None else f"init_lokr_norm {self.init_lokr_norm} {self.file.facts()}"

    def check_model(self, empty: Callable[[], nn.Module], family: ModelFamily) -> None:
        self.choose(empty(), family)

    def adapt(self, denoiser: nn.Module, family: ModelFamily, dtype: torch.dtype) -> Mapping[str, str]:
        chosen = self.choose(denoiser, family)
        self._adapt(denoiser, chosen, dtype)
        return {name: f"{how.kind} ({how.change.algo})" for name, how in chosen.items()}

    def choose(self, denoiser: nn.Module, family: ModelFamily) -> Mapping[str, Chosen]:
        """Return the layers to adapt: those of the file, or the family's usual ones.

        Raises:
            ConfigError: If the file names a class or a layer that the model does not have.
        """
        from difftrain.model.lycoris.adapted_linear import parts_of

        asked = self.file.with_classes(tuple(family.lycoris_classes))
        if not (asked.classes or asked.names):
            return {name: Chosen(asked.default, "target") for name in family.adapter_targets(denoiser)}
        where = f"lycoris_config {self.lycoris_config}" if self.lycoris_config else f"lora_type {self.name!r}"
        return choose_modules(parts_of(denoiser), asked, where=where, old_names=family.old_class_names)

    def attach(self, denoiser: nn.Module, targets: Sequence[str], dtype: torch.dtype) -> None:
        present = {name for name, _ in denoiser.named_modules()}
        missing = [name for name in targets if name not in present]
        if missing or not targets:
            raise ConfigError(
                f"{len(missing)} of {len(targets)} adapter targets are not modules of the model: {first_few(missing)}"
            )
        self._adapt(denoiser, {name: Chosen(self.file.default, "target") for name in targets}, dtype)

    def _adapt(self, denoiser: nn.Module, chosen: Mapping[str, Chosen], dtype: torch.dtype) -> None:
        from difftrain.model.lycoris.adapted_linear import adapt_layers

        adapt_layers(denoiser, chosen, dtype, multiplier=self.file.multiplier, norm=self.init_lokr_norm)

    @contextmanager
    def at_strength(self, denoiser: nn.Module, strength: float) -> Iterator[None]:
        from difftrain.model.lycoris.adapted_linear import adapted_layers

        layers = adapted_layers(denoiser).values()
        before = [layer.strength for layer in layers]
        try:
            for layer in layers:
                layer.strength = layer.usual_strength * strength
            yield
        finally:
            for layer, usual in zip(layers, before, strict=True):
                layer.strength = usual

    def state(self, denoiser: nn.Module) -> dict[str, Tensor]:
        """Return the weights, and the alphas that belong to them, under their names in a file."""
        from difftrain.model.lycoris.adapted_linear import adapted_layers, saved_name

        return {
            f"{saved_name(name)}.{key}": tensor
            for name, layer in adapted_layers(denoiser).items()
            for key, tensor in layer.saved().items()
        }

    def load_state(self, denoiser: nn.Module, state: Mapping[str, Tensor]) -> None:
        import torch

        own = self.state(denoiser)
        check_same_weights(
            own,
            state,
            "adapter weights of the checkpoint do not fit this run's adapter",
            hint="resume with the lycoris_config that the checkpoint was trained with",
        )
        alphas = {name: float(tensor) for name, tensor in own.items() if name.endswith(".alpha")}
        ratios = {name.partition(".")[0]: float(state[name]) / alpha for name, alpha in alphas.items()}
        with torch.no_grad():
            for name, tensor in times(state, ratios).items():
                own[name].copy_(tensor)  # an alpha is a copy already: the ratio has its effect

    def write(self, weights: Mapping[str, Tensor], folder: Path, prefix: str) -> None:
        """Write the library's own names, and the file that describes them; the names have no room for a prefix.

        Alpha and multiplier are folded in (see :func:`folded`).
        """
        write_tensors(folder / ADAPTER_FILE, folded(weights, self.file.multiplier))
        text = json.dumps(self.file.content, indent=1, ensure_ascii=False)
        (folder / CONFIG_FILE).write_text(f"{text}\n", encoding="utf-8")

    @classmethod
    def options_to_use(cls, path: Path, prefix: str, *, alone: bool) -> Mapping[str, object] | None:
        file = path / ADAPTER_FILE if path.is_dir() else path
        if not all(name.startswith("lycoris_") for name in read_header(file).tensors):
            return None
        described = file.parent / CONFIG_FILE
        if described.is_file():
            return {"lycoris_config": str(described), "init_lokr_norm": None}
        if alone:
            raise CheckpointError(
                f"{file} is a LyCORIS file, and {CONFIG_FILE}, which says how it was made, is not beside it\n"
                f"hint: copy it there, or name the run's folder with --adapter"
            )
        return {"init_lokr_norm": None}

    def read(self, path: Path, prefix: str) -> dict[str, Tensor]:
        file = path / ADAPTER_FILE if path.is_dir() else path
        tensors, _ = read_tensors(file)
        strange = [name for name in tensors if not name.startswith("lycoris_")]
        if strange or not tensors:
            raise CheckpointError(
                f"{file} is not a LyCORIS file: {len(strange)} of its {len(tensors)} tensors are not named "
                f"lycoris_LAYER.FACTOR: {first_few(strange)}"
            )
        layers = {name.partition(".")[0] for name in tensors}
        return times(tensors, dict.fromkeys(layers, 1 / self.file.multiplier))
