"""What a run and `difftrain check` share: everything up to the first weight. Imports no torch.

- `prepare_run`: all of it; start here
- `find_model`: where the model is and what it is
- `encoded_form`: number formats, cache keys and bytes of what is encoded
- `run_length`: steps and epochs of a run
"""
