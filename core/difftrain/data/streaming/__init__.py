"""From samples to the batches of each step; the position in them can be saved.

- `set_rules`: how each dataset takes part
- `draws`: random numbers of visits, for whole epochs at once
- `shelf_windows`: keeps together what is stored together; pure
- `epoch`: the samples of one epoch, in batches; pure
- `epoch_plan`: visits, and the batches of an epoch
- `rounds`: deals batches to steps and processes; pure
- `coming_batches`: the shapes that batches of a run will have
- `sample_extras`: extra tensors that losses and families ask of each sample
- `batch_reader`: reads the cached tensors of visits
- `stream`: micro-batches, read ahead
"""
