"""From files to :class:`ImageRecord`; a restart reads no unchanged file.

- `scan`: one dataset to records; start here
- `survey`: what a source lists, checked
- `image_index`: what earlier scans found
- `index_file`: the SQLite file of the index
- `file_facts`: size, hash and soundness of one file
"""
