"""Local files: which images and captions there are, and what is in them.

- `sources`: the data source of local folders; start here
- `local_image`: an image that is a file
- `walk`: one walk over a folder
- `file_types`: what a file is by its name alone
- `image_formats`: formats that can be read here
- `other_files`: files that are not used, counted
- `captions`: where captions come from
- `near_captions`: files that were probably meant as captions
- `utf8`: text files decoded
- `pixels`: images opened, resized and cropped
"""
