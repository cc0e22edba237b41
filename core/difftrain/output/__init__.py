"""The output of a run: its folder, its metrics, what the user and observers see.

- `output_dir`: the contents of the folder, and how earlier results are kept
- `output_lock`: allows one run at a time in a folder
- `console`: start-up phases and the progress bar
- `observers`: calls the observers; if one fails, the run continues
- `metrics_file`: one line of JSON per step
"""
