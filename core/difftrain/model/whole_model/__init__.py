"""Training of the denoiser itself, and its files.

- `full`: all weights of the model, as ``model_type: full`` trains them; start here
- `write_model`: a model's weights and config as diffusers saves them
"""
