"""From dataset entries to batches. Imports no torch before `caching`.

- `entries`: turns dataset entries into a plan; reads nothing
- `files`: local files: images, captions, and other files beside them
- `tables`: Hugging Face sets, and tables of captions
- `scanning`: turns files into records, remembered in an index
- `buckets`: the size at which an image is encoded; pure
- `caption_edits`: changes to captions after they are read
- `samples`: matches, places, captions and audits records to make samples
- `packed`: samples as text and arrays instead of objects
- `caching`: encoded images and captions on disk
- `seeding`: a seed for every random draw; pure
- `streaming`: epochs, batches, and reading them ahead
"""
