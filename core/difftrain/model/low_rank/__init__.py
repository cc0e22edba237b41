"""LoRA, through peft.

- `chosen_modules`: the modules that a config names
- `init_names`: the names of the ways in which a LoRA can begin
- `started`: LoRAs that begin as a part of the weights (PiSSA, OLoRA), over weights that stay as they are
- `lora_file`: the file that other programs load
- `lora`: `lora_type: standard`
"""
