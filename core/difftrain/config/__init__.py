"""From config files and flags to checked options; every problem is collected and reported with the others.

- `options`: base class of everything that is configured
- `run_options`: the core's options of a run
- `dataset_options`: the core's options of a dataset entry
- `schema`: the core's options and the plugins', merged
- `config_files`: reads files, and checks the run file; start here
- `dataset_list`: checks the dataset list
- `line_numbers`: the line of each key in its file
- `section`: checks one flat set of keys
- `sorter`: sorts keys into known, foreign and unknown
- `known_keys`: keys and values of other programs' files
- `user_values`: turns texts into values, fills placeholders
- `paths`: paths as users write them
- `optimizer_settings`: `optimizer_config` and the related keys
- `messages`: pydantic's errors in our words
- `problems`: collects problems and notes
"""
