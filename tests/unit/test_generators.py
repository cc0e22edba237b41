import random
import subprocess
import sys

import numpy as np
import pytest
from data_plans import SilentReporter, generator_plan, new_image
from PIL import Image, ImageOps
from pydantic import ValidationError

from difftrain import ConditioningGenerator, DataError, PluginError
from difftrain.data.files.local_image import LocalImage
from difftrain.data.files.pixels import load_placed, open_upright
from difftrain.data.samples.made_images import FEWEST_FOR_PROCESSES, make_missing, planned_records
from difftrain.data.scanning.image_index import ImageIndex
from difftrain.types import Geometry, ImageRecord, PlacedImage
from difftrain_conditioning_generators.jpeg_artifacts import JpegArtifacts
from difftrain_conditioning_generators.superresolution import Superresolution


@pytest.fixture
def photo(tmp_path):
    return open_upright(LocalImage.at(new_image(tmp_path / "photo.png", (90, 70))))


def records(root, count=3, suffix="png"):
    made = []
    for number in range(count):
        path = new_image(root / "edits" / f"{number:03}.{suffix}", seed=number)
        made.append(
            ImageRecord(
                dataset_id="edits",
                key=f"{number:03}",
                image=LocalImage.at(path),
                width=96,
                height=64,
                content_hash=f"{number:064x}",
            )
        )
    return made


def make(root, plan, sources):
    with ImageIndex(root / "index.sqlite") as index:
        return make_missing(plan, sources, index, SilentReporter())


def test_superresolution_blurs_a_step_edge_as_specified():
    # Golden values: the specified ones of the default blur, +-1.
    edge = np.zeros((32, 32, 3), dtype=np.uint8)
    edge[:, 16:] = 255
    blurred = Superresolution(add_noise=False).generate(Image.fromarray(edge), random.Random(0))
    row = np.asarray(blurred)[16, 10:22, 0].astype(int)
    np.testing.assert_allclose(row, [0, 2, 10, 28, 59, 103, 152, 196, 227, 245, 253, 255], atol=1)


def test_superresolution_noise_has_the_level_asked_for_and_no_drift():
    grey = Image.new("RGB", (256, 256), (128, 128, 128))
    noisy = np.asarray(Superresolution(noise_level=0.02).generate(grey, random.Random(0))).astype(float)
    assert noisy.std() == pytest.approx(0.02 * 255, rel=0.02)
    assert noisy.mean() == pytest.approx(128, abs=0.05)


def test_noise_bits_are_pinned():
    # Golden values: PCG64 words cut into 16-bit pieces, through statistics.NormalDist().inv_cdf, by hand.
    # If they change, raise the generators' version.
    grey = Image.new("RGB", (2, 1), (128, 128, 128))
    noisy = Superresolution(noise_level=0.1, blur_radius=0).generate(grey, random.Random(7))
    assert noisy.tobytes() == bytes([147, 128, 87, 171, 100, 94])


def test_jpeg_rounds_decay_as_specified():
    assert JpegArtifacts(compression_rounds=4).round_qualities(25) == [25, 22, 20, 18]


def test_jpeg_rounds_are_not_rounded_down_by_binary_fractions():
    assert JpegArtifacts(compression_rounds=3).round_qualities(100) == [100, 90, 81]


def test_jpeg_of_lower_quality_is_further_from_the_target(photo):
    def distance(quality):
        made = JpegArtifacts(quality=quality).generate(photo, random.Random(0))
        return np.abs(np.asarray(made, dtype=int) - np.asarray(photo, dtype=int)).mean()

    assert distance(5) > distance(25) > distance(90)


def test_jpeg_modes_draw_within_their_values():
    ranged = JpegArtifacts(quality_mode="range", quality_range=(10, 12))
    listed = JpegArtifacts(quality_mode="random", quality_list=(5, 95))
    assert {ranged._first_quality(random.Random(seed)) for seed in range(60)} == {10, 11, 12}
    assert {listed._first_quality(random.Random(seed)) for seed in range(60)} == {5, 95}


@pytest.mark.parametrize(
    "mode", [{"quality_mode": "range", "quality_range": (7, 7)}, {"quality_mode": "random", "quality_list": (7,)}]
)
def test_the_quality_that_a_mode_draws_is_the_one_that_images_are_saved_with(photo, mode):
    drawn = JpegArtifacts(quality=90, **mode).generate(photo, random.Random(1))
    assert drawn.tobytes() == JpegArtifacts(quality=7).generate(photo, random.Random(1)).tobytes()


