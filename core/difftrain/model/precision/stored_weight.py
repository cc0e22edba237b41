"""What an adapter that looks at frozen weights asks a quantised layer for."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor


class StoredWeight:
    """A layer whose ``weight`` holds codes. peft's DoRA calls :meth:`dequantize` of layers that have ``W_q``."""

    weight: Tensor

    @property
    def W_q(self) -> Tensor:
        """The codes."""
        return self.weight

    @abstractmethod
    def dequantize(self) -> Tensor:
        """Return the weight that the codes stand for, float32 [out_features, in_features]."""
