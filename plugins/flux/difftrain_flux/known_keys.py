"""Keys in users' files for FLUX.1 that come from other programs, including keys of other models. Data only."""

from __future__ import annotations

from difftrain import KnownKeys, because

KNOWN_KEYS = KnownKeys(
    renamed={
        "flux_schedule_shift": "flow_schedule_shift",
        "flux_schedule_auto_shift": "flow_schedule_auto_shift",
        "flux_beta_schedule_alpha": "flow_beta_schedule_alpha",
        "flux_beta_schedule_beta": "flow_beta_schedule_beta",
        "flow_matching_sigmoid_scale": "flow_sigmoid_scale",
    },
    switches={
        "flux_use_uniform_schedule": ("timestep_sampler", "uniform"),
        "flux_use_beta_schedule": ("timestep_sampler", "beta"),
    },
    not_built={
        "pretrained_t5_model_name_or_path": (),
        # exported files contain another model's VAE here, which FLUX.1 never used
        "pretrained_vae_model_name_or_path": ("madebyollin/sdxl-vae-fp16-fix",),
        "t5_padding": ("unmodified",),
        "flux_fast_schedule": (),
    },
    no_effect=because(
        "it is an option of another model",
        hidream_use_load_balancing_loss=False,
        hidream_load_balancing_loss_weight=None,
        ltx_train_mode="i2v",
        ltx_i2v_prob=0.1,
        ltx_partial_noise_fraction=0.05,
        ltx_protect_first_frame=False,
        sd3_clip_uncond_behaviour="empty_string",
        sd3_t5_uncond_behaviour=None,
        sdxl_refiner_uses_full_range=False,
        sana_complex_human_instruction=None,
        wan_force_2_1_time_embedding=False,
        wan_validation_load_other_stage=False,
    ),
)
"""``t5_padding: unmodified`` is what the stock pipelines do."""
