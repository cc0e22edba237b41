"""One optimizer step and what it is made of.

- `step`: noise, prediction, loss, backward, update; start here
- `training_state`: the model, its optimizer, and how far it is
- `noise_levels`: noise levels: samplers and the shift
- `losses`: losses
- `tally`: sums over the micro-batches of a step
- `not_finite`: what happens at NaN
- `schedules`: learning-rate schedules
- `optimizers`: optimizers
- `optimizer_state`: an optimizer's state in one file
- `sharding`: tensors that are spread over processes
"""
