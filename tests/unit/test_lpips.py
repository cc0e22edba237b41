"""LPIPS is measured where the package and its network are there, and nothing is downloaded for it."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from PIL import Image

from difftrain.editing import lpips_distance
from difftrain.editing.measure_edits import described, measure


class Distance(torch.nn.Module):
    """Stands for the library's network, which cannot be had here: the mean difference."""

    def __init__(self, net, verbose):
        super().__init__()
        assert net == "alex"

    def forward(self, ours, theirs):
        assert ours.shape == theirs.shape == (1, 3, 64, 96)
        assert ours.min() >= -1
        assert theirs.max() <= 1
        return (ours - theirs).abs().mean().view(1, 1, 1, 1)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Install a library of this name; return the folder where torch keeps weights."""
    for name in ("lpips", "torchvision"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.LPIPS = Distance
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    lpips_distance._measure.cache_clear()
    yield folder
    lpips_distance._measure.cache_clear()


def grey(value, size=(96, 64)):
    return Image.new("RGB", size, (value, value, value))


def test_with_the_network_it_is_measured_at_the_size_of_the_comparison(hub):
    (hub / "alexnet-owt-7be5be79.pth").touch()
    assert lpips_distance.without_lpips() is None
    found = measure(grey(0), grey(255, (48, 32)))
    assert found["lpips"] == 2
    assert measure(grey(9), grey(9))["lpips"] == 0
    assert described(found).endswith(", LPIPS 2.000")
    assert "lpips" not in measure(grey(0, (48, 32)), grey(0, (48, 32)))  # too small for the network


def test_without_the_network_it_says_how_to_get_it_and_gets_nothing(hub):
    assert "lpips" not in measure(grey(0), grey(255))
    assert str(hub / "alexnet-owt-7be5be79.pth") in lpips_distance.without_lpips()
    assert not list(hub.iterdir())


def test_without_the_package_nothing_is_said(monkeypatch, hub):
    (hub / "alexnet-owt-7be5be79.pth").touch()
    monkeypatch.setattr(lpips_distance, "find_spec", lambda name: None)
    assert lpips_distance.without_lpips() is None
    assert "lpips" not in measure(grey(0), grey(255))


def test_torch_looks_in_the_same_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert str(lpips_distance._torch_hub()) == f"{torch.hub.get_dir()}/checkpoints"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert str(lpips_distance._torch_hub()) == f"{torch.hub.get_dir()}/checkpoints"
