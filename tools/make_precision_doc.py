"""Write docs/precision.md: which precisions there are, and what goes together: ``python tools/make_precision_doc.py``.

Everything in that file comes from the classes of the quantizers and from the checks of the config, so never edit it by
hand; a test fails while it is out of date.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path

from difftrain.config.known_keys import NO_PRECISIONS
from difftrain.contracts import Quantizer
from difftrain.planning.combinations import (
    can_compile,
    can_fuse,
    can_swap,
    clashes_of_adapter,
    clashes_of_precision,
    nearest,
)
from difftrain.planning.model_plan import plan_model
from difftrain.plugins.discovery import LoadedPlugins, load_plugins

TARGET = Path(__file__).parent.parent / "docs" / "precision.md"
WEIGHTS = 12e9
"""Of FLUX.1."""
ASKED = {
    "compiled": ("dynamo_backend", "inductor"),
    "fused": ("fuse_qkv_projections", "true"),
    "swapped": ("blocks_to_swap", "10"),
}
INTRODUCTION = """\
# Precisions, and what goes together

Written by `tools/make_precision_doc.py` from the classes and the checks of the config; do not edit it by hand.

`base_model_precision` is the number format of the frozen weights of the denoiser, `text_encoder_1_precision` and the
like those of the text encoders. The adapter itself is trained in the format of `mixed_precision` and the optimizer."""
COMBINATIONS = """\
## What goes together

- compiled: `dynamo_backend` inductor or aot_eager. With auto, what cannot be compiled is not.
- recomputed: `gradient_checkpointing` true, false or auto.
- fused: `fuse_qkv_projections`.
- swapped: `blocks_to_swap`. With auto, what cannot be swapped is not."""
TRIED = """\
Every row holds for all of its columns at once: `tests/unit/test_combinations.py` trains a step of each combination,
and compares its gradients with those of the same precision without the options, and with the exact ones. Of precisions
whose layers are the same (int8-quanto and int8-torchao, the 8-bit floats without fp8-matmul, int4- and int2-quanto,
nf4- and fp4-bnb) one is tried with every adapter, the others with LoRA. What does not go together is an error before
anything is read, which names the nearest that does."""


def precision_document(plugins: LoadedPlugins) -> str:
    """Return the whole text of docs/precision.md."""
    known = plugins.registry.all("quantizer")
    parts = [INTRODUCTION, _table(_FORMAT_HEAD, map(_format_row, known.values())), COMBINATIONS]
    parts += [_table(_PAIR_HEAD, _pair_rows(plugins)), _adapters(plugins), TRIED]
    missing = [f"- `{name}`: {why}" for name, why in NO_PRECISIONS.items()]
    return "\n\n".join([*parts, "## What cannot be built", "\n".join(missing)]) + "\n"


_FORMAT_HEAD = ("precision", "12 G weights", "products in", "card", "what it is")


def _format_row(found: type[Quantizer]) -> Sequence[str]:
    size = f"{found.weight_bytes * WEIGHTS / 2**30:.1f} GiB" if found.weight_bytes else "?"
    products = "the activations' format" if found.products == "full" else found.products
    needed = "any" if found.needs_capability == (0, 0) else f"from {'.'.join(map(str, found.needs_capability))}"
    about = " ".join(inspect.cleandoc(found.__doc__ or "").partition("\n\n")[0].split())
    return f"`{found.name}`", size, products, needed, about


_PAIR_HEAD = ("precision", "compiled", "recomputed", "any adapter", "fused", "swapped", "the nearest that can")


def _pair_rows(plugins: LoadedPlugins) -> Iterator[Sequence[str]]:
    known = plugins.registry.all("quantizer")
    yield ("`no_change`", *["yes"] * 5, "")
    for name, found in known.items():
        can = {what: "no" if clashes(plugins, name, *option) else "yes" for what, option in ASKED.items()}
        near = {", ".join(nearest(found, known, able)) for able in (can_compile, can_swap, can_fuse) if not able(found)}
        # neither recomputing nor adapters look at the weights
        yield f"`{name}`", can["compiled"], "yes", "yes", can["fused"], can["swapped"], "; ".join(sorted(near))


def clashes(plugins: LoadedPlugins, name: str, key: str, value: str) -> list[str]:
    """Return why a precision does not go together with an option; empty if it does."""
    config = plan_model(None, {"model_family": "flux", key: value}, plugins=plugins).config
    known = plugins.registry.all("quantizer")
    return clashes_of_precision(config, config.build(known[name]), known)


def _adapters(plugins: LoadedPlugins) -> str:
    known = plugins.registry.all("adapter")
    config = plan_model(None, {"model_family": "flux", "fuse_qkv_projections": "true"}, plugins=plugins).config
    fused = [name for name, found in known.items() if not clashes_of_adapter(config, config.build(found), known)]
    fusing = ", ".join(f"`{name}`" for name in fused)
    return (
        f"Adapters that go together with fused layers: {fusing}; a plugin's, if it declares\n"
        "`takes_products` ([plugins.md](plugins.md)). `lycoris` is LoKr, LoHa, LoRA and full changes by "
        "`lycoris_config`;\nLoKr, LoHa and full are rows of the test. A full change stands "
        "beside the quantised\nweight, in the format of the adapter. `use_dora` reads the weights, which all of these "
        "formats give back, anew\nin each step. `model_type: full` trains the weights: it is refused with all but "
        "`no_change`, and with "
        "fused and swapped ones."
    )


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


if __name__ == "__main__":
    TARGET.write_text(precision_document(load_plugins(only=["difftrain"])), encoding="utf-8")
    print(f"wrote {TARGET}")
