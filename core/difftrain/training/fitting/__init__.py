"""Fits a run to its device before the first step; start with `fit_to_device`.

- `fit_to_device`: chooses kernels, compiles, and decides what is recomputed
- `choose_swapping`: decides which blocks wait in the host's memory
- `warm_up`: compiles for each shape of batches
- `room_to_encode`: measures what encoding beside a step takes
- `make_room`: lets a step that runs out of memory be taken again
- `record_steps`: decides whether steps are recorded as CUDA graphs
"""
