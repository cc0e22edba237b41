"""Trained adapters as files for other programs, and what files of other programs are.

- `adapter_source`: what is exported: a run, a checkpoint or a file; its family and model
- `identified`: what a file or folder is
- `changed_texts`: what the header says when the weights have become others
- `compare_changes`: whether two sets of changes do the same
- `room`: where there is room for a model whose predictions are compared
- `prediction`: what the model predicts with the run's adapter, and with a written file
- `trained_model`: a model that was trained as a whole, or its difference from the base as a LoRA
- `check_merged`: whether a merged model's weights are the base model's with the changes added
- `merge`: the changes in the model's own weights, as a folder
- `write_export`: writes under a temporary name, checks, renames
"""
