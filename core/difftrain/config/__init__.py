"""From config files and flags to checked options; every problem is kept and told with the others.

- `options`: base class of everything that is configured
- `run_options`: the core's options of a run
- `dataset_options`: the core's options of a dataset entry
- `schema`: these and the plugins' options, merged
- `config_files`: reads the run file and the dataset list; start here
- `line_numbers`: where each key stands in its file
- `section`: checks one flat set of keys
- `sorter`: known, foreign and unknown keys
- `known_keys`: keys and values of other programs' files
- `user_values`: texts to values, placeholders
- `paths`: paths as users write them
- `optimizer_settings`: `optimizer_config` and the keys beside it
- `messages`: pydantic's errors in our words
- `problems`: collects problems and notes
"""
