"""Attention kernels.

- `choose_kernel`: sets the kernel of a run
- `kernel_trial`: times the kernels on the run's own shapes and finds the wrong ones
- `cudnn_attention`: cuDNN's kernel, in the form that is right in training
"""
