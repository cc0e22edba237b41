"""Keys and values that users' files carry and this version does not act on. Data only.

A key that is in no options class must be here, or it is an error. The tables:

- ``RENAMED_*``: another name of a key.
- ``SWITCHES_*``: a true-or-false key that others write for what is a value of another key here.
- ``NOT_BUILT_*``: the key means something that is not built yet. Its neutral values (the ones that ask for
  nothing) are accepted; any other is an error that says so. ``NOT_BUILT_VALUES`` is the same for single values of
  keys that do exist.
- ``NO_EFFECT_*``: the key has no effect here; it is accepted, and said once with the reason.

An options class that defines one of these keys, or registers one of these names, wins over the tables.
"""

from __future__ import annotations

from collections.abc import Mapping

NEUTRAL = (None, "", "none", "None")
"""Neutral for every key."""

RENAMED_RUN: Mapping[str, str] = {
    "model": "model_family",
    "flavour": "model_flavour",
    "checkpointing_steps": "checkpoint_step_interval",
    "validation_step_interval": "validation_steps",
    "user_prompt_library": "validation_prompt_library",
}

SWITCHES_RUN: Mapping[str, tuple[str, str]] = {
    "flow_use_uniform_schedule": ("timestep_sampler", "uniform"),
    "flow_use_beta_schedule": ("timestep_sampler", "beta"),
}

SWITCHES_DATASET: Mapping[str, tuple[str, str]] = {"only_instance_prompt": ("caption_strategy", "instanceprompt")}

NOT_BUILT_RUN: Mapping[str, tuple[object, ...]] = {
    # model
    "pretrained_transformer_model_name_or_path": (),
    "text_encoder_1_precision": ("no_change",),
    "text_encoder_2_precision": ("no_change",),
    "text_encoder_3_precision": ("no_change",),
    "text_encoder_4_precision": ("no_change",),
    "gradient_checkpointing_interval": (0, 1),
    "fuse_qkv_projections": (False,),
    # adapter
    "init_lora": (),
    "lora_init_type": ("default",),
    "lora_format": ("diffusers",),
    "peft_lora_target_modules": ([],),
    # training
    "use_ema": (False,),
    "grad_clip_method": ("norm",),
    "reference_timestep": ("same",),
    "scheduled_sampling_max_step_offset": (0,),
    "validation_torch_compile": (False,),
    # data
    "vae_cache_ondemand": (False,),
    "data_backend_sampling": ("uniform",),
    "max_upscale_threshold": (),
    "caption_shuffle": (False,),
    # validation and evaluation
    "validation_guidance_rescale": (0,),
    "evaluation_type": (),
    # sharing
    "push_to_hub": (False,),
    "push_checkpoints_to_hub": (False,),
}
"""Run keys: the neutral values of each, beside :data:`NEUTRAL`."""

NOT_BUILT_DATASET: Mapping[str, tuple[object, ...]] = {
    "dataset_name": (),
    "huggingface": ({},),
    "parquet": ({},),
    "train_batch_size": (),
    "vae_cache_clear_each_epoch": (False,),
    "is_regularisation_data": (False,),
    "is_regularization_data": (False,),
    "timestep_sampling_offset": (0,),
    "start_step": (0,),
    "end_step": (0,),
    "start_epoch": (0, 1),
    "end_epoch": (0,),
    "caption_shuffle": (False, {}),
    "prepend_instance_prompt": (False,),
    "instance_prompt": (),
    "max_upscale_threshold": (),
    "metadata_backend": ("discovery",),
    "reference_resolution": (),
    "text_embeds": (),
    "aws_bucket_name": (),
    "csv_file": (),
}
"""Dataset keys: the neutral values of each, beside :data:`NEUTRAL`."""

