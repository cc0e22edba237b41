"""What makes compiled blocks faster.

- `row_kernels`: torch.compile's kernels over whole rows read each row once
- `row_choices`: which rows; imports torch's inductor
- `compiled_gelu`: GELU without the slow tanh
"""
