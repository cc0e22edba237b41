"""Local files: which images and captions exist, and what they contain.

- `sources`: the data source of local folders; start here
- `local_image`: an image stored as a file
- `walk`: one walk over a folder
- `folder_digest`: tells whether anything in a folder has changed
- `file_types`: the type of a file, from its name alone
- `image_formats`: the formats that can be read
- `other_files`: counts files that are not used
- `captions`: caption sources
- `near_captions`: files that were probably meant as captions
- `utf8`: decodes text files
- `pixels`: opens, resizes and crops images
- `plain_headers`: sizes of ordinary files without Pillow
"""
