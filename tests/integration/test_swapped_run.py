"""A run whose blocks wait in the host's memory trains what any run trains."""

from types import SimpleNamespace

import pytest

import rounding_plugin
from conftest import read_metrics
from difftrain.errors import ConfigError
from difftrain.model.block_swapping import SwappedBlocks
from difftrain.training import assemble


def losses(command, edit_pairs, output, *arguments):
    given = dict(zip(edit_pairs.kontext[::2], edit_pairs.kontext[1::2], strict=True))
    given |= {
        "--data_backend_config": edit_pairs(), "--max_train_steps": 3, "--output_dir": output, "--validation_steps": 3,
        "--num_eval_images": 1, "--validation_num_inference_steps": 1, "--validation_resolution": 64,
    }  # fmt: skip
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    ended = command(*(part for pair in given.items() for part in pair))
    assert ended.status == 0, ended.err
    return [line["loss"] for line in read_metrics(output) if "loss" in line]


@pytest.mark.parametrize("more", [(), ("--gradient_checkpointing", "false"), ("--base_model_precision", "int8-matmul")])
def test_swapped_blocks_train_the_same(command, edit_pairs, monkeypatch, tmp_path, more):
    taken = []
    add = SwappedBlocks.add

    def watched(self, blocks, indices):
        taken.append(list(indices))
        add(self, blocks, taken[-1])

    monkeypatch.setattr(SwappedBlocks, "add", watched)
    resident = losses(command, edit_pairs, tmp_path / "resident", "--blocks_to_swap", 0, *more)
    assert [indices for indices in taken if indices] == []
    swapped = losses(command, edit_pairs, tmp_path / "swapped", "--blocks_to_swap", 2, *more)
    assert [len(indices) for indices in taken if indices] == [2]
    assert swapped == pytest.approx(resident)


def test_more_blocks_than_the_model_has_are_refused(command, edit_pairs):
    ended = command(
        *edit_pairs.kontext, "--data_backend_config", edit_pairs(), "--max_train_steps", 3, "--blocks_to_swap", 99
    )
    assert ended.status == 2
    assert "blocks_to_swap 99: the model has 4 blocks, and one must stay" in ended.err
    assert "hint: set blocks_to_swap to 3 or less" in ended.err


def test_weights_that_cannot_be_swapped_are_refused_before_anything_is_read(command, edit_pairs):
    ended = command(
        *edit_pairs.kontext, "--data_backend_config", edit_pairs(), "--max_train_steps", 3, "--blocks_to_swap", 1,
        "--base_model_precision", "own-8bit", "--plugins", rounding_plugin.__file__,
    )  # fmt: skip
    assert ended.status == 2
    said = "blocks_to_swap 1: weights of base_model_precision 'own-8bit' cannot wait in the host's memory"
    assert said in ended.err
    assert not edit_pairs.output.exists()


def test_several_processes_do_not_ignore_the_option(monkeypatch):
    plan = SimpleNamespace(config=SimpleNamespace(blocks_to_swap=3))
    monkeypatch.setattr(assemble, "trained_dtype", lambda plan: "float32")
    with pytest.raises(ConfigError, match="blocks_to_swap 3: blocks are not swapped in a run of several processes"):
        assemble.load_state(plan, None, SimpleNamespace(device=None, num_processes=2), None)
