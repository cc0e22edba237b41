"""Tests of what the data source lists, and of the public command on it: check, training, resuming."""

from __future__ import annotations

import json
import pickle
import shutil
import tarfile

import pytest
from safetensors.torch import load_file

from conftest import new_image, rows, write_tar
from difftrain import DataError
from difftrain_tar.plugin import TarSource

PAIRS = {"id": "pairs", "type": "tar", "tar_file": "pairs.tar"}


def listed(path):
    return TarSource(tar_file=path).survey({})


def losses(output):
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def latents(folder):
    """Return what training reads of every image, by the name of its entry; only targets keep a deviation too."""
    return {path.name: load_file(path)["mean"].tolist() for path in folder.rglob("*.safetensors")}


def test_rows_have_their_references_and_captions(tmp_path):
    members = rows(2) | {"sub/b.jpg": b"", "sub/b.txt": b"one\n\n two \n", "sub/b.json": b"{}"}
    members["0001.reference2.png"] = b"second"
    listing = listed(write_tar(tmp_path / "a.tar", members))
    assert [image.key for image in listing.images] == ["0000.png", "0001.png", "sub/b.jpg"]
    assert [one.key for one in listing.images[1].references] == ["0001.reference.png", "0001.reference2.png"]
    assert [image.captions for image in listing.images] == [
        ("make it edit number 0",), ("make it edit number 1",), ("one", "two"),
    ]  # fmt: skip
    assert listing.others == ["sub/b.json"]
    assert listing.unusable == []


def test_an_image_is_read_from_its_place_also_after_pickling(tmp_path):
    (image,) = listed(write_tar(tmp_path / "a.tar", rows(1))).images
    again = pickle.loads(pickle.dumps(image))
    assert again == image
    assert again.place == f"{tmp_path}/a.tar: 0000.target.png"
    with again.open() as stream:
        assert stream.read() == new_image(0)
    assert again.stamp() == image.stamp() != image.references[0].stamp()


def test_rows_that_are_ambiguous_or_have_no_target_are_reported(tmp_path):
    members = {"a.png": b"", "a.jpg": b"", "b.reference.png": b"", "c.png": b"", "c.txt": b"\xff"}
    listing = listed(write_tar(tmp_path / "a.tar", members))
    assert listing.unusable == [
        "a (2 images to train on in one row)", "b (0 images to train on in one row)", "c.txt (not UTF-8)",
    ]  # fmt: skip


def test_a_folder_of_shards_is_one_set(difftrain, tmp_path):
    for shard in (0, 1):
        (tmp_path / "shards").mkdir(exist_ok=True)
        write_tar(tmp_path / "shards" / f"{shard:05}.tar", rows(2 - shard) | {"x.jpg": b"", "x.png": b""})
    listing = listed(tmp_path / "shards")
    assert [image.key for image in listing.images] == ["00000/0000.png", "00000/0001.png", "00001/0000.png"]
    assert listing.images[2].open().read() == new_image(0)
    assert listing.unusable == [f"0000{shard}/x (2 images to train on in one row)" for shard in (0, 1)]
    for shard in (0, 1):
        write_tar(tmp_path / "shards" / f"{shard:05}.tar", rows(2 - shard))
    found = difftrain("check", "--json", datasets=[PAIRS | {"tar_file": "shards"}])
    assert (found.status, found.json["samples"]) == (0, 3), found.err
    with pytest.raises(DataError, match="is a folder without tar files"):
        listed(tmp_path)


def test_the_last_member_of_a_name_counts(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"a.png": b"old"})
    (before,) = listed(path).images
    stamp = before.stamp()
    with tarfile.open(path, "a") as archive:
        (tmp_path / "a.png").write_bytes(b"new")
        archive.add(tmp_path / "a.png", "./a.png")
    (image,) = listed(path).images
    assert image.open().read() == b"new"
    assert image.stamp() != stamp
    with pytest.raises(OSError, match="has changed since it was listed"):
        before.open()


