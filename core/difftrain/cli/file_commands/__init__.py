"""Commands that work on adapter files: they name the file or folder as a plain word.

- `export_command`: `difftrain export` writes an adapter for another program
- `identify_command`: `difftrain identify` says what a file or folder is
"""
