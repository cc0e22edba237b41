"""Watches which attention shapes a forward uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from difftrain.types import AttentionShape

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def watched_attention() -> Iterator[set[AttentionShape]]:
    """Collect the shapes with which ``scaled_dot_product_attention`` is called inside the context."""
    from torch.nn.functional import scaled_dot_product_attention
    from torch.overrides import TorchFunctionMode

    seen: set[AttentionShape] = set()

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, called: Callable[..., Any], types: Any, arguments: Any = (), named: Any = None
        ) -> Any:
            if called is scaled_dot_product_attention:
                seen.add(_shape(*arguments, **(named or {})))
            return called(*arguments, **(named or {}))

    with Watch():
        yield seen


def _shape(query: Tensor, key: Tensor, *others: Tensor | None, **named: Any) -> AttentionShape:
    """Return the shape for tensors [B, heads, tokens, features]; without heads there is one."""
    mask = others[1] if len(others) > 1 else named.get("attn_mask")
    return AttentionShape(
        batch=query.shape[0],
        heads=query.shape[1] if query.ndim > 3 else 1,
        queries=query.shape[-2],
        keys=key.shape[-2],
        head_dim=query.shape[-1],
        masked=mask is not None,
    )
