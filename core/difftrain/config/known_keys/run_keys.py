"""Keys of the run file that no options class has: other names, and things not supported yet."""

from __future__ import annotations

from difftrain.config.known_keys.idle_keys import NO_EFFECT
from difftrain.config.known_keys.key_tables import KnownKeys

RUN_TABLES = KnownKeys(
    renamed={
        "model": "model_family",
        "flavour": "model_flavour",
        "checkpointing_steps": "checkpoint_step_interval",
        "validation_step_interval": "validation_steps",
        "user_prompt_library": "validation_prompt_library",
    },
    switches={
        "flow_use_uniform_schedule": ("timestep_sampler", "uniform"),
        "flow_use_beta_schedule": ("timestep_sampler", "beta"),
    },
    turns_off={"validation_disable": "validation_steps"},
    no_effect=NO_EFFECT,
    not_built={
        # model
        "revision": (),
        "variant": (),
        "controlnet": (),
        "control": (),
        "prediction_type": ("flow_matching",),
        "refiner_training": (),
        "tokenizer_max_length": (),
        "quantize_activations": (),
        "enable_group_offload": (),
        "enable_model_cpu_offload": (),
        "ramtorch": (),
        "ramtorch_text_encoder": (),
        "ramtorch_vae": (),
        "ramtorch_controlnet": (),
        "context_parallel_size": (1,),
        "fsdp_enable": (),
        "deepspeed_config": (),
        # adapter
        "lora_format": ("diffusers",),
        "peft_lora_mode": ("standard",),
        "slider_lora_target": (),
        # training
        "use_ema": (),
        "train_text_encoder": (),
        "layer_freeze_strategy": (),
        "reference_timestep": ("same",),
        "scheduled_sampling_max_step_offset": (),
        "timestep_bias_strategy": (),
        "flow_custom_timesteps": (),
        "offset_noise": (),
        "input_perturbation": (),
        "lr_scale": (),
        "distillation_method": (),
        "tread_config": (),
        "crepa_enabled": (),
        "diff2flow_enabled": (),
        "checkpoint_epoch_interval": (),
        "checkpointing_rolling_steps": (),
        # data
        "ignore_missing_files": (),
        # validation and evaluation
        "validation_guidance_rescale": (0.1,),
        "validation_guidance_skip_layers": (),
        "validation_randomize": (),
        "validation_epoch_interval": (),
        "validation_noise_scheduler": ("same", "euler", "flow_matching"),
        "validation_torch_compile": (),
        "validation_method": ("simpletuner-local",),
        "validation_external_script": (),
        "validation_adapter_path": (),
        "validation_adapter_config": (),
        "validation_preview": (),
        "num_validation_images": (1,),
        "evaluation_type": (),
        # sharing
        "publishing_config": (),
        "post_upload_script": (),
        "post_checkpoint_script": (),
        "custom_tracker": (),
    },
)
