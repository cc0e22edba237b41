"""No file of a data folder is ignored silently."""

import pytest
from data_plans import SilentReporter, caption, data_plan, new_image, target_set
from PIL import Image

from difftrain import DataError
from difftrain.data.files.local_image import LocalImage
from difftrain.data.files.pixels import open_upright
from difftrain.data.samples.prepare_samples import prepare_samples


def prepare(plan):
    return prepare_samples(plan, reporter=SilentReporter())


def notes_of(root, **options):
    return prepare(data_plan(root, target_set(root, **options))).notes


def edit(root, name="a.png"):
    caption(new_image(root / "edits" / name), "red")
    return root / "edits" / name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jfif", "JPEG"), ("a.jpe", "JPEG"), ("a.jif", "JPEG"), ("a.JFIF", "JPEG"), ("a.gif", "GIF"),
        ("a.apng", "PNG"), ("a.avif", "AVIF"), ("a.jp2", "JPEG2000"), ("a.bmp", "BMP"), ("a.TIFF", "TIFF"),
        ("a.tga", "TGA"), ("a.ppm", "PPM"), ("a.qoi", "QOI"), ("a.WEBP", "WEBP"), ("a.mpo", "MPO"),
    ],
)  # fmt: skip
def test_what_pillow_reads_is_read(tmp_path, name, kind):
    path = tmp_path / "edits" / name
    path.parent.mkdir()
    Image.new("RGB", (96, 64), "red").save(path, format=kind)
    caption(path, "red")
    [sample] = prepare(data_plan(tmp_path, target_set(tmp_path))).samples
    assert sample.target.record.image.path == path
    assert open_upright(LocalImage.at(path)).size == (96, 64)


def test_a_file_of_another_format_than_its_name_says_is_read(tmp_path):
    path = edit(tmp_path, "a.jpg")
    Image.new("RGB", (96, 64)).save(path, format="WEBP")
    assert len(prepare(data_plan(tmp_path, target_set(tmp_path))).samples) == 1


def test_first_frame_of_an_animation_is_used_and_said_at_every_start(tmp_path):
    path = tmp_path / "edits" / "a.gif"
    path.parent.mkdir()
    frames = [Image.new("RGB", (96, 64), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    caption(path, "red")
    assert open_upright(LocalImage.at(path)).getpixel((0, 0)) == (255, 0, 0)
    for _ in range(2):
        [note] = notes_of(tmp_path)
        assert note == "dataset 'edits': 1 images have several frames; only the first is used: a.gif"


def test_images_that_are_not_read_are_named_and_counted_once_with_the_remedy(tmp_path):
    edit(tmp_path)
    for name in ("b.heic", "c.HEIC", "d.psd", "sub/e.cr2", "f.svg"):
        path = tmp_path / "edits" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        caption(path, "its caption is not one without an image")
    [note] = notes_of(tmp_path)
    assert note == (
        "dataset 'edits': 5 images have unsupported formats (.heic 2, .cr2 1, .psd 1, .svg 1): b.heic, c.HEIC, "
        "d.psd, ...\nhint: convert them to PNG or JPEG; .heic is read once pillow-heif is installed"
    )


def test_videos_and_other_files_are_counted(tmp_path):
    edit(tmp_path)
    for name in ("clip.MP4", "b.mov", "table.csv", "LICENSE", "README.txt"):
        (tmp_path / "edits" / name).touch()
    assert notes_of(tmp_path) == (
        "dataset 'edits': 2 videos are not read: b.mov, clip.MP4",
        "dataset 'edits': 3 other files are not read: LICENSE, README.txt, table.csv",
    )


def test_captions_without_an_image_are_named_and_counted(tmp_path):
    edit(tmp_path)
    for name in ("cat.txt", "dog.txt"):
        (tmp_path / "edits" / name).write_text("a pet")
    [note] = notes_of(tmp_path)
    assert note.startswith("dataset 'edits': 2 caption files have no image: cat.txt, dog.txt")


def test_system_files_are_skipped_and_counted(tmp_path):
    edit(tmp_path)
    names = (
        "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/a.png", "._a.png", "Thumbs.db", "desktop.ini", ".DS_Store",
        "lost+found/a.png", "$RECYCLE.BIN/a.png", "System Volume Information/a.png", "#recycle/a.png",
        ".ipynb_checkpoints/a.png", "sub/@eaDir/a.png",
    )  # fmt: skip
    for name in names:
        path = tmp_path / "edits" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    prepared = prepare(data_plan(tmp_path, target_set(tmp_path)))
    assert prepared.scanned == 1
    [note] = prepared.notes
    assert note.startswith("dataset 'edits': 12 hidden or system files and folders are skipped: ")


def test_a_folder_of_unread_images_says_what_it_has(tmp_path):
    for name in ("a.heic", "b.heic", "c.mp4", "notes.txt"):
        path = tmp_path / "edits" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with pytest.raises(DataError) as raised:
        prepare(data_plan(tmp_path, target_set(tmp_path)))
    message = str(raised.value)
    assert "has no images" in message
    assert "2 images have unsupported formats (.heic 2)" in message
    assert "pillow-heif" in message
