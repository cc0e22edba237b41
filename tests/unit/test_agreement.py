"""Facts that make two processes, or a run and its resume, see the same."""

from dataclasses import replace

import pytest
from test_epoch import placed, rules, sample

from difftrain.checkpoints.resume_state import data_changes
from difftrain.training import agreement
from difftrain.training.agreement import differences
from difftrain.types import ReferenceChoice

SAMPLES = [sample(index) for index in range(3)]


def data_facts(samples, **changes):
    return agreement.data_facts(samples, rules(**changes))


def other(index=1, **changes):
    samples = list(SAMPLES)
    samples[index] = replace(samples[index], **changes)
    return samples


@pytest.mark.parametrize(
    "samples",
    [
        other(captions=("one",)),
        other(target=placed("1", (96, 48), "edits")),
        other(choices=(ReferenceChoice(references=(placed("other", (64, 64)),)),)),
        other(choices=(*SAMPLES[1].choices, *SAMPLES[1].choices)),
        SAMPLES[::-1],
    ],
    ids=["caption", "crop", "reference", "choices", "order"],
)
def test_whatever_training_reads_is_part_of_the_facts(samples):
    assert data_facts(samples) != data_facts(SAMPLES)
    assert data_changes(data_facts(SAMPLES), data_facts(samples)) == [
        "'edits' has the same number of samples, but other images, captions or crops"
    ]


def test_equal_samples_have_equal_facts():
    assert data_facts([sample(index) for index in range(3)]) == data_facts(SAMPLES)


def test_counts_and_datasets_that_changed_are_reported_by_name():
    more = data_facts([*SAMPLES, sample(0, dataset="new")])
    fewer = data_facts(SAMPLES[:2])
    assert data_changes(data_facts(SAMPLES), more) == ["'new' is new (1 samples, repeats 0, probability 1)"]
    assert data_changes(more, fewer) == [
        "'edits' had 3 samples, repeats 0, probability 1, has 2 samples, repeats 0, probability 1",
        "'new' is gone (1 samples, repeats 0, probability 1)",
    ]


@pytest.mark.parametrize("change", [{"repeats": {"edits": 2}}, {"probability": {"edits": 0.5}}])
def test_how_often_a_dataset_is_shown_is_part_of_the_facts(change):
    (told,) = data_changes(data_facts(SAMPLES), data_facts(SAMPLES, **change))
    assert told.startswith("'edits' had 3 samples, repeats 0, probability 1, has 3 samples, repeats ")


def test_differences_name_the_fact_the_values_and_the_process():
    every = [{"step": "4", "seed": "1"}, {"step": "4", "seed": "1"}, {"step": "6", "seed": "1", "more": "x"}]
    assert differences(every) == ["step: 4 in process 0, 6 in process 2", "more: nothing in process 0, x in process 2"]
    assert differences(every[:2]) == []
