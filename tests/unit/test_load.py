"""Loading a denoiser: formats, messages about wrong files, and that the host never holds the model."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import nn

from difftrain import ModelError, ModelLocation, PluginError, Quantizer, read_weights
from difftrain.model import load_denoiser as loading
from difftrain.model.precision.quantise_encoders import place_quantised
from difftrain.model.precision.quanto import QuantoInt8
from difftrain.testing import TinyFamily, load_denoiser

PLACE = ModelLocation(name="somewhere", identity="x", path=None)


class Model(nn.Module):
    """Has tied layers, a buffer stored in files and one that is not."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(4, 4)
        self.twin = self.enter
        self.table = nn.Embedding(8, 4)
        self.leave = nn.Linear(4, 8, bias=False)
        self.norm = nn.LayerNorm(4)
        self.register_buffer("counts", torch.arange(3.0))
        self.register_buffer("angles", torch.linspace(0, 1, 5), persistent=False)


class Family(TinyFamily):
    """A family whose weights a test chooses."""

    name: ClassVar[str] = "given"
    changes: dict = {}
    kept: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()

    def empty_denoiser(self, location):
        with init_empty_weights():
            model = Model()
        model.leave.weight = model.table.weight
        return model

    def denoiser_weights(self, location):
        yield from weights(self.changes).items()

    def keep_in_float32(self):
        return self.kept

    def keep_unquantized(self):
        return self.whole


def weights(changes):
    torch.manual_seed(0)
    state = {name: torch.randn_like(tensor) for name, tensor in Model().state_dict().items() if "twin" not in name}
    del state["leave.weight"]  # tied to table.weight
    state |= changes
    return {name: tensor for name, tensor in state.items() if tensor is not None}


def test_every_weight_arrives_and_nothing_is_left_on_meta():
    model = load_denoiser(Family(), PLACE)
    given = weights({})
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in given.items())
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_tied_weights_stay_tied_whichever_name_the_file_has():
    other = weights({})["table.weight"]
    for changes in ({}, {"table.weight": None, "leave.weight": other}, {"leave.weight": other}):
        model = load_denoiser(Family(changes=changes), PLACE)
        assert model.leave.weight is model.table.weight
        assert torch.equal(model.table.weight, other)
        assert model.twin is model.enter


def test_formats_are_the_runs_but_for_what_the_family_keeps():
    family = Family(kept=("nor*", "leave.weight"))
    model = load_denoiser(family, PLACE, dtype=torch.bfloat16)
    assert model.enter.weight.dtype == model.counts.dtype == torch.bfloat16
    assert model.norm.weight.dtype == model.norm.bias.dtype == torch.float32
    # a table that the module computes itself is not rounded
    assert model.angles.dtype == torch.float32
    assert torch.equal(model.angles, torch.linspace(0, 1, 5))


def test_loaded_weights_do_not_hang_on_their_source():
    given = weights({})
    given["norm.weight"].fill_(3)
    model = load_denoiser(Family(changes={"norm.weight": given["norm.weight"]}), PLACE)
    given["norm.weight"].fill_(0)
    assert model.norm.weight.tolist() == [3] * 4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"norm.bias": None, "enter.weight": None}, "2 are missing: enter.weight, norm.bias"),
        ({"counts": None}, "1 are missing: counts"),
        ({"norm.bias": torch.zeros(5)}, r"1 have another shape: norm.bias \[5\], not \[4\]"),
        (
            {f"extra.{n}": torch.zeros(1) for n in "abcd"},
            "4 do not belong to this model: extra.a, extra.b, extra.c, ...",
        ),
    ],
)
def test_wrong_weights_are_one_error_with_the_first_names(changes, says):
    with pytest.raises(ModelError, match=f"model 'somewhere': its weights are not the .* {says}"):
        load_denoiser(Family(changes=changes), PLACE)


def test_a_buffer_that_nothing_fills_is_the_familys_fault():
    class Empty(Family):
        def empty_denoiser(self, location):
            return super().empty_denoiser(location).to("meta")

    with pytest.raises(PluginError, match=r"leaves 1 buffers without values .*: angles"):
        load_denoiser(Empty(), PLACE)


class Listed(nn.Linear):
    """A layer that a quantizer may return."""


class Listing(Quantizer):
    """Records the names and places of the layers it converts."""

    name: ClassVar[str] = "listing"
    seen: ClassVar[Counter] = Counter()

    def check(self):
        return None

    def convert(self, name, module, device):
        assert not module.weight.is_meta
        assert module.bias is None or not module.bias.is_meta
        self.seen[name] += 1
        listed = Listed(module.in_features, module.out_features, bias=module.bias is not None)
        listed.weight = module.weight
        return listed


