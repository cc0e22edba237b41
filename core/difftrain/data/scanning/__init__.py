"""From files to :class:`ImageRecord`; a restart reads no unchanged file.

- `scan`: turns one dataset into records; start here
- `survey`: checks what a source lists
- `scan_notes`: what is said of images that cannot be used
- `image_index`: remembers what earlier scans found
- `caption_reading`: captions of many images, for the index
- `index_rows`: rows of the index, checked when read
- `index_file`: the SQLite file of the index
- `focus_points`: what crop styles find in images
- `begun`: begins work before its results are asked for
- `many_files`: works on long lists of files, in threads or processes
- `file_facts`: size, hash and soundness of one file
"""
