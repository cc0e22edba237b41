"""Adapter files of every layout: what is in them, on which modules of a model, and how they are written.

- `tensor_names`: the parts of a tensor's name
- `layer_names`: from the names of layers in files to modules, and back
- `describe_adapter`: what a file is, from its header
- `changes`: what an adapter does to one layer
- `read_changes`: a file as changes of modules
- `first_lora`: the weights that `init_lora` begins with
- `reduce_rank`: any change as the nearest LoRA of a rank
- `layouts`: changes as the tensors of a file
"""
