"""Every kind of quantised layer with every adapter, compiled or not, recomputed or not, fused or not, swapped or not:
each of these runs trains as it does without, or is refused in the config with the nearest that works.

Issue 10, clause 1. What an option does by itself is tested elsewhere, and `docs/precision.md` shows what goes together.
"""

from __future__ import annotations

import inspect
import itertools
import json
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from difftrain.config.problems import Problems
from difftrain.errors import ConfigError
from difftrain.machine.processes import start_accelerator
from difftrain.model import tuned_blocks
from difftrain.model.fused.fused_layers import FusedLinear
from difftrain.planning.model_plan import Chooser, plan_model
from difftrain.plugins.discovery import load_plugins
from difftrain.steps.step import loss_at
from difftrain.training.assemble import load_state
from difftrain.training.fitting.fit_to_device import fit_to_device
from difftrain.types import Batch

HERE = Path(__file__).parent
PLUGINS = load_plugins(files=[str(HERE / "combination_plugin.py"), str(HERE.parent / "rounding_plugin.py")])
QUANTIZERS = PLUGINS.registry.all("quantizer")
ADAPTERS = PLUGINS.registry.all("adapter")
ALGOS = ("lokr", "loha", "full")
"""Of `lora_type` lycoris, each a row of its own."""
ROWS = [*(name for name in ADAPTERS if name != "lycoris"), "standard dora", *(f"lycoris {algo}" for algo in ALGOS)]
SWITCHES = {
    "dynamo_backend": ("no", "aot_eager"),
    "gradient_checkpointing": ("false", "true"),
    "fuse_qkv_projections": ("false", "true"),
    "blocks_to_swap": ("0", "1"),
}
CELLS = [dict(zip(SWITCHES, values, strict=True)) for values in itertools.product(*SWITCHES.values())]
PLAIN = CELLS[0]
LIKENESS = {1.0: 0.995, 0.5: 0.9, 0.25: 0.5}
"""Least cosine with the exact gradients, by about how many bytes a weight has; random weights round worse than real
ones."""
OTHER_ORDER = {"full": 1e-4, "fp8": 0.05, "int8": 0.02}
"""Largest relative difference from the same precision without the options, by the format of its products: fused
layers round their gradients together."""


TWINS = {
    "int8-torchao": "int8-quanto", "fp8-torchao": "fp8-quanto", "fp8uz-quanto": "fp8-quanto",
    "int2-quanto": "int4-quanto", "fp4-bnb": "nf4-bnb",
}  # fmt: skip
"""Precisions whose layers are those of another, with other numbers: they are tried with one adapter."""


def rows_of(precision):
    return ("standard", "full") if precision in TWINS else ROWS


ZERO_AT_FIRST = (".lora_B.default.weight", ".lokr_w2", ".hada_w2_a")
"""Trained weights without which the others get no gradient."""


@dataclass(frozen=True)
class Trained:
    """One step of a run."""

    loss: float
    gradient: torch.Tensor
    compiled: bool
    products: int
    """Fused ones."""
    swapped: int


@pytest.fixture(autouse=True, scope="module")
def _traced_only():
    """Compile with the backend that only traces: the others are tested with each option by itself."""
    with pytest.MonkeyPatch.context() as patch:
        compiled = tuned_blocks._compiled
        patch.setattr(tuned_blocks, "_compiled", lambda kind, _: compiled(kind, "eager"))
        yield


