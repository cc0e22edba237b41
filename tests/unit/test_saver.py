"""What is saved when an error ends a run, in one process of several and with sharded weights."""

from types import SimpleNamespace

import pytest

from difftrain.checkpoints import saver as module
from difftrain.checkpoints.saver import Saver
from difftrain.errors import NotFinite


@pytest.fixture
def rescued(monkeypatch, tmp_path):
    """Let a process rescue step 3; return what it did."""

    def rescue(error, *, main, parts, proof=True, elsewhere=0):
        done = []
        monkeypatch.setattr(module, "holds_parts", lambda run: parts)
        monkeypatch.setattr(module, "not_finite_weights", lambda run: [])
        monkeypatch.setattr(module, "gather_state", lambda run: done.append("gather") or ("state" if main else None))
        monkeypatch.setattr(module, "write_checkpoint", lambda *arguments: done.append("write"))
        monkeypatch.setattr(module, "greatest", lambda accelerator, own: done.append("ask") or max(own, elsewhere))
        monkeypatch.setattr(Saver, "_weights_work", lambda self: proof)
        run = SimpleNamespace(
            step=0, updating=False, accelerator=SimpleNamespace(is_main_process=main),
            plan=SimpleNamespace(config=SimpleNamespace(output_dir=tmp_path, learning_rate=1.0)),
        )  # fmt: skip
        observers = SimpleNamespace(checkpoint_saved=lambda step, path: None)
        saver = Saver(run, observers, SimpleNamespace(saved=False), SimpleNamespace(say=done.append))
        run.step = 3
        saver.rescue(error)
        return done

    return rescue


def test_the_main_process_saves_without_asking_the_others(rescued, tmp_path):
    for error in (OSError(), NotFinite("")):
        assert rescued(error, main=True, parts=False) == ["gather", "write", f"saved {tmp_path / 'checkpoint-3'}"]


def test_another_process_saves_nothing(rescued):
    assert rescued(OSError(), main=False, parts=False) == []


def test_where_each_has_a_part_none_saves_alone(rescued):
    told = "step 3 is not saved: each process has only a part of the weights"
    assert rescued(OSError(), main=True, parts=True) == [told]
    assert rescued(OSError(), main=False, parts=True) == []


def test_what_is_not_finite_in_all_processes_is_saved_by_all_of_them(rescued, tmp_path):
    assert rescued(NotFinite(""), main=False, parts=True)[:2] == ["ask", "gather"]
    saved = ["ask", "gather", "write", f"saved {tmp_path / 'checkpoint-3'}"]
    assert rescued(NotFinite(""), main=True, parts=True) == saved


def test_weights_that_are_ruined_in_another_process_are_saved_by_none(rescued):
    done = rescued(NotFinite(""), main=True, parts=True, elsewhere=1)
    assert done[0] == "ask"
    assert "gather" not in done
