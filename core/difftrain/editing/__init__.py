"""Editing images with an adapter that was trained: a grid of results, a sheet of all, and how close they come.

- `asked_edit`: what the command line asks for
- `find_adapter`: the weights to use, and what their run recorded
- `model_of_adapter`: the model that they are for
- `images_to_edit`: the images, their instructions and their targets
- `plan_edit`: all of it, checked before a model is loaded; start here
- `draw_edits`: loads the model and draws
- `column_weights`: puts the weights of a column of results into the model
- `measure_edits`: how close a result comes to its target
- `lpips_distance`: LPIPS, where its network is on the machine already
- `edit_results`: the sheet and the metrics file
"""
