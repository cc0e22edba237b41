"""optimum-quanto's linear layer, in the number format that autocast asks for."""

from __future__ import annotations

import torch
from optimum.quanto import QLinear
from torch import Tensor


class QuantoLinear(QLinear):  # type: ignore[misc, unused-ignore]
    """Takes inputs of any floating point type under autocast, as torch's own layer does.

    quanto's weights get the call before autocast does, and its kernels for 4 bits and 8-bit floats refuse float32, in
    which a layer norm under autocast gives its result.
    """

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        if torch.is_autocast_enabled(kind):
            input = input.to(torch.get_autocast_dtype(kind))
        output: Tensor = super().forward(input)
        return output
