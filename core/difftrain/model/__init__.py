"""The model: its files, its weights, its adapter, its number formats.

- `diffusers_folder`: folders in diffusers layout
- `diffusers_files`: a family's files in that layout
- `hub`: files on the Hugging Face hub
- `flavour_match`: checks that weights are the flavour's
- `shards`: reads weights one by one
- `single_files`: checkpoints in one file
- `quiet_loading`: keeps libraries quiet while they load a part
- `load_denoiser`: loads the denoiser tensor by tensor
- `precision`: number formats of the frozen weights
- `counting`: counts what a forward does and keeps, without weights
- `fused`: frozen layers that share their input
- `shared_input`: linear layers called together
- `same_weights`: compares a checkpoint's weights with a run's
- `low_rank`: LoRA, through peft
- `lycoris`: LoKr, LoHa and full changes through lycoris-lora
- `whole_model`: all weights of the model itself, and its files
- `adapter_files`: adapter files of every layout
- `attention`: attention kernels
- `compiled`: what makes compiled blocks faster
- `tuned_blocks`: blocks that are compiled, and that keep or recompute activations
- `block_swapping`: blocks whose weights wait in the host's memory
- `gpu_memory`: how much of a GPU's memory a process can have
- `pipeline_sampler`: validation images through a diffusers pipeline
- `tensor_file`: named tensors in one file
"""
