"""``model_type: full``: all weights of the denoiser are trained."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from difftrain.contracts import Adapter, ModelFamily
from difftrain.errors import CheckpointError, ModelError
from difftrain.model.same_weights import check_same_weights
from difftrain.model.shards import read_weights
from difftrain.model.whole_model.write_model import CONFIG_FILE, write_model_config, write_shards

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Full(Adapter):
    """Every weight of the denoiser: linear layers, biases, norms. What is saved is the whole denoiser."""

    name: ClassVar[str] = "full"
    trains_base: ClassVar[bool] = True

    def adapt(self, denoiser: nn.Module, family: ModelFamily, dtype: torch.dtype) -> Mapping[str, str]:
        """Train all; weights that the family keeps in float32 stay so."""
        import torch

        kept = family.keep_in_float32()
        for name, parameter in denoiser.named_parameters():
            names = (name, name.rpartition(".")[0])
            in_float32 = any(fnmatch.fnmatch(one, pattern) for one in names for pattern in kept)
            _train(parameter, torch.float32 if in_float32 else dtype)
        owners = (name.rpartition(".")[0] for name, _ in denoiser.named_parameters())
        return dict.fromkeys(owners, "")

    def attach(self, denoiser: nn.Module, targets: Sequence[str], dtype: torch.dtype) -> None:
        for parameter in denoiser.parameters():
            _train(parameter, dtype)

    def state(self, denoiser: nn.Module) -> dict[str, Tensor]:
        """Return all weights, also tables that the model stores and does not train: a file of it needs them."""
        return {name: tensor.detach() for name, tensor in denoiser.state_dict().items()}

    def load_state(self, denoiser: nn.Module, state: Mapping[str, Tensor]) -> None:
        import torch

        own = self.state(denoiser)
        check_same_weights(
            own,
            state,
            "weights of the checkpoint are not those of this run's model",
            hint="resume with the model that the checkpoint was trained from",
        )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])

    def write(self, weights: Mapping[str, Tensor], folder: Path, prefix: str) -> None:
        """Write a folder as diffusers saves a model: files of at most 5 GB, and an index if there are several."""
        (folder / prefix).mkdir(exist_ok=True)
        write_shards(weights.items(), folder / prefix)

    def write_config(self, denoiser: nn.Module, folder: Path, prefix: str) -> None:
        write_model_config(denoiser, folder / prefix)

    @classmethod
    def options_to_use(cls, path: Path, prefix: str, *, alone: bool) -> Mapping[str, object] | None:
        return {} if (path / prefix / CONFIG_FILE).is_file() else None

    def read(self, path: Path, prefix: str) -> dict[str, Tensor]:
        """Return all weights; each maps its part of the files, so that reading a name and a shape costs no memory.

        Args:
            path: A run's or checkpoint's folder, or the folder of the model in it.
        """
        try:
            return dict(read_weights(path / prefix if (path / prefix).is_dir() else path))
        except ModelError as error:
            raise CheckpointError(str(error)) from error


def _train(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    if parameter.is_floating_point():
        parameter.data = parameter.data.to(dtype)
        parameter.requires_grad_(True)
