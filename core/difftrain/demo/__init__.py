"""Files of ``--demo``: its two config files and its photographs, whose authors and licences are in `SOURCES.md`."""
