import os

import pytest
from data_plans import (
    SilentReporter,
    caption,
    data_plan,
    generator_plan,
    local,
    new_image,
    scanned,
    target_set,
    two_folders,
)

from difftrain import DataError
from difftrain.data.files.captions import FilenameCaptions, InstancePrompt, TextfileCaptions
from difftrain.data.files.local_image import LocalImage
from difftrain.data.files.sources import LocalSource
from difftrain.data.samples.prepare_samples import prepare_samples
from difftrain.data.scanning.file_facts import content_hash
from difftrain.data.scanning.image_index import ImageIndex
from difftrain_conditioning_generators.superresolution import Superresolution


def prepare(plan):
    return prepare_samples(plan, reporter=SilentReporter())


def test_folder_is_walked_and_sorted_and_hidden_files_are_skipped(tmp_path):
    for name in ("b.png", "sub/a.JPG", "a.webp", ".hidden.png", ".git/c.png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    listed = LocalSource(instance_data_dir=tmp_path).list_images()
    assert [image.key for image in listed] == ["a.webp", "b.png", "sub/a.JPG"]


def test_linked_folders_are_followed_once(tmp_path):
    new_image(tmp_path / "real" / "a.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "root")
    assert [image.key for image in LocalSource(instance_data_dir=tmp_path / "root").list_images()] == ["link/a.png"]


def test_missing_and_empty_folders_are_errors(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        LocalSource(instance_data_dir=tmp_path / "gone").list_images()
    with pytest.raises(DataError, match="has no images"):
        LocalSource(instance_data_dir=tmp_path).list_images()


def test_caption_file_lines_are_alternatives(tmp_path):
    image = tmp_path / "a.b.png"
    (tmp_path / "a.b.txt").write_text("\ufeffmake it red\n\n make it blue \n", encoding="utf-8")
    assert TextfileCaptions().captions(LocalImage.at(image)) == ("make it red", "make it blue")


def test_empty_caption_file_is_an_empty_caption_and_no_file_is_none(tmp_path):
    (tmp_path / "a.txt").touch()
    assert TextfileCaptions().captions(LocalImage.at(tmp_path / "a.png")) == ("",)
    assert TextfileCaptions().captions(LocalImage.at(tmp_path / "b.png")) is None


def test_instance_prompt_is_prepended_when_asked(tmp_path):
    (tmp_path / "a.txt").write_text("red")
    with_prompt = TextfileCaptions(instance_prompt="make it", prepend_instance_prompt=True)
    assert with_prompt.captions(LocalImage.at(tmp_path / "a.png")) == ("make it red",)
    assert TextfileCaptions(instance_prompt="make it").captions(LocalImage.at(tmp_path / "a.png")) == ("red",)


def test_file_name_and_instance_prompt_captions(tmp_path):
    assert FilenameCaptions().captions(LocalImage.at(tmp_path / "make_it-red.png")) == ("make it red",)
    assert InstancePrompt(instance_prompt="edit").captions(LocalImage.at(tmp_path / "a.png")) == ("edit",)


def test_record_has_the_upright_size_and_the_path_below_the_root_as_key(tmp_path):
    caption(new_image(tmp_path / "edits" / "sub" / "a.png", (50, 40)), "red")
    with ImageIndex(tmp_path / "index.sqlite") as index:
        [record] = scanned(target_set(tmp_path), index).records
    assert (record.key, record.size, record.captions) == ("sub/a", (50, 40), ("red",))


def test_accents_compare_equal_however_they_are_composed(tmp_path):
    caption(new_image(tmp_path / "edits" / "e\u0301.png"), "red")
    with ImageIndex(tmp_path / "index.sqlite") as index:
        [record] = scanned(target_set(tmp_path), index).records
    assert record.key == "\u00e9"


def test_small_images_are_left_out_and_counted(tmp_path):
    caption(new_image(tmp_path / "edits" / "large.png", (200, 100)), "red")
    caption(new_image(tmp_path / "edits" / "small.png", (40, 30)), "red")
    plan = target_set(tmp_path, minimum_image_size=64)
    prepared = prepare(data_plan(tmp_path, plan))
    assert [sample.target.record.key for sample in prepared.samples] == ["large"]
    assert prepared.left_out["edits"] == {"minimum_image_size": 1}
    assert "1 images are left out by minimum_image_size" in prepared.notes[0]


def test_made_images_below_the_root_are_no_target_images(tmp_path):
    caption(new_image(tmp_path / "edits" / "a.png"), "red")
    made = generator_plan(tmp_path / "edits", Superresolution())
    plan = data_plan(tmp_path, target_set(tmp_path, generators=[made]))
    assert len(prepare(plan).samples) == len(prepare(plan).samples) == 1


def test_second_preparation_reads_no_file(tmp_path):
    plan = two_folders(tmp_path)
    first, second = prepare(plan), prepare(plan)
    assert (first.scanned, first.hashed, first.captions_read) == (6, 6, 3)
    assert (second.scanned, second.hashed, second.captions_read) == (6, 0, 0)
    assert list(first.samples) == list(second.samples)


def test_second_preparation_makes_no_image_and_reads_none(tmp_path):
    caption(new_image(tmp_path / "edits" / "a.png"), "red")
    plan = data_plan(tmp_path, target_set(tmp_path, generators=[generator_plan(tmp_path, Superresolution())]))
    assert prepare(plan).made == 1
    again = prepare(plan)
    assert (again.made, again.hashed) == (0, 0)


def test_changed_bytes_under_the_same_name_are_noticed(tmp_path):
    plan = two_folders(tmp_path)
    before = prepare(plan)
    new_image(tmp_path / "references" / "b.png", seed=999)
    after = prepare(plan)
    assert after.hashed == 1
    changed = [
        old.target.record.key
        for old, new in zip(before.samples, after.samples, strict=True)
        if old.choices[0].references[0].record.content_hash != new.choices[0].references[0].record.content_hash
    ]
    assert changed == ["b"]


def test_changed_bytes_of_the_same_length_are_noticed_by_the_time(tmp_path):
    path = new_image(tmp_path / "edits" / "a.bmp", seed=1)
    caption(path, "red")
    plan = data_plan(tmp_path, target_set(tmp_path))
    size = path.stat().st_size
    prepare(plan)
    new_image(path, seed=2)
    assert path.stat().st_size == size
    assert prepare(plan).hashed == 1


def test_changed_bytes_of_an_old_time_are_noticed_by_the_length(tmp_path):
    # what cp -p, rsync -t and unpacked archives leave
    path = new_image(tmp_path / "edits" / "a.bmp", seed=1)
    caption(path, "red")
    plan = data_plan(tmp_path, target_set(tmp_path))
    before = path.stat()
    prepare(plan)
    path.write_bytes(path.read_bytes() + b"more")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert prepare(plan).hashed == 1


def test_renamed_file_keeps_its_content_hash(tmp_path):
    plan = two_folders(tmp_path, names=("a",))
    [before] = prepare(plan).samples
    for folder in ("edits", "references"):
        (tmp_path / folder / "a.png").rename(tmp_path / folder / "z.png")
    (tmp_path / "edits" / "a.txt").rename(tmp_path / "edits" / "z.txt")
    [after] = prepare(plan).samples
    assert after.target.record.content_hash == before.target.record.content_hash


def test_content_hash_is_xxh3_of_128_bits():
    # Golden value: XXH3_128bits of nothing with seed 0, from the sanity tests of xxHash 0.8.
    assert content_hash(b"") == "99aa06d3014798d86001c324468d497f"
    assert content_hash(b"a") != content_hash(b"b")


@pytest.mark.parametrize("change", ["edit", "remove", "add"])
def test_changed_caption_files_are_noticed(tmp_path, change):
    plan = two_folders(tmp_path)
    file = tmp_path / "edits" / "a.txt"
    if change == "add":
        file.unlink()
        with pytest.raises(DataError, match="no caption"):
            prepare(plan)
    else:
        prepare(plan)
    if change == "remove":
        file.unlink()
        with pytest.raises(DataError, match=r"1 of 3 images have no caption: a\.png"):
            prepare(plan)
    else:
        file.write_text("another instruction")
        prepared = prepare(plan)
        assert prepared.samples[0].captions == ("another instruction",)
        assert prepared.captions_read == 1


def test_two_open_indexes_share_one_file(tmp_path):
    files = [new_image(tmp_path / f"{number}.png", seed=number) for number in range(4)]
    with ImageIndex(tmp_path / "index.sqlite") as first, ImageIndex(tmp_path / "index.sqlite") as second:
        with SilentReporter().phase("scan") as phase:
            first.examine(local(files[:2]), phase)
            second.examine(local(files), phase)
            first.examine(local(files), phase)
        assert (first.hashed, second.hashed) == (2, 2)


def test_file_that_cannot_be_opened_is_tried_again(tmp_path):
    link = tmp_path / "a.png"
    link.symlink_to(tmp_path / "later.png")
    with ImageIndex(tmp_path / "index.sqlite") as index, SilentReporter().phase("scan") as phase:
        assert index.examine(local([link]), phase)[0].error == "no such file or directory"
        new_image(tmp_path / "later.png")
        assert index.examine(local([link]), phase)[0].error is None


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp"])
def test_file_cut_short_is_found_by_the_scan(tmp_path, suffix):
    path = new_image(tmp_path / f"a.{suffix}", (300, 300))
    os.truncate(path, path.stat().st_size // 2)
    with ImageIndex(tmp_path / "index.sqlite") as index, SilentReporter().phase("scan") as phase:
        assert index.examine(local([path]), phase)[0].error


def test_jpeg_cut_short_behind_a_whole_thumbnail_is_found_by_the_scan(tmp_path):
    thumbnail = b"\xff\xd8\xff\xda" + bytes(60) + b"\xff\xd9"
    path = new_image(tmp_path / "a.jpg", (300, 300), exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x00" + thumbnail)
    os.truncate(path, path.stat().st_size // 2)
    with ImageIndex(tmp_path / "index.sqlite") as index, SilentReporter().phase("scan") as phase:
        assert index.examine(local([path]), phase)[0].error
