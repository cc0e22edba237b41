"""Number formats of the frozen weights.

- `quanto`: weights in fewer bits, through optimum-quanto
- `eight_bit_matmul`: weights in 8 bits, and products that run in 8 bits
- `eight_bit_linear`: their layers
"""
