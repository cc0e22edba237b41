"""A family whose text depends on references, through the whole command: views, dropouts, validations."""

import hashlib
import json
from collections import Counter

import pytest
from long_runs import changed
from PIL import Image
from seeing_family import SOURCE

from conftest import EditPairs, run_in
from difftrain.data.streaming.batch_reader import BatchReader

DROPOUTS = {"caption_dropout_probability": 0.5, "reference_dropout_probability": 0.5}
VALIDATION = {
    "validation_steps": 1, "validation_num_inference_steps": 1, "validation_resolution": 64, "num_eval_images": 1,
    "validation_guidance_real": 2.0, "validation_prompt": "draw it", "validation_negative_prompt": "ugly",
}  # fmt: skip


class Project:
    """Write three pairs of 96x64 pixels, whose middle 64x64 are encoded."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "seeing.py").write_text(SOURCE)
        self.pairs = EditPairs(folder)
        self.pairs(count=3, edit_sizes=[(96, 64)])
        self.datasets(crop=True)

    def datasets(self, **changes):
        path = self.folder / "datasets.json"
        path.write_text(json.dumps([{**entry, **changes} for entry in json.loads(path.read_text())]))

    def __call__(self, *command, **options):
        plain = dict(zip(self.pairs.fast[::2], self.pairs.fast[1::2], strict=True))
        del plain["--pretrained_model_name_or_path"]
        arguments = (part for pair in plain.items() for part in pair)
        given = {
            "model_family": "seeing", "model_flavour": "edit", "plugins": "./seeing.py", "max_train_steps": 1,
            "data_backend_config": "datasets.json", **options,
        }  # fmt: skip
        ended = run_in(self.folder, *command, *changed(tuple(arguments), **given))
        assert ended.status == 0, ended.err
        return ended

    @property
    def log(self):
        path = self.folder / "encoded.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def encoded(self):
        return [(line["caption"], line["seen"]) for line in self.log if "caption" in line]

    @property
    def loads(self):
        return sum("load" in line for line in self.log)

    @property
    def counts(self):
        """Return how often each caption was encoded with how many references."""
        return Counter((caption, len(seen)) for caption, seen in self.encoded)


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def view(path, box, size):
    """Return what is logged about a part of a file in another size."""
    with Image.open(path) as image:
        pixels = image.resize(size, Image.Resampling.LANCZOS, box=box)
    return [*size, hashlib.sha256(pixels.tobytes()).hexdigest()]


def own(count=3):
    return {(f"make it edit number {index}", 1): 1 for index in range(count)}


def test_the_text_encoder_is_handed_the_part_that_is_encoded_in_its_own_size(project):
    project()
    seen = {caption: images for caption, images in project.encoded if caption}
    for index in range(3):
        expected = view(project.folder / "references" / f"{index:04}.png", (16, 0, 80, 64), (32, 32))
        assert seen[f"make it edit number {index}"] == [expected]


def test_another_view_makes_other_texts_and_no_other_latents(project):
    project()
    assert json.loads(project("check", "--json").out)["to_encode"] == {"captions": 0, "images": 0}
    other = json.loads(project("check", "--json", seeing_divisor=4).out)
    assert other["to_encode"] == {"captions": 3, "images": 0}


@pytest.mark.parametrize(
    ("dropouts", "more"),
    [
        ((), {}),
        (("caption",), {("", 1): 3}),
        (("reference",), {(f"make it edit number {index}", 0): 1 for index in range(3)}),
        (
            ("caption", "reference"),
            {("", 1): 3, **{(f"make it edit number {index}", 0): 1 for index in range(3)}},
        ),
    ],
)
def test_what_the_dropouts_can_ask_for_is_encoded_before_the_training(project, dropouts, more):
    options = {f"{name}_dropout_probability": 0.1 for name in dropouts}
    expected = Counter({("", 0): 1, **own(), **more})
    told = json.loads(project("check", "--json", **options).out)
    assert told["to_encode"]["captions"] == expected.total()
    (text,) = (need for need in told["disk"] if need["what"] == "text embeddings")
    assert text["files"] == expected.total()
    # 32x32 is what the text encoder sees: 16 KiB more by seeing_family, and a file fills blocks of 4 KiB
    assert text["bytes"] == 4096 * sum(count * (1 + 4 * seen) for (_, seen), count in expected.items())
    project(**options)
    assert project.counts == expected


def test_a_run_with_both_dropouts_encodes_no_text_while_it_trains(project, monkeypatch):
    visits = []
    read = BatchReader.read

    def watched(reader, batch):
        visits.extend(batch)
        return read(reader, batch)

    monkeypatch.setattr(BatchReader, "read", watched)
    project(max_train_steps=30, **DROPOUTS)
    kinds = {(bool(visit.caption), len(visit.references)) for visit in visits}
    assert kinds == {(True, 1), (True, 0), (False, 1), (False, 0)}
    assert project.loads == 1


def test_captions_of_one_call_see_equally_many_references(project):
    project(**DROPOUTS)
    calls = []
    for line in project.log:
        if "call" in line:
            calls.append([])
        elif "caption" in line:
            calls[-1].append(len(line["seen"]))
    assert all(len(set(call)) == 1 for call in calls)
    assert len(calls) > 1


def test_validations_ask_for_prompts_beside_the_view_of_what_they_draw_with(project):
    project.pairs(count=3, edit_sizes=[(96, 64)], reference_sets=2)
    project.datasets(crop=True)
    project(conditioning_multidataset_sampling="combined", **VALIDATION)
    assert project.loads == 1
    first = view(project.folder / "references" / "0000.png", (16, 0, 80, 64), (32, 32))
    asked = {caption: seen for caption, seen in project.encoded if caption in ("draw it", "ugly")}
    assert asked == {"draw it": [first], "ugly": [first]}
    drawn = [seen for caption, seen in project.encoded if caption == "make it edit number 0"]
    assert sorted(map(len, drawn)) == [1, 2]  # drawn with the first reference, trained with both
