"""Commands that use an adapter after its training.

- `edit_flags`: its flags
- `edit_command`: `difftrain edit` edits images with it
"""
