"""LyCORIS adapters (LoKr, LoHa, ...), through the library lycoris-lora and the users' own ``lycoris_config`` files.

- `lycoris_file`: reads and checks such a file, without torch
- `choose_modules`: which modules of a model it adapts, and how; pure
- `adapted_linear`: a linear layer with its trained change
- `fold_strength`: strengths put into the factors of a saved change
- `adapter`: `lora_type: lycoris`
"""
