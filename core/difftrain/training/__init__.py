"""The training run, from its plan to its exit status.

- `run_training`: the whole run; start here
- `session`: the part that needs torch
- `assemble`: fills caches, loads and adapts the model, resumes the state
- `adapted_model`: loads the model with its adapter, without a dataset
- `frozen_encoders`: text and image encoders, loaded when needed
- `open_stream`: opens the stream of batches at the run's position
- `agreement`: checks that all processes see the same
- `fit_to_device`: chooses kernels, compiles, and decides what is recomputed
- `choose_swapping`: decides which blocks wait in the host's memory
- `record_steps`: decides whether steps are recorded as CUDA graphs
- `outlined_run`: counts a model without its weights, for `difftrain plan`
- `warm_up`: compiles for each shape of batches
- `make_room`: lets a step that runs out of memory be taken again
- `loop`: steps, checkpoints, validations
"""
