"""Counts what a model does in one forward, by shapes alone.

- `denoiser_work`: one forward of a denoiser, by blocks; start here
- `as_on_gpu`: number formats and fused kernels of GPUs
"""
