"""Where compiled code is kept between runs, and what must not be used again."""

import os
from pathlib import Path

import pytest
import torch
import torch.compiler.config
from torch import nn
from torch._dynamo.utils import counters

from difftrain.machine.compile_cache import TORCH, TRITON, compiled_kept_in, folder_of_compiled
from difftrain.model.attention.choose_kernel import choose_attention
from difftrain.model.attention.own_kernels import route_models_to
from difftrain.model.tuned_blocks import TunedBlocks
from difftrain.training.fitting import warm_up
from difftrain.training.fitting.warm_up import Compiling, tell_graphs_apart


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for name in (TORCH, TRITON, "TORCH_COMPILE_CACHE_KEY_TAG"):
        monkeypatch.delenv(name, raising=False)
    counters.clear()
    with torch.compiler.config.patch(cache_key_tag=""):
        yield
    choose_attention("auto", torch.device("cpu"))


def test_what_is_compiled_stays_in_the_cache_of_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with compiled_kept_in(Path("cache")):
        assert os.environ[TORCH] == str(tmp_path / "cache/compiled/torch")
        assert os.environ[TRITON] == str(tmp_path / "cache/compiled/triton")
        assert list(tmp_path.iterdir()) == []  # nothing is created before it is needed
        assert folder_of_compiled() == tmp_path / "cache/compiled/torch"
        assert folder_of_compiled().is_dir()
    assert TORCH not in os.environ
    assert TRITON not in os.environ


def test_the_folder_that_torch_has_named_itself_is_no_choice_of_the_user(tmp_path, monkeypatch):
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    torchs = cache_dir()
    assert os.environ[TORCH] == torchs
    with compiled_kept_in(tmp_path):
        assert cache_dir() == str(tmp_path / "compiled/torch")
    assert os.environ[TORCH] == torchs


@pytest.mark.parametrize(("own", "kept"), [({TORCH: "/a"}, {}), ({TRITON: "/b"}, {TORCH})])
def test_a_folder_of_the_user_is_left_alone(tmp_path, monkeypatch, own, kept):
    for name, folder in own.items():
        monkeypatch.setenv(name, folder)
    with compiled_kept_in(tmp_path):
        now = {name: os.environ[name] for name in (TORCH, TRITON) if name in os.environ}
    assert {name: now[name] for name in own} == own
    assert set(now) - set(own) == set(kept)
    assert {name: os.environ.get(name) for name in own} == own


def test_torch_is_told_of_no_folder_that_not_even_root_can_write():
    # it creates the folder when it is imported, also by runs that compile nothing and only read a complete cache
    with compiled_kept_in(Path("/proc/cache")):
        assert TORCH not in os.environ
        assert TRITON not in os.environ


def test_a_cache_that_cannot_be_written_leaves_torch_its_own_folder(tmp_path):
    (tmp_path / "compiled").write_text("a file in its place")
    with compiled_kept_in(tmp_path):
        assert folder_of_compiled() is None
        assert TORCH not in os.environ
        assert TRITON not in os.environ
    assert folder_of_compiled() is None


def test_every_choice_of_attention_and_number_format_has_graphs_of_its_own(monkeypatch):
    tags = []

    def tag(dtype=torch.bfloat16):
        tell_graphs_apart(dtype)
        tags.append(torch.compiler.config.cache_key_tag)

    cpu = torch.device("cpu")
    for mechanism in ("auto", "flash", "math"):
        choose_attention(mechanism, cpu)
        tag()
    choose_attention("auto", cpu)
    route_models_to("cudnn")
    tag()
    route_models_to(None)
    torch.backends.cuda.enable_flash_sdp(False)  # as the kernel "efficient" is preferred
    tag()
    tag(torch.float32)
    monkeypatch.setenv("TORCH_COMPILE_CACHE_KEY_TAG", "mine")
    tag(torch.float32)
    assert len(set(tags)) == 7
    assert tags[-1] == f"mine {tags[-2]}"
    tell_graphs_apart(torch.float32)
    assert torch.compiler.config.cache_key_tag == tags[-1]


def compiled(found, made):
    counters["inductor"]["fxgraph_cache_hit"] += found
    counters["inductor"]["fxgraph_cache_miss"] += made


def test_a_run_says_how_long_compiling_took_and_what_it_found(tmp_path, monkeypatch):
    clock = iter([0.0, 130.0, 200.0, 212.0])
    monkeypatch.setattr(warm_up.time, "monotonic", lambda: next(clock))
    with compiled_kept_in(tmp_path):
        folder = tmp_path / "compiled/torch"
        first = Compiling.begin()
        compiled(found=1, made=19)  # two equal graphs
        (folder / "code").touch()
        assert first.summary(5) == f"compiling for 5 batch shapes took 2:10; the next run finds the code in {folder}"
        second = Compiling.begin()
        compiled(found=20, made=1)
        assert second.summary(1) == f"compiling for 1 batch shape took 0:12; 20 of 21 graphs were in {folder}"


def test_a_backend_without_a_cache_only_says_how_long_it_took(tmp_path):
    with compiled_kept_in(tmp_path):
        assert Compiling.begin().summary(2) == "compiling for 2 batch shapes took 0:00"


class Halting(nn.Module):
    def __init__(self, *, halts):
        super().__init__()
        self.halts = halts
        self.inner = nn.Linear(4, 4)

    def forward(self, hidden):
        if self.halts:
            torch._dynamo.graph_break()
        return self.inner(hidden)


@pytest.mark.parametrize("recompute", [False, True])
def test_code_that_torch_compile_leaves_out_is_told(recompute):
    hidden = torch.randn(2, 4, requires_grad=True)

    def left_out(*, halts):
        torch._dynamo.reset()
        block = Halting(halts=halts)
        TunedBlocks([block], backend="eager", recompute=recompute)
        compiling = Compiling.begin()
        block(hidden).sum().backward()
        return compiling.left_out()

    told = left_out(halts=True)
    assert told.startswith("torch.compile left out parts of the blocks, and steps are slower for it: ")
    assert "for it: User-inserted graph break" in told
    assert "\n" not in told
    assert left_out(halts=False) is None
