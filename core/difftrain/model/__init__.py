"""The model: its files, its weights, its adapter, its number formats.

- `diffusers_folder`: folders in diffusers layout
- `diffusers_files`: a family's files in that layout
- `hub`: files on the Hugging Face hub
- `flavour_match`: whether weights are those of the flavour
- `shards`: weights read one by one
- `quiet_loading`: keeps libraries quiet while they load a part
- `load_denoiser`: the denoiser, loaded tensor by tensor
- `quantization`: frozen weights in fewer bits
- `attention`: which attention kernel torch uses
- `lora`: LoRA, through peft
- `pipeline_sampler`: validation images through a diffusers pipeline
- `tensor_file`: named tensors in one file
"""
