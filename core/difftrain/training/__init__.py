"""The training run, from its plan to its exit status.

- `run_training`: the whole run; start here
- `session`: the part that needs torch
- `settle_precision`: decides what `base_model_precision: auto` is on this machine
- `assemble`: fills caches, loads and adapts the model, resumes the state
- `fill_caches`: encodes what caches lack, each process its share
- `adapted_model`: loads the model with its adapter, without a dataset
- `frozen_encoders`: text and image encoders, loaded when needed
- `open_stream`: opens the stream of batches at the run's position
- `tell_data`: how full batches are, and which datasets take part
- `agreement`: checks that all processes see the same
- `fitting`: fits the run to its device before the first step
- `outlined_run`: counts a model without its weights, for `difftrain plan`
- `out_of_memory`: what a run says that ends because memory ran out
- `loop`: steps, checkpoints, validations
- `publish_run`: the model card of a finished run, and its uploads
"""
