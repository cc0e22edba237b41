"""What a run and `difftrain check` share: everything that comes before loading weights. Imports no torch.

- `prepare_run`: the whole start-up; start here
- `find_model`: finds the model and recognises its weights
- `encoded_form`: number formats, cache keys and sizes of encoded images and captions
- `run_length`: steps and epochs of a run
- `validated`: what validations use of the data
- `data_forecast`: an epoch, its shapes and the size of the caches, for a forecast
- `batch_shape`: the largest batch and the length of a run, for a forecast; writes nothing
"""
