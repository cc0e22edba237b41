"""One optimizer step and its parts.

- `step`: noise, prediction, loss, backward, update; start here
- `recorded_steps`: forward and backward as CUDA graphs
- `look_ahead`: prepares the next step's batch while the GPU computes
- `training_state`: the model, its optimizer, and its progress
- `noise_levels`: samplers of noise levels, and the shift
- `losses`: losses
- `tally`: sums over the micro-batches of a step
- `not_finite`: handles NaN and infinity
- `schedules`: learning-rate schedules
- `optimizers`: optimizers
- `optimizer_bytes`: what an optimizer keeps for each trained weight
- `optimizer_state`: an optimizer's state in one file
- `sharding`: tensors that are spread over processes
"""
