"""Predicts memory, time and the best setting of a run for a table of cards. Numbers alone: no torch, no GPU.

- `choose`: the best setting for a card; start here
- `modes`: how a run computes: precision, compiled or not, what is recomputed
- `memory`: bytes at the peak of a step
- `seconds`: time of a step
- `cards`: memory and rates of cards, from their makers' data sheets
"""
