"""Checks and runs on models of all kinds, for the tests of flavour recognition."""

KONTEXT, DEV = "black-forest-labs/FLUX.1-Kontext-dev", "black-forest-labs/FLUX.1-dev"
CARD = """---
license: other
base_model:{}
tags: [text-to-image]
---
# A model
"""
"""A model card, to be filled with the models it was made from."""


def check_model(command, edit_pairs, flavour, model, *more, program="check"):
    """Check (or train, with ``program=None``) a flavour on a model and a set of images without references.

    Args:
        command, edit_pairs: The fixtures of these names.
        model: None takes the flavour's own.
    """
    return command(
        *([program] if program else []), "--model", "flux", "--flavour", flavour, "--max_train_steps", 1,
        *(["--pretrained_model_name_or_path", model] if model else []), "--aspect_bucket_alignment", 16,
        "--validation_steps", 0, "--data_backend_config", edit_pairs(references=None), *more,
    )  # fmt: skip
