"""The visits of an epoch."""

from collections import Counter
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from difftrain.data.files.local_image import LocalImage
from difftrain.data.streaming.epoch import draw_visit, largest_area, plan_epoch
from difftrain.data.streaming.set_rules import EpochRules, SetRules
from difftrain.types import Geometry, ImageRecord, PlacedImage, ReferenceChoice, Sample

SIZES = ((64, 64), (96, 48), (48, 96))


def placed(name, size, dataset="refs"):
    record = ImageRecord(
        dataset_id=dataset,
        key=name,
        image=LocalImage.at(Path(name)),
        width=size[0],
        height=size[1],
        content_hash=f"{dataset}{name}",
    )
    return PlacedImage(record=record, geometry=Geometry(resize=size, crop=(0, 0), bucket=size))


def sample(index, size=(64, 64), choices=None, captions=("one", "two"), dataset="edits"):
    choices = choices or (ReferenceChoice(references=(placed(f"{index}", size),)),)
    return Sample(dataset_id=dataset, target=placed(f"{index}", size, dataset), captions=captions, choices=choices)


def rules(*, repeats=None, probability=None, **changes):
    """Return rules; ``repeats`` and ``probability`` are of the set ``edits``."""
    sets = {"edits": SetRules(repeats=(repeats or {}).get("edits", 0), probability=(probability or {}).get("edits", 1))}
    return EpochRules(**{"seed": 1, "batch_size": 2, "sets": sets} | changes)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(SIZES), min_size=1, max_size=30),
    st.integers(1, 5),
    st.integers(0, 2),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_every_sample_is_shown_repeats_plus_one_times_in_batches_of_one_shape(sizes, batch_size, repeats, epoch, seed):
    samples = [sample(index, size) for index, size in enumerate(sizes)]
    batches = plan_epoch(samples, epoch, rules(batch_size=batch_size, repeats={"edits": repeats}, seed=seed))
    shown = Counter(visit.sample.target.record.key for batch in batches for visit in batch)
    assert set(shown.values()) == {repeats + 1}
    assert len(shown) == len(samples)
    assert all(len({visit.shape_key for visit in batch}) == 1 for batch in batches)
    assert all(1 <= len(batch) <= batch_size for batch in batches)


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=20),
    st.sampled_from([0.0, 0.4]),
    st.sampled_from([0.0, 0.4]),
)
def test_every_visit_of_an_epoch_is_drawn_as_it_is_alone(counts, caption_dropout, reference_dropout):
    samples = [
        sample(
            index,
            captions=tuple(f"caption {number}" for number in range(captions)),
            choices=tuple(ReferenceChoice(references=(placed(f"{index}-{one}", (64, 64)),)) for one in range(choices)),
        )
        for index, (captions, choices) in enumerate(counts)
    ]
    own = rules(caption_dropout=caption_dropout, reference_dropout=reference_dropout, repeats={"edits": 1})
    alone = {(visit.number, visit) for one in samples for visit in (draw_visit(one, n, 3, own) for n in range(2))}
    assert {(visit.number, visit) for batch in plan_epoch(samples, 3, own) for visit in batch} == alone


def test_the_largest_area_counts_the_target_and_the_largest_references():
    two = ReferenceChoice(references=(placed("a", (64, 64)), placed("b", (96, 48))))
    one = ReferenceChoice(references=(placed("c", (48, 96)),))
    assert largest_area(sample(0, (64, 64), (one, two))) == 2 * 64 * 64 + 96 * 48


def test_loose_references_of_several_sizes_never_share_a_batch():
    samples = [sample(i, choices=(ReferenceChoice(references=(placed(f"{i}", SIZES[i % 3]),)),)) for i in range(12)]
    for batch in plan_epoch(samples, 0, rules(batch_size=3)):
        assert len({visit.references[0].geometry.bucket for visit in batch}) == 1


def test_epochs_differ_and_repeat_for_a_seed():
    samples = [sample(index) for index in range(20)]
    first = list(plan_epoch(samples, 0, rules()))
    assert list(plan_epoch(samples, 0, rules())) == first
    assert list(plan_epoch(samples, 1, rules())) != first
    assert list(plan_epoch(samples, 0, rules(seed=2))) != first


def test_several_reference_sets_are_each_drawn_and_bring_their_captions():
    first = ReferenceChoice(references=(placed("a", (64, 64)),), captions=("from a",))
    second = ReferenceChoice(references=(placed("b", (64, 64)),))
    samples = [sample(index, choices=(first, second), captions=("own",)) for index in range(40)]
    drawn = Counter((v.references[0].record.key, v.caption) for b in plan_epoch(samples, 0, rules()) for v in b)
    assert set(drawn) == {("a", "from a"), ("b", "own")}
    assert min(drawn.values()) > 8


def test_a_new_file_changes_no_draw_of_the_others():
    samples = [sample(index) for index in range(10)]

    def captions(shown):
        return {v.name: v.caption for b in plan_epoch(shown, 3, rules()) for v in b}

    before = captions(samples)
    after = captions([sample(99), *samples])
    assert before.items() <= after.items()


def test_dropouts_drop_about_their_share():
    samples = [sample(index) for index in range(400)]
    visits = [v for b in plan_epoch(samples, 0, rules(caption_dropout=0.25, reference_dropout=0.5)) for v in b]
    assert 70 < sum(visit.caption == "" for visit in visits) < 130
    assert 160 < sum(visit.references == () for visit in visits) < 240
