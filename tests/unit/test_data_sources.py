"""Data sources whose images are not files: how a scan and the pairing use what they say."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import data_plans
import pytest
from data_plans import SilentReporter, data_plan, generator_plan, new_image, reference_set, target_set

from difftrain import DataError, DataSource, LocalImage, PluginError, SourceImage
from difftrain.data.files.captions import FilenameCaptions, InstancePrompt, TextfileCaptions
from difftrain.data.files.pixels import load_placed, open_upright
from difftrain.data.samples.flavour_limits import check_counts
from difftrain.data.samples.prepare_samples import prepare_samples
from difftrain.data.scanning.image_index import ImageIndex
from difftrain_conditioning_generators.superresolution import Superresolution
from difftrain_flux_kontext.pairing import ReferenceStrict


@dataclass(frozen=True, kw_only=True, slots=True)
class Blob(SourceImage):
    """Bytes in memory."""

    data: bytes = field(repr=False)
    version: object = "1"

    @property
    def place(self):
        return f"shelf: {self.key}"

    def stamp(self):
        return self.version

    def open(self):
        OPENED.append(self.key)
        return io.BytesIO(self.data)


OPENED: list[str] = []
"""Keys of blobs that were opened."""


class Shelf(DataSource):
    name: ClassVar[str] = "shelf"
    gives_references: ClassVar[bool] = True

    def list_images(self):
        return IMAGES[id(self)]


TEXT_FILES = TextfileCaptions()

IMAGES: dict[int, list[SourceImage]] = {}
"""The images of each shelf; an options class keeps no state."""


@pytest.fixture
def png(tmp_path):
    """Bytes of an image."""
    return lambda size=(96, 64), seed=0: new_image(tmp_path / "a.png", size, seed).read_bytes()


@pytest.fixture(autouse=True)
def _nothing_opened():
    OPENED.clear()


def shelf(*images, kind=Shelf):
    source = kind()
    IMAGES[id(source)] = list(images)
    return source


def on_shelf(root, *images, kind=Shelf, captions=TEXT_FILES, **config):
    plan = target_set(root, **config)
    return replace(
        plan,
        source=shelf(*images, kind=kind),
        captions=captions,
        takes_source_captions=True,
        row_pairing=ReferenceStrict() if kind.gives_references else None,
    )


def prepare(root, *plans, **changes):
    return prepare_samples(data_plan(root, *plans, **changes), reporter=SilentReporter())


@pytest.mark.parametrize(
    ("key", "stem", "extension"),
    [
        ("sub/a.png", "sub/a", ".png"),
        ("a.target.JPEG", "a.target", ".JPEG"),
        ("17", "17", ""),
        ("row-0.25", "row-0.25", ""),
        ("v1.5/photo", "v1.5/photo", ""),
        ("a.j2k", "a", ".j2k"),
        ("what a day. Lovely", "what a day. Lovely", ""),
    ],
)
def test_only_an_extension_is_taken_off_a_key(key, stem, extension):
    image = Blob(key=key, data=b"")
    assert (image.stem, image.extension) == (stem, extension)


def test_images_that_are_no_files_become_samples(tmp_path, png):
    images = [
        Blob(key="2", data=png(seed=2), captions=("two",)),
        Blob(key="1.5", data=png((50, 40)), captions=("one",)),
    ]
    prepared = prepare(tmp_path, on_shelf(tmp_path, *images))
    assert [(one.target.record.key, one.captions) for one in prepared.samples] == [("1.5", ("one",)), ("2", ("two",))]
    assert prepared.samples[0].target.record.size == (50, 40)
    assert load_placed(prepared.samples[1].target).size == prepared.samples[1].target.geometry.bucket
    assert (prepared.scanned, prepared.hashed, prepared.captions_read) == (2, 2, 0)


def test_an_equal_stamp_is_not_read_again_and_another_is(tmp_path, png):
    first, second = (Blob(key=key, data=png(seed=seed), captions=("x",)) for seed, key in enumerate("ab"))
    assert prepare(tmp_path, on_shelf(tmp_path, first, second)).hashed == 2
    assert prepare(tmp_path, on_shelf(tmp_path, first, second)).hashed == 0
    changed = replace(second, data=png(seed=9), version="2")
    again = prepare(tmp_path, on_shelf(tmp_path, first, changed))
    assert again.hashed == 1
    assert OPENED == ["a", "b", "b"]


def test_equal_bytes_have_equal_hashes_wherever_they_are(tmp_path, png):
    data = png()
    [blob] = prepare(tmp_path, on_shelf(tmp_path, Blob(key="x", data=data, captions=("x",)))).samples
    (tmp_path / "edits").mkdir()
    (tmp_path / "edits" / "y.png").write_bytes(data)
    [file] = prepare(tmp_path, target_set(tmp_path, captions=False)).samples
    assert blob.target.record.content_hash == file.target.record.content_hash
    assert blob.target.geometry == file.target.geometry


def test_an_image_of_a_known_size_that_is_left_out_is_never_opened(tmp_path, png):
    large = Blob(key="large", data=png((200, 100)), size=(200, 100), captions=("x",))
    small = Blob(key="small", data=b"never read", size=(40, 30), captions=("x",))
    prepared = prepare(tmp_path, on_shelf(tmp_path, large, small, minimum_image_size=64))
    assert [sample.target.record.key for sample in prepared.samples] == ["large"]
    assert prepared.left_out["edits"] == {"minimum_image_size": 1}
    assert OPENED == ["large"]


def test_a_size_that_is_not_true_is_noted_and_not_used(tmp_path, png):
    image = Blob(key="a", data=png((96, 64)), size=(64, 96), captions=("x",))
    prepared = prepare(tmp_path, on_shelf(tmp_path, image))
    assert prepared.samples[0].target.record.size == (96, 64)
    assert (
        "1 images differ from the size in their data source; it is ignored: a (96x64, not 64x96)" in (prepared.notes[0])
    )


class Refusing(Blob):
    """Opens nothing."""

    __slots__ = ()

    def open(self):
        raise self.version if isinstance(self.version, Exception) else OSError("the shelf is empty")

    def stamp(self):
        return "1"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied"), "permission denied"),
        (OSError("the shelf is empty"), "the shelf is empty"),
        (KeyError("row 7"), "KeyError: 'row 7'"),
    ],
)
def test_an_image_that_cannot_be_opened_is_one_problem_that_names_its_place(tmp_path, error, words):
    image = Refusing(key="a", data=b"", version=error, captions=("x",))
    with pytest.raises(DataError) as raised:
        prepare(tmp_path, on_shelf(tmp_path, image))
    problem = (
        f"1 of 1 images cannot be read: shelf: a ({words})\nhint: make these images readable, or take them out of "
    )
    assert f"{problem}data source 'shelf'" in str(raised.value)
    with pytest.raises(DataError, match="shelf: a: cannot be read as an image"):
        open_upright(image)


def test_what_is_no_image_is_named_by_its_place(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read: shelf: a .not an image.*\nhint: replace these images"):
        prepare(tmp_path, on_shelf(tmp_path, Blob(key="a", data=b"text", captions=("x",))))


def test_a_stamp_that_is_no_text_is_reported(tmp_path, png):
    image = Blob(key="a", data=png(), version=7, captions=("x",))
    with pytest.raises(DataError, match=r"shelf: a \(stamp\(\) returned int, not a text\)"):
        prepare(tmp_path, on_shelf(tmp_path, image))


def test_bytes_that_cannot_be_sought_in_are_read_all_the_same(png):
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

        def seek(self, *place):
            raise OSError("a pipe")

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Piped(Blob):
        def open(self):
            return Pipe(self.data)

    assert open_upright(Piped(key="a", data=png((30, 20)))).size == (30, 20)


def test_images_can_be_pickled(tmp_path):
    file = LocalImage(key="sub/a.png", file=str(tmp_path / "sub" / "a.png"))
    blob = Blob(key="row", data=b"1", captions=("x",), references=(file,))
    assert pickle.loads(pickle.dumps(blob)) == blob


def test_a_local_image_has_an_absolute_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = LocalImage.at(Path("a.png"))
    monkeypatch.chdir("/")
    assert image.place == str(tmp_path / "a.png")
    assert image.path == tmp_path / "a.png"


def test_captions_of_the_source_come_before_the_runs_strategy(tmp_path, png):
    images = [Blob(key="a", data=png(seed=1), captions=("one", "two")), Blob(key="b", data=png(seed=2), captions=())]
    with pytest.raises(DataError) as raised:
        prepare(tmp_path, on_shelf(tmp_path, *images, captions=InstancePrompt(instance_prompt="edit")))
    assert "1 of 2 images have no caption: b\nhint: give each one in the data source" in str(raised.value)
    prepared = prepare(tmp_path, on_shelf(tmp_path, images[0]))
    assert prepared.samples[0].captions == ("one", "two")
    assert "1 images have several captions: one of them is drawn" in prepared.notes[0]


def test_a_source_without_captions_leaves_them_to_the_strategy(tmp_path, png):
    image = Blob(key="sub/make_it-red.png", data=png())
    for captions, words in ((InstancePrompt(instance_prompt="edit"), "edit"), (FilenameCaptions(), "make it red")):
        [sample] = prepare(tmp_path, on_shelf(tmp_path, image, captions=captions)).samples
        assert sample.captions == (words,)


def test_captions_beside_what_is_no_file_are_one_problem(tmp_path, png):
    with pytest.raises(DataError) as raised:
        prepare(tmp_path, on_shelf(tmp_path, *(Blob(key=key, data=png(seed=ord(key))) for key in "ab")))
    assert "2 captions cannot be read: shelf: a: is not a file, so it has no text file beside it" in str(raised.value)
    assert "hint: 'textfile' works only for images that are files; set another caption_strategy" in str(raised.value)
    assert "no caption:" not in str(raised.value)


def row(number, png, *references):
    return Blob(key=f"{number}", data=png(seed=number), captions=(f"edit {number}",), references=references)


def blob(key, png, size=(96, 64)):
    return Blob(key=key, data=png(size, sum(map(ord, key))))


def test_references_of_a_row_are_all_shown_in_their_order(tmp_path, png):
    image = row(1, png, blob("1.b", png), blob("1.a", png))
    prepared = prepare(tmp_path, on_shelf(tmp_path, image))
    [choice] = prepared.samples[0].choices
    assert [one.record.key for one in choice.references] == ["1.b", "1.a"]
    assert {one.record.dataset_id for one in choice.references} == {"edits"}
    assert choice.captions is None
    assert prepared.scanned == 3


def test_rows_that_share_an_image_keep_their_own_references(tmp_path, png):
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Shared(Blob):
        @property
        def place(self):
            return "shelf: shared"

    data = png()
    images = [
        Shared(key=key, data=data, captions=(key,), references=(blob(f"of {key}", png),)) for key in ("one", "two")
    ]
    samples = prepare(tmp_path, on_shelf(tmp_path, *images)).samples
    shown = [sample.choices[0].references[0].record.key for sample in samples]
    assert shown == ["of one", "of two"]


def test_a_row_without_a_reference_is_a_problem_or_left_out(tmp_path, png):
    images = [row(1, png, blob("1.r", png)), row(2, png)]
    with pytest.raises(DataError, match=r"1 of 2 images have no reference in their row: 2\nhint: .*skip"):
        prepare(tmp_path, on_shelf(tmp_path, *images))
    prepared = prepare(tmp_path, on_shelf(tmp_path, *images, on_missing="skip"))
    assert [sample.target.record.key for sample in prepared.samples] == ["1"]
    assert prepared.left_out["edits"] == {"on_missing": 1}


def test_a_row_whose_reference_cannot_be_read_is_that_problem_alone(tmp_path, png):
    images = [row(1, png, blob("1.r", png)), row(2, png, Blob(key="2.r", data=b"text"))]
    with pytest.raises(DataError) as raised:
        prepare(tmp_path, on_shelf(tmp_path, *images))
    assert "1 of 4 images cannot be read: shelf: 2.r" in str(raised.value)
    assert "no reference" not in str(raised.value)


def test_more_references_in_a_row_than_the_model_takes_are_an_error(tmp_path, png):
    images = [row(1, png, blob("1.a", png), blob("1.b", png)), row(2, png, blob("2.a", png))]
    samples = prepare(tmp_path, on_shelf(tmp_path, *images)).samples
    check_counts(samples, 2, flavour="two")
    with pytest.raises(DataError, match=r"1 of 2 images have more references than flavour 'one' can take, 1: 1 \(2\)"):
        check_counts(samples, 1, flavour="one")


@pytest.mark.parametrize("combined", [False, True])
def test_rows_stand_beside_generators(tmp_path, png, combined):
    plan = on_shelf(tmp_path, row(1, png, blob("1.a", png), blob("1.b", png)))
    plan = replace(plan, generators=(generator_plan(tmp_path, Superresolution()),))
    prepared = prepare(tmp_path, plan, combined=combined)
    assert prepared.made == 1
    assert [len(choice.references) for choice in prepared.samples[0].choices] == ([3] if combined else [2, 1])


def test_references_that_all_are_their_own_target_images_are_a_mistake(tmp_path, png):
    data = png()
    images = [Blob(key="1", data=data, captions=("x",), references=(Blob(key="1.r", data=data),))]
    with pytest.raises(DataError, match=r"all 1 references in 'edits' are the target images.*\nhint: give each row"):
        prepare(tmp_path, on_shelf(tmp_path, *images))


def test_a_source_serves_as_a_reference_set_too(tmp_path, png):
    edits = replace(on_shelf(tmp_path, row(1, png)), references=("references",))
    source = shelf(Blob(key="1.png", data=png((48, 32), 5), references=(Blob(key="never read", data=b""),)))
    references = replace(reference_set(tmp_path), source=source)
    [sample] = prepare(tmp_path, edits, references).samples
    assert sample.choices[0].references[0].record.dataset_id == "references"
    assert "never read" not in OPENED


def test_images_are_made_of_images_that_other_processes_cannot_import(tmp_path, png):
    @dataclass(frozen=True, kw_only=True, slots=True)
    class OfThisProcess(Blob):
        pass

    images = [OfThisProcess(key=f"{number}", data=png(seed=number), captions=("x",)) for number in range(24)]
    plan = replace(on_shelf(tmp_path, *images), generators=(generator_plan(tmp_path, Superresolution()),))
    prepared = prepare(tmp_path, plan)
    assert prepared.made == 24
    assert all(isinstance(one.choices[0].references[0].record.image, LocalImage) for one in prepared.samples)


def test_images_made_on_demand_are_made_of_the_images_bytes(tmp_path, png):
    plan = on_shelf(tmp_path, row(1, png))
    plan = replace(plan, generators=(generator_plan(tmp_path, Superresolution(), on_demand=True),))
    [sample] = prepare(tmp_path, plan).samples
    [reference] = sample.choices[0].references
    assert isinstance(reference.record.image, Blob)
    assert load_placed(reference).tobytes() != load_placed(sample.target).tobytes()


class Undeclared(Shelf):
    gives_references: ClassVar[bool] = False


class Failing(Shelf):
    def list_images(self):
        raise KeyError("no such shelf")


def scanned(root, plan):
    with ImageIndex(root / "index.sqlite") as index:
        return data_plans.scanned(plan, index, written={"output_dir": root / "out"})


def test_a_source_that_fails_is_named(tmp_path):
    with pytest.raises(PluginError, match="dataset 'edits': data source 'shelf' failed: KeyError: 'no such shelf'"):
        scanned(tmp_path, on_shelf(tmp_path, kind=Failing))


def test_references_must_be_declared(tmp_path, png):
    with pytest.raises(PluginError, match="does not declare it\nhint: set gives_references = True on Undeclared"):
        scanned(tmp_path, on_shelf(tmp_path, row(1, png, blob("r", png)), kind=Undeclared))


def test_references_without_a_pairing_ask_for_one(tmp_path, png):
    plan = replace(on_shelf(tmp_path, row(1, png, blob("r", png))), row_pairing=None)
    with pytest.raises(DataError, match="nothing says how these follow them\nhint: set conditioning_type"):
        prepare(tmp_path, plan)


def test_keys_must_differ_and_there_must_be_some(tmp_path, png):
    with pytest.raises(DataError, match="gives one key to several images: 1"):
        scanned(tmp_path, on_shelf(tmp_path, row(1, png), row(1, png)))
    with pytest.raises(DataError, match="data source 'shelf' has no images"):
        scanned(tmp_path, on_shelf(tmp_path))


def test_files_that_runs_write_are_left_out_of_any_source(tmp_path):
    inside = LocalImage.at(new_image(tmp_path / "out" / "b.png"))
    outside = [LocalImage.at(new_image(tmp_path / name)) for name in ("c.png", "a.png")]
    found = scanned(tmp_path, on_shelf(tmp_path, inside, *outside, captions=None))
    assert [record.key for record in found.records] == ["a", "c"]
    assert "1 images are left out" in found.findings[0].message
