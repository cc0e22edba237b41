"""A crop style of a plugin in the real command: what the VAE sees, what is remembered, what the other commands say."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from conftest import EditPairs, run_in
from difftrain.data.files.pixels import to_pixels
from difftrain_flux.vae import FluxImageEncoder

STYLE = '''
"""Reddest: the reddest column."""

import os

from difftrain import CropStyle, hookimpl


class Reddest(CropStyle):
    """The column with most red, from a side."""

    name = "reddest"
    reddest_from: str = "left"
    """left or nowhere."""

    def focus(self, image):
        with open("asked.txt", "a") as file:
            file.write(f"{image.width}x{image.height}\\n")
        if self.reddest_from == "nowhere":
            return (340, 120)
        row = list(image.getchannel("R").resize((image.width, 1)).getdata())
        return (row.index(max(row)) + 0.5) / image.width, 0.5


@hookimpl
def difftrain_crop_styles():
    return (Reddest,)
'''
WIDE = (160, 64)
LEFTS = {"0000": 0, "0001": 96, "0002": 44}
"""Where crops of 64 pixels begin in images whose reddest column is the first, the last, and one in the middle."""
RED = {"0000": 0, "0001": 150, "0002": 76}


@pytest.fixture
def folder(tmp_path):
    """Write a plugin file and three wide pairs with red columns in the targets."""
    pairs = EditPairs(tmp_path)
    fields = {"crop": True, "crop_style": "reddest"}
    pairs(count=3, edit_sizes=[WIDE], **fields)
    for name, left in RED.items():
        image = Image.new("RGB", WIDE, (0, 60, 90))
        image.paste((255, 0, 0), (left, 0, left + 8, 64))
        image.save(tmp_path / "edits" / f"{name}.png")
    (tmp_path / "reddest.py").write_text(STYLE)
    return tmp_path


def run(folder, *command, datasets="datasets.json", **options):
    flags = {"data_backend_config": datasets, "plugins": "./reddest.py", "max_train_steps": 1, **options}
    given = (part for key, value in flags.items() for part in (f"--{key}", value))
    return run_in(folder, *command, *EditPairs(folder).kontext, *given)


def with_entry(folder, **fields):
    edits, *others = json.loads((folder / "datasets.json").read_text())
    (folder / "other.json").write_text(json.dumps([{**edits, **fields}, *others]))
    return "other.json"


def asked(folder):
    path = folder / "asked.txt"
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def seen_by_vae(monkeypatch):
    seen = []
    encode = FluxImageEncoder.encode

    def watched(encoder, pixels):
        seen.extend(pixels.clone())
        return encode(encoder, pixels)

    monkeypatch.setattr(FluxImageEncoder, "encode", watched)
    return seen


def crop_of(path, left):
    with Image.open(path) as image:
        return torch.from_numpy(to_pixels(image.crop((left, 0, left + 64, 64))))


def test_a_run_encodes_targets_and_strict_references_around_the_focus_and_asks_once(folder, seen_by_vae):
    ended = run(folder)
    assert ended.status == 0, ended.err
    assert "find what to crop in edits 3" in ended.err
    for name, left in LEFTS.items():
        for kind in ("edits", "references"):
            expected = crop_of(folder / kind / f"{name}.png", left)
            assert any(torch.equal(pixels, expected) for pixels in seen_by_vae), (name, kind)
    assert len(seen_by_vae) == 6
    assert asked(folder) == ["160x64"] * 3
    again = run(folder, output_dir="again")
    assert again.status == 0, again.err
    assert len(asked(folder)) == 3
    assert len(seen_by_vae) == 6


def test_every_command_uses_the_same_crops(folder):
    checked = run(folder, "check", "--html", "page", "--json")
    assert checked.status == 0, checked.err
    assert json.loads(checked.out)["buckets"] == {"64x64": 3}
    pages = "".join(path.read_text() for path in (folder / "page").rglob("*") if path.suffix in (".html", ".js"))
    for left in LEFTS.values():
        assert f"[{left / WIDE[0]},0.0,0.4,1.0]" in pages, left
    planned = run(folder, "plan", "--card", "4090")
    assert planned.status == 0, planned.err
    assert "64x64" in planned.out
    assert len(asked(folder)) == 3


def test_options_of_a_style_are_dataset_keys(folder):
    ended = run(folder, "check", datasets=with_entry(folder, reddest_frm="left"))
    assert ended.status == 2
    assert "unknown key 'reddest_frm'; did you mean 'reddest_from'?" in ended.err
    plain = with_entry(folder, crop_style="center", reddest_from="left")
    noted = run(folder, "check", datasets=plain).out
    assert "reddest_from: no effect with the type, captions, crop and pairing of this dataset" in noted


def test_nonsense_of_a_style_ends_the_command_naming_the_image(folder):
    ended = run(folder, datasets=with_entry(folder, reddest_from="nowhere"))
    assert ended.status == 2
    assert "Traceback" not in ended.err
    assert "crop style 'reddest' returned (340, 120) for " in ended.err
    assert str(folder / "edits" / "000") in ended.err


def test_a_style_without_crop_is_not_asked(folder):
    ended = run(folder, "check", datasets=with_entry(folder, crop=False))
    assert ended.status == 0, ended.err
    assert "crop_style: no effect, crop is false" in ended.err + ended.out
    assert asked(folder) == []


def test_the_plugin_is_listed(folder):
    ended = run_in(folder, "plugins", "--json", "--plugins", "./reddest.py")
    assert ended.status == 0, ended.err
    (listed,) = [one for one in json.loads(ended.out) if one["name"] == "reddest.py"]
    assert listed["provides"] == {"crop style": ["reddest"]}


def test_the_name_in_a_file_may_be_spelt_otherwise(folder):
    ended = run(folder, "check", datasets=with_entry(folder, crop_style="Reddest"))
    assert ended.status == 0, ended.err
