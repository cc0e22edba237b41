"""Every key that users of other trainers have is an option, or is in a table that says why not."""

from __future__ import annotations

import re

import pytest
from config_runs import PLUGINS

from difftrain.config.known_keys import DATASET_TABLES, NOT_BUILT_VALUES, OTHER_NAMES

RUN_TABLES = PLUGINS.run_tables

# Names of options in the public documentation of Kontext training, August 2026.
RUN_KEYS = set(
    re.findall(
        r"\w+",
        """
model_family model_flavour model flavour pretrained_model_name_or_path base_model_precision quantize_via
text_encoder_1_precision text_encoder_2_precision gradient_checkpointing gradient_checkpointing_interval
fuse_qkv_projections attention_mechanism model_type lora_type lora_rank lora_alpha lora_dropout flux_lora_target
lycoris_config init_lora optimizer optimizer_config learning_rate lr_scheduler lr_warmup_steps max_grad_norm
gradient_accumulation_steps train_batch_size max_train_steps num_train_epochs seed mixed_precision use_ema ema_decay
ema_update_interval ema_validation flow_schedule_shift flow_schedule_auto_shift flow_sigmoid_scale
flow_use_uniform_schedule flow_use_beta_schedule flux_guidance_mode flux_guidance_value flux_guidance_min
flux_guidance_max caption_dropout_probability conditioning_multidataset_sampling
scheduled_sampling_max_step_offset scheduled_sampling_strategy scheduled_sampling_probability
scheduled_sampling_ramp_steps scheduled_sampling_start_step validation_prompt validation_guidance
validation_guidance_real validation_resolution validation_steps validation_num_inference_steps num_eval_images
eval_dataset_id eval_steps_interval validation_stitch_input_location vae_enable_tiling vae_enable_slicing
vae_cache_ondemand vae_batch_size offload_during_startup vae_dtype checkpoint_step_interval checkpoints_total_limit
resume_from_checkpoint output_dir report_to push_to_hub hub_model_id push_checkpoints_to_hub validation_seed
validation_guidance_rescale validation_negative_prompt validation_prompt_library user_prompt_library
validation_step_interval tracker_project_name tracker_run_name grad_clip_method aspect_bucket_alignment lora_init_type
lora_format peft_lora_target_modules pretrained_transformer_model_name_or_path pretrained_transformer_subfolder
max_upscale_threshold caption_shuffle data_backend_sampling aspect_bucket_rounding disable_benchmark webhook_config
compress_disk_cache preserve_data_backend_cache skip_file_discovery data_backend_config
""",
    )
)
DATASET_KEYS = set(
    re.findall(
        r"\w+",
        """
id type dataset_type disabled instance_data_dir cache_dir_vae cache_dir resolution resolution_type minimum_image_size
maximum_image_size target_downsample_size minimum_aspect_ratio maximum_aspect_ratio crop crop_style crop_aspect
crop_aspect_buckets repeats probability train_batch_size max_num_samples caption_strategy instance_prompt
prepend_instance_prompt only_instance_prompt conditioning_data conditioning_type conditioning source_dataset_id
vae_cache_clear_each_epoch preserve_data_backend_cache default metadata_backend huggingface parquet
is_regularisation_data timestep_sampling_offset start_step end_step on_missing reference_resolution caption_shuffle
dataset_name
""",
    )
)


@pytest.mark.parametrize("key", sorted(RUN_KEYS))
def test_a_run_key_of_the_documentation_is_known(key):
    assert key in PLUGINS.run_schema.model_fields or key in RUN_TABLES


@pytest.mark.parametrize("key", sorted(DATASET_KEYS))
def test_a_dataset_key_of_the_documentation_is_known(key):
    assert key in PLUGINS.dataset_schema.model_fields or key in DATASET_TABLES


@pytest.mark.parametrize(
    ("tables", "schema"), [(RUN_TABLES, PLUGINS.run_schema), (DATASET_TABLES, PLUGINS.dataset_schema)]
)
def test_no_key_stands_in_two_tables(tables, schema):
    every = [*tables.renamed, *tables.switches, *tables.turns_off, *tables.not_built, *tables.no_effect]
    assert len(every) == len(set(every))


def test_other_names_and_switches_lead_to_options():
    for tables, schema in ((RUN_TABLES, PLUGINS.run_schema), (DATASET_TABLES, PLUGINS.dataset_schema)):
        switched = [key for key, _ in tables.switches.values()]
        targets = {*tables.renamed.values(), *tables.turns_off.values(), *switched}
        assert targets <= set(schema.model_fields)


def test_no_table_calls_a_registered_name_not_built():
    registered = PLUGINS.registry.names_by_key()
    both = {key: set(values) & registered.get(key, set()) for key, values in NOT_BUILT_VALUES.items()}
    assert not any(both.values())


def test_no_value_with_another_name_is_called_not_built():
    assert not any(set(NOT_BUILT_VALUES.get(key, ())) & set(names) for key, names in OTHER_NAMES.items())
