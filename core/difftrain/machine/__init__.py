"""What the machine gives: files, disk, processes, signals. Knows nothing of models or datasets.

- `processes`: several processes of one run
- `interrupts`: signals: finish the step, save, exit
- `disk`: room on disk
- `folders`: whether a folder can be written
- `open_file`: opens files and images; whatever fails is an OSError
- `retries`: tries again when the system refuses for a moment
"""
