"""A frozen linear layer with a trained change of its weight, and how it is put into a model."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from difftrain.errors import ConfigError
from difftrain.model.fused.fused_layers import FusedLinear
from difftrain.model.lycoris.choose_modules import Chosen, Part
from difftrain.model.lycoris.lycoris_file import Change

PREFIX = "lycoris"
"""Of the names in a file."""


class AdaptedLinear(nn.Module):
    """The layer's output plus that of its change, for the same input.

    The layer is only called, so its weights may be of any form, and the change is never made as a whole matrix where
    its factors can be multiplied one after the other: LoKr then costs a sixth more than the layer alone, and not three
    times as much (docs/adr/011-lycoris-beside-the-layer.md).
    """

    def __init__(self, base: nn.Linear, change: Any, *, strength: float) -> None:
        super().__init__()
        self.base_layer = base
        self.change = change
        self._changed = _changed_by_product if hasattr(change, "hada_w1_a") else _changed
        self.alpha: float | None = change.scale * change.lora_dim if hasattr(change, "lora_dim") else None
        """As a file says it beside the factors. A number, because buffers of the model may be away from the device."""
        change._buffers.pop("alpha", None)
        self.usual_strength = strength
        self.strength = strength
        """0 leaves the change out, exactly."""

    def saved(self) -> dict[str, Tensor]:
        """Return the tensors of the change under the library's names."""
        found = {name: weight.detach() for name, weight in self.change.named_parameters()}
        return found if self.alpha is None else {"alpha": torch.tensor(self.alpha), **found}

    def forward(self, input: Tensor, **named: Any) -> Tensor:
        """Return the output, [..., out_features].

        Args:
            named: For the layer: its product, where layers are fused.
        """
        output: Tensor = self.base_layer(input, **named)
        if self.strength == 0:
            return output
        return output + self._changed(self.change, input, self.strength).to(output.dtype)


def _changed(change: Any, input: Tensor, strength: float) -> Tensor:
    """Return the output of a change."""
    output: Tensor = change.bypass_forward_diff(input, scale=strength)
    return output


def _changed_by_product(change: Any, input: Tensor, strength: float) -> Tensor:
    """Return the output of a LoHa change. The library's method copies a number from the host in each forward, which a
    recorded step must not."""
    parts = (change.hada_w1_a, change.hada_w1_b, change.hada_w2_a, change.hada_w2_b)
    first_up, first_down, second_up, second_down = (part.to(input.dtype) for part in parts)
    weight = (first_up @ first_down) * (second_up @ second_down) * (change.scale * strength)
    output: Tensor = change.drop(nn.functional.linear(input, weight))
    return output


