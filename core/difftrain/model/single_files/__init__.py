"""Checkpoints in one file: what is in them, and reading them without holding them.

- `safetensors_header`: what a file holds
- `file_kinds`: what a file is, by the names in it
- `only_file`: the one file of a folder or hub repository
- `weight_file`: a denoiser's weights in one file, also in 8 bits
"""