@pytest.mark.parametrize("subsampling", ["4:2:0", 2])
def test_jpeg_subsampling_by_name_or_number_changes_pixels(photo, subsampling):
    full = JpegArtifacts(subsampling="4:4:4").generate(photo, random.Random(0))
    assert JpegArtifacts(subsampling=subsampling).generate(photo, random.Random(0)).tobytes() != full.tobytes()


@pytest.mark.parametrize(
    "options",
    [{"quality": 0}, {"quality_range": (50, 10)}, {"quality_range": (0, 10)}, {"quality_list": ()}, {"quality": "low"}],
)
def test_jpeg_refuses_impossible_options(options):
    with pytest.raises(ValidationError):
        JpegArtifacts(**options)


def test_block_noise_is_one_offset_a_block():
    grey = Image.new("RGB", (20, 12), (128, 128, 128))
    made = np.asarray(JpegArtifacts(enhance_blocks=True, quality=100).generate(grey, random.Random(0)))
    assert (made[:8, :8] == made[0, 0]).all()
    assert (made[:8, 8:16] == made[0, 8]).all()
    assert (made[0, 0] != made[0, 8]).all()


@pytest.mark.parametrize(
    "generator",
    [
        Superresolution(),
        Superresolution(blur_type="box", downscale_factor=3, jpeg_quality=30),
        Superresolution(blur_type="both", add_noise=False),
        JpegArtifacts(quality_mode="range", compression_rounds=2, pre_blur=True, add_noise=True),
        JpegArtifacts(quality_mode="random", progressive=True, optimize=True, enhance_blocks=True),
    ],
    ids=lambda generator: f"{generator.name}",
)
def test_same_seed_same_image_of_the_same_size(photo, generator):
    first = generator.generate(photo.copy(), random.Random(7))
    second = generator.generate(photo.copy(), random.Random(7))
    assert first.tobytes() == second.tobytes()
    assert (first.size, first.mode) == (photo.size, "RGB")


def test_made_images_are_identical_in_other_processes(tmp_path):
    sources = records(tmp_path, FEWEST_FOR_PROCESSES)
    made_in_pool = generator_plan(tmp_path / "pool", Superresolution())
    assert make(tmp_path, made_in_pool, sources).written == len(sources)
    made_here = generator_plan(tmp_path / "here", Superresolution())
    for one in sources:
        assert make(tmp_path, made_here, [one]).written == 1
    for pooled, alone in zip(planned_records(made_in_pool, sources), planned_records(made_here, sources), strict=True):
        assert pooled.image.path.read_bytes() == alone.image.path.read_bytes()


def test_generator_that_other_processes_cannot_import_works_in_this_one(tmp_path):
    class Inverted(ConditioningGenerator):
        name = "inverted"

        def generate(self, image: Image.Image, rng: random.Random) -> Image.Image:
            return ImageOps.invert(image)

    sources = records(tmp_path, FEWEST_FOR_PROCESSES)
    assert make(tmp_path, generator_plan(tmp_path, Inverted()), sources).written == len(sources)


def test_image_made_on_demand_equals_the_stored_one_and_writes_nothing(tmp_path):
    sources = records(tmp_path, 1, "jpg")
    stored_plan = generator_plan(tmp_path / "stored", Superresolution())
    make(tmp_path, stored_plan, sources)
    [stored] = planned_records(stored_plan, sources)
    demand_plan = generator_plan(tmp_path / "demand", Superresolution(), on_demand=True)
    assert make(tmp_path, demand_plan, sources).written == 0
    [demanded] = planned_records(demand_plan, sources)
    whole = Geometry(resize=(96, 64), crop=(0, 0), bucket=(96, 64))
    pixels = [load_placed(PlacedImage(record=record, geometry=whole)).tobytes() for record in (stored, demanded)]
    assert pixels[0] == pixels[1]
    assert stored.content_hash == demanded.content_hash
    assert not (tmp_path / "demand").exists()


def test_image_of_a_jpeg_is_stored_without_loss_in_the_source_size(tmp_path):
    sources = records(tmp_path, 1, "jpg")
    plan = generator_plan(tmp_path, Superresolution())
    make(tmp_path, plan, sources)
    [made] = planned_records(plan, sources)
    with Image.open(made.image.path) as image:
        assert (image.format, image.size) == ("PNG", (96, 64))


