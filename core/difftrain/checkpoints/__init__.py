"""Checkpoints: write, rotate, resume.

- `checkpoint_room`: checks that the disk has room
- `saver`: when a run saves, and which checkpoints it keeps
- `gather`: collects trained weights and states from all processes
- `checkpoint_files`: writes and loads a checkpoint
- `resume_state`: what a checkpoint records about its run
"""
