"""Samples as text and arrays instead of objects: some 400 bytes a pair in place of 1,900.

- `packed_samples`: a sequence of samples that makes each one when asked; start here
- `packed_images`: images as plain rows, and back
- `sample_table`: what the plan of an epoch needs of samples, as arrays
"""
