"""The pair doctor of `difftrain check`: looks at pairs as a person would, before anything is trained. Imports no torch.

- `examine`: everything about the pairs of a run; start here
- `kinds`: every kind of finding, worst first
- `pairs`: a target image beside one of its references
- `record_findings`: what sizes and captions tell
- `instructions`: whether a caption describes an image instead of an edit
- `pixel_pass`: compares the pixels of every pair, in parallel
- `compare`: the comparison of one pair
- `alignment`: shift and zoom between two images
- `measures`: what comparing found, kept between runs by content
- `pixel_findings`: what the pixels tell
- `page_rows`: the data of the HTML page
- `page`: writes it, from the parts in the folder page_files
"""