def test_linear_layers_are_converted_once_where_they_are_complete():
    Listing.seen.clear()
    model = load_denoiser(Family(), PLACE, quantizer=Listing())
    assert Listing.seen == {"enter": 1, "leave": 1}
    assert isinstance(model.enter, Listed)
    assert model.twin is model.enter
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_layers_that_the_family_keeps_are_not_converted():
    Listing.seen.clear()
    load_denoiser(Family(whole=("lea*",)), PLACE, quantizer=Listing())
    assert Listing.seen == {"enter": 1}


class Placing(Listing):
    """Records where each layer is whole; what it returns can be told from what it was given."""

    name: ClassVar[str] = "placing"
    whole: ClassVar[list] = []

    def convert(self, name, module, device):
        self.whole.append((name, module.weight.device, module.bias is None or module.bias.device, device))
        return Listed(module.in_features, module.out_features, bias=module.bias is not None, device=device)


class Plain(Family):
    """A family without buffers."""

    name: ClassVar[str] = "plain"

    def empty_denoiser(self, location):
        with init_empty_weights():
            return nn.ModuleDict({"enter": nn.Linear(4, 4), "leave": nn.Linear(4, 8, bias=False)})

    def denoiser_weights(self, location):
        return ((name, torch.ones(tensor.shape)) for name, tensor in self.empty_denoiser(location).state_dict().items())


def test_layers_are_whole_only_where_they_are_quantised():
    Placing.whole.clear()
    cpu, there = torch.device("cpu"), torch.device("meta")  # meta stands for the GPU
    model = loading.load_denoiser(
        Plain(whole=("lea*",)), PLACE, device=there, dtype=torch.bfloat16, quantizer=Placing(), quantize_on=cpu
    )
    assert Placing.whole == [("enter", cpu, cpu, cpu)]
    assert isinstance(model["enter"], Listed)
    assert {tensor.device for tensor in model.parameters()} == {there}


