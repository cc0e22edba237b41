"""The command line: reads flags, calls a command, prints errors. Imports no model library.

- `main`: chooses the command and prints errors; start here
- `commands`: what each command is for, and its own flags
- `flags`: every run option as a flag
- `help_text`: the text of `--help`
- `demo_flag`: `--demo`, the config and photographs that ship with the program
- `invocation`: the parsed command line
- `train_command`: `difftrain` trains
- `check_command`: `difftrain check` does everything that comes before loading weights
- `check_text`: its output for people
- `plan_command`: `difftrain plan` predicts memory and time for a table of cards
- `forecast_text`: its output
- `cache_command`: `difftrain cache` fills, checks and cleans the caches of a run
- `file_commands`: commands on adapter files
- `adapter_commands`: commands that use a trained adapter
- `sharing`: `difftrain push` uploads the results of a run
- `plugins_command`: `difftrain plugins` lists what is installed
- `rerun_commands`: the commands that resume or repeat a run
"""
