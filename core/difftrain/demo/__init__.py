"""What ``--demo`` trains on: photographs and pairs, shipped as files beside this module (``photos/SOURCES.md``)."""
