"""What a run tells others: facts in its files, a model card, uploads to the hub. Nothing private, by choice of facts.

- `run_facts`: the facts of a run that anyone may know
- `file_metadata`: writes them into the headers of weight files
"""
