"""The command line: reads flags, calls a command, prints errors. Imports no model library.

- `main`: which command, and what an error looks like; start here
- `flags`: every run option as a flag
- `help_text`: the text of `--help`
- `demo_flag`: `--demo`: the shipped config and photographs
- `invocation`: the command line, read
- `train_command`: `difftrain`: trains
- `check_command`: `difftrain check`: everything up to the first weight
- `plugins_command`: `difftrain plugins`: what is installed
- `rerun_commands`: what to type to resume or repeat a run
"""
