"""``difftrain plan``: memory, seconds and hours of a run on a table of cards. Writes nothing, loads no weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from difftrain.cli.invocation import Invocation

if TYPE_CHECKING:
    from difftrain.contracts import OptimizerFactory, Quantizer
    from difftrain.planning.forecast.cards import Card
    from difftrain.planning.forecast.choose import CardForecast
    from difftrain.planning.forecast.modes import Mode
    from difftrain.planning.model_plan import ModelPlan
    from difftrain.startup.batch_shape import LargestBatch
    from difftrain.training.outlined_run import OutlinedRun
    from difftrain.types import ModelWork

USUAL_CARD = "H100"
"""The card that is explained if none is asked for and this machine has none: the one that was measured."""
_MEASURED_KERNELS = {"auto": "cudnn", "cudnn": "cudnn", "flash-attn-4": "flash-attn-4"}
"""What is measured of each attention_mechanism; the others are about as fast as flash."""


def plan(invocation: Invocation) -> int:
    """Print what the run takes on each card, and the config lines for the asked one.

    Raises:
        DifftrainError: For anything that the user can fix.
    """
    from difftrain.cli.forecast_text import as_json, data_json, data_lines, print_table
    from difftrain.planning.forecast.cards import CARDS, find_card

    asked = find_card(invocation.card) if invocation.card is not None else None
    model, optimizer, shape = _described(invocation)
    # torch only now: every mistake in the config has been found by here, fast
    from difftrain.training.outlined_run import outline_run, own_card

    run = outline_run(model, optimizer, shape)
    own, unknown = own_card()
    if own is not None:
        own = replace(own, name=f"{own.name}, this machine")
    rows = _rows(model, shape, run, [*([own] if own else []), *CARDS])
    explained = asked or own or find_card(USUAL_CARD)
    row = next(row for row in rows if row.card.name == explained.name)
    notes = [note for note in (run.note, unknown) if note]
    if invocation.json:
        found = as_json(model, shape, run.work, rows, row, notes) | data_json(shape.data, run.lengths)
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print_table(model, shape, run.work, rows, row, notes, data_lines(shape.data, run.lengths))
    return 0


def _described(invocation: Invocation) -> tuple[ModelPlan, OptimizerFactory, LargestBatch]:
    """Return the model, the optimizer, and the largest batch of the data, or of the resolution without data."""
    from difftrain.output.console import make_reporter
    from difftrain.planning.model_plan import chosen_optimizer
    from difftrain.startup.batch_shape import data_is_described, shape_of_config, shape_of_run

    model = invocation.model_plan()
    if not data_is_described(model.config):
        return model, chosen_optimizer(model), shape_of_config(model.config, model.flavour)
    run = invocation.plan()
    return run, run.optimizer, shape_of_run(run, make_reporter(quiet=invocation.json))


def _rows(model: ModelPlan, shape: LargestBatch, run: OutlinedRun, cards: Sequence[Card]) -> list[CardForecast]:
    from difftrain.planning.combinations import clash_of_weights
    from difftrain.planning.forecast.choose import forecast_card
    from difftrain.planning.forecast.modes import modes_for
    from difftrain.startup.encoded_form import compute_dtype

    compute = compute_dtype(model.config)
    known = model.plugins.registry.classes("quantizer")
    quantizers = [one for one in known if clash_of_weights(model.adapter, one) is None]
    blocks = len(run.work.blocks)
    pays = _pays_to_compile(shape, blocks)
    return [
        forecast_card(
            run.work,
            modes_for(quantizers, card.capability, compute=compute, compiled=pays),
            _written(model, shape, run.work, card),
            run.trained,
            card,
            fills=model.config.gradient_checkpointing == "auto",
        )
        for card in cards
    ]


def _pays_to_compile(shape: LargestBatch, blocks: int) -> bool:
    """Return whether ``dynamo_backend: auto`` compiles the run, as far as it is known."""
    from difftrain.planning.forecast.modes import STEPS_WORTH_COMPILING

    return bool(blocks) and (shape.steps is None or shape.steps >= STEPS_WORTH_COMPILING * shape.shapes)


def _written(model: ModelPlan, shape: LargestBatch, work: ModelWork, card: Card) -> Mode | None:
    """Return the mode that the config asks for on a card."""
    from difftrain.planning.forecast.modes import mode_of
    from difftrain.startup.encoded_form import compute_dtype

    config, blocks = model.config, len(work.blocks)
    backend = config.dynamo_backend
    automatic = config.base_model_precision == "auto"
    return mode_of(
        _of_auto(model, work, card) if automatic else type(model.quantizer) if model.quantizer else None,
        compute=compute_dtype(config),
        compiled=backend != "no" and (backend != "auto" or _pays_to_compile(shape, blocks)),
        kept=blocks if config.gradient_checkpointing is False else 0,
        attention=_MEASURED_KERNELS.get(config.attention_mechanism, "flash"),
        recorded=config.cuda_graphs is not False,
        weight_bytes=model.quantizer.bytes_of_weight() if model.quantizer else None,
    )


def _of_auto(model: ModelPlan, work: ModelWork, card: Card) -> type[Quantizer] | None:
    """Return what ``base_model_precision: auto`` will be on a card that nothing else uses."""
    from difftrain.planning.auto_precision import AUTO_PRECISIONS, easy_share
    from difftrain.planning.forecast.memory import available
    from difftrain.startup.encoded_form import compute_dtype

    each = 2 if compute_dtype(model.config) == "bfloat16" else 4
    if each * work.linear_weights + work.other_bytes <= easy_share(model.config) * available(card):
        return None
    known: dict[str, type[Quantizer]] = model.plugins.registry.all("quantizer")
    usable = (known[name] for name in AUTO_PRECISIONS if name in known)
    return next((one for one in usable if card.capability >= one.needs_capability), None)
