"""Checkpoints: written, rotated, resumed.

- `checkpoint_room`: whether the disk has room
- `saver`: when a run saves, and what it keeps
- `gather`: trained weights and states, collected from all processes
- `checkpoint_files`: a checkpoint written and loaded
- `resume_state`: what a checkpoint says of its run
"""
