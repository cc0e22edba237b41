"""The model is compiled for every batch shape before the first step, and the training does not notice."""

import os
import re
from types import SimpleNamespace

import pytest
import torch
from wiring import Trials

from conftest import EditPairs
from difftrain.data.streaming.coming_batches import ComingBatches
from difftrain.training import loop

SIZES = [(64, 64), (96, 48)]
SMALL_FAMILY = """
from difftrain import hookimpl
from difftrain.testing import TinyEditFlavour, TinyFamily


@hookimpl
def difftrain_model_families():
    return (TinyFamily,)


@hookimpl
def difftrain_model_flavours():
    return (TinyEditFlavour,)
"""
"""One block of one layer: a graph of it is compiled in a tenth of a second."""


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Train four steps on four pairs of two sizes, in batches of two, with dropout: two shapes."""
    folder = tmp_path_factory.mktemp("warm_up")
    pairs = EditPairs(folder)
    (folder / "small.py").write_text(SMALL_FAMILY)
    model = ("--plugins", "./small.py", "--model", "tiny-test", "--flavour", "edit", *pairs.fast)
    data = ("--data_backend_config", pairs(count=4, edit_sizes=SIZES), "--train_batch_size", 2)
    trials = Trials(folder, (*model, *data, "--max_train_steps", 4, "--lora_dropout", 0.5))

    def start(**options):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        seen = SimpleNamespace(before=None)
        with pytest.MonkeyPatch.context() as patch:
            take_step = loop.take_step

            def counted(*arguments):
                seen.before = graphs() if seen.before is None else seen.before
                seen.kept_in = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
                seen.told_apart_by = torch.compiler.config.cache_key_tag
                return take_step(*arguments)

            patch.setattr(loop, "take_step", counted)
            patch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
            seen.run = trials(dynamo_backend="aot_eager", output_dir=folder / f"run-{len(trials.done)}", **options)
        seen.after = graphs()
        return seen

    return start


def test_every_shape_is_compiled_before_the_first_step_and_nothing_else_changes(train, monkeypatch):
    warm = train()
    assert len({(fed.batch.latents.shape, fed.batch.references[0].shape) for fed in warm.run.fed}) == 2
    assert 0 < warm.before == warm.after
    named = re.findall(
        r"^compile (\d) of 2: ((?:2 x )?(\d+x\d+) \+ 1 reference \3)\b", warm.run.ended.err, re.MULTILINE
    )
    assert [number for number, _, _ in named] == ["1", "2"]
    assert len({name for _, name, _ in named}) == 2
    assert named[-1][1] == "2 x 64x64 + 1 reference 64x64"
    assert "compiling for 2 batch shapes took " in warm.run.ended.err
    assert warm.kept_in == str(warm.run.folder / "cache/compiled/torch")
    assert warm.told_apart_by.startswith("attention: ")
    monkeypatch.setattr(ComingBatches, "shapes", ())
    cold = train()
    assert cold.before < cold.after
    assert cold.run.keys == warm.run.keys
    assert [result.loss for result in cold.run.results] == [result.loss for result in warm.run.results]
    assert torch.equal(cold.run.weights[-1], warm.run.weights[-1])


def test_shapes_beyond_the_limit_are_compiled_when_they_come_and_named(train):
    few = train(compile_shapes_limit=1)
    assert few.before < few.after
    assert "batches come in 2 shapes, and compile_shapes_limit is 1: only" in few.run.ended.err
    assert few.run.ended.err.count("compile for batches of ") == 1
