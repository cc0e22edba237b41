"""From samples to the batches of each step; the position in them can be saved.

- `epoch`: what one epoch shows, in batches; pure
- `rounds`: batches dealt to steps and processes; pure
- `sample_extras`: what losses and families ask of each sample
- `batch_reader`: visits to cached tensors
- `stream`: micro-batches, read ahead
"""