class Encoder(nn.Module):
    """Has tied layers, an attention of torch's that reads a layer's weight, and an embedding tied to the output."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(4, 4)
        self.twin = self.enter
        self.attention = nn.MultiheadAttention(4, 1)
        self.table = nn.Embedding(8, 4)
        self.leave = nn.Linear(4, 8, bias=False)
        self.leave.weight = self.table.weight


@pytest.mark.parametrize("on", ["cpu", "meta"])
def test_encoders_are_quantised_one_by_one_and_moved(on):
    Placing.whole.clear()
    first, second, there = Encoder(), Encoder(), torch.device("meta")
    place_quantised([first, second], [None, Placing()], there, quantize_on=torch.device(on), family="f")
    assert [name for name, *_ in Placing.whole] == ["enter", "leave"]
    assert {device for *_, device in Placing.whole} == {torch.device(on)}
    assert second.twin is second.enter
    assert type(second.enter) is type(second.leave) is Listed
    assert not any(parameter.requires_grad for parameter in second.enter.parameters())
    assert type(first.enter) is nn.Linear
    assert {tensor.device for model in (first, second) for tensor in model.parameters()} == {there}


def test_a_family_with_more_encoders_than_it_says_is_at_fault():
    cpu = torch.device("cpu")
    with pytest.raises(PluginError, match=r"'f': text_encoders is 2, but models\(\) of its text encoder gives 1"):
        place_quantised([Encoder()], [None, Placing()], cpu, quantize_on=cpu, family="f")


def test_int8_gives_the_integers_of_quantos_own_quantize():
    from optimum.quanto import freeze, qint8, quantize

    converted = load_denoiser(TinyFamily(), PLACE, dtype=torch.bfloat16, quantizer=QuantoInt8())
    whole = load_denoiser(TinyFamily(), PLACE, dtype=torch.bfloat16)
    quantize(whole, weights=qint8)
    freeze(whole)
    ours, theirs = dict(converted.named_modules()), dict(whole.named_modules())
    assert ours.keys() == theirs.keys()
    for name, layer in ours.items():
        if isinstance(layer, nn.Linear):
            assert torch.equal(layer.weight, theirs[name].weight._data)
            assert torch.equal(layer.scale, theirs[name].weight._scale.float())
            assert layer.bias is None or torch.equal(layer.bias, theirs[name].bias)
    assert not any(parameter.requires_grad for parameter in converted.parameters())


def shards(folder, *groups, index=True):
    folder.mkdir(exist_ok=True)
    named = {}
    for number, group in enumerate(groups, 1):
        save_file(group, folder / f"part-{number}.safetensors")
        named |= dict.fromkeys(group, f"part-{number}.safetensors")
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    return folder


def test_shards_are_read_as_the_index_names_them(tmp_path):
    folder = shards(tmp_path, {"b": torch.ones(2), "a": torch.zeros(1)}, {"c": torch.arange(3)})
    save_file({"other": torch.ones(1)}, tmp_path / "stray.safetensors")
    read = dict(read_weights(folder))
    assert sorted(read) == ["a", "b", "c"]
    assert read["c"].tolist() == [0, 1, 2]


def test_without_an_index_the_usual_name_wins_over_variants(tmp_path):
    for name in ("diffusion_pytorch_model.fp16", "diffusion_pytorch_model", "diffusion_pytorch_model.non_ema"):
        save_file({"of": torch.tensor([len(name)])}, tmp_path / f"{name}.safetensors")
    assert [tensor.item() for _, tensor in read_weights(tmp_path)] == [len("diffusion_pytorch_model")]
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    assert len(list(read_weights(tmp_path))) == 2


def test_faults_of_weight_files_name_the_file(tmp_path):
    with pytest.raises(ModelError, match="has no weight files"):
        list(read_weights(tmp_path))
    folder = shards(tmp_path, {"a": torch.zeros(1)}, {"b": torch.zeros(1)})
    (folder / "part-2.safetensors").write_bytes(b"\x08" + bytes(7) + b"not json")
    with pytest.raises(ModelError, match=r"part-2\.safetensors is not a complete safetensors file"):
        list(read_weights(folder))
    (folder / "part-2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"1 of 2 weight files are missing: part-2\.safetensors"):
        list(read_weights(folder))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')
    with pytest.raises(ModelError, match=r"index\.json is not an index"):
        list(read_weights(folder))


LAYERS, WIDTH = 36, 2048
BYTES = LAYERS * WIDTH * WIDTH * 4

LARGE = f"""
import sys
from pathlib import Path
import torch
from accelerate import init_empty_weights
from torch import nn
from difftrain import ModelLocation, read_weights
from difftrain.model.precision.quanto import QuantoInt8
from difftrain.model.precision.weight_only_linear import Int8StoredLinear
from difftrain.testing import TinyFamily, load_denoiser

class Large(TinyFamily):
    def empty_denoiser(self, location):
        with init_empty_weights():
            return nn.Sequential(*(nn.Linear({WIDTH}, {WIDTH}, bias=False) for _ in range({LAYERS})))

    def denoiser_weights(self, location):
        for name, tensor in read_weights(location.path):
            tensor.sum()  # a GPU reads all of it, a device that keeps nothing would not
            yield name, tensor

def peak():
    # not ru_maxrss, which starts at the parent process's value
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

QuantoInt8().convert("warm", nn.Linear(8, 8), torch.device("cpu"))
place = ModelLocation(name="large", identity="x", path=Path(sys.argv[1]))
before = peak()
if sys.argv[2] == "int8":
    model = load_denoiser(Large(), place, quantizer=QuantoInt8())
    assert all(isinstance(layer, Int8StoredLinear) for layer in model)
else:
    model = load_denoiser(Large(), place, dtype=torch.bfloat16, device=torch.device("meta"))
print(peak() - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    layer = torch.randn(WIDTH, WIDTH)
    third = LAYERS // 3
    groups = [{f"{n}.weight": layer.clone() for n in range(first, first + third)} for first in (0, third, 2 * third)]
    return shards(folder, *groups)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to tell the peak")
@pytest.mark.parametrize(
    ("sink", "share"),
    [
        # on the CPU the integers stay, a quarter of the file, and one layer at a time is converted
        ("int8", 0.45),
        # a device that keeps nothing on the host, as a GPU
        ("meta", 0.15),
    ],
)
def test_the_host_never_holds_the_model(large, sink, share):
    # without it malloc keeps freed memory between the remaining integers
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    command = [sys.executable, "-c", LARGE, large, sink]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    grown = int(done.stdout)
    assert BYTES > 600e6
    print(f"{sink}: the host held {grown / 1e6:.0f} MB of {BYTES / 1e6:.0f} MB")
    assert grown < share * BYTES, f"the host held {grown / 1e6:.0f} MB while {BYTES / 1e6:.0f} MB were loaded"
