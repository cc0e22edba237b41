"""The commands that give results to others.

- `push_command`: uploads a run to the hub
"""
