"""Number formats of the frozen weights.

- `quanto`: weights in fewer bits, quantised by optimum-quanto
- `torchao`: weights in 8 bits, quantised by torchao
- `bitsandbytes`: weights in 4 bits, quantised by bitsandbytes
- `weight_only_linear`: the layers of these three
- `eight_bit_matmul`: weights in 8 bits, and products that run in 8 bits
- `eight_bit_linear`: their layers
- `int8_product`: their int8 product, one op
- `int8_kernel`: its kernel
- `stored_weight`: what the layers give adapters that look at weights
- `quantise_encoders`: quantises models that are already loaded
- `optional_package`: packages that only some precisions need
"""
