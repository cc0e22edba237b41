"""Keys of a dataset entry that no options class has."""

from __future__ import annotations

from collections.abc import Mapping

from difftrain.config.known_keys.idle_keys import NO_EFFECT as NO_EFFECT_RUN
from difftrain.config.known_keys.key_tables import KnownKeys, because

DATASET_TABLES = KnownKeys(
    renamed={
        "disable": "disabled",
        "instance_data_root": "instance_data_dir",
        "is_regularization_data": "is_regularisation_data",
    },
    switches={"only_instance_prompt": ("caption_strategy", "instanceprompt")},
    not_built={
        "prepend_instance_prompt": (),
        "instance_prompt": (),
        "metadata_backend": ("discovery", "json", "huggingface", "parquet", "csv"),
        "reference_resolution": (),
        "conditioning_config": (),
        "aws_bucket_name": (),
        "video": (),
        "audio": (),
    },
    no_effect={
        **{
            key: NO_EFFECT_RUN[key]
            for key in (
                "aspect_bucket_rounding",
                "preserve_data_backend_cache",
                "skip_file_discovery",
                "write_batch_size",
                "vae_cache_scan_behaviour",
                "metadata_update_interval",
                "delete_unwanted_images",
                "delete_problematic_images",
                "text_encoder_batch_size",
            )
        },
        **because(NO_EFFECT_RUN["compress_disk_cache"].reason, compress_cache=False),
        **because("every start compares the data index with the files", scan_for_errors=False),
        **because("cache entries are named by content", cache_file_suffix=None, hash_filenames=(False, True)),
        **because("sets are loaded when a run starts", auto_load=(False, True)),
        **because("the files that a table names are on this machine, and nothing is downloaded", csv_cache_dir=None),
        **because("rows are filtered while they are read", num_proc=16),
        **because("missing text is encoded at start-up", text_cache_ondemand=False, text_cache_disable=False),
        **because(
            "they belong to type aws, which a plugin must provide",
            aws_region_name=None,
            aws_endpoint_url=None,
            aws_data_prefix="",
            aws_access_key_id=None,
            aws_secret_access_key=None,
        ),
        **because(
            "there are no image embeddings beside latents",
            image_embeds=None,
            conditioning_image_embeds=None,
            cache_dir_conditioning_image_embeds=None,
            conditioning_image_embed_batch_size=None,
        ),
    },
)

KEYS_OF_TYPE: Mapping[str, tuple[str, ...]] = {
    "parquet": ("parquet", "metadata_backend"),
    "jsonl": ("jsonl", "metadata_backend"),
    "aws": ("aws_bucket_name",),
}
"""Dataset keys that only describe a ``type`` that is not supported: one message names the type for all of them."""
