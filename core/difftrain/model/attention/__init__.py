"""Attention kernels.

- `kernel_names`: the kernels that a config may name
- `choose_kernel`: sets the kernel of a run
- `kernel_trial`: times the kernels on the run's own shapes and finds the wrong ones
- `own_kernels`: kernels that torch does not choose itself, and how models get them
- `cudnn_attention`: cuDNN's kernel, in the form that is right in training
- `flash4_attention`: FlashAttention-4, an extra
"""
