"""What a run tells others: facts in its files, a model card, uploads to the hub. Nothing private, by choice of facts.

- `hub_account`: checks before the run that it may upload
- `run_facts`: the facts of a run that anyone may know
- `file_metadata`: writes them into the headers of weight files
- `card_text`: the text of the model card
- `model_card`: writes it beside the adapter, with images
- `uploaded_files`: which files of an output folder are uploaded
- `hub_uploads`: uploads beside the training and after it
"""
