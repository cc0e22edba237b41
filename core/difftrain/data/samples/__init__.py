"""From records to samples, before any weight is loaded. Imports no torch.

- `prepare_samples`: all datasets of a run; start here
- `scan_sets`: the scans of all datasets
- `target_set`: the samples of one target set
- `new_crops`: crops that are drawn again in each epoch; pure
- `matching`: finds the reference of each target; pure
- `crop_focus`: what crops are centred on
- `made_images`: reference images that generators make
- `remembered`: the samples that unchanged data gave
- `looking_aside`: looks at some datasets in a second process
- `audit`: problems and notes, in words
- `findings`: collects them
- `flavour_limits`: whether the flavour can take the samples
"""