class FullChange(nn.Module):
    """A change of every weight and bias by itself, in the names of the library's algo full.

    The library's own module takes the layer's weight away and keeps a copy of it on the host; this one stands beside
    the layer, which may then be quantised.
    """

    def __init__(self, base: nn.Linear, device: torch.device, dropout: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.diff = nn.Parameter(torch.zeros(base.out_features, base.in_features, device=device))
        self.diff_b = None if base.bias is None else nn.Parameter(torch.zeros(base.out_features, device=device))

    def bypass_forward_diff(self, input: Tensor, scale: float) -> Tensor:
        bias = None if self.diff_b is None else self.diff_b.to(input.dtype) * scale
        output: Tensor = self.drop(nn.functional.linear(input, self.diff.to(input.dtype) * scale, bias))
        return output


def parts_of(denoiser: nn.Module) -> list[Part]:
    """Return a model's modules as users know them: a quantised layer is linear too, and a fused one is not theirs."""
    parts: list[Part] = []
    fused: list[str] = []
    for name, module in denoiser.named_modules():
        if isinstance(module, FusedLinear):
            fused.append(f"{name}.")
        elif not name.startswith(tuple(fused)) or not fused:
            linear = isinstance(module, nn.Linear)
            parts.append(Part(name, "Linear" if linear else type(module).__name__, linear))
    return parts


def adapt_layers(
    denoiser: nn.Module, chosen: Mapping[str, Chosen], dtype: torch.dtype, *, multiplier: float, norm: float | None
) -> None:
    """Wrap the chosen layers; their changes have trainable weights of ``dtype``, and everything else is frozen.

    Args:
        norm: As ``init_lokr_norm``.

    Raises:
        ConfigError: If ``norm`` is given, and a layer's change has no whole factor to draw.
    """
    denoiser.requires_grad_(False)
    for name, how in chosen.items():
        base = denoiser.get_submodule(name)
        assert isinstance(base, nn.Linear), "only linear layers are chosen"
        change = _new_change(saved_name(name), base, how.change)
        if norm is not None:
            _draw_near(base, change, norm, name)
        device = base.weight.device
        for weight in change.parameters():
            weight.data = weight.data.to(device, dtype)
        for key, value in change.named_buffers():
            change.get_submodule(key.rpartition(".")[0])._buffers[key.rpartition(".")[2]] = value.to(device)
        adapted = AdaptedLinear(base, change.requires_grad_(True), strength=multiplier)
        denoiser.set_submodule(name, adapted.train(base.training))


def adapted_layers(denoiser: nn.Module) -> dict[str, AdaptedLinear]:
    """Return the wrapped layers by their full names."""
    return {name: part for name, part in denoiser.named_modules() if isinstance(part, AdaptedLinear)}


def saved_name(name: str) -> str:
    """Return the name of a layer in a file: ``lycoris_blocks_0_to_q``."""
    return f"{PREFIX}_{name}".replace(".", "_")


def _new_change(name: str, base: nn.Linear, asked: Change) -> nn.Module:
    device = base.weight.device
    if asked.algo == "full":
        return FullChange(base, device, asked.dropout)
    # drawn on the CPU, so that equal seeds give equal weights on every device; the meta device has no numbers to draw
    with torch.device("meta" if device.type == "meta" else "cpu"):
        # the library's modules look at a layer's shape alone, unless they change its norm
        like = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
        change: nn.Module = _library_modules()[asked.algo](
            name,
            like,
            1.0,
            asked.dim,
            asked.alpha,
            0.0,  # given below, since the library prints a warning that is only true where it merges weights
            bypass_mode=True,
            **asked.model_dump(include={"factor", "decompose_both", "full_matrix", "unbalanced_factorization"}),
            rs_lora=asked.rs_lora,
        )
    if asked.dropout:
        # the low-rank module has its own name for it
        setattr(change, "dropout" if hasattr(change, "lora_up") else "drop", nn.Dropout(asked.dropout))
    return change


def _library_modules() -> dict[str, Any]:
    # or it chooses kernels of its own, or compiles single products, where no block is compiled; users may ask for them
    os.environ.setdefault("LYCORIS_KERNEL_BACKEND", "torch")
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    # after the import, which sets it; its messages would stand in the output of --json
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    return {"lokr": LokrModule, "loha": LohaModule, "lora": LoConModule, "locon": LoConModule}


def _draw_near(base: nn.Linear, change: nn.Module, norm: float, name: str) -> None:
    """Let a LoKr change begin as small noise with the spread of the layer's weights, instead of as nothing.

    Of the layer only the outputs are used: its weights may be codes.
    """
    first, second = getattr(change, "lokr_w1", None), getattr(change, "lokr_w2", None)
    if not isinstance(first, nn.Parameter) or not isinstance(second, nn.Parameter):
        raise ConfigError(
            f"init_lokr_norm: {name} gets no whole LoKr factors to draw; use it with algo lokr, and with full_matrix "
            "true or a large linear_dim for every layer"
        )
    if base.weight.device.type == "meta":
        return
    with torch.no_grad():
        unit = torch.eye(base.in_features, device=base.weight.device)
        columns = base(unit) - base(torch.zeros_like(unit[:1]))
        mean, spread = columns.float().mean().item(), columns.float().std().item()
        first.fill_(1.0)
        second.normal_(mean * norm, spread * norm)