NOT_BUILT_VALUES: Mapping[str, tuple[str, ...]] = {
    "model_type": ("full",),
    "lora_type": ("lycoris",),
    "base_model_precision": (
        "int4-quanto",
        "int2-quanto",
        "fp8-quanto",
        "fp8uz-quanto",
        "int8-torchao",
        "fp8-torchao",
        "nf4-bnb",
    ),
    "mixed_precision": ("fp16", "fp8"),
    "attention_mechanism": (
        "diffusers",
        "xformers",
        "sageattention",
        "flash-attn",
        "flash-attn-2",
        "flash-attn-3",
        "flex",
        "cudnn",
    ),
    "lr_scheduler": ("polynomial", "cosine_with_restarts", "sine"),
    "loss_type": ("huber", "smooth_l1"),
    "report_to": ("tensorboard", "wandb", "comet_ml", "all"),
    "dataset_type": ("image_embeds", "conditioning_image_embeds", "video"),
    "type": ("huggingface", "parquet", "csv", "aws"),
    "crop_style": ("face",),
    "crop_aspect": ("random",),
    "caption_strategy": ("huggingface", "parquet", "jsonl", "csv"),
    "conditioning_type": ("mask", "segmentation", "controlnet"),
}
"""Values of existing keys that name something not built yet."""

KEYS_OF_TYPE: Mapping[str, tuple[str, ...]] = {
    "huggingface": ("dataset_name", "huggingface", "metadata_backend"),
    "parquet": ("parquet", "metadata_backend"),
    "aws": ("aws_bucket_name",),
    "csv": ("csv_file",),
}
"""Dataset keys that say nothing beyond the ``type`` that is not built: the type is named once for all of them."""

_EVAL = "the loss on held-out samples is measured with the validation pictures, every validation_steps"
_EMA = "use_ema is not built yet"
_ROLLOUT = "scheduled sampling is not built yet"
_HUB = "nothing is uploaded; push_to_hub is not built yet"
_TRACKER = "there is no tracker; report_to is none"

NO_EFFECT_RUN: Mapping[str, str] = {
    "aspect_bucket_rounding": "buckets follow resolution and aspect_bucket_alignment alone",
    "compress_disk_cache": "caches are safetensors files, never compressed",
    "disable_benchmark": "nothing is benchmarked",
    "disable_bucket_pruning": "buckets are never pruned",
    "ema_decay": _EMA,
    "ema_update_interval": _EMA,
    "ema_validation": _EMA,
    "eval_loss_disable": _EVAL,
    "eval_epoch_interval": _EVAL,
    "eval_steps_interval": _EVAL,
    "hub_model_id": _HUB,
    "ignore_final_epochs": "a run ends at its last step",
    "lycoris_config": "lora_type lycoris is not built yet",
    "metadata_update_interval": "the data index is always up to date",
    "offload_during_startup": "every part of the model is let go before the next is loaded",
    "override_dataset_config": "a changed dataset config is always followed",
    "preserve_data_backend_cache": "caches are kept, and follow the content of the files",
    "pretrained_transformer_subfolder": "pretrained_transformer_model_name_or_path is not built yet",
    "print_filenames": "samples are named in messages when they matter",
    "print_sampler_statistics": "the summary at start-up has the counts",
    "quantize_via": "weights are quantised one at a time on the training device",
    "scheduled_sampling_probability": _ROLLOUT,
    "scheduled_sampling_prob_start": _ROLLOUT,
    "scheduled_sampling_prob_end": _ROLLOUT,
    "scheduled_sampling_ramp_steps": _ROLLOUT,
    "scheduled_sampling_ramp_shape": _ROLLOUT,
    "scheduled_sampling_sampler": _ROLLOUT,
    "scheduled_sampling_order": _ROLLOUT,
    "scheduled_sampling_start_step": _ROLLOUT,
    "scheduled_sampling_strategy": _ROLLOUT,
    "skip_file_discovery": "a scan only stats files that did not change",
    "tracker_project_name": _TRACKER,
    "tracker_run_name": _TRACKER,
    "validation_stitch_input_location": "sheets are always laid out reference, base, result, target",
    "webhook_config": "there are no webhooks",
    "write_batch_size": "cache entries are written one at a time",
}

NO_EFFECT_DATASET: Mapping[str, str] = {
    "aspect_bucket_rounding": NO_EFFECT_RUN["aspect_bucket_rounding"],
    "compress_cache": NO_EFFECT_RUN["compress_disk_cache"],
    "preserve_data_backend_cache": NO_EFFECT_RUN["preserve_data_backend_cache"],
    "skip_file_discovery": NO_EFFECT_RUN["skip_file_discovery"],
    "write_batch_size": NO_EFFECT_RUN["write_batch_size"],
}
