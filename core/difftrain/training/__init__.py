"""The training run, from its plan to its exit status.

- `run_training`: the whole run; start here
- `session`: the part that needs torch
- `assemble`: caches filled, model loaded and adapted, state resumed
- `adapted_model`: the model with its adapter, without a dataset
- `frozen_encoders`: text and image encoders, loaded when needed
- `open_stream`: which stream of batches, opened where the run stands
- `agreement`: whether all processes see the same
- `loop`: steps, checkpoints, validations
"""
