"""What a run gives: its output folder, its metrics, what the user and observers see.

- `output_dir`: what lies in the folder, and how earlier results are kept
- `output_lock`: one run at a time in a folder
- `console`: start-up phases and the progress bar
- `observers`: observers of plugins, each behind a fence
- `metrics_file`: a line of JSON a step
"""
