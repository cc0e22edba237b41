"""Faults that users know from other trainers: which tests show that this one has none of them."""

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

FAULTS = {
    "a strict reference is cut at another place than its target": [
        "unit/test_pairing.py::test_pixels_of_a_strict_pair_stay_aligned",
        "unit/test_buckets.py::test_without_crop_the_overhang_is_cut_at_the_centre_whatever_the_style",
    ],
    "a strict reference of another aspect is squashed": [
        "unit/test_pairing.py::test_strict_reference_of_another_aspect_is_refused_with_both_sizes",
    ],
    "a missing pair surfaces in the middle of training": [
        "unit/test_audit.py::test_missing_references_are_counted_with_the_first_names",
    ],
    "several reference sets, or loose references of mixed sizes, fail at batch sizes above 1": [
        "unit/test_epoch.py::test_loose_references_of_several_sizes_never_share_a_batch",
        "unit/test_epoch.py::test_several_reference_sets_are_each_drawn_and_bring_their_captions",
        "integration/test_wiring_data.py::test_two_reference_sets_are_drawn_from_or_shown_in_their_order",
    ],
    "each process draws the references in another order": [
        "unit/test_faults_of_others.py::test_draws_are_equal_in_every_process",
        "unit/test_rounds.py::test_processes_share_an_epoch_without_doubles",
    ],
    "captions on a single generator are ignored": [
        "integration/test_wiring_data.py::test_a_generators_images_and_captions_are_trained_on",
        "unit/test_audit.py::test_captions_of_the_only_generator_do_for_edits_without_any",
    ],
    "made images of JPEG sources are saved as JPEG again": [
        "unit/test_generators.py::test_image_of_a_jpeg_is_stored_without_loss_in_the_source_size",
    ],
    "changed parameters of a generator reuse old images, and there is no seed": [
        "unit/test_generators.py::test_changed_options_or_seed_never_reuse_an_image",
        "unit/test_generators.py::test_same_seed_same_image_of_the_same_size",
    ],
    "generators cannot make images on demand": [
        "unit/test_generators.py::test_image_made_on_demand_equals_the_stored_one_and_writes_nothing",
    ],
    "images are resampled twice": ["unit/test_image.py::test_placed_image_is_resized_once_then_cropped"],
    "the orientation of photographs is lost": [
        "unit/test_image.py::test_orientation_is_applied_to_pixels_and_header_alike",
    ],
    "transparency is dropped": [
        "unit/test_image.py::test_transparency_is_shown_on_white",
        "unit/test_image.py::test_half_transparency_is_blended",
    ],
    "stale latents are reused, since cache entries are named by files or captions alone": [
        "integration/test_wiring_caches.py::test_an_image_that_is_cut_differently_is_encoded_and_trained_again",
        "integration/test_wiring_caches.py::test_another_models_encodings_are_never_taken_for_this_ones",
        "integration/test_wiring_caches.py::test_latents_of_another_dtype_are_encoded_again",
    ],
    "training feeds references another timestep than validation": [
        "integration/test_flux_parity.py::test_kontext_prediction_equals_the_stock_pipelines",
        "integration/test_flux_parity.py::test_sampler_draws_what_the_stock_pipeline_draws",
    ],
    "validation does not scale the latents of references": [
        "integration/test_reference_latents.py::test_cached_reference_equals_what_the_stock_pipeline_hands_its_transformer",
    ],
    "another resolution keeps the old geometry": [
        "integration/test_wiring_caches.py::test_an_image_that_is_cut_differently_is_encoded_and_trained_again",
        "integration/test_wiring_data.py::test_size_options_give_the_size_that_is_trained",
    ],
    "every batch is read by the thread that trains": [
        "unit/test_stream.py::test_an_error_while_reading_ahead_reaches_the_trainer",
    ],
    "captions come with other images once latents are cached": [
        "integration/test_wiring_data.py::test_the_model_is_fed_the_reference_of_its_own_edit_behind_the_target",
        "integration/test_wiring_data.py::test_each_visit_draws_one_of_the_lines_and_every_caption_has_its_own_embedding",
    ],
    "on several GPUs every process reads the same samples": [
        "unit/test_rounds.py::test_processes_share_an_epoch_without_doubles",
    ],
    "latents of references are not cached": [
        "integration/test_wiring_caches.py::test_caches_lie_where_the_config_says",
        "unit/test_reencoder.py::test_references_are_stored_without_a_deviation",
    ],
    "a black image stands in for a missing reference": [
        "unit/test_audit.py::test_missing_references_are_counted_with_the_first_names",
        "integration/test_wiring_data.py::test_on_missing_skip_trains_on_the_other_pairs",
        "integration/test_wiring_data.py::test_reference_dropout_trains_without_the_reference",
    ],
}
"""By fault: the tests that fail if this trainer has it."""


@cache
def functions(path):
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_others_is_tested_here(fault):
    for test in FAULTS[fault]:
        path, _, name = test.partition("::")
        assert name in functions(path), f"{fault}: {test} is gone; which test shows it now?"


DRAWS = """
from test_epoch import placed, rules, sample
from difftrain.data.streaming.epoch import plan_epoch
from difftrain.types import ReferenceChoice
choices = tuple(ReferenceChoice(references=(placed(name, (64, 64)),)) for name in "abcd")
batches = plan_epoch([sample(number, choices=choices) for number in range(20)], 0, rules(caption_dropout=0.3))
for batch in batches:
    print([(visit.sample.target.record.key, visit.references[0].record.key, visit.caption) for visit in batch])
"""


def test_draws_are_equal_in_every_process():
    # Python's own hashes differ between processes
    printed = [
        subprocess.run(
            [sys.executable, "-c", DRAWS],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([str(TESTS / "unit"), *sys.path])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert printed[0] == printed[1]
    assert len({line.split("'")[3] for line in printed[0].splitlines()}) > 1  # several references are drawn
