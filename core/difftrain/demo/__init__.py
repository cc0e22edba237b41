"""Files of ``--demo``: two config files, and photographs whose authors and licences are in `SOURCES.md`."""