def test_changed_options_or_seed_never_reuse_an_image(tmp_path):
    [source] = records(tmp_path, 1)
    plans = [
        generator_plan(tmp_path, Superresolution()),
        generator_plan(tmp_path, Superresolution(blur_radius=3.0)),
        generator_plan(tmp_path, Superresolution(), seed=1),
    ]
    assert len({planned_records(plan, [source])[0].image.path for plan in plans}) == 3


def test_made_image_is_not_made_twice(tmp_path):
    sources = records(tmp_path)
    plan = generator_plan(tmp_path, Superresolution())
    assert make(tmp_path, plan, sources).written == 3
    assert make(tmp_path, plan, sources).written == 0


@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: data[:80] + bytes(60) + data[140:]])
def test_damaged_image_is_made_again_and_said(tmp_path, damage):
    sources = records(tmp_path)
    plan = generator_plan(tmp_path, Superresolution())
    make(tmp_path, plan, sources)
    path = planned_records(plan, sources)[0].image.path
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    result = make(tmp_path, plan, sources)
    assert result.written == 1
    assert len(result.notes) == 1
    assert "1 made images were damaged" in result.notes[0]
    assert path.read_bytes() == whole


def test_no_temporary_file_is_left(tmp_path):
    plan = generator_plan(tmp_path, Superresolution())
    make(tmp_path, plan, records(tmp_path))
    assert all(path.suffix == ".png" for path in plan.folder.rglob("*") if path.is_file())


def test_undecodable_source_is_a_problem_not_a_crash(tmp_path):
    sources = records(tmp_path)
    sources[1].image.path.write_bytes(b"gone")
    result = make(tmp_path, generator_plan(tmp_path, Superresolution()), sources)
    assert result.written == 2
    assert len(result.problems) == 1
    assert "001.png" in result.problems[0]


def test_importing_generators_imports_no_numpy():
    modules = "difftrain_conditioning_generators.superresolution, difftrain_conditioning_generators.jpeg_artifacts"
    code = f"import sys, {modules}; print([name for name in ('numpy', 'torch', 'PIL') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


class Failing(ConditioningGenerator):
    name = "failing"

    def generate(self, image: Image.Image, rng: random.Random) -> Image.Image:
        raise KeyError("palette")


class Forgetful(ConditioningGenerator):
    name = "forgetful"

    def generate(self, image: Image.Image, rng: random.Random) -> Image.Image:
        return None


@pytest.mark.parametrize("on_demand", [False, True])
def test_failing_generator_is_named_with_source_and_cause_before_training(tmp_path, on_demand):
    plan = generator_plan(tmp_path, Failing(), on_demand=on_demand)
    with pytest.raises(PluginError, match=r"generator 'failing' failed on .*000\.png: KeyError: 'palette'"):
        make(tmp_path, plan, records(tmp_path))


def test_failure_of_a_generator_in_another_process_is_reported_the_same_way(tmp_path):
    plan = generator_plan(tmp_path, Failing())
    with pytest.raises(PluginError, match=r"generator 'failing' failed on .*\.png: KeyError: 'palette'"):
        make(tmp_path, plan, records(tmp_path, FEWEST_FOR_PROCESSES))


@pytest.mark.parametrize("on_demand", [False, True])
def test_generator_that_returns_no_image_is_named(tmp_path, on_demand):
    plan = generator_plan(tmp_path, Forgetful(), on_demand=on_demand)
    with pytest.raises(PluginError, match=r"generator 'forgetful' returned NoneType, not an image, for .*000\.png"):
        make(tmp_path, plan, records(tmp_path))


def test_undecodable_first_source_is_a_problem_on_demand_too(tmp_path):
    sources = records(tmp_path)
    sources[0].image.path.write_bytes(b"gone")
    result = make(tmp_path, generator_plan(tmp_path, Superresolution(), on_demand=True), sources)
    assert len(result.problems) == 1
    assert "000.png" in result.problems[0]


def test_made_image_that_cannot_be_stored_is_a_message_with_its_path(tmp_path):
    plan = generator_plan(tmp_path, Superresolution())
    sources = records(tmp_path, 1)
    (planned,) = planned_records(plan, sources)
    planned.image.path.parent.parent.mkdir(parents=True)
    planned.image.path.parent.write_text("a file")
    with pytest.raises(DataError, match=f"{plan.folder}.* cannot be written"):
        make(tmp_path, plan, sources)
