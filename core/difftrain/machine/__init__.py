"""The machine: files, disk, processes, signals. Knows nothing of models or datasets.

- `processes`: several processes of one run
- `interrupts`: on a signal, finish the step, save, exit
- `compile_cache`: where compiled code is kept between runs
- `disk`: checks for room on disk
- `garbage`: phases without collections of garbage, and memory given back after them
- `folders`: checks that a folder can be written
- `open_file`: opens files and images; every failure is an OSError
- `retries`: tries again if the system fails for a moment
"""