@pytest.fixture(autouse=True, scope="module")
def _lycoris_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lycoris")
    for algo in ALGOS:
        values = {"algo": algo, "linear_dim": 10000 if algo == "lokr" else 4, "factor": 8}
        (folder / f"{algo}.json").write_text(json.dumps(values | {"apply_preset": {"target_module": ["Gated"]}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def planned(precision, adapter, cell):
    adapter, _, algo = adapter.partition(" ")
    flags = {
        "model_family": "blocks", "mixed_precision": "no", "lora_rank": 4, "base_model_precision": precision,
        "lora_type": adapter, "attention_mechanism": "math", **cell,
    }  # fmt: skip
    if adapter == "full":
        flags |= {"model_type": "full", "lora_type": "standard"}
    used = {key: str(value) for key, value in flags.items() if key != "lora_rank" or adapter == "standard"}
    if adapter == "lycoris" and algo:
        used["lycoris_config"] = f"{algo}.json"
    elif algo:
        used["use_dora"] = "true"
    return plan_model(None, used, plugins=PLUGINS)


@cache
def trained(precision, adapter, *cell):
    """Assemble and fit a run as a training does, and take one forward and backward."""
    model = planned(precision, adapter, dict(cell))
    chosen = Chooser(config=model.config, registry=PLUGINS.registry, problems=Problems())
    plan = SimpleNamespace(
        **{field.name: getattr(model, field.name) for field in fields(model)},
        optimizer=chosen.named("optimizer", model.config.optimizer),
        loss=chosen.named("loss", model.config.loss_type),
    )
    reporter = quiet()
    state = load_state(plan, plan.family.locate(None, plan.flavour), start_accelerator(), reporter)
    draws = torch.Generator().manual_seed(0)
    latents, words, noise = (torch.randn(*shape, generator=draws) for shape in ((1, 3, 8, 8), (1, 8), (1, 3, 8, 8)))
    batch = Batch(latents=latents, references=[], text={"words": words}, keys=("0",))
    only = SimpleNamespace(name="only", times=10)
    fit_to_device(state, SimpleNamespace(shapes=[only], read=lambda _: batch), reporter)
    state.denoiser.train()
    for name, weight in state.named_trained:
        if name.endswith(ZERO_AT_FIRST):
            weight.data.copy_(torch.randn(weight.shape, generator=draws) / 20)
    loss = loss_at(state, state.denoiser, batch, torch.full((1,), 0.5), noise).sum()
    loss.backward()
    return Trained(
        loss=float(loss.detach()),
        gradient=torch.cat([weight.grad.flatten() for weight in state.trained]),
        compiled=state.compiled,
        products=sum(isinstance(part, FusedLinear) for part in state.bare_denoiser.modules()),
        swapped=len(state.swapped.indices) if state.swapped else 0,
    )


def quiet():
    from contextlib import nullcontext

    return SimpleNamespace(
        say=lambda text: None, phase=lambda *_, **__: nullcontext(SimpleNamespace(advance=lambda **_: None))
    )


def refusals(precision, adapter, cell):
    """Return the problems that the config has; none if it can be planned."""
    try:
        planned(precision, adapter, cell)
    except ConfigError as error:
        return error.problems
    return ()


@pytest.mark.parametrize(
    ("precision", "adapter"),
    [(precision, row) for precision in ("no_change", *QUANTIZERS) for row in ROWS if row in rows_of(precision)],
)
def test_every_combination_trains_the_same_or_is_refused_with_the_nearest_that_works(precision, adapter):
    lacking = refusals(precision, adapter, PLAIN)
    if adapter == "standard dora" and precision.startswith("own-"):
        assert any(
            text.startswith("use_dora: ") and "set base_model_precision to no_change" in text for text in lacking
        )
        return
    if adapter == "full" and precision != "no_change":
        assert any(f"base_model_precision {precision!r}: model_type 'full' trains" in text for text in lacking)
        return
    if lacking:  # its package is missing, and the text says how to get it
        assert [text for text in lacking if precision not in text] == []
        pytest.skip(lacking[0])
    exact, plain = trained("no_change", adapter, *PLAIN.items()), trained(precision, adapter, *PLAIN.items())
    quantizer = QUANTIZERS.get(precision)
    assert torch.cosine_similarity(plain.gradient, exact.gradient, dim=0) > least_likeness(quantizer)
    assert (plain.loss != exact.loss) == (precision != "no_change")
    for cell in CELLS:
        if problems := refusals(precision, adapter, cell):
            check_refused(problems, precision, adapter, cell)
            continue
        run = trained(precision, adapter, *cell.items())
        assert run.compiled == (cell["dynamo_backend"] != "no"), cell
        assert bool(run.products) == (cell["fuse_qkv_projections"] == "true"), cell
        assert run.swapped == int(cell["blocks_to_swap"]), cell
        assert run.loss == pytest.approx(plain.loss, rel=1e-3), cell
        limit = OTHER_ORDER[quantizer.products if quantizer else "full"]
        assert (run.gradient - plain.gradient).norm() < limit * plain.gradient.norm(), cell


def least_likeness(quantizer):
    if quantizer is None:
        return 1 - 1e-5
    return next(least for size, least in LIKENESS.items() if quantizer.weight_bytes >= size)


def check_refused(problems, precision, adapter, cell):
    """Check that each problem names both values, and that what it recommends is not refused for the same key."""
    for text in problems:
        key = text.partition(":")[0].split()[0]
        assert cell[key] != PLAIN[key], text
        assert cell[key] == "true" or cell[key] in text.partition(":")[0], text
        assert repr(precision) in text or repr(adapter) in text, text
        assert f"set {key} to " in text, text
        named = [name for name in ("no_change", *QUANTIZERS) if f" {name}" in text and repr(name) not in text]
        others = [name for name in ADAPTERS if f" {name}" in text and repr(name) not in text]
        others += ["standard"] if 'model_type to "lora"' in text else []
        assert named or others, text
        for name in named:
            assert not [said for said in refusals(name, "standard", {**PLAIN, key: cell[key]}) if said.startswith(key)]
        for name in others:
            assert not refusals("no_change", name, {**PLAIN, key: cell[key]})


@pytest.mark.parametrize(
    ("precision", "nearest"),
    [
        ("own-8bit", f"those of {', '.join(name for name in QUANTIZERS if name[0] in 'fi' and '8' in name)} "),
        ("own-4bit", "those of int4-quanto, nf4-bnb, fp4-bnb "),
    ],
)
def test_the_nearest_precisions_need_about_as_much_memory(precision, nearest):
    for change in ({"dynamo_backend": "aot_eager"}, {"blocks_to_swap": 1}, {"fuse_qkv_projections": "true"}):
        (text,) = refusals(precision, "standard", {**PLAIN, **change})
        assert nearest in text


@pytest.mark.parametrize(("precision", "twin"), TWINS.items())
def test_twins_have_the_same_layers(precision, twin):
    first, second = (QUANTIZERS[name]() for name in (precision, twin))
    if missing := first.check() or second.check():
        pytest.skip(missing)
    kinds = [type(one.convert("layer", torch.nn.Linear(64, 32), torch.device("cpu"))) for one in (first, second)]
    for method in ("forward", "whole", "dequantize"):
        assert len({inspect.getattr_static(kind, method) for kind in kinds}) == 1, method