@pytest.mark.parametrize("damage", ["absent", "cut short", "compressed"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, damage):
    path = tmp_path / "a.tar"
    if damage == "compressed":
        with tarfile.open(path, "w:gz"):
            pass
    elif damage == "cut short":
        write_tar(path, rows(2))
        path.write_bytes(path.read_bytes().rstrip(b"\0"))
    with pytest.raises(DataError, match=rf"tar_file {path} cannot be read .*\n?.*hint: "):
        listed(path)


def test_check_pairs_by_row(difftrain, tmp_path):
    write_tar(tmp_path / "pairs.tar", rows(3))
    ended = difftrain("check", "--json", datasets=[PAIRS])
    assert ended.status == 0, ended.err
    found = ended.json
    assert (found["samples"], found["buckets"], found["reference_buckets"]) == (3, {"64x64": 3}, {"64x64": 3})
    assert found["files"] == {"scanned": 6, "hashed": 6, "captions_read": 0, "made": 0}
    assert found["to_encode"] == {"captions": 4, "images": 6}
    assert found["notes"] == ["plugin 'tar' of difftrain-tar 0.1.0 is in use"]
    assert difftrain("check", "--json", datasets=[PAIRS]).json["files"]["hashed"] == 0


def test_check_names_the_places_of_damaged_members(difftrain, tmp_path):
    write_tar(tmp_path / "pairs.tar", rows(2) | {"0001.reference.png": new_image(9)[:-40]})
    ended = difftrain("check", datasets=[PAIRS])
    assert ended.status == 2
    assert f"1 of 4 images cannot be read: {tmp_path}/pairs.tar: 0001.reference.png (" in ended.err
    assert "hint: replace these images, or take them out of tar file pairs.tar" in ended.err


def test_check_names_the_tar_file_that_ambiguous_rows_are_in(difftrain, tmp_path):
    write_tar(tmp_path / "pairs.tar", rows(2) | {"0001.jpg": new_image(9)})
    ended = difftrain("check", datasets=[PAIRS])
    assert ended.status == 2
    assert "1 item of tar file pairs.tar cannot be used: 0001 (2 images to train on in one row)" in ended.err
    assert "take it out of tar file pairs.tar" in ended.err
    assert "folder" not in ended.err


def test_conditioning_type_says_how_the_references_follow(difftrain, tmp_path):
    write_tar(tmp_path / "pairs.tar", rows(1) | {"0000.reference.png": new_image(1, (128, 64))})
    refused = difftrain("check", datasets=[PAIRS])
    assert refused.status == 2
    assert "1 of 1 references in 'pairs' do not fit: 0000.reference.png is 128x64" in refused.err
    loose = difftrain("check", "--json", datasets=[PAIRS | {"conditioning_type": "reference_loose"}])
    assert loose.json["reference_buckets"] == {"96x48": 1}


def test_references_for_a_model_that_takes_none_are_an_error(difftrain, tmp_path):
    write_tar(tmp_path / "pairs.tar", rows(2))
    ended = difftrain("check", datasets=[PAIRS], model_flavour="dev")
    assert ended.status == 2
    assert "2 of 2 images have more references than flavour 'dev' can take, 0: 0000.png (1), 0001.png (1)" in ended.err


def test_a_resumed_run_continues_bit_by_bit(difftrain, tmp_path):
    write_tar(tmp_path / "pairs.tar", rows())
    assert difftrain(datasets=[PAIRS], max_train_steps=4, output_dir="whole").status == 0
    assert difftrain(datasets=[PAIRS], max_train_steps=2).status == 0
    ended = difftrain(datasets=[PAIRS], max_train_steps=4, resume_from_checkpoint="latest")
    assert ended.status == 0, ended.err
    name = "pytorch_lora_weights.safetensors"
    assert (tmp_path / "output" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert losses(tmp_path / "output") == losses(tmp_path / "whole")


def test_loose_files_of_the_same_bytes_are_the_same_training(difftrain, tmp_path):
    members = rows()
    write_tar(tmp_path / "pairs.tar", members)
    for name, data in members.items():
        row, _, kind = name.partition(".")
        folder = tmp_path / ("references" if kind.startswith("reference") else "edits")
        folder.mkdir(exist_ok=True)
        (folder / f"{row}.{kind.rpartition('.')[2]}").write_bytes(data)
    cached = {"cache_dir_vae": "latents"}
    assert difftrain(datasets=[PAIRS | cached], max_train_steps=2, output_dir="tar").status == 0
    of_tar = latents(tmp_path / "latents")
    shutil.rmtree(tmp_path / "latents")
    loose = [
        {"id": "pairs", "instance_data_dir": "edits", "conditioning_data": ["references"], **cached},
        {"id": "references", "instance_data_dir": "references", "conditioning_type": "reference_strict"},
    ]
    assert difftrain(datasets=loose, max_train_steps=2, output_dir="loose").status == 0
    of_files = latents(tmp_path / "latents") | latents(tmp_path / "cache" / "vae")
    assert len(of_tar) == 8
    assert of_files == of_tar
    assert losses(tmp_path / "tar") == losses(tmp_path / "loose")


def test_generators_work_on_members(difftrain, tmp_path):
    write_tar(tmp_path / "pairs.tar", {name: data for name, data in rows(2).items() if "reference" not in name})
    made = [PAIRS | {"conditioning": [{"type": "superresolution"}]}]
    ended = difftrain("check", "--json", datasets=made)
    assert ended.json["files"]["made"] == 2
    assert len(list((tmp_path / "cache" / "made").rglob("*.png"))) == 2
