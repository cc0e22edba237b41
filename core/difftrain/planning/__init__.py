"""The plan of a run: turns names into objects, from config files only. Imports no torch.

- `run_plan`: the plan; start here
- `model_plan`: the part of it that needs no dataset
- `combinations`: options that do not go together, and the nearest that do
- `auto_precision`: the rule of `base_model_precision: auto`
- `prompts`: validation prompts
- `forecast`: memory, time and the best setting of a run for a table of cards
"""
